"""The client's hold on its supervisor: the process, the channel, and what happens to them at exit and at a fork."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from executor.errors import PoolStartError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SupervisorProcess", "package_root"]

#: No site packages, no user's environment, no current directory: none can get in its way, and it starts faster.
_FLAGS = ("-I", "-S")
_CODE = "import sys; sys.path.append(sys.argv[1]); from executor.pools.supervisor import main; main(int(sys.argv[2]))"

#: Seconds to wait at interpreter exit for everything to be gone; it takes at most the orphans' grace period of 1 s.
_EXIT_WAIT_S = 4.0

_living: weakref.WeakSet[SupervisorProcess] = weakref.WeakSet()
_leaving: set[subprocess.Popen[bytes]] = set()


class SupervisorProcess:
    """A started supervisor.

    Args:
        locks: File descriptors that it inherits and keeps open as long as it lives.

    Attributes:
        channel: Our end; whoever reads it makes it non-blocking.
        pid: Of the supervisor.

    Raises:
        PoolStartError: This Python cannot be started.
    """

    def __init__(self, locks: Sequence[int] = ()) -> None:
        self.channel, theirs = socket.socketpair()
        try:
            self._process = _started(theirs.fileno(), locks)
        except BaseException:
            self.channel.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        _living.add(self)

    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def hang_up(self) -> None:
        """Let the supervisor see the end of the channel: it ends everything. Safe from any thread."""
        try:
            self.channel.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def kill(self) -> None:
        """SIGKILL; what it started notices."""
        self._process.kill()

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end, blocking.

        Args:
            timeout_s: At most so long.
        """
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """Let go: of a supervisor that has ended, or was told to."""
        _living.discard(self)
        self.channel.close()
        _leaving.add(self._process)
        _collect()

    def forget(self) -> None:
        """In a forked child: this is the parent's."""
        self.channel.close()
        self._process.returncode = 0  # or its __del__ warns that it still runs


def package_root() -> str:
    """The directory that holds this package."""
    return str(Path(__file__).resolve().parents[2])


def _started(fd: int, locks: Sequence[int]) -> subprocess.Popen[bytes]:
    argv = [sys.executable, *_FLAGS, "-c", _CODE, package_root(), str(fd)]
    try:
        return subprocess.Popen(argv, pass_fds=(fd, *locks), start_new_session=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise PoolStartError(
            f"The supervisor of the worker processes cannot be started: {error}. Its Python is {sys.executable!r} "
            f"(sys.executable); try: {sys.executable} -V, and `ulimit -u` for the number of processes allowed."
        ) from error


def _collect() -> None:
    for process in list(_leaving):
        if process.poll() is not None:
            _leaving.discard(process)


def _at_exit() -> None:
    """Everything goes with the interpreter; supervisors that were told to leave go on for a second by themselves."""
    supervisors = list(_living)
    for supervisor in supervisors:
        supervisor.hang_up()
    for supervisor in supervisors:
        supervisor.wait(_EXIT_WAIT_S)
    _collect()
    for process in _leaving:
        process.returncode = 0


def _after_fork_in_child() -> None:
    for supervisor in list(_living):
        supervisor.forget()
    for process in _leaving:
        process.returncode = 0
    _living.clear()
    _leaving.clear()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child)
