"""What parent and child say to each other over a socket pair.

A message is ``kind u8 | length u64 | body``. Both ends run the same interpreter on the same machine, and the child
runs whatever a user wrote: the parent parses what a child says, and unpickles nothing of it (but the failures of
plain Celery tasks, as Celery's own pool does).
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

_HEAD = struct.Struct("<BQ")
_CHUNK_BYTES = 64 * 1024

# Parent to child.
SETUP, BATCH, FUNCTION, TASK, EXIT = 1, 2, 3, 4, 5
# Child to parent.
READY, NEED, PART, DONE, LENT, TAKEN, TASK_DONE = 11, 12, 13, 14, 15, 16, 17

#: Head of PART and DONE: batch, first index, count, run time in ns, form, bytes of the buffer list that follows.
RESULTS = struct.Struct("<QIIqBI")
#: Forms of results: segments of outcomes; one pickle of a list of values.
OUTCOMES, VALUES = 0, 1

#: What the parent says on the life socket: send what you have.
FLUSH = b"F"


class Message(NamedTuple):
    """One message; ``body`` is a view into memory of its own."""

    kind: int
    body: memoryview


def send(sock: socket.socket, kind: int, *parts: bytes | memoryview) -> None:
    """Send one message.

    Raises:
        OSError: The other end is gone, or did not read for the socket's send timeout.
    """
    size = sum(map(len, parts))
    head = _HEAD.pack(kind, size)
    if size <= _CHUNK_BYTES:
        sock.sendall(b"".join((head, *parts)))
        return
    sock.sendall(head)
    for part in parts:
        sock.sendall(part)


class Inlet:
    """Reads messages from one end.

    Args:
        sock: A blocking socket.
        wait: Whether :meth:`read` waits for data (a child) or takes what is there (the parent).

    Attributes:
        eof: The other end is gone and everything it said has been read.
    """

    def __init__(self, sock: socket.socket, wait: bool) -> None:
        self._sock = sock
        self._flags = 0 if wait else socket.MSG_DONTWAIT
        self._head = bytearray()
        self._kind = 0
        self._body: bytearray | None = None
        self._filled = 0
        self.eof = False

    def read(self) -> list[Message]:
        """The messages that have arrived whole: waits for some data, or takes none if there is none."""
        try:
            return self._read_body() if self._body is not None else self._read_chunk()
        except BlockingIOError:
            return []
        except OSError:
            self.eof = True
            return []

    def _read_chunk(self) -> list[Message]:
        chunk = self._sock.recv(_CHUNK_BYTES, self._flags)
        if not chunk:
            self.eof = True
            return []
        if self._head:
            chunk = bytes(self._head) + chunk
            self._head.clear()
        return self._parsed(memoryview(chunk))

    def _parsed(self, data: memoryview) -> list[Message]:
        messages: list[Message] = []
        while len(data) >= _HEAD.size:
            kind, size = _HEAD.unpack_from(data)
            end = _HEAD.size + size
            if len(data) < end:
                self._begin(kind, size, data[_HEAD.size :])
                return messages
            messages.append(Message(kind, data[_HEAD.size : end]))
            data = data[end:]
        self._head += data
        return messages

    def _begin(self, kind: int, size: int, start: memoryview) -> None:
        self._kind, self._body, self._filled = kind, bytearray(size), len(start)
        self._body[: len(start)] = start

    def _read_body(self) -> list[Message]:
        body = self._body
        assert body is not None
        got = self._sock.recv_into(memoryview(body)[self._filled :], 0, self._flags)
        if not got:
            self.eof = True
            return []
        self._filled += got
        if self._filled < len(body):
            return []
        self._body = None
        return [Message(self._kind, memoryview(body))]
