"""A started peer is not yet a warm one: workers boot, pools connect, caches fill."""

import time

from benchmarks import calls
from benchmarks.cases.base import WORKERS
from benchmarks.peers.base import Peer

WARM_TIMEOUT_S = 60.0


def start_warm(peer: Peer) -> None:
    """Start `peer` and return when each of its workers has run calls."""
    peer.start(WORKERS)
    peer.results([peer.submit(calls.warm_up, 0.02) for _ in range(4 * WORKERS)])
    worker_ids(peer, 1 if peer.single_worker else WORKERS)


def worker_ids(peer: Peer, workers: int) -> set[tuple[int, int]]:
    """Return (process, parent) of each worker, once `workers` of them have answered.

    Raises:
        TimeoutError: Fewer have answered within `WARM_TIMEOUT_S`.
    """
    deadline = time.monotonic() + WARM_TIMEOUT_S
    seen: set[tuple[int, int]] = set()
    while len(seen) < workers:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(seen)} of {workers} workers have answered within {WARM_TIMEOUT_S:.0f} s")
        answers = peer.results([peer.submit(calls.process_ids, 0.05) for _ in range(2 * workers)])
        seen.update((child, parent) for child, parent in answers)
    return seen
