"""What processes cost: CPU seconds and resident memory, read from the system."""

import os
import sys
from collections.abc import Iterable

import psutil

MIB = 1 << 20

#: In the environment of all processes of one measurement, so that those which left the family are found as well.
MARK = "BENCHMARK_MARK"


def family() -> list[psutil.Process]:
    """Return this process, its descendants, and whoever carries its mark."""
    me = psutil.Process()
    found = {process.pid: process for process in [me, *me.children(recursive=True), *marked(os.environ.get(MARK))]}
    return list(found.values())


def marked(mark: str | None) -> list[psutil.Process]:
    """Return all processes with `mark` in their environment."""
    return [process for process in psutil.process_iter() if mark and _mark_of(process) == mark]


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """Return the CPU time that `processes` have used so far, of user and of system."""
    return sum(_cpu_seconds(process) for process in processes)


def rss_bytes(pid: int | None = None) -> int:
    """Return the resident memory of `pid`, by default of this process."""
    return psutil.Process(pid).memory_info().rss  # type: ignore[no-any-return]


def pss_bytes(processes: Iterable[psutil.Process]) -> int:
    """Return the memory of `processes` together, in which a shared page counts once."""
    return sum(_pss_bytes(process) for process in processes)


def machine_busy_share(window_s: float) -> float:
    """Return which share of all CPUs was busy in the next `window_s` seconds."""
    return float(psutil.cpu_percent(interval=window_s)) / 100


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except psutil.Error:
        return None


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _pss_bytes(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except psutil.Error:
        return 0
    return int(memory.pss if sys.platform == "linux" else memory.uss)
