"""Results of a ``map`` on their way to the user: an iterator and an async iterator over the same run.

The loop thread fills in slices as they arrive (:meth:`MapState.fill`); the user takes them in order, or, for
``imap_unordered``, as they come. One lock for the run, none for each item.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

from executor.dispatch.future import running_loop

T = TypeVar("T")


class Failed:
    """An item that raised, in the place of its value."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class MapState:
    """What has arrived, and who waits for it.

    Attributes:
        added: Items taken from the input so far.
        total: Items in all; None until the input has ended.
        filled: Items that have an outcome.
        failed: Of these, those that raised.
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
        self.on_progress: Callable[[int, int], None] | None = None

    def fill(self, first: int, values: list[Any], failed: int = 0) -> None:
        """Outcomes of the items from ``first`` on; called once for each item."""
        with self._changed:
            if self._ordered:
                self._slices[first] = values
            else:
                self._arrived.append(values)
            self.filled += len(values)
            self.failed += failed
            listeners, self._listeners = self._listeners, []
            if not self._ordered or first == self._position:
                self._changed.notify_all()
        for listener in listeners:
            listener()
        if self.on_progress is not None:
            self.on_progress(len(values), failed)

    def show(self, reporter: Any) -> None:
        """Report progress to ``reporter`` (``advance(done, failed)``, ``close()``) until all is there."""

        def advance(done: int, failed: int) -> None:
            reporter.advance(done, failed)
            if self.total is not None and self.filled >= self.total:
                reporter.close()

        self.on_progress = advance

    def end(self, total: int) -> None:
        """The input has ended after ``total`` items."""
        with self._changed:
            self.total = total
            self._changed.notify_all()
            listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener()

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
        """Whether all there will ever be has been handed out."""
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


class MapResult(Iterator[T], AsyncIterator[T], Generic[T]):
    """Results of ``ex.map``: iterate with ``for`` or ``async for``; ``close()`` gives up what has not started.

    Raises (at the item it belongs to): what the call raised; ``TimeoutError`` after ``timeout`` seconds from
    the call of ``map``. After an exception the iterator is finished and calls that have not started are
    cancelled, as in the standard library.
    """

    def __init__(
        self,
        state: MapState,
        *,
        timeout: float | None,
        feed: Callable[[int], bool] | None,
        feed_async: Callable[[int], Any] | None,
        on_close: Callable[[], None],
    ) -> None:
        self._state = state
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._feed, self._feed_async, self._on_close = feed, feed_async, on_close
        self._closed = False
        self._given = 0
        self._values: Any = self._generate()
        self._slice: list[Any] = []
        self._at = 0

    def __iter__(self) -> Iterator[T]:
        return self._values  # type: ignore[no-any-return]  # a generator: twice as fast as calling __next__ here for each item

    def __next__(self) -> T:
        return next(self._values)  # type: ignore[no-any-return]

    def _generate(self) -> Generator[T, None, None]:
        try:
            while True:
                values = self._next_slice()
                if values is None:
                    break
                yield from self._handed_out(values)
        finally:
            self.close()

    def _handed_out(self, values: list[Any]) -> Generator[T, None, None]:
        if self._feed is None:
            if self._state.failed == 0:
                yield from values
                return
            for value in values:
                if type(value) is Failed:
                    raise _raised(value)
                yield value
            return
        for value in values:
            if type(value) is Failed:
                raise _raised(value)
            self._given += 1
            yield value
            self._feed(self._given)

    def _next_slice(self) -> list[Any] | None:
        if self._feed is not None:
            self._feed(self._given)
        elif self._feed_async is not None:
            raise TypeError("map() over an async iterable gives an async iterator: write `async for`.")
        return self._state.wait_slice(self._deadline)

    def __aiter__(self) -> MapResult[T]:
        return self

    async def __anext__(self) -> T:
        while self._at >= len(self._slice):
            values = None if self._closed else await self._next_slice_async()
            if values is None:
                self.close()
                raise StopAsyncIteration
            self._slice, self._at = values, 0
        value = self._slice[self._at]
        self._at += 1
        self._given += 1
        if type(value) is Failed:
            self.close()
            raise _raised(value)
        return value  # type: ignore[no-any-return]

    async def _next_slice_async(self) -> list[Any] | None:
        loop = asyncio.get_running_loop()
        while True:
            if self._feed is not None:
                self._feed(self._given)
            if self._feed_async is not None:
                await self._feed_async(self._given)
            values = self._state.next_slice()
            if values is not None or self._state.exhausted:
                return values
            await self._changed(loop)

    async def _changed(self, loop: asyncio.AbstractEventLoop) -> None:
        changed: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not changed.done():
                changed.set_result(None)

        if not self._state.listen(lambda: loop.call_soon_threadsafe(wake)):
            return
        left = None if self._deadline is None else self._deadline - time.monotonic()
        try:
            await asyncio.wait_for(changed, left)
        except TimeoutError:
            self.close()
            raise TimeoutError("the next result of map() did not arrive within its timeout=") from None

    def close(self) -> None:
        """Give up: calls that have not started will not run. Iterating further ends at once."""
        if self._closed:
            return
        self._closed = True
        if not self._state.exhausted:
            self._on_close()
        if running_loop() is None and not self._values.gi_running:
            self._values.close()

    async def aclose(self) -> None:
        """As :meth:`close`."""
        self.close()


def _raised(failed: Failed) -> BaseException:
    return failed.error
