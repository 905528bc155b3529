"""What :class:`executor.pool.Pool` hands out: results that arrive later.

::

    done callback of a future (loop thread) ──► job._settle(index, success, value)
                                                  │ complete: with a callback        without
                                                  ▼                                    ▼
                                 Deliveries (one thread of the pool) ──callback──► ready: get(), wait()

A job is known to its pool until it is complete, so that ``Pool.join`` waits for it and ``Pool.terminate``
ends it with an error. A job keeps its pool alive for as long.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from multiprocessing import TimeoutError  # the very class that callers of a Pool catch
from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from executor.errors import SerializationError

__all__ = [
    "ApplyResult",
    "AsyncResult",
    "Deliveries",
    "IMapIterator",
    "IMapUnorderedIterator",
    "Job",
    "MapResult",
    "ResultEncodingError",
]

T = TypeVar("T")

_log = logging.getLogger("executor.pool")


class Home(Protocol):
    """What a job needs of its pool."""

    def _enter(self, job: Job) -> None: ...

    def _leave(self, job: Job) -> None: ...

    def _deliver(self, work: Callable[[], None]) -> None: ...


class ResultEncodingError(MaybeEncodingError, SerializationError):  # type: ignore[misc]
    """A result or an exception could not be pickled by the worker.

    Attributes:
        exc: Why, as text.
        value: What it was, as text.
    """

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        Exception.__init__(self, message)
        self.details = dict(details or {})
        self.value = str(self.details.get("result") or self.details.get("exception"))
        self.exc = str(self.details.get("error") or message)

    def __str__(self) -> str:
        return f"Error sending result: {self.args[0]}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.args[0], self.details))


class Deliveries:
    """One thread that runs the users' callbacks, in the order in which results became complete."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, work: Callable[[], None]) -> None:
        """Run ``work`` in the thread, which is started by the first."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_run_all, args=(self._queue,), name="executor-pool-results", daemon=True
                )
                self._thread.start()
            self._queue.put(work)

    def is_current_thread(self) -> bool:
        """Whether this is called from a callback."""
        return threading.current_thread() is self._thread

    def stop(self, *, wait: bool) -> None:
        """End the thread after what is in the queue."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            if wait and thread is not threading.current_thread():
                thread.join()


def _run_all(queue: SimpleQueue[Callable[[], None] | None]) -> None:
    while (work := queue.get()) is not None:
        work()
        del work  # or it stays alive, and its pool with it, until the next


class Job:
    """Something a pool has been asked for: one call, or many in chunks."""

    def __init__(self, pool: Home) -> None:
        self._pool: Home | None = pool
        pool._enter(self)

    def _settle(self, index: int, success: bool, value: Any) -> None:
        """Chunk ``index`` is done: ``value`` is its value or its exception."""
        raise NotImplementedError

    def _abort(self, error: BaseException) -> None:
        """The pool is gone: what is not done ends with ``error``."""
        raise NotImplementedError

    def _settle_from(self, index: int, future: Future[Any]) -> None:
        if future.cancelled():
            self._settle(index, False, CancelledError())
        elif (error := future.exception()) is not None:
            self._settle(index, False, _as_pool_error(error))
        else:
            self._settle(index, True, future.result())

    def _leave(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool._leave(self)


def _as_pool_error(error: BaseException) -> BaseException:
    if type(error) is SerializationError and error.details.keys() & {"result", "exception"}:
        return ResultEncodingError(str(error), error.details)
    return error


class AsyncResult(Job, Generic[T]):
    """The result of ``apply_async``: of one call.

    Args:
        pool: Where the call was made.
        callback: Called with the value, in the pool's result thread, before :meth:`ready` becomes true.
        error_callback: Called likewise with the exception.
    """

    def __init__(
        self,
        pool: Home,
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._complete = False
        self._success = False
        self._value: Any = None
        self._callback = callback
        self._error_callback = error_callback
        super().__init__(pool)

    def __repr__(self) -> str:
        state = "pending" if not self.ready() else "value" if self._success else "error"
        return f"<{type(self).__module__}.{type(self).__qualname__} {state} at {id(self):#x}>"

    def ready(self) -> bool:
        """Whether the call has completed, and its callback has returned."""
        return self._event.is_set()

    def successful(self) -> bool:
        """Whether the call completed without an exception.

        Raises:
            ValueError: It is not ready.
        """
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._success

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the result is ready, or for ``timeout`` seconds."""
        self._event.wait(timeout)

    def get(self, timeout: float | None = None) -> T:
        """The value, once it is there.

        Args:
            timeout: Seconds to wait; None is without end.

        Raises:
            multiprocessing.TimeoutError: It was not there in time.
            Exception: What the call raised, with the worker's traceback as its ``__cause__``.
        """
        self.wait(timeout)
        if not self.ready():
            raise TimeoutError
        if not self._success:
            raise self._value
        value: T = self._value
        return value

    def _settle(self, index: int, success: bool, value: Any) -> None:
        self._finish(success, value)

    def _abort(self, error: BaseException) -> None:
        self._finish(False, error)

    def _finish(self, success: bool, value: Any) -> None:
        with self._lock:
            if self._complete:
                return
            self._complete, self._success, self._value = True, success, value
        callback: Callable[[Any], object] | None = self._callback if success else self._error_callback
        self._callback = self._error_callback = None
        if callback is None or self._pool is None:
            self._make_ready()
        else:
            self._pool._deliver(lambda: self._call_back(callback))

    def _call_back(self, callback: Callable[[Any], object]) -> None:
        try:
            callback(self._value)
        except BaseException:
            # The standard library's result thread dies here, and the pool hangs. Nobody misses that.
            _log.exception("exception calling callback %r", callback)
        self._make_ready()

    def _make_ready(self) -> None:
        self._event.set()
        self._leave()


ApplyResult = AsyncResult


class MapResult(AsyncResult[list[Any]]):
    """The result of ``map_async`` and ``starmap_async``: ready when all chunks are done, even if one has failed.

    Args:
        pool: Where the calls were made.
        chunks: How many; with none it is ready at once and, as in the standard library, calls nothing back.
        callback: See :class:`AsyncResult`.
        error_callback: Called once, with the first exception that arrived.
    """

    def __init__(
        self,
        pool: Home,
        chunks: int,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> None:
        super().__init__(pool, callback, error_callback)
        self._values: list[Any] = [()] * chunks
        self._left = chunks
        self._first_error: BaseException | None = None
        if not chunks:
            self._complete, self._success, self._value = True, True, []
            self._make_ready()

    def _settle(self, index: int, success: bool, value: Any) -> None:
        with self._lock:
            self._left -= 1
            if success:
                self._values[index] = value
            elif self._first_error is None:
                self._first_error = value
            if self._left:
                return
        if self._first_error is None:
            self._finish(True, list(itertools.chain.from_iterable(self._values)))
        else:
            self._finish(False, self._first_error)
        self._values = []

    def _set_length(self, length: int) -> None:
        """The number of chunks was known from the beginning."""


class IMapIterator(Job, Generic[T]):
    """The result of ``imap``: values in order, each as soon as it and those before it are there.

    Args:
        pool: Where the calls are made.
        chunked: Whether each chunk's value is a list of values. Then, as in the standard library, an exception ends
            the iteration; without, one can go on with ``next()`` after it.
    """

    def __init__(self, pool: Home, *, chunked: bool = False) -> None:
        self._changed = threading.Condition()
        self._chunked = chunked
        self._outcomes: deque[tuple[bool, Any]] = deque()  # of chunks, as they may be handed on
        self._early: dict[int, tuple[bool, Any]] = {}  # arrived before their turn
        self._values: deque[T] = deque()  # of the chunk that is being handed on
        self._placed = 0
        self._length: int | None = None
        self._aborted: BaseException | None = None
        self._failed = False  # a chunk of several has
        super().__init__(pool)

    def __iter__(self) -> IMapIterator[T]:
        return self

    def __next__(self) -> T:
        return self.next()

    def next(self, timeout: float | None = None) -> T:
        """The next value.

        Args:
            timeout: Seconds to wait for it; None is without end.

        Raises:
            StopIteration: There are no more.
            multiprocessing.TimeoutError: It was not there in time.
            Exception: What the call raised, or the iterable.
        """
        with self._changed:
            if not self._changed.wait_for(self._can_answer, timeout):
                raise TimeoutError
            if self._values:
                return self._values.popleft()
            if self._failed or not self._outcomes:
                raise self._aborted or StopIteration
            success, value = self._outcomes.popleft()
            if not success:
                self._failed = self._chunked
                raise value
            self._values.extend(value if self._chunked else (value,))
            return self._values.popleft()

    def _can_answer(self) -> bool:
        return bool(self._values or self._outcomes or self._failed or self._aborted or self._is_complete())

    def _is_complete(self) -> bool:
        return self._placed == self._length

    def _settle(self, index: int, success: bool, value: Any) -> None:
        with self._changed:
            self._place(index, (success, value))
            self._changed.notify_all()
            complete = self._is_complete()
        if complete:
            self._leave()

    def _place(self, index: int, outcome: tuple[bool, Any]) -> None:
        self._early[index] = outcome
        while self._placed in self._early:
            self._outcomes.append(self._early.pop(self._placed))
            self._placed += 1

    def _set_length(self, length: int) -> None:
        """The iterable has ended: there are ``length`` chunks."""
        with self._changed:
            self._length = length
            self._changed.notify_all()
            complete = self._is_complete()
        if complete:
            self._leave()

    def _abort(self, error: BaseException) -> None:
        with self._changed:
            if not self._is_complete():
                self._aborted = error
            self._changed.notify_all()
        self._leave()


class IMapUnorderedIterator(IMapIterator[T]):
    """The result of ``imap_unordered``: values as they arrive."""

    def _place(self, index: int, outcome: tuple[bool, Any]) -> None:
        self._outcomes.append(outcome)
        self._placed += 1
