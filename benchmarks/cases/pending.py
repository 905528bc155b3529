"""What a call costs in the client while it waits."""

import gc
import os
import tempfile
import time

from benchmarks import calls
from benchmarks.cases.base import WORKERS, Case, Column, Metrics, Sizes
from benchmarks.cases.warming import start_warm
from benchmarks.peers.base import Peer

#: A feeder thread may still be at work when the last `submit` returns.
SETTLE_S = 0.5


def pending_calls(peer: Peer, n: int) -> Metrics:
    """Hold all workers, submit `n` calls, and look at the client.

    The workers stay held: whoever called ends the peer without waiting for `n` calls.
    """
    from benchmarks.processes import family, pss_bytes, rss_bytes

    start_warm(peer)
    gate = os.path.join(tempfile.mkdtemp(prefix="gate-"), "open")
    handles = [peer.submit(calls.wait_for_file, gate) for _ in range(WORKERS)]
    time.sleep(SETTLE_S)
    gc.collect()
    others = family()[1:]
    before, elsewhere, started = rss_bytes(), pss_bytes(others), time.perf_counter()
    handles += [peer.submit(calls.noop) for _ in range(n)]
    submit_us = (time.perf_counter() - started) / n * 1e6
    time.sleep(SETTLE_S)
    grown, grown_elsewhere = rss_bytes() - before, pss_bytes(others) - elsewhere
    return {"bytes_per_call": grown / n, "elsewhere_per_call": grown_elsewhere / n, "submit_us": submit_us}


CASES = [
    Case(
        name="pending",
        title="Pending calls in the client",
        run=pending_calls,
        sizes=Sizes(1_000_000, 200_000, 50_000, 10_000),
        columns=(
            Column("bytes_per_call", "bytes a call", "{:,.0f}"),
            Column("elsewhere_per_call", "bytes a call in all other processes", "{:,.0f}"),
            Column("submit_us", "`submit`, µs", "{:,.1f}"),
        ),
        peers=("ours", "process-pool", "mp-pool", "loky", "dask", "ray", "parsl", "celery"),
        note="Growth of the client's RSS, and of the PSS of all else, while both workers are held.",
    ),
]
