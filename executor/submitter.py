"""Takes calls in: pickles them and puts them into lanes, for one executor or view."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from executor.dispatch.future import CallFuture
from executor.dispatch.map_result import MapResult, MapState
from executor.stores.offload import packed

if TYPE_CHECKING:
    from executor.dispatch.lanes import CallLane
    from executor.dispatch.map_lane import MapLane
    from executor.session import Session
    from executor.tasks.call_options import CallOptions
    from executor.wire.functions import PickledFunction

#: Items of an async iterable that are taken ahead when ``buffersize`` is not given.
ASYNC_BUFFERSIZE = 1024
#: Lanes kept by one executor or view; idle ones go first.
_MAX_LANES = 1024


class Submitter:
    """Submits with one set of options.

    Args:
        session: Where the calls go.
        options: Of all of them.
    """

    def __init__(self, session: Session, options: CallOptions) -> None:
        self.session, self._options = session, options
        self._lanes: dict[str, CallLane] = {}
        self._lanes_lock = threading.Lock()

    def submit(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallFuture[Any]:
        """See :meth:`executor.calls.Calls.submit`."""
        session = self.session
        dispatcher = session.ensure_started()
        if dispatcher.broken is not None:
            raise dispatcher.broken
        future: CallFuture[Any] = CallFuture()
        try:
            function = session.functions.pickled(fn)
            future.data, future.buffers = packed((args, kwargs), session.store)
        except Exception as error:  # user code: __reduce__ may raise anything
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        lane = self._lanes.get(function.digest)
        if lane is None:
            lane = self._new_lane(function)
        session.enqueue(lane, future)
        return future

    def _new_lane(self, function: PickledFunction) -> CallLane:
        with self._lanes_lock:
            if len(self._lanes) >= _MAX_LANES:
                for digest, idle in list(self._lanes.items()):
                    if not (idle.out or idle.waiting or idle.listed):
                        del self._lanes[digest]
            return self._lanes.setdefault(function.digest, self.session.lane(function, self._options))

    def map(
        self,
        fn: Callable[..., Any],
        iterables: tuple[Any, ...],
        *,
        star: bool,
        ordered: bool = True,
        timeout: float | None,
        chunksize: int | None,
        buffersize: int | None,
        progress: bool,
    ) -> MapResult[Any]:
        """See :meth:`executor.calls.Calls.map`.

        Args:
            fn: Called for each item.
            iterables: The input.
            star: Whether an item is a tuple of arguments.
            ordered: Give results in the order of the input.
            timeout: See there, as the others.
            chunksize: Positive or None.
            buffersize: Positive or None.
            progress: Show it.
        """
        _check_sizes(chunksize=chunksize, buffersize=buffersize)
        if timeout is not None:
            timeout += 0.0  # what is no number fails here, before anything has been sent
        session = self.session
        session.ensure_started()
        asynchronous = any(isinstance(each, AsyncIterable) for each in iterables)
        eager = buffersize is None and not asynchronous
        items = _items(iterables, star, eager, asynchronous)
        function = session.functions.pickled(fn)
        state = MapState(ordered=ordered)
        lane = session.map_lane(
            function, self._options, state=state, star=star, chunksize=_chunk(chunksize, buffersize)
        )
        if progress:
            _show_progress(state, fn, len(items) if eager else None)
        feed = feed_async = None
        if eager:
            state.added = len(items)
            state.end(len(items))
            session.add_items(lane, 0, items)
        elif asynchronous:
            feed_async = _AsyncFeed(session, lane, state, items, buffersize or ASYNC_BUFFERSIZE)
        else:
            feed = _Feed(session, lane, state, iter(items), cast("int", buffersize))
            feed(0)
        return MapResult(
            state, timeout=timeout, feed=feed, feed_async=feed_async, on_close=lambda: session.close_map(lane)
        )

    def finish(self, *, wait: bool, cancel: bool) -> None:
        """Let the single calls submitted here finish, or cancel those that have not started."""
        self.session.finish_lanes(list(self._lanes.values()), wait=wait, cancel=cancel)


def _check_sizes(**sizes: int | None) -> None:
    for name, value in sizes.items():
        if value is not None and not isinstance(value, int):
            raise TypeError(f"{name} must be an integer or None")
        if value is not None and value < 1:
            raise ValueError(f"{name} must be >= 1.")


def _chunk(chunksize: int | None, buffersize: int | None) -> int | None:
    return min(chunksize, buffersize) if chunksize and buffersize else chunksize


def _items(iterables: tuple[Any, ...], star: bool, eager: bool, asynchronous: bool) -> Any:
    """The input: a list if it is taken in now, else an iterator (sync or async)."""
    if asynchronous:
        return _zipped(iterables)
    if star and len(iterables) != 1:
        found: Iterator[Any] = zip(*iterables, strict=False)
    else:
        found = iter(iterables[0])
    return list(found) if eager else found


async def _zipped(iterables: tuple[Any, ...]) -> AsyncGenerator[Any]:
    iterators = [aiter(each) if isinstance(each, AsyncIterable) else iter(each) for each in iterables]
    while True:
        item = []
        for iterator in iterators:
            try:
                item.append(await anext(iterator) if isinstance(iterator, AsyncIterator) else next(iterator))
            except (StopIteration, StopAsyncIteration):
                return
        yield tuple(item) if len(iterables) > 1 else item[0]  # for starmap it is a tuple already


class _Feed:
    """Takes in more input as results are given out; at most ``buffersize`` items are in between."""

    def __init__(self, session: Session, lane: MapLane, state: MapState, items: Iterator[Any], buffersize: int) -> None:
        self._session, self._lane, self._state = session, lane, state
        self._items, self._buffersize = items, buffersize
        self._low = max(1, buffersize // 2)

    def __call__(self, given: int) -> bool:
        state = self._state
        room = self._buffersize - (state.added - given)
        if state.total is not None or room < self._low:
            return False
        taken = list(islice(self._items, room))
        self._session.check_open()
        first = state.added
        state.added += len(taken)
        if taken:
            self._session.add_items(self._lane, first, taken)
        if len(taken) < room:
            state.end(state.added)
        return True


class _AsyncFeed:
    """As :class:`_Feed`, from an async iterator. Takes one item at a time, so that a slow source delays nothing."""

    def __init__(
        self, session: Session, lane: MapLane, state: MapState, items: AsyncGenerator[Any], buffersize: int
    ) -> None:
        self._session, self._lane, self._state = session, lane, state
        self._items, self._buffersize = items, buffersize
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._given = 0

    async def __call__(self, given: int) -> None:
        self._given = given
        if self._task is None:
            self._task = asyncio.create_task(self._pull())
        self._room.set()

    def check(self) -> None:
        """Raise what the source raised."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    def close(self) -> None:
        """Take no more from the source. From any thread."""
        task = self._task
        if task is None or task.done():
            return
        try:
            task.get_loop().call_soon_threadsafe(task.cancel)
        except RuntimeError:
            pass  # its loop has been closed

    async def _pull(self) -> None:
        state = self._state
        try:
            async for item in self._items:
                first = state.added
                state.added += 1
                self._session.add_items(self._lane, first, [item])
                while state.added - self._given >= self._buffersize:
                    self._room.clear()
                    await self._room.wait()
        finally:
            state.end(state.added)
            await self._items.aclose()


def _show_progress(state: MapState, fn: Callable[..., Any], total: int | None) -> None:
    from executor.progress import progress_reporter

    reporter = progress_reporter(total, getattr(fn, "__name__", type(fn).__name__))
    state.show(reporter)
