"""CallFuture: the standard library's Future, lighter, and awaitable.

A bare ``Future`` makes a Condition (a lock, a deque) and two lists, 1.6 KB in all. Most futures of a large
run are never waited on one by one, so here these three are made when somebody asks for them; the standard
library's own code (``wait``, ``as_completed``, ``add_done_callback``) asks by taking the attribute.
A future without a condition has no waiters and no callbacks, and is settled under one lock shared by all.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from executor.dispatch.dispatcher import Dispatcher
    from executor.dispatch.lanes import Lane

T = TypeVar("T")

#: Where the standard library says so, too.
_callback_log = logging.getLogger("concurrent.futures")

#: Re-entrant: a finalizer or a signal handler may ask a future in the middle of asking another.
_lock = threading.RLock()


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # the loop thread, which is not in the child, may have held it


os.register_at_fork(after_in_child=_after_fork)


class _Lazy:
    """An attribute made at its first use, then found in the instance's own dictionary."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, future: Any, owner: type | None = None) -> Any:
        if future is None:
            return self
        with _lock:
            return future.__dict__.setdefault(self._name, self._make())


class CallFuture(Future[T]):
    """The future of one call. Everything the standard library documents holds; it can also be awaited.

    ``cancel()`` is True only if the call will never run. For a call already at the broker it asks there, which
    takes a round trip, at most a second; on a running event loop it does not wait, and is False for such a call.
    """

    _state: str = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _condition = _Lazy(threading.Condition)
    _waiters = _Lazy(list)
    _done_callbacks = _Lazy(list)

    # What travels. Class-level defaults keep a pending call small; the lane and the bytes are set at submit.
    lane: Lane | None = None
    data: bytes = b""
    buffers: list[Any] | None = None
    attempts: int = 0
    root: str | None = None
    index: int = 0
    dispatcher: Dispatcher | None = None

    def __init__(self) -> None:
        pass  # on purpose: see the module docstring

    # --- settled by the loop thread -------------------------------------------------------------

    def settle(self, result: Any = None, exception: BaseException | None = None) -> bool:
        """Set the outcome, once.

        Returns:
            False where the future was cancelled or settled before; then nothing changes.
        """
        self.data = b""
        with _lock:
            if "_condition" not in self.__dict__:
                if self._state not in (PENDING, RUNNING):
                    return False
                self._result, self._exception, self._state = result, exception, FINISHED
                return True
        try:
            if exception is not None:
                self.set_exception(exception)
            else:
                self.set_result(result)
        except InvalidStateError:
            return False
        return True

    def mark_running(self) -> None:
        """The call has been claimed by a worker."""
        with self._condition:
            if self._state == PENDING:
                self._state = RUNNING

    def mark_cancelled(self) -> bool:
        """The call will never run, or no further: to CANCELLED and on, so that all who wait see it as done."""
        if self.begin_cancel():
            self.finish_cancel()
        return self.cancelled()

    def begin_cancel(self) -> bool:
        """The first half of :meth:`mark_cancelled`: runs no code of the user's, so it may be done under a lock.

        Returns:
            Whether this changed the state: then :meth:`finish_cancel` must follow.
        """
        with self._condition:
            if self._state not in (PENDING, RUNNING):  # one that ran was killed by KubeExecutor.cancel(running=True)
                return False
            self._state = CANCELLED
            self._condition.notify_all()
            self.set_running_or_notify_cancel()
            return True

    def finish_cancel(self) -> None:
        """The second half: the callbacks."""
        self._invoke_callbacks()

    def _invoke_callbacks(self) -> None:
        """The standard library's own lets SystemExit through, which would end the loop thread, and all calls."""
        for callback in self._done_callbacks:
            try:
                callback(self)
            except BaseException:
                _callback_log.exception("exception calling callback for %r", self)

    # --- asked by the user ----------------------------------------------------------------------

    def result(self, timeout: float | None = None) -> T:
        """As in the standard library; a finished call makes no condition.

        Raises:
            RuntimeError: Asked for without a ``timeout`` by a callback of the same executor: it would wait forever.
        """
        if self._state == FINISHED and self._exception is None:
            result: T = self._result
            return result
        self._check_may_wait(timeout)
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As in the standard library; raises ``RuntimeError`` where :meth:`result` does."""
        self._check_may_wait(timeout)
        return super().exception(timeout)

    def _check_may_wait(self, timeout: float | None) -> None:
        if timeout is None and self.dispatcher is not None and not self.done() and self.dispatcher.loop.is_current:
            raise RuntimeError(
                "A callback of a future waits for another call of the same executor. Callbacks run on the thread that "
                "settles futures, so this would wait forever. Have the callback submit and add a callback to that "
                "future, or wait in a thread of its own."
            )

    def done(self) -> bool:
        """Whether the call has finished or was cancelled."""
        return self._state in (FINISHED, CANCELLED, CANCELLED_AND_NOTIFIED)

    def cancel(self) -> bool:
        """Keep the call from running. See the class for what it may wait on."""
        if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED):
            return True
        if self._state in (RUNNING, FINISHED):
            return False
        if self.dispatcher is None:
            return self.mark_cancelled()
        return self.dispatcher.cancel_one(self)

    def running(self) -> bool:
        """Whether a worker has the call; asks the broker where that is not known yet (never on an event loop)."""
        if self._state == PENDING and self.dispatcher is not None and self.root is not None:
            self.dispatcher.refresh_running(self)
        return self._state == RUNNING

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """As in the standard library; added on a running event loop it is called on that loop.

        So ``asyncio.wait`` and the like, which add callbacks of their own, work with these futures.
        """
        loop = running_loop()
        if loop is None:
            super().add_done_callback(fn)
        else:
            super().add_done_callback(_OnLoop(loop, fn))

    def remove_done_callback(self, fn: Callable[[Future[T]], object]) -> int:
        """Remove a callback as ``asyncio.Future`` does; returns how many there were."""
        with self._condition:
            kept = [known for known in self._done_callbacks if known != fn and getattr(known, "fn", None) != fn]
            removed = len(self._done_callbacks) - len(kept)
            self._done_callbacks[:] = kept
        return removed

    def __await__(self) -> Generator[Any, None, T]:
        """Wait on the running event loop. Cancelling the waiting task cancels the call if it has not started."""
        if self.done():
            return self.result()
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[None] = loop.create_future()
        super().add_done_callback(_OnLoop(loop, lambda _: _set(arrived)))
        try:
            yield from arrived
        except asyncio.CancelledError:
            self.cancel_soon()
            raise
        return self.result()

    def cancel_soon(self) -> None:
        """Cancel without waiting for the answer."""
        if self.dispatcher is not None and not self.done():
            self.dispatcher.cancel_soon([self])


def _set(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)


class _OnLoop:
    """A done callback that runs on the loop it was added on."""

    __slots__ = ("fn", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, fn: Callable[[Any], object]) -> None:
        self.loop, self.fn = loop, fn

    def __call__(self, future: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(self.fn, future)
        except RuntimeError:
            pass  # that loop is closed: nobody waits there any more


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
