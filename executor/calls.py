"""The calling half of an executor: ``submit``, ``map`` and their kin, shared by ``KubeExecutor`` and its views."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import fields, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

from executor.dispatch.future import CallFuture
from executor.dispatch.map_result import MapResult, MapState
from executor.stores.offload import packed
from executor.tasks.call_options import CallOptions

if TYPE_CHECKING:
    from executor.dispatch.lanes import CallLane
    from executor.dispatch.map_lane import MapLane
    from executor.session import Session

P = ParamSpec("P")
T = TypeVar("T")

#: Items of an async iterable that are taken ahead when ``buffersize`` is not given.
ASYNC_BUFFERSIZE = 1024
#: Lanes kept by one executor or view; idle ones go first.
_MAX_LANES = 1024


class Calls(Executor):
    """Sends calls with one set of options. The subclass says to whom, in :meth:`_session_for_calls`."""

    _options: CallOptions

    def __init__(self, options: CallOptions) -> None:
        self._options = options
        self._lanes: dict[str, CallLane] = {}
        self._lanes_lock = threading.Lock()

    @abstractmethod
    def _session_for_calls(self) -> Session:
        """The session, if calls may be submitted now.

        Raises:
            RuntimeError: After shutdown.
        """

    @overload
    def submit(
        self, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> CallFuture[T]: ...
    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> CallFuture[T]: ...
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> CallFuture[Any]:
        """Run ``fn(*args, **kwargs)`` on a worker; a coroutine function is run to its end there.

        Arguments are pickled now: changing them afterwards does not change the call.

        Returns:
            A ``concurrent.futures.Future`` that can also be awaited. What cannot be pickled fails on it.

        Raises:
            RuntimeError: After ``shutdown()``, or in a forked child.
            PoolBroken, BrokerError: The executor cannot be started, or is broken for good.
        """
        session = self._session_for_calls()
        dispatcher = session.ensure_started()
        if dispatcher.broken is not None:
            raise dispatcher.broken
        future: CallFuture[Any] = CallFuture()
        try:
            function = session.functions.pickled(fn)
            future.data, future.buffers = packed((args, kwargs), session.store)
        except Exception as error:
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        lane = self._lanes.get(function.digest)
        if lane is None:
            lane = self._new_lane(session, function)
        session.enqueue(lane, future)
        return future

    def _new_lane(self, session: Session, function: Any) -> CallLane:
        with self._lanes_lock:
            if len(self._lanes) >= _MAX_LANES:
                for digest, idle in list(self._lanes.items()):
                    if not (idle.out or idle.waiting or idle.listed):
                        del self._lanes[digest]
            return self._lanes.setdefault(function.digest, session.lane(function, self._options))

    @overload
    def map(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> MapResult[T]: ...
    @overload
    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> MapResult[T]: ...
    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> MapResult[Any]:
        """Results of ``fn`` over the items, in order; iterate with ``for`` or ``async for``.

        Args:
            fn: Called with one item of each iterable.
            iterables: All taken in now, unless ``buffersize`` is given; the shortest ends it. Async iterables make
                the result an async one, and are taken in as it is iterated.
            timeout: Seconds from now for each next result; then TimeoutError.
            chunksize: Items in one message; None adapts to the measured duration.
            buffersize: At most so many items taken in and not yet given out; needed for infinite input.
            progress: Show done, failed, rate and time left on stderr.

        Raises:
            ValueError: ``chunksize`` or ``buffersize`` below 1.
            RuntimeError: After ``shutdown()``.
            Exception: What pickling ``fn`` raised.
        """
        star = len(iterables) != 1
        return self._map(fn, iterables, star, True, timeout, chunksize, buffersize, progress)

    def starmap(
        self,
        fn: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        *,
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> MapResult[T]:
        """As :meth:`map`, with ``fn(*item)`` for each item."""
        items = (tuple(item) for item in iterable)
        return self._map(fn, (items,), True, True, timeout, chunksize, buffersize, progress)

    def imap_unordered(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> MapResult[T]:
        """As :meth:`map`, results as they come."""
        star = len(iterables) != 1
        return self._map(fn, iterables, star, False, timeout, chunksize, buffersize, progress)

    def options(self, **changes: Any) -> ExecutorView:
        """A view of this executor with other options for its calls: itself an ``Executor``.

        Args:
            changes: Fields of :class:`CallOptions`: ``timeout``, ``expires``, ``retries``, ``retry_on``, ``backoff``,
                ``max_deliveries``, ``priority``, ``pool``, ``name``.

        Raises:
            TypeError: No such option.
            ValueError: A value that makes no sense, or no such pool.
        """
        known = {field.name for field in fields(CallOptions)}
        for name in changes.keys() - known:
            raise TypeError(f"options() has no {name!r}; there are {', '.join(sorted(known))}.")
        options = replace(self._options, **changes)
        self._check_pool(options.pool)
        return ExecutorView(self, options)

    @abstractmethod
    def _check_pool(self, name: str) -> None:
        """Raise ValueError for a pool that there is not."""

    def _map(
        self,
        fn: Callable[..., Any],
        iterables: tuple[Any, ...],
        star: bool,
        ordered: bool,
        timeout: float | None,
        chunksize: int | None,
        buffersize: int | None,
        progress: bool,
    ) -> MapResult[Any]:
        for name, value in (("chunksize", chunksize), ("buffersize", buffersize)):
            if value is not None and not isinstance(value, int):
                raise TypeError(f"{name} must be an integer or None")
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1.")
        session = self._session_for_calls()
        asynchronous = any(isinstance(each, AsyncIterable) for each in iterables)
        eager = buffersize is None and not asynchronous
        items = _items(iterables, star, eager, asynchronous)
        function = session.functions.pickled(fn)
        state = MapState(ordered=ordered)
        lane = session.map_lane(
            function, self._options, state=state, star=star, chunksize=_chunk(chunksize, buffersize)
        )
        if progress:
            _show_progress(state, lane, fn, len(items) if eager else None)
        feed = feed_async = None
        if eager:
            state.added = len(items)
            state.end(len(items))
            session.add_items(lane, 0, items)
        elif asynchronous:
            feed_async = _AsyncFeed(session, lane, state, aiter(items), buffersize or ASYNC_BUFFERSIZE)
        else:
            feed = _Feed(session, lane, state, iter(items), cast("int", buffersize))
            feed(0)
        return MapResult(
            state, timeout=timeout, feed=feed, feed_async=feed_async, on_close=lambda: session.close_map(lane)
        )


class ExecutorView(Calls):
    """An executor with other options; made by :meth:`Calls.options`. Its ``shutdown`` ends the view, not the executor."""

    def __init__(self, parent: Calls, options: CallOptions) -> None:
        super().__init__(options)
        self._parent = parent
        self._closed = False

    def _session_for_calls(self) -> Session:
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        return self._parent._session_for_calls()

    def _check_pool(self, name: str) -> None:
        self._parent._check_pool(name)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls through this view; the executor goes on, and so do calls submitted here.

        Args:
            wait: Wait for the single calls submitted through this view.
            cancel_futures: Cancel those that have not started.
        """
        self._closed = True
        session = self._parent._session_for_calls()
        session.finish_lanes(list(self._lanes.values()), wait=wait, cancel=cancel_futures)

    def __repr__(self) -> str:
        return f"<view of {self._parent!r} with {self._options}>"

    def __reduce__(self) -> Any:
        return (_view, (self._parent, self._options))


def _view(parent: Calls, options: CallOptions) -> ExecutorView:
    return ExecutorView(parent, options)


def _chunk(chunksize: int | None, buffersize: int | None) -> int | None:
    return min(chunksize, buffersize) if chunksize and buffersize else chunksize


def _items(iterables: tuple[Any, ...], star: bool, eager: bool, asynchronous: bool) -> Any:
    """The input: a list if it is taken in now, else an iterator (sync or async)."""
    if asynchronous:
        return _zipped(iterables, star)
    if star and len(iterables) != 1:
        found: Iterator[Any] = zip(*iterables, strict=False)
    else:
        found = iter(iterables[0])
    return list(found) if eager else found


async def _zipped(iterables: tuple[Any, ...], star: bool) -> AsyncIterator[Any]:
    iterators = [aiter(each) if isinstance(each, AsyncIterable) else iter(each) for each in iterables]
    while True:
        item = []
        for iterator in iterators:
            try:
                item.append(await anext(iterator) if isinstance(iterator, AsyncIterator) else next(iterator))
            except (StopIteration, StopAsyncIteration):
                return
        yield tuple(item) if star else item[0]


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
        self, session: Session, lane: MapLane, state: MapState, items: AsyncIterator[Any], buffersize: int
    ) -> None:
        self._session, self._lane, self._state = session, lane, state
        self._items, self._buffersize = items, buffersize
        self._task: Any = None

    async def __call__(self, given: int) -> None:
        import asyncio

        self._given = given
        if self._task is None:
            self._task = asyncio.ensure_future(self._pull())
        if self._task.done():
            self._task.result()
        self._room.set()

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

    @property
    def _room(self) -> Any:
        import asyncio

        room = self.__dict__.get("_room_event")
        if room is None:
            room = self.__dict__["_room_event"] = asyncio.Event()
        return room


def _show_progress(state: MapState, lane: MapLane, fn: Callable[..., Any], total: int | None) -> None:
    from executor.progress import progress_reporter

    reporter = progress_reporter(total, getattr(fn, "__name__", type(fn).__name__))
    state.show(reporter)


Awaitables = Awaitable[Any]
