"""What children print: passed on to the worker's own stdout and stderr, the last of it kept for obituaries."""

from __future__ import annotations

import os
import selectors
import threading
from collections.abc import Callable

#: How much of a child's last output is kept, in bytes.
KEPT_BYTES = 8 * 1024
#: A line longer than this is passed on in pieces.
LINE_BYTES = 64 * 1024
_READ_BYTES = 64 * 1024


class Tail:
    """The last :data:`KEPT_BYTES` that one child printed."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._total = self._mark = 0
        self._open = 2
        self._ended = threading.Event()

    def end_one(self) -> None:
        """One of the child's two pipes has come to its end."""
        self._open -= 1
        if not self._open:
            self._ended.set()

    def wait(self, timeout_s: float) -> None:
        """Wait until both pipes have come to their end."""
        self._ended.wait(timeout_s)

    def add(self, data: bytes) -> None:
        """Keep the end of some output."""
        self._kept += data
        self._total += len(data)
        if len(self._kept) > 2 * KEPT_BYTES:
            del self._kept[:-KEPT_BYTES]

    def mark(self) -> None:
        """What has been printed until now belongs to earlier calls."""
        self._mark = self._total

    def text(self, last_bytes: int = KEPT_BYTES) -> str:
        """The last output since the mark, decoded; what is not text is shown escaped."""
        count = min(last_bytes, self._total - self._mark)
        return bytes(self._kept[len(self._kept) - count :]).decode("utf-8", "backslashreplace") if count else ""


class _Stream:
    """One pipe of one child: whole lines go on, so that children do not cut into each other's."""

    def __init__(self, write: Callable[[bytes], None], tail: Tail) -> None:
        self._write = write
        self._tail = tail
        self._partial = bytearray()

    def feed(self, data: bytes) -> None:
        self._tail.add(data)
        self._partial += data
        end = self._partial.rfind(b"\n") + 1
        if not end and len(self._partial) > LINE_BYTES:
            end = len(self._partial)
        if end:
            self._write(bytes(self._partial[:end]))
            del self._partial[:end]

    def finish(self) -> None:
        self._tail.end_one()
        if self._partial:
            self._write(bytes(self._partial))
            self._partial.clear()


class Capture:
    """One thread that reads the pipes of all children.

    Args:
        out: File descriptor for what children print to stdout.
        err: ... and to stderr.
    """

    def __init__(self, out: int = 1, err: int = 2) -> None:
        self._targets = (out, err)
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._new: list[tuple[int, _Stream]] = []
        self._open = 0
        self._idle = threading.Condition()
        threading.Thread(target=self._run, name="ke-capture", daemon=True).start()

    def add(self, stdout: int, stderr: int, tail: Tail) -> None:
        """Read a child's two pipes from now on; they are closed here at their end."""
        with self._idle:
            self._open += 2
            for fd, target in zip((stdout, stderr), self._targets, strict=True):
                self._new.append((fd, _Stream(_writer(target), tail)))
        os.write(self._wake_write, b"+")

    def drain(self, timeout_s: float) -> None:
        """Wait until all pipes have come to their end."""
        with self._idle:
            self._idle.wait_for(lambda: not self._open, timeout_s)

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._take_new()
                else:
                    self._read(key.fd, key.data)

    def _take_new(self) -> None:
        os.read(self._wake_read, 64)
        with self._idle:
            new, self._new = self._new, []
        for fd, stream in new:
            self._selector.register(fd, selectors.EVENT_READ, stream)

    def _read(self, fd: int, stream: _Stream) -> None:
        try:
            data = os.read(fd, _READ_BYTES)
        except OSError:
            data = b""
        if data:
            stream.feed(data)
            return
        stream.finish()
        self._selector.unregister(fd)
        os.close(fd)
        with self._idle:
            self._open -= 1
            self._idle.notify_all()


def _writer(target: int) -> Callable[[bytes], None]:
    def write(data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(target, view) :]
        except OSError:  # nobody listens any more: the tail still has it
            pass

    return write
