"""Many calls that do nothing: how fast do they pass, and what does the client keep of them?"""

import os
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from benchmarks import calls
from benchmarks.cases.base import Case, Column, Metrics, Sizes
from benchmarks.cases.warming import start_warm
from benchmarks.peers.base import Peer

#: Rounds of which the best is reported by each process; the report takes medians over the processes.
ROUNDS = 2
BUFFERSIZE = 10_000
#: Heavy enough that keeping all of them would show.
ITEM_BYTES = 200
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MIB = 1 << 20


def submit_noops(peer: Peer, n: int) -> Metrics:
    """Submit `n` calls at once, then take all results."""
    start_warm(peer)
    peer.results([peer.submit(calls.noop) for _ in range(n // 10)])
    return {"calls_per_s": n / min(_submit_round_s(peer, n) for _ in range(ROUNDS))}


def map_noops(peer: Peer, n: int) -> Metrics:
    """Map over `range(n)` and take all results in order."""
    start_warm(peer)
    _drain(peer.map(calls.noop, range(n // 10)))
    return {"items_per_s": n / min(_map_round_s(peer, n) for _ in range(ROUNDS))}


def map_with_buffersize(peer: Any, n: int) -> Metrics:
    """Map over a generator with `buffersize`, `n / 4` items, then `n`: the client must not grow with the input."""
    start_warm(peer)
    _peak_growth_mib(peer, n // 20)
    quarter = _peak_growth_mib(peer, n // 4)
    started = time.perf_counter()
    whole = _peak_growth_mib(peer, n)
    return {"quarter_mib": quarter, "peak_mib": whole, "items_per_s": n / (time.perf_counter() - started)}


def _submit_round_s(peer: Peer, n: int) -> float:
    started = time.perf_counter()
    peer.results([peer.submit(calls.noop) for _ in range(n)])
    return time.perf_counter() - started


def _map_round_s(peer: Peer, n: int) -> float:
    started = time.perf_counter()
    _drain(peer.map(calls.noop, range(n)))
    return time.perf_counter() - started


def _drain(results: Any) -> None:
    deque(results, maxlen=0)


def _peak_growth_mib(peer: Any, n: int) -> float:
    before, peak = _rss_bytes(), 0
    for index, _ in enumerate(peer.executor.map(calls.noop, _items(n), buffersize=BUFFERSIZE)):
        if index % 1_000 == 0:
            peak = max(peak, _rss_bytes())
    return max(0, peak - before) / _MIB


def _items(n: int) -> Iterator[bytes]:
    return (index.to_bytes(ITEM_BYTES, "big") for index in range(n))


def _rss_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * _PAGE_BYTES


_ALL = ("ours", "process-pool", "mp-pool", "loky", "dask", "ray", "ray-pool", "parsl", "celery", "redis-loop")
_MAPPERS = ("ours", "process-pool", "mp-pool", "loky", "dask", "ray-pool", "celery")

CASES = [
    Case(
        name="submit",
        title="No-op `submit` and `result`, all at once",
        run=submit_noops,
        sizes=Sizes(10_000, 10_000, 10_000, 2_000),
        columns=(Column("calls_per_s", "calls/s", "{:,.0f}", more_is_better=True),),
        peers=_ALL,
        note=f"The best of {ROUNDS} rounds in one process, after a warm-up.",
    ),
    Case(
        name="map",
        title="No-op `map`",
        run=map_noops,
        sizes=Sizes(1_000_000, 1_000_000, 1_000_000, 100_000),
        columns=(Column("items_per_s", "items/s", "{:,.0f}", more_is_better=True),),
        peers=_MAPPERS,
        note="Each peer maps in the way that its manual advises for many small items. Ours gets no hint.",
    ),
    Case(
        name="map_buffersize",
        title="`map` over a generator, `buffersize=10_000`: growth of the client",
        run=map_with_buffersize,
        sizes=Sizes.same(1_000_000, 200_000),
        columns=(
            Column("peak_mib", "peak growth, MiB", "{:,.1f}"),
            Column("quarter_mib", "at a quarter of the items, MiB", "{:,.1f}"),
            Column("items_per_s", "items/s", "{:,.0f}", more_is_better=True),
        ),
        peers=("ours",),
        note=f"Items of {ITEM_BYTES} bytes. The peers take all input at once.",
    ),
]
