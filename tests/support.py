"""Helpers of the tests: waiting for a condition, gates between processes, scripts in a subprocess.

Nothing here sleeps in place of an event: processes meet at a :class:`Gate`, threads at :func:`until`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T")

#: How long anything may take before a test gives up. Generous: the machine is shared, and nothing is timed by it.
DEADLINE_S = 30.0
_POLL_S = 0.005
#: Names a process and all its descendants, so that what stays behind is found.
_MARK = "EXECUTOR_TEST_MARK"


def until(condition: Callable[[], T], timeout: float = DEADLINE_S, what: str = "") -> T:
    """Wait until the condition is true, and return what it returned.

    Raises:
        AssertionError: It did not become true within ``timeout`` seconds.
    """
    end = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout} s: {what or condition}")
        time.sleep(_POLL_S)
    return value


def unique_name(prefix: str = "test") -> str:
    """A name that no other test uses, now or in a run beside this one."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Gate:
    """Holds calls in other processes until it is opened, and tells who has arrived.

    A directory is all it is, so it can be pickled into any process of this machine.

    Args:
        path: Of a directory to make.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    def arrive(self) -> None:
        """Note that a process has come this far; every call counts."""
        (self.path / f"arrived-{uuid.uuid4().hex}").touch()

    @property
    def arrivals(self) -> int:
        """How often :meth:`arrive` was called, by whomever."""
        return sum(entry.name.startswith("arrived-") for entry in self.path.iterdir())

    def open(self) -> None:
        """Let everybody through, from now on."""
        if self.path.is_dir():
            (self.path / "open").touch()

    def is_open(self) -> bool:
        """Whether :meth:`open` was called; a gate whose directory is gone counts as open."""
        return (self.path / "open").exists() or not self.path.is_dir()

    def pass_through(self, value: Any = None, timeout: float = 2 * DEADLINE_S) -> Any:
        """Arrive, wait until the gate is open, and return ``value``. Runs in workers."""
        self.arrive()
        until(self.is_open, timeout, f"{self.path} opened")
        return value

    def wait_arrivals(self, count: int = 1, timeout: float = DEADLINE_S) -> None:
        """Wait until ``count`` calls have arrived."""
        until(lambda: self.arrivals >= count, timeout, f"{count} arrivals at {self.path}")


@dataclass(frozen=True)
class Finished:
    """How a script ended."""

    returncode: int
    stdout: str
    stderr: str

    def lines(self) -> list[str]:
        """What it printed, line by line."""
        return self.stdout.splitlines()


class Script:
    """A Python script in a process and session of its own.

    Args:
        directory: To write it to and to run it in.
        source: Its text; common indentation is removed.
        env: Added to the environment.
    """

    def __init__(self, directory: Path, source: str, env: Mapping[str, str] | None = None) -> None:
        path = directory / f"script_{uuid.uuid4().hex[:8]}.py"
        path.write_text(textwrap.dedent(source))
        self.mark = unique_name("mark")
        self._out, self._err = path.with_suffix(".out"), path.with_suffix(".err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-u", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=directory,
                env={**os.environ, **(env or {}), _MARK: self.mark},
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Of the script, which leads its process group."""
        return self.process.pid

    def output(self) -> str:
        """What it has printed so far."""
        return self._out.read_text(errors="replace")

    def errors(self) -> str:
        """What it has printed to standard error so far."""
        return self._err.read_text(errors="replace")

    def wait_output(self, text: str, timeout: float = DEADLINE_S) -> None:
        """Wait until it has printed ``text``."""

        def printed() -> bool:
            assert self.process.poll() is None or text in self.output(), f"ended early:\n{self.output()}{self.errors()}"
            return text in self.output()

        until(printed, timeout, f"{text!r} printed")

    def interrupt(self) -> None:
        """SIGINT to the script alone, as ``kill -INT`` does."""
        self.process.send_signal(signal.SIGINT)

    def interrupt_group(self) -> None:
        """SIGINT to its whole process group, as Ctrl-C in a terminal does."""
        os.killpg(self.pid, signal.SIGINT)

    def finish(self, timeout: float = DEADLINE_S) -> Finished:
        """Wait for its end.

        Raises:
            AssertionError: It did not end in time; what it printed is told, and it is killed.
        """
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"no end within {timeout} s:\n{self.output()}\n{self.errors()}") from None
        return Finished(self.process.returncode, self.output(), self.errors())

    def kill(self) -> None:
        """End it and everything that descends from it."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in self.descendants():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def descendants(self) -> list[int]:
        """Processes that it started, directly or not, and that still live; zombies do not count."""
        needle = f"{_MARK}={self.mark}".encode()
        return [pid for pid in _all_pids() if pid != self.pid and needle in _environment(pid) and not _is_zombie(pid)]


def run_script(
    directory: Path, source: str, timeout: float = DEADLINE_S, env: Mapping[str, str] | None = None
) -> Finished:
    """Run a script to its end; see :class:`Script`."""
    with Script(directory, source, env) as script:
        return script.finish(timeout)


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
