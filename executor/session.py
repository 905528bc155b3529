"""What stands behind one executor: its loop thread, pools, dispatcher and store, and their life.

``KubeExecutor`` and its views are thin faces; a session does not know them, so that an executor which nobody
holds any more can be told from one in use.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

from executor.broker import keys
from executor.dispatch.batcher import Durations
from executor.dispatch.call_frames import CallFrames
from executor.dispatch.dispatcher import Dispatcher
from executor.dispatch.future import CallFuture, running_loop
from executor.dispatch.keeping import Keeping
from executor.dispatch.lanes import Batch, CallLane, Lane, expired
from executor.dispatch.loop_thread import LoopThread
from executor.dispatch.map_lane import MapLane
from executor.errors import KubeExecutorError, PoolBroken
from executor.wire.functions import FunctionCache, PickledFunction

if TYPE_CHECKING:
    from executor.pools.base import WorkerPool
    from executor.stores.base import BlobStore
    from executor.tasks.call_options import CallOptions

log = logging.getLogger("executor")

#: Functions whose durations and lanes are remembered at a time.
_MAX_FUNCTIONS = 4096


class Session:
    """Runs the calls of one executor.

    Args:
        pools: The pools, in the order to start them; the first brings the broker.
        executor: Name of the executor: its queues are named after it.
        client: Id of this client.
        key: Master key of the signatures.
        on_busy: See :class:`Dispatcher`.
        alone: Calls travel one by one unless a chunksize is given, so that they can be counted.
    """

    def __init__(
        self,
        pools: Sequence[WorkerPool],
        *,
        executor: str,
        client: str,
        key: bytes,
        on_busy: Callable[[bool], None] | None = None,
        alone: bool = False,
    ) -> None:
        self._alone = alone
        self.pools = {pool.spec.name: pool for pool in pools}
        self.executor, self.client, self.key = executor, client, key
        self.functions = FunctionCache()
        self.store: BlobStore | None = None
        self._keeping: Keeping | None = None
        self._durations: dict[str, Durations] = {}
        self._on_busy = on_busy
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a signal handler or a finalizer may close what is just being closed
        self._starting: Future[None] | None = None
        self._stopping: Future[None] | None = None
        self._loop: LoopThread | None = None
        self._dispatcher: Dispatcher | None = None
        self._now = False
        self._ready = False
        self.closed = False

    @property
    def in_use(self) -> bool:
        """Whether it has been started."""
        return self._starting is not None

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> Future[None]:
        """Begin to start, unless that has happened; the future is done when calls can be sent."""
        self._check_process()
        with self._lock:
            if self._starting is None:
                self.check_open()
                self._loop = LoopThread(f"executor-{self.client}")
                frames = CallFrames(self.key, self.client)
                self._dispatcher = Dispatcher(self._loop, frames, self._slots, self._queue, self._on_busy)
                for pool in self.pools.values():
                    pool.on_broken = self._dispatcher.break_with
                self._starting = self._loop.start(self._start())
                sessions.add(self)
        return self._starting

    def ensure_started(self) -> Dispatcher:
        """Start at the first call. Waits for it, except on an event loop: there errors come on the futures."""
        if not self._ready:
            starting = self.start()
            if running_loop() is None and self._loop is not None and not self._loop.is_current:
                self._wait_for(starting)
            self._ready = starting.done()
        else:
            self._check_process()
        assert self._dispatcher is not None
        return self._dispatcher

    def _wait_for(self, starting: Future[None]) -> None:
        try:
            starting.result()
        except KeyboardInterrupt:  # nobody is in the `with` block yet, to end it
            self.close(now=True).result()
            raise

    async def _start(self) -> None:
        assert self._dispatcher is not None
        try:
            await self._start_pools()
        except BaseException as error:
            self._dispatcher.break_with(error if isinstance(error, KubeExecutorError) else PoolBroken(str(error)))
            raise

    async def _start_pools(self) -> None:
        from executor.broker.connection import connect_async
        from executor.broker.publisher import Publisher
        from executor.broker.replies import Replies
        from executor.broker.stores import store_for

        assert self._dispatcher is not None
        first, *others = self.pools.values()
        await first.start()
        for pool in others:
            pool.join(first)
            await pool.start()
        self.store = store_for(first.store, self.client) if first.store else None
        connection = connect_async(first.address, client_name=f"ke-client:{self.client}")
        publisher = Publisher(connection, self.client, first.address)
        replies = Replies(connect_async(first.address, client_name=f"ke-replies:{self.client}"), self.client)
        await self._dispatcher.start(publisher, replies)
        if self.store is not None:
            locator = self.store.locator
            self._keeping = Keeping(self._dispatcher, lambda: store_for(locator, self.client))
            self._keeping.start(self.store)

    def close(self, *, cancel: bool = False, now: bool = False) -> Future[None]:
        """Take no more calls, let the accepted ones finish, then stop everything.

        Args:
            cancel: Cancel what has not started.
            now: Do not wait for what runs: kill it. Unresolved futures get PoolBroken.
        """
        with self._lock:
            self._take_no_more()
            if self._loop is None or self._pid != os.getpid():
                done: Future[None] = Future()
                done.set_result(None)
                return done
            self._now = self._now or now
            if now and self._starting is not None and not self._starting.done():
                self._starting.cancel()
            if (cancel or now) and not (self._stopping is not None and self._stopping.done()):
                self._loop.start(self._give_up(now))
            if self._stopping is None:
                self._stopping = self._loop.start(self._stop())
                self._stopping.add_done_callback(lambda _: self._end_loop())
            return self._stopping

    def _take_no_more(self) -> None:
        if self._dispatcher is None:
            self.closed = True
            return
        with self._dispatcher.lock:  # a call is either in its lane by now, or refused
            self.closed = True

    def _end_loop(self) -> None:
        sessions.discard(self)
        if self._loop is not None:
            self._loop.end()

    async def _stop(self) -> None:
        assert self._dispatcher is not None
        assert self._starting is not None
        await asyncio.gather(asyncio.wrap_future(self._starting), return_exceptions=True)
        await self._dispatcher.drained()
        owned = [self._queue(name) for name, pool in self.pools.items() if pool.owned]
        await self._dispatcher.stop(owned, others=len(owned) < len(self.pools))
        failure: Exception | None = None
        for pool in reversed(self.pools.values()):
            try:
                await pool.stop(grace_s=0.0 if self._now else None)
            except Exception as error:  # the others are to be stopped all the same
                log.warning("The pool %r could not be stopped: %r", pool.spec.name, error)
                failure = failure or error
        if self._keeping is not None:
            self._keeping.stop()
        if self.store is not None:
            self.store.close()
        if failure is not None:
            raise failure

    async def _give_up(self, now: bool) -> None:
        dispatcher = self._dispatcher
        assert dispatcher is not None
        if now:
            dispatcher.break_with(PoolBroken("The executor was terminated; calls without an outcome are given up."))
            return
        await self._cancel_lanes(dispatcher, dispatcher.lanes())

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(
                f"This executor belongs to process {self._pid}, and this is its fork {os.getpid()}: threads and "
                "connections do not survive a fork. Make an executor of its own in the child, or use spawn."
            )

    # --- calls ----------------------------------------------------------------------------------

    def lane(self, function: PickledFunction, options: CallOptions) -> CallLane:
        """A lane for single calls."""
        dispatcher = self.ensure_started()
        lane = CallLane(function, options, self._duration(function), self.store, dispatcher.later)
        if self._alone:
            lane.chunksize = 1
        return lane

    def map_lane(self, function: PickledFunction, options: CallOptions, **how: Any) -> MapLane:
        """A lane for one ``map``; see :class:`MapLane` for ``how``."""
        dispatcher = self.ensure_started()
        lane = MapLane(function, options, self._duration(function), self.store, later=dispatcher.later, **how)
        if self._alone:
            lane.chunksize = lane.chunksize or 1
        with dispatcher.lock:
            self._check_open(dispatcher)
            dispatcher.adopt(lane)
        return lane

    def enqueue(self, lane: CallLane, future: CallFuture[Any]) -> None:
        """Accept a call.

        Raises:
            RuntimeError: The executor has been shut down.
            PoolBroken, BrokerUnavailable, BrokerRefused: It is broken for good.
        """
        dispatcher = self._dispatcher
        assert dispatcher is not None
        with dispatcher.lock:
            self._check_open(dispatcher)
            future.dispatcher = dispatcher
            lane.waiting.append(future)
            if not lane.adopted:
                lane.adopted = True
                dispatcher.adopt(lane)
            dispatcher.wake(lane)  # under the lock: from here on the executor is not idle, and its loop goes on
            if lane.options.expires is not None:
                dispatcher.loop.call(self._expire_later, dispatcher, [future], lane.options.expires)

    def _check_open(self, dispatcher: Dispatcher) -> None:
        if self.closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if dispatcher.broken is not None:
            raise dispatcher.broken

    def check_open(self) -> None:
        """Raise what :meth:`enqueue` would raise, before anything is pickled."""
        if self.closed:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def add_items(self, lane: MapLane, first: int, items: list[Any]) -> None:
        """More input for a ``map``; from any thread."""
        dispatcher = self.ensure_started()

        def add() -> None:
            lane.add(first, items)
            if dispatcher.broken is not None:
                lane.fail(dispatcher.broken)
            dispatcher.wake(lane)

        with dispatcher.lock:
            self.check_open()
            dispatcher.loop.call(add)
            if lane.options.expires is not None:
                dispatcher.loop.call(
                    dispatcher.loop.loop.call_later,
                    lane.options.expires,
                    lambda: dispatcher.loop.start(self._expire_map(dispatcher, lane, first + len(items))),
                )

    def finish_lanes(self, lanes: list[CallLane], *, wait: bool, cancel: bool) -> None:
        """Let the calls of some lanes finish, or cancel those that have not started."""
        dispatcher = self._dispatcher
        if dispatcher is None or (self._stopping is not None and self._stopping.done()):
            return
        if cancel:
            dispatcher.loop.start(self._cancel_lanes(dispatcher, lanes))
        if wait and running_loop() is None:
            dispatcher.loop.run(_lanes_empty(dispatcher, lanes))

    async def _cancel_lanes(self, dispatcher: Dispatcher, lanes: Sequence[Lane]) -> None:
        cancelled = CancelledError()  # an item of a map has no future to be cancelled: its iterator raises
        for lane in lanes:
            if isinstance(lane, CallLane):
                with dispatcher.lock:
                    waiting = list(lane.waiting)
                await dispatcher.arbiter.cancel(waiting)
            else:
                lane.fail(cancelled)
        wanted = set(lanes)
        out = [batch for batch in dispatcher.ledger.values() if batch.lane in wanted]
        calls = [item for batch in out if isinstance(batch.lane, CallLane) for item in _unsettled(batch)]
        items = [item for batch in out if isinstance(batch.lane, MapLane) for item in _unsettled(batch)]
        await asyncio.gather(dispatcher.arbiter.cancel_out(calls), dispatcher.arbiter.cancel_out(items, cancelled))

    def close_map(self, lane: MapLane) -> None:
        """Nobody wants the rest of a ``map``: what has not started will not run."""
        dispatcher = self._dispatcher
        if dispatcher is not None and dispatcher.broken is None:
            dispatcher.loop.start(self._cancel_map(dispatcher, lane))

    async def _cancel_map(self, dispatcher: Dispatcher, lane: MapLane) -> None:
        lane.drop()
        out = [item for batch in dispatcher.ledger.values() if batch.lane is lane for item in _unsettled(batch)]
        await dispatcher.arbiter.cancel_out(out)

    async def _expire_map(self, dispatcher: Dispatcher, lane: MapLane, end: int) -> None:
        error = expired(lane.options.expires or 0.0)
        lane.expire(end, error)
        out = [item for batch in dispatcher.ledger.values() if batch.lane is lane for item in _unsettled(batch)]
        late = [(batch, index) for batch, index in out if batch.cargo.members[0] + index < end]
        await dispatcher.arbiter.cancel_out(late, error)

    def _expire_later(self, dispatcher: Dispatcher, futures: list[CallFuture[Any]], seconds: float) -> None:
        def expire() -> None:
            if not futures[0].done():
                dispatcher.loop.start(dispatcher.arbiter.cancel(futures, expired(seconds)))

        dispatcher.loop.loop.call_later(seconds, expire)

    def _duration(self, function: PickledFunction) -> Durations:
        if len(self._durations) > _MAX_FUNCTIONS:
            self._durations.clear()
        return self._durations.setdefault(function.digest, Durations())

    def _slots(self, pool: str) -> int:
        return self.pools[pool].slots if pool in self.pools else 1

    def _queue(self, pool: str) -> str:
        return keys.pool_queue(self.executor, pool)


def _unsettled(batch: Batch) -> list[tuple[Batch, int]]:
    return [(batch, index) for index in range(batch.cargo.count) if not batch.settled[index]]


async def _lanes_empty(dispatcher: Dispatcher, lanes: list[CallLane]) -> None:
    while dispatcher.broken is None and not all(lane.idle for lane in lanes):
        dispatcher.changed.clear()
        await dispatcher.changed.wait()


#: Sessions that have been started and not yet ended, for the interpreter's exit.
sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def finish_all() -> None:
    """At the interpreter's exit: accepted calls finish first, as in the standard library."""
    pid = os.getpid()
    for session in [*sessions]:
        if session._pid == pid:
            try:
                session.close().result()
            except Exception as error:
                log.warning("An executor could not be stopped at the exit of the interpreter: %r", error)


try:
    threading._register_atexit(finish_all)  # type: ignore[attr-defined]  # as concurrent.futures does
except (AttributeError, RuntimeError):
    atexit.register(finish_all)
