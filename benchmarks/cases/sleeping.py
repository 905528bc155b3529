"""Calls that sleep: which share of the time do the workers spend in calls?

The ideal is the sum of the sleeps divided by the workers, where a sleep counts as long as it takes in one process
that does nothing else: `time.sleep(0.001)` takes some 1.06 ms.
"""

import random
import time
from functools import partial

from benchmarks import calls
from benchmarks.cases.base import WORKERS, Case, Column, Metrics, Sizes
from benchmarks.cases.warming import start_warm
from benchmarks.peers.base import Peer

SHORT_S, LONG_S = 0.001, 1.0
#: In the mixed case, short calls for each long one.
SHORT_PER_LONG = 100
SEED = 1


def equal_sleeps(peer: Peer, n: int, seconds: float) -> Metrics:
    """Submit `n` calls that sleep `seconds`; return ideal time over real time."""
    ideal_s = n * sleep_itself_s(seconds) / WORKERS
    start_warm(peer)
    return {"efficiency": ideal_s / _makespan_s(peer, [seconds] * n)}


def mixed_sleeps(peer: Peer, n: int) -> Metrics:
    """Submit short and long sleeps in random order; return what the makespan has beyond the ideal."""
    sleeps_s = _mixture(n)
    short = sleep_itself_s(SHORT_S)
    ideal_s = sum(short if seconds == SHORT_S else seconds for seconds in sleeps_s) / WORKERS
    start_warm(peer)
    return {"tail_s": _makespan_s(peer, sleeps_s) - ideal_s}


def sleep_itself_s(seconds: float) -> float:
    """Return how long `time.sleep(seconds)` takes on average in this process alone."""
    rounds = max(1, min(200, int(0.5 / seconds)))
    started = time.perf_counter()
    for _ in range(rounds):
        time.sleep(seconds)
    return (time.perf_counter() - started) / rounds


def _makespan_s(peer: Peer, sleeps_s: list[float]) -> float:
    started = time.perf_counter()
    peer.results([peer.submit(calls.sleep, seconds) for seconds in sleeps_s])
    return time.perf_counter() - started


def _mixture(n_long: int) -> list[float]:
    sleeps_s = [LONG_S] * n_long + [SHORT_S] * (n_long * SHORT_PER_LONG)
    random.Random(SEED).shuffle(sleeps_s)
    return sleeps_s


_PEERS = ("ours", "process-pool", "mp-pool", "loky", "dask", "ray", "ray-pool", "parsl", "celery")
_EFFICIENCY = (Column("efficiency", "share of ideal", "{:.3f}", more_is_better=True),)


def _equal(name: str, title: str, seconds: float, sizes: Sizes) -> Case:
    return Case(name, title, partial(equal_sleeps, seconds=seconds), sizes, _EFFICIENCY, _PEERS)


CASES = [
    _equal("sleep_1ms", "Calls of 1 ms", 0.001, Sizes(4_000, 1_000, 2_000, 500)),
    _equal("sleep_10ms", "Calls of 10 ms", 0.010, Sizes.same(600, 200)),
    _equal("sleep_1s", "Calls of 1 s", 1.0, Sizes.same(8, 4)),
    Case(
        name="sleep_mixed",
        title="Calls of 1 ms and of 1 s, mixed",
        run=mixed_sleeps,
        sizes=Sizes.same(6, 4),
        columns=(Column("tail_s", "beyond the ideal, s", "{:.3f}", comparable=False),),
        peers=_PEERS,
        note=f"{SHORT_PER_LONG} calls of 1 ms for each of 1 s, in one random order for all; n counts the long ones.",
    ),
]
