"""Results of a ``map`` on their way to the user: an iterator and an async iterator over the same run.

The loop thread fills in slices as they arrive (:meth:`MapState.fill`); the user takes them in order, or, for
``imap_unordered``, as they come. One lock for the run, none for each item.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")

log = logging.getLogger("executor")


class Failed:
    """An item that raised, in the place of its value."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Reporter(Protocol):
    """Shows how far a run has come."""

    def advance(self, done: int, failed: int) -> None:
        """So many more items have an outcome; ``failed`` of them raised."""

    def set_total(self, total: int) -> None:
        """So many items there are in all, as is known now."""

    def close(self) -> None:
        """There is no more to come."""


class MapState:
    """What has arrived, and who waits for it.

    Attributes:
        added: Items taken from the input so far.
        total: Items in all; None until the input has ended.
        filled: Items that have an outcome.
        failed: Of these, those that raised.
        closed: Nobody wants the rest.
    """

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self._changed = threading.Condition()
        self._slices: dict[int, list[Any]] = {}
        self._arrived: deque[list[Any]] = deque()
        self._position = 0
        self._listeners: list[Callable[[], object]] = []
        self.added = 0
        self.total: int | None = None
        self.filled = 0
        self.failed = 0
        self.closed = False
        self._reporter: Reporter | None = None

    def fill(self, first: int, values: list[Any], failed: int = 0) -> None:
        """Outcomes of the items from ``first`` on; called once for each item."""
        with self._changed:
            if self.closed:
                return
            if self._ordered:
                self._slices[first] = values
            else:
                self._arrived.append(values)
            self.filled += len(values)
            self.failed += failed
            if not self._ordered or first == self._position:
                self._changed.notify_all()
            listeners, self._listeners = self._listeners, []
        self._tell(listeners)
        self._report(len(values), failed)

    def _report(self, done: int, failed: int) -> None:
        reporter = self._reporter
        if reporter is None:
            return
        try:
            reporter.advance(done, failed)
            if self.closed or (self.total is not None and self.filled >= self.total):
                self._reporter = None
                reporter.close()
        except Exception as error:  # standard error may be closed: no reason to lose a result
            self._reporter = None
            log.warning("Progress is no longer shown: %r", error)

    @staticmethod
    def _tell(listeners: list[Callable[[], object]]) -> None:
        for listener in listeners:
            try:
                listener()
            except RuntimeError:
                pass  # its event loop has been closed: nobody waits there any more

    def show(self, reporter: Reporter) -> None:
        """Report progress until all is there, or nobody wants the rest."""
        self._reporter = reporter

    def end(self, total: int) -> None:
        """The input has ended after ``total`` items."""
        with self._changed:
            self.total = total
            self._changed.notify_all()
            listeners, self._listeners = self._listeners, []
        self._tell(listeners)
        if self._reporter is not None:
            self._reporter.set_total(total)
        self._report(0, 0)

    def close(self) -> None:
        """Nobody wants the rest: whoever waits is told that there is no more, and what still arrives is dropped."""
        with self._changed:
            self.closed = True
            self._slices.clear()
            self._arrived.clear()
            self._changed.notify_all()
            listeners, self._listeners = self._listeners, []
        self._tell(listeners)
        self._report(0, 0)

    def next_slice(self) -> list[Any] | None:
        """The next values to hand out, or None where they have not arrived."""
        with self._changed:
            values = self._take()
        return values

    def _take(self) -> list[Any] | None:
        if self._ordered:
            values = self._slices.pop(self._position, None)
        else:
            values = self._arrived.popleft() if self._arrived else None
        if values is not None:
            self._position += len(values)
        return values

    @property
    def exhausted(self) -> bool:
        """Whether there is nothing more to hand out."""
        return self.closed or self.complete

    @property
    def complete(self) -> bool:
        """Whether the outcome of every item has been handed out."""
        return self.total is not None and self._position >= self.total

    def wait_slice(self, deadline: float | None) -> list[Any] | None:
        """Block until there are values; None at the end.

        Raises:
            TimeoutError: ``deadline`` (``time.monotonic()``) has passed.
        """
        with self._changed:
            while (values := self._take()) is None and not self.exhausted:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError("the next result of map() did not arrive within its timeout=")
                self._changed.wait(left)
        return values

    def listen(self, listener: Callable[[], object]) -> bool:
        """Have ``listener`` called once at the next change; False where there is something to take already."""
        with self._changed:
            ready = self.exhausted or (self._position in self._slices if self._ordered else bool(self._arrived))
            if not ready:
                self._listeners.append(listener)
        return not ready


class _Run:
    """What an iterator over a run needs; it knows no iterator, so that a dropped one is gone at once.

    When nobody holds it any more, and results have been asked for, what has not started is given up.
    """

    def __init__(
        self,
        state: MapState,
        timeout: float | None,
        feed: Callable[[int], bool] | None,
        feed_async: AsyncFeed | None,
        on_close: Callable[[], None],
    ) -> None:
        self.state, self.feed, self.feed_async, self._on_close = state, feed, feed_async, on_close
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.given = 0
        self.begun = False

    def close(self) -> None:
        if self.state.closed:
            return
        complete = self.state.complete
        self.state.close()
        if self.feed_async is not None:
            self.feed_async.close()
        if not complete:
            self._on_close()

    def __del__(self) -> None:
        if self.begun:
            self.close()

    # --- for threads ----------------------------------------------------------------------------

    def results(self) -> Generator[Any, None, None]:
        self.begun = True
        try:
            while (values := self._next_slice()) is not None:
                if self.feed is None and self.state.failed == 0:
                    yield from values
                else:
                    yield from self._one_by_one(values)
        finally:
            self.close()

    def _one_by_one(self, values: list[Any]) -> Generator[Any, None, None]:
        for value in values:
            if type(value) is Failed:
                raise value.error
            self.given += 1
            yield value
            if self.feed is not None:
                self.feed(self.given)

    def _next_slice(self) -> list[Any] | None:
        if self.feed is not None and not self.state.closed:
            self.feed(self.given)
        elif self.feed_async is not None:
            raise TypeError("map() over an async iterable gives an async iterator: write `async for`.")
        return self.state.wait_slice(self.deadline)

    # --- for event loops ------------------------------------------------------------------------

    async def next_slice(self) -> list[Any] | None:
        self.begun = True
        while True:
            await self._fed()
            values = self.state.next_slice()
            if values is not None:
                return values
            if self.state.exhausted:
                if self.feed_async is not None and not self.state.closed:
                    self.feed_async.check()
                return None
            await self._changed()

    async def _fed(self) -> None:
        if self.state.closed:
            return
        if self.feed is not None:
            self.feed(self.given)
        if self.feed_async is not None:
            await self.feed_async(self.given)

    async def _changed(self) -> None:
        loop = asyncio.get_running_loop()
        changed: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not changed.done():
                changed.set_result(None)

        if not self.state.listen(lambda: loop.call_soon_threadsafe(wake)):
            return
        left = None if self.deadline is None else self.deadline - time.monotonic()
        try:
            async with asyncio.timeout(left):  # Python 3.11's wait_for may lose a cancellation
                await changed
        except TimeoutError:
            raise TimeoutError("the next result of map() did not arrive within its timeout=") from None


class AsyncFeed(Protocol):
    """Takes in input from an async iterable as results are given out."""

    async def __call__(self, given: int) -> None:
        """So many have been given out; begins at the first call."""

    def check(self) -> None:
        """Raise what the input raised, after the results of the items before it have been given out."""

    def close(self) -> None:
        """Take no more. From any thread."""


class MapResult(Iterator[T], AsyncIterator[T], Generic[T]):
    """Results of ``ex.map``: iterate with ``for`` or ``async for``; ``close()`` gives up what has not started.

    Raises (at the item it belongs to): what the call raised; ``TimeoutError`` after ``timeout`` seconds from
    the call of ``map``. After an exception the iterator is finished and calls that have not started are
    cancelled, as in the standard library; so they are when it is dropped half way.
    """

    def __init__(
        self,
        state: MapState,
        *,
        timeout: float | None,
        feed: Callable[[int], bool] | None,
        feed_async: AsyncFeed | None,
        on_close: Callable[[], None],
    ) -> None:
        self._run = _Run(state, timeout, feed, feed_async, on_close)
        self._results = self._run.results()
        self._slice: list[Any] = []
        self._at = 0

    def __next__(self) -> T:
        return next(self._results)  # type: ignore[no-any-return]

    def __aiter__(self) -> MapResult[T]:
        return self

    async def __anext__(self) -> T:
        try:
            while self._at >= len(self._slice):
                values = await self._run.next_slice()
                if values is None:
                    raise StopAsyncIteration
                self._slice, self._at = values, 0
            if self._run.state.closed:
                raise StopAsyncIteration
            value = self._slice[self._at]
            self._at += 1
            self._run.given += 1
            if type(value) is Failed:
                if isinstance(value.error, StopAsyncIteration):  # it would end the loop as if all were well
                    raise RuntimeError("a call raised StopAsyncIteration") from value.error
                raise value.error
        except Exception:  # but not CancelledError: who waits with a timeout may ask again
            self.close()
            raise
        return value  # type: ignore[no-any-return]

    def close(self) -> None:
        """Give up: calls that have not started will not run. Iterating further ends at once."""
        self._run.close()
        try:
            self._results.close()
        except ValueError:
            pass  # another thread iterates just now, and finds the end

    async def aclose(self) -> None:
        """As :meth:`close`."""
        self.close()
