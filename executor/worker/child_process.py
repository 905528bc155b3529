"""The parent's handle on one child process."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass
from time import monotonic
from typing import Any

from executor.wire import pickling
from executor.worker import memory, pipe, slots
from executor.worker.capture import Capture, Tail

#: How long a child that should be reading may not read before it counts as stuck, in seconds.
SEND_TIMEOUT_S = 30
#: How long a dead child's last output is waited for, in seconds.
LAST_OUTPUT_S = 0.2
#: How long a child may live on after it has closed its socket, in seconds: it should be dying.
DYING_S = 1.0
#: Why we kill one that does not die then.
DEAF = "it closed its socket"
#: Last output that goes into an obituary, in bytes: it travels in message headers.
OUTPUT_BYTES = 2048

_START = """import sys, json
sys.path[:] = json.loads(sys.argv[1])
from executor.worker.child import main
main({}, {}, {})
"""

#: Ends that a process brings upon itself; any other signal came from outside.
_OWN_SIGNALS = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGSYS", "SIGTRAP", "SIGPIPE"})


@dataclass(frozen=True, slots=True)
class Death:
    """How a child ended.

    Attributes:
        exit_code: Its exit code, or None when a signal ended it.
        signal: Name of that signal, or None.
        oom: Whether the kernel killed something of this container for memory meanwhile.
        output: The last of what it printed.
        pid: Its process id.
        peak_bytes: The most memory that it had at a time, or None where that is not known.
    """

    exit_code: int | None
    signal: str | None
    oom: bool
    output: str
    pid: int
    peak_bytes: int | None = None

    @property
    def by_itself(self) -> bool:
        """Whether the process brought it upon itself: ``os._exit``, a segmentation fault, an abort, ..."""
        return self.signal is None or self.signal in _OWN_SIGNALS

    @property
    def reason(self) -> str:
        """In one word: ``OOMKilled``, a signal, or ``exit code N``."""
        if self.oom and self.signal == "SIGKILL":
            return "OOMKilled"
        return self.signal or f"exit code {self.exit_code}"


class ChildProcess:
    """One child: started at once, set up by a message, killed with its process group.

    Args:
        setup: What it is told first.
        capture: Who reads its stdout and stderr.

    Attributes:
        job: What it runs, or None.
        began: When it was given that, or began to rest, in monotonic seconds.
        ready: It has said READY.
        kill_reason: Why we have killed it, or ``""``.
        tasks_left: Jobs it may still take before another takes its place, or None.
        lent: How many waits on other calls go on in its call: its slot is lent out meanwhile.
        deaf_since: When it closed its socket; it should be dying.
        tail: The last of what it printed.
    """

    def __init__(self, setup: dict[str, Any], capture: Capture) -> None:
        self.job: Any = None
        self.began = 0.0
        self.ready = False
        self.tasks_left: int | None = setup.get("max_tasks_per_child")
        self.lent = 0
        self.kill_reason = ""
        self.deaf_since: float | None = None
        self.tail = Tail()
        self._ooms = memory.oom_kills()
        self._peak_bytes: int | None = None
        numbers = slots.new_file()
        self.sock, theirs = socket.socketpair()
        self._life, their_life = socket.socketpair()
        try:
            self._process = _spawn(theirs.fileno(), their_life.fileno(), numbers)
        finally:
            theirs.close()
            their_life.close()
        self.shared = slots.mapped(numbers)
        os.close(numbers)
        self.inlet = pipe.Inlet(self.sock, wait=False)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        capture.add(os.dup(self._process.stdout.fileno()), os.dup(self._process.stderr.fileno()), self.tail)
        self._process.stdout.close()
        self._process.stderr.close()
        self.pidfd = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else None
        self.send(pipe.SETUP, pickling.dumps(setup))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, kind: int, *parts: bytes | memoryview) -> bool:
        """Send a message; False where the child is gone or does not read (it is killed then)."""
        try:
            pipe.send(self.sock, kind, *parts)
            return True
        except OSError as error:
            self.kill(f"it did not take a message: {error}")
            return False

    def begin(self, number: int, first: int, end: int) -> None:
        """Set the shared numbers for a batch that is about to be sent."""
        self.began = monotonic()
        self.shared[slots.LIMIT], self.shared[slots.RUNNING] = end, first
        self.shared[slots.STARTED_NS], self.shared[slots.BATCH] = 0, number
        self.tail.mark()

    def ask_to_flush(self) -> None:
        """Have it send the results that it holds, though a call runs."""
        try:
            self._life.send(pipe.FLUSH, socket.MSG_DONTWAIT)
        except OSError:
            pass

    def signal(self, number: int) -> None:
        """Send the child itself a signal."""
        if not self.poll():
            os.kill(self.pid, number)

    def kill(self, reason: str) -> None:
        """SIGKILL the child and all in its process group."""
        if not self.kill_reason:
            self.kill_reason = reason
        _kill_group(self.pid)

    def kill_if_deaf(self) -> None:
        """Kill it if its socket has been closed for long and it still lives: user code has closed all files."""
        if self.deaf_since is not None and monotonic() - self.deaf_since > DYING_S:
            self.kill(DEAF)

    def poll(self) -> bool:
        """Whether the process has ended."""
        if self._process.returncode is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)  # `Popen` does not say how much memory it had
            if pid:
                self._process.returncode = os.waitstatus_to_exitcode(status)
                self._peak_bytes = usage.ru_maxrss * 1024
        return self._process.returncode is not None

    def death(self) -> Death:
        """How it ended, with what it started; call it once :meth:`poll` is true."""
        _kill_group(self.pid)
        self.tail.wait(LAST_OUTPUT_S)
        code = self._process.returncode
        name = _signal_name(-code) if code < 0 else None
        ended_by_oom = name == "SIGKILL" and memory.oom_kills() > self._ooms
        said = self.tail.text(OUTPUT_BYTES)
        return Death(None if name else code, name, ended_by_oom, said, self.pid, self._peak_bytes)

    def close(self) -> None:
        """Give back file descriptors; kill what is left of the process group."""
        _kill_group(self.pid)
        if self.pidfd is not None:
            os.close(self.pidfd)
        self.sock.close()
        self._life.close()
        self._process.wait()

    def __repr__(self) -> str:
        living = "busy" if self.job else "idle" if self.ready else "new"
        state = living if self._process.returncode is None else "dead"
        return f"<ChildProcess {self.pid} {state}>"


def _spawn(sock: int, life: int, numbers: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _START.format(sock, life, numbers), json.dumps(sys.path)],
        pass_fds=(sock, life, numbers),
        process_group=0,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
