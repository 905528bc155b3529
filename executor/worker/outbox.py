"""The child's results on their way to the parent.

Results gather while calls are short, and leave when :data:`SEND_AFTER_NS` have passed, when many bytes have gathered,
when the batch ends, and when the parent asks for them because a later call of the batch is slow.
"""

from __future__ import annotations

import json
import sys
import threading
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from executor.errors import StoreError
from executor.stores.offload import packed
from executor.wire import outcome, segments
from executor.worker import pipe

if TYPE_CHECKING:
    import socket

    from executor.stores.base import BlobStore

#: Results are sent when this much time has passed since the last ones.
SEND_AFTER_NS = 20_000_000
#: ... or when their pickles have reached this size.
SEND_AFTER_BYTES = 1 << 20


class Result(NamedTuple):
    """One call's outcome as bytes, and the references of its large parts."""

    outcome: bytes
    refs: list[list[Any]]


class Failed(bytes):
    """An outcome among a map's values: already in its final form."""


class Outbox:
    """Gathers and sends the results of one batch after the other; safe to flush from another thread.

    Args:
        sock: The socket to the parent.

    Attributes:
        store: Where the large parts of results go, or None.
        results: :class:`Result` in order; for a map the values themselves, with :class:`Failed` among them.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.store: BlobStore | None = None
        self._sock = sock
        self._lock = threading.Lock()
        self._batch = 0
        self._sent_upto = 0
        self._raw = False
        self._started_ns = 0
        self.results: list[Any] = []

    def begin(self, batch: int, first: int, raw: bool) -> None:
        """Start a batch whose first result has index ``first``; ``raw`` results are values, pickled together."""
        self._batch, self._sent_upto, self._raw = batch, first, raw
        self._started_ns = monotonic_ns()
        self.results = []

    def flush(self) -> None:
        """Send what has gathered."""
        with self._lock:
            if self.results:
                self._send(pipe.PART)

    def end(self) -> None:
        """Send the rest, and say that the batch is done."""
        with self._lock:
            self._send(pipe.DONE)

    def say(self, kind: int, *parts: bytes) -> None:
        """Send another message, in one piece."""
        with self._lock:
            pipe.send(self._sock, kind, *parts)

    def _send(self, kind: int) -> None:
        flush_streams()
        count = len(self.results)
        chunk, self.results[:count] = self.results[:count], []
        form, payload, refs = self._packed(chunk)
        now = monotonic_ns()
        listed = json.dumps(refs, separators=(",", ":")).encode() if refs else b""
        spent = now - self._started_ns
        head = pipe.RESULTS.pack(self._batch, self._sent_upto, count, spent, form, len(listed))
        self._started_ns = now
        self._sent_upto += count
        pipe.send(self._sock, kind, head, listed, payload)

    def _packed(self, chunk: list[Any]) -> tuple[int, bytes, list[Any] | None]:
        if self._raw and not any(type(result) is Failed for result in chunk):
            try:
                data, refs = packed(chunk, self.store)
                return pipe.VALUES, data, refs
            except Exception:
                pass
        results = [self._result(value) for value in chunk] if self._raw else chunk
        listed = [result.refs for result in results] if any(result.refs for result in results) else None
        return pipe.OUTCOMES, segments.join([result.outcome for result in results]), listed

    def _result(self, value: Any) -> Result:
        return Result(value, []) if type(value) is Failed else value_result(value, self.store)


def value_result(value: object, store: BlobStore | None) -> Result:
    """A value's outcome, or the error that it cannot be pickled, or not be stored."""
    try:
        data, refs = packed(value, store)
        return Result(outcome.VALUE + data, refs)
    except StoreError as failure:
        return Result(outcome.error(type(failure).__name__, str(failure), failure.details), [])
    except Exception as failure:
        return Result(_unpicklable(value, failure), [])


def _unpicklable(value: object, failure: Exception) -> bytes:
    return outcome.error(
        "SerializationError",
        f"The result of type {type(value).__qualname__} cannot be pickled: {type(failure).__name__}: {failure}. "
        "Return plain data, or close what cannot travel (files, locks, sockets, generators) in the call.",
        {"result": type(value).__qualname__, "error": repr(failure)},
    )


def flush_streams() -> None:
    """What user code has printed goes out before its result does."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass
