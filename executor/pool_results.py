"""What :class:`executor.pool.Pool` hands out: results that arrive later; iterators are in ``pool_iterators``.

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
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from multiprocessing import TimeoutError  # the very class that callers of a Pool catch
from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from executor.errors import SerializationError

__all__ = [
    "ApplyResult",
    "AsyncResult",
    "CallResult",
    "Deliveries",
    "Job",
    "MapResult",
    "ResultEncodingError",
    "outcome_of",
    "settle_by",
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

    def _leave(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool._leave(self)


def settle_by(future: Future[Any], job: Job, index: int, then: Callable[[], object] | None = None) -> None:
    """Settle chunk ``index`` of the job when the future is done, and then call ``then``."""

    def settle(done: Future[Any]) -> None:
        job._settle(index, *outcome_of(done))
        if then is not None:
            then()

    # The plain one: a CallFuture would call back on a running event loop, which a Pool's user may be blocking.
    Future.add_done_callback(future, settle)


def outcome_of(future: Future[Any]) -> tuple[bool, Any]:
    """Whether a done future succeeded; its value or its exception, as callers of a Pool expect it."""
    try:
        error = future.exception()
    except CancelledError as cancelled:
        return False, cancelled
    if error is None:
        return True, future.result()
    if type(error) is SerializationError and error.details.keys() & {"result", "exception"}:
        return False, ResultEncodingError(str(error), error.details)
    return False, error


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
        state = "pending" if not self.ready() else "value" if self.successful() else "error"
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
        return self._outcome()[0]

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
        success, value = self._outcome()
        if not success:
            raise value
        return value  # type: ignore[no-any-return]

    def _outcome(self) -> tuple[bool, Any]:
        return self._success, self._value

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


class CallResult(AsyncResult[T]):
    """The result of ``apply_async`` without callbacks: a future and hardly more, for a quarter of the time.

    Args:
        pool: Kept alive by the future, which its executor holds until the call is done.
        future: Of the call.
    """

    def __init__(self, pool: object, future: Future[T]) -> None:
        vars(future)["kept_alive"] = pool
        self._future = future
        self._known: tuple[bool, Any] | None = None

    def ready(self) -> bool:
        """Whether the call has completed."""
        return self._future.done()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the result is ready, or for ``timeout`` seconds."""
        try:
            self._future.exception(timeout)
        except (FutureTimeoutError, CancelledError):
            pass

    def _outcome(self) -> tuple[bool, Any]:
        if self._known is None:
            self._known = outcome_of(self._future)
            vars(self._future).pop("kept_alive", None)
        return self._known


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
