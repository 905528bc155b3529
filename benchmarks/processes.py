"""What processes cost, and who belongs to a measurement.

The runner is the "subreaper" of everything below it: a process that leaves its parent becomes the runner's child
rather than that of process 1. So its descendants are the measurement, daemons included.
"""

import ctypes
import os
import sys
from collections.abc import Iterable

import psutil

#: In the environment of a measurement: process id of the runner.
RUNNER = "BENCHMARK_RUNNER"
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Make this process the parent of those below it whose own parent ends.

    Raises:
        OSError: Not on Linux.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform != "linux" or library.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the benchmarks need Linux: orphans cannot be adopted here")


def family() -> list[psutil.Process]:
    """Return the processes of this measurement, this one first."""
    me = psutil.Process()
    runner = psutil.Process(int(os.environ.get(RUNNER, me.pid)))
    return [me, *(process for process in runner.children(recursive=True) if process.pid != me.pid)]


def end_descendants(grace_s: float) -> None:
    """End all processes below this one: ask, wait for `grace_s` seconds, kill."""
    leftovers = psutil.Process().children(recursive=True)
    for process in leftovers:
        _signal(process, "terminate")
    for process in psutil.wait_procs(leftovers, timeout=grace_s)[1]:
        _signal(process, "kill")
    _bury()


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """Return the CPU time that `processes` have used so far, of user and of system."""
    return sum(_cpu_seconds(process) for process in processes)


def rss_bytes(pid: int | None = None) -> int:
    """Return the resident memory of `pid`, by default of this process."""
    return int(psutil.Process(pid).memory_info().rss)


def pss_bytes(processes: Iterable[psutil.Process]) -> int:
    """Return the memory of `processes` together, in which a shared page counts once."""
    return sum(_pss_bytes(process) for process in processes)


def machine_busy_share(window_s: float) -> float:
    """Return which share of all CPUs was busy in the next `window_s` seconds."""
    return float(psutil.cpu_percent(interval=window_s)) / 100


def _signal(process: psutil.Process, verb: str) -> None:
    try:
        getattr(process, verb)()
    except psutil.NoSuchProcess:
        pass


def _bury() -> None:
    """Take the exit codes of adopted children that have ended, so that no zombie stays."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _pss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0
