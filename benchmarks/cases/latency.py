"""One call there and back, alone: at once after another, and after a pause."""

import statistics
import time

from benchmarks import calls
from benchmarks.cases.base import Case, Column, Metrics, Sizes
from benchmarks.cases.warming import start_warm
from benchmarks.peers.base import Peer

GAP_S = 0.010
WARM_UP_CALLS = 50


def back_to_back(peer: Peer, n: int) -> Metrics:
    """Send the next call when the last one is back."""
    start_warm(peer)
    _durations_s(peer, WARM_UP_CALLS, gap_s=0)
    return _percentiles_ms(_durations_s(peer, n, gap_s=0))


def paced(peer: Peer, n: int) -> Metrics:
    """Let each call start `GAP_S` after the last one came back, when all threads have gone to sleep."""
    from benchmarks import processes

    start_warm(peer)
    _durations_s(peer, WARM_UP_CALLS, gap_s=GAP_S)
    family = processes.family()
    before = processes.cpu_seconds(family)
    durations = _durations_s(peer, n, gap_s=GAP_S)
    cpu_ms = (processes.cpu_seconds(family) - before) * 1_000
    return _percentiles_ms(durations) | {"cpu_ms_per_call": cpu_ms / n}


def _durations_s(peer: Peer, n: int, gap_s: float) -> list[float]:
    return [_one_call_s(peer, gap_s) for _ in range(n)]


def _one_call_s(peer: Peer, gap_s: float) -> float:
    if gap_s:
        time.sleep(gap_s)
    started = time.perf_counter()
    peer.submit(calls.noop).result()
    return time.perf_counter() - started


def _percentiles_ms(durations_s: list[float]) -> Metrics:
    percentiles = statistics.quantiles(durations_s, n=100, method="inclusive")
    return {"p50_ms": percentiles[49] * 1_000, "p99_ms": percentiles[98] * 1_000}


_PEERS = ("ours", "process-pool", "mp-pool", "loky", "dask", "ray", "ray-pool", "parsl", "celery", "redis-loop")
_PERCENTILES = (Column("p50_ms", "p50, ms"), Column("p99_ms", "p99, ms"))

CASES = [
    Case(
        name="round_trip",
        title="One call there and back, back to back",
        run=back_to_back,
        sizes=Sizes(2_000, 500, 1_000, 200),
        columns=_PERCENTILES,
        peers=_PEERS,
    ),
    Case(
        name="paced",
        title="One call there and back, 10 ms apart",
        run=paced,
        sizes=Sizes.same(500, 150),
        columns=(*_PERCENTILES, Column("cpu_ms_per_call", "CPU of all processes, ms a call")),
        peers=_PEERS,
    ),
]
