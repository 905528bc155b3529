"""Starting and ending processes, for the supervisor: one thread, no heavy imports.

On Linux the supervisor is a *subreaper*: whoever loses its parent below it becomes its child, so that nothing that a
killed worker leaves behind gets out of sight. Elsewhere only process groups are killed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import Any, NoReturn

__all__ = [
    "Exit",
    "become_subreaper",
    "children",
    "kill",
    "kill_orphans",
    "reap",
    "remove_tree",
    "spawn",
    "watch_process",
]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LINUX = sys.platform == "linux"


class Exit:
    """How a process ended.

    Attributes:
        code: Exit code, or None when a signal ended it.
        signal: Name of that signal, e.g. ``SIGKILL``, or None.
    """

    __slots__ = ("code", "signal")

    def __init__(self, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        self.code = code if code >= 0 else None
        self.signal = _signal_name(-code) if code < 0 else None

    @property
    def killed(self) -> bool:
        """Whether somebody else ended it, the system's memory killer included."""
        return self.signal in ("SIGKILL", "SIGTERM")

    def __str__(self) -> str:
        return f"exit code {self.code}" if self.signal is None else f"signal {self.signal}"


def become_subreaper() -> bool:
    """Adopt the orphans of all descendants from now on. False where the system cannot."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def spawn(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    output: str | None = None,
    keep_fds: Collection[int] = (),
    die_with_us: bool = False,
) -> int:
    """Start a program in a session of its own, with default signal handling and no standard input.

    Args:
        argv: Program (a path) and arguments.
        env: Its whole environment.
        output: File to append stdout and stderr to; None leaves ours.
        keep_fds: File descriptors it inherits, under their numbers, beside stdout and stderr.
        die_with_us: SIGKILL it when this process is gone (Linux).

    Returns:
        Its process id, once the program runs.

    Raises:
        OSError: The program cannot be run.
    """
    if die_with_us:
        _libc()  # imported here, not in the child
    told, tell = os.pipe()
    ours = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(argv, env, output, keep_fds, ours if die_with_us else 0, tell)
    os.close(tell)
    with open(told, "rb") as pipe:
        number = pipe.read()
    if number:
        os.waitpid(pid, 0)
        raise OSError(int(number), os.strerror(int(number)), argv[0])
    return pid


def reap() -> list[tuple[int, Exit]]:
    """Collect every child that has ended, without waiting."""
    ended: list[tuple[int, Exit]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, Exit(status)))


def kill(pid: int, number: int = signal.SIGKILL, *, group: bool = False) -> None:
    """Send a signal; no matter if the process is gone already.

    Args:
        pid: The process.
        number: The signal.
        group: To its whole process group.
    """
    try:
        (os.killpg if group else os.kill)(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def kill_orphans(keep: Collection[int], timeout_s: float = 2.0) -> list[tuple[int, Exit]]:
    """SIGKILL every child of ours but ``keep``, and theirs, which become ours as their parents go.

    Args:
        keep: Processes that belong to us. (Their descendants are not touched.)
        timeout_s: Seconds after which to give up on one that does not go (stuck in the kernel).

    Returns:
        Who was collected meanwhile, members of ``keep`` that ended included.
    """
    ended, deadline = reap(), time.monotonic() + timeout_s
    while orphans := [pid for pid in children() if pid not in keep]:
        for pid in orphans:
            kill(pid, group=True)
            kill(pid)
        ended += reap()
        if time.monotonic() > deadline:
            break
        time.sleep(0.001)
    return ended


def children() -> list[int]:
    """Our direct children; an empty list where /proc does not exist."""
    ours = os.getpid()
    try:
        with open(f"/proc/{ours}/task/{ours}/children", "rb") as listing:
            return [int(pid) for pid in listing.read().split()]
    except OSError:
        return [pid for pid in _processes() if _parent(pid) == ours]


def watch_process(pid: int) -> int | None:
    """A file descriptor that becomes readable when the process ends; None where the system has none such."""
    try:
        return os.pidfd_open(pid) if _LINUX else None
    except OSError:
        return None


def remove_tree(path: str) -> None:
    """Remove a directory and all in it, as far as it goes; follows no links."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(entry.path)
                else:
                    _unlink(entry.path)
        os.rmdir(path)
    except OSError:
        pass


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def _become(
    argv: Sequence[str], env: Mapping[str, str], output: str | None, keep_fds: Collection[int], parent: int, tell: int
) -> NoReturn:
    """In the forked child: turn into the program, or tell the parent why not."""
    try:
        os.setsid()
        _default_signals()
        if parent and _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) and os.getppid() != parent:
            os._exit(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if output is not None:
            log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
        for fd in keep_fds:
            os.set_inheritable(fd, True)
        os.execve(argv[0], list(argv), dict(env))
    except OSError as error:
        os.write(tell, str(error.errno).encode())
    finally:
        os._exit(127)


def _default_signals() -> None:
    """An ignored signal stays ignored across exec: undo what we and Python ignore."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _prctl(option: int, value: int) -> bool:
    if not _LINUX:
        return False
    try:
        done: int = _libc().prctl(option, value, 0, 0, 0)
    except (OSError, AttributeError):
        return False
    return done == 0


@cache
def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return []


def _parent(pid: int) -> int:
    """Parent of a process, from the fourth field of its stat; the second may contain spaces and parentheses."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return int(stat.read().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
