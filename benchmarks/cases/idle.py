"""What a started peer costs while nobody calls: CPU and memory."""

import os
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.cases.base import Case, Column, Metrics, Sizes
from benchmarks.cases.warming import start_warm, worker_ids
from benchmarks.peers.base import Peer

SETTLE_S = 1.0
MIB = 1 << 20


def idle(peer: Peer, n: int) -> Metrics:
    """Do nothing for `n` seconds with warm workers."""
    from benchmarks import processes

    start_warm(peer)
    ids = worker_ids(peer, 1)
    time.sleep(SETTLE_S)
    family = processes.family()
    before = processes.cpu_seconds(family)
    time.sleep(n)
    cpu_percent = (processes.cpu_seconds(family) - before) / n * 100
    return {"cpu_percent": cpu_percent, "processes": len(family)} | _memory(family[1:], ids)


def _memory(others: Sequence[Any], ids: set[tuple[int, int]]) -> Metrics:
    from benchmarks import processes

    child, parent = max(ids, key=lambda pair: processes.rss_bytes(pair[0]))
    memory = {"child_rss_mib": processes.rss_bytes(child) / MIB, "others_pss_mib": processes.pss_bytes(others) / MIB}
    if parent != os.getpid():
        memory["parent_rss_mib"] = processes.rss_bytes(parent) / MIB
    return memory


CASES = [
    Case(
        name="idle",
        title="Idle with two warm workers",
        run=idle,
        sizes=Sizes.same(10, 4),
        columns=(
            Column("child_rss_mib", "worker process, RSS MiB", "{:,.0f}"),
            Column("parent_rss_mib", "its parent, RSS MiB", "{:,.0f}"),
            Column("others_pss_mib", "all but the client, PSS MiB", "{:,.0f}"),
            Column("cpu_percent", "CPU, % of one core", "{:.1f}"),
            Column("processes", "processes", "{:.0f}"),
        ),
        peers=("ours", "process-pool", "mp-pool", "loky", "dask", "ray", "ray-pool", "parsl", "celery", "redis-loop"),
        note="The parent is shown where it is not the client itself. n is the length of the idle time in seconds.",
    ),
]
