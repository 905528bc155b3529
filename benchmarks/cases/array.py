"""A large array there and back."""

import statistics
import time
from typing import Any

from benchmarks import calls
from benchmarks.cases.base import Case, Column, Metrics, Sizes
from benchmarks.cases.warming import start_warm
from benchmarks.peers.base import Peer

ARRAY_BYTES = 64 << 20


def array_there_and_back(peer: Peer, n: int) -> Metrics:
    """Echo the array `n` times, each time with other content, so that nothing can be remembered."""
    import numpy

    start_warm(peer)
    array = numpy.random.default_rng(1).random(ARRAY_BYTES // 8)
    durations_s = [_round_s(peer, array, index) for index in range(n + 1)][1:]
    return {"median_s": statistics.median(durations_s), "best_s": min(durations_s)}


def _round_s(peer: Peer, array: Any, index: int) -> float:
    array[0], array[-1] = index, -index
    started = time.perf_counter()
    back = peer.submit(calls.echo, array).result()
    duration_s = time.perf_counter() - started
    if back.shape != array.shape or back[0] != index or back[-1] != -index:
        raise ValueError("the array came back changed")
    return duration_s


CASES = [
    Case(
        name="array",
        title="A numpy array of 64 MiB there and back",
        run=array_there_and_back,
        sizes=Sizes.same(7, 3),
        columns=(Column("median_s", "median, s", "{:.3f}"), Column("best_s", "best, s", "{:.3f}")),
        peers=(
            "ours",
            "ours-redis",
            "process-pool",
            "mp-pool",
            "loky",
            "dask",
            "ray",
            "ray-pool",
            "parsl",
            "celery",
            "redis-loop",
        ),
    ),
]
