"""How long a program waits for its first result."""

import time

from benchmarks import calls
from benchmarks.cases.base import WORKERS, Case, Column, Metrics, Sizes
from benchmarks.peers.base import Peer


def start_to_first_result(peer: Peer, n: int) -> Metrics:
    """Start, send one call, and wait for it, in this fresh interpreter; `n` is 1."""
    started = time.perf_counter()
    peer.start(WORKERS)
    for _ in range(n):
        peer.submit(calls.noop).result()
    first_s = time.perf_counter() - started
    peer.stop()
    return {"start_s": first_s, "stop_s": time.perf_counter() - started - first_s}


CASES = [
    Case(
        name="start",
        title="Start to first result",
        run=start_to_first_result,
        sizes=Sizes.same(1, 1),
        columns=(
            Column("start_s", "to first result, s"),
            Column("load_s", "import before it, s"),
            Column("stop_s", "stop after it, s"),
        ),
        peers=("ours", "process-pool", "mp-pool", "loky", "dask", "ray", "ray-pool", "parsl", "celery", "redis-loop"),
        note="A fresh interpreter, from before the constructor.",
    ),
]
