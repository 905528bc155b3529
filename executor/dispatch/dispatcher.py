"""The dispatcher: ties what carries calls to the broker and outcomes to futures.

::

    user threads ── lane.waiting.append, wake() ──┐
                                                  ▼
                        flush() ─► Batch ─► Publishing ═══► Redis
                          ▲                                   │
                          └── Settling.take ◄── Inbox ◄═══════╯      Recovery: when Redis was away, or has forgotten

Everything here runs on the loop thread, except the methods under "from any thread". Which batches are out, and
what they carry, is the ledger (a dictionary).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from executor.broker import failures
from executor.dispatch import batcher
from executor.dispatch.arbiter import Arbiter
from executor.dispatch.inbox import Inbox
from executor.dispatch.lanes import Batch, CallLane, Cargo, Lane
from executor.dispatch.publishing import Publishing
from executor.dispatch.recovery import Recovery
from executor.errors import BrokerError, PoolBroken

if TYPE_CHECKING:
    from executor.broker.publisher import Publisher
    from executor.broker.replies import Replies
    from executor.dispatch.call_frames import CallFrames
    from executor.dispatch.future import CallFuture
    from executor.dispatch.loop_thread import LoopThread

log = logging.getLogger("executor")


class Dispatcher:
    """Sends the calls of one client and settles their futures.

    Args:
        loop: The client's loop thread.
        frames: Builds signed frames for this client.
        slots: Calls that a pool runs at a time, by pool name.
        queue: Celery queue of a pool, by pool name.
        on_busy: Called with True when calls begin to be outstanding, with False when none is any more.
    """

    def __init__(
        self,
        loop: LoopThread,
        frames: CallFrames,
        slots: Callable[[str], int],
        queue: Callable[[str], str],
        on_busy: Callable[[bool], None] | None = None,
    ) -> None:
        self.loop = loop
        self.frames = frames
        self.client = frames.client
        self._slots = slots
        self._on_busy = on_busy
        self._busy = False
        #: Held while calls go from a lane into a batch, and while a call in a lane is cancelled.
        #: Re-entrant, for the finalizer or signal handler that shuts the executor down in the middle of it.
        self.lock = threading.RLock()
        self.ledger: dict[str, Batch] = {}
        self._lanes: WeakSet[Lane] = WeakSet()
        #: Lanes in which something may wait; user threads append, the loop thread takes. Never replaced.
        self._touched: deque[Lane] = deque()
        self._wake_pending = False
        self._numbers = count()
        #: Calls in a pause, and what ends it.
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._idle = asyncio.Event()
        #: Set whenever a batch has been settled, or all is lost.
        self.changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.broken: BaseException | None = None
        self.publisher: Publisher | None = None
        self.arbiter = Arbiter(self)
        self.inbox = Inbox(self)
        self.recovery = Recovery(self)
        self._publishing = Publishing(self, queue)

    # --- from any thread ------------------------------------------------------------------------

    def wake(self, lane: Lane) -> None:
        """There is something in a lane."""
        if not lane.listed:
            lane.listed = True
            self._touched.append(lane)
        if not self._wake_pending:
            self._wake_pending = True
            self.loop.call(self.flush)

    def cancel_one(self, future: CallFuture[Any]) -> bool:
        """See :meth:`CallFuture.cancel`."""
        with self.lock:
            here = future.root is None
            ours = here and future.begin_cancel()
        if ours:
            future.finish_cancel()
        return future.cancelled() if here else self.arbiter.cancel_one(future)

    def cancel_soon(self, futures: list[CallFuture[Any]]) -> None:
        """Cancel calls without waiting for the answer."""
        self.loop.start(self.arbiter.cancel(futures))

    def refresh_running(self, future: CallFuture[Any]) -> None:
        """See :meth:`CallFuture.running`."""
        self.arbiter.refresh_running(future)

    # --- life -----------------------------------------------------------------------------------

    async def start(self, publisher: Publisher, replies: Replies) -> None:
        """Begin to send and to read. Calls that came earlier go now.

        Raises:
            BrokerError: The broker does not answer, or refuses what every client does.
        """
        self.publisher, self.inbox.replies = publisher, replies
        try:
            await publisher.stay_alive()
            run = await publisher.server_run()
        except failures.LOST as error:
            raise publisher.explain(error) from error
        self._tasks = [
            asyncio.create_task(self.guarded(work))
            for work in (
                self._publishing.publish_forever,
                lambda: self.inbox.read_forever(run),
                self.recovery.stay_alive_forever,
            )
        ]
        self.flush()

    async def drained(self) -> None:
        """Wait until no call is outstanding."""
        while not self._is_idle() and self.broken is None:
            self._idle.clear()
            await self._idle.wait()

    async def stop(self, queues: Sequence[str] = (), *, others: bool = False) -> None:
        """Stop sending and reading; leave nothing of this client at the broker.

        Args:
            queues: Queues that go with it.
            others: Whether there are queues that stay.
        """
        await _cancelled([*self._tasks, *([self.recovery.task] if self.recovery.task is not None else [])])
        self._tasks = []
        if self.publisher is not None and self.inbox.replies is not None:
            try:
                if not isinstance(self.broken, BrokerError):
                    async with asyncio.timeout(2):
                        await self.publisher.leave(queues, others=others)
            except Exception as error:
                log.debug("could not clean up at the broker: %s", error)
            await self.publisher.close()
            await self.inbox.replies.close()
        self.break_with(PoolBroken("cannot schedule new futures after shutdown"))  # whatever has slipped in since

    def break_with(self, error: BaseException) -> None:
        """Nothing will come any more: every future fails with ``error``, and so does every later submit."""
        if self.broken is not None:
            return
        with self.lock:
            self.broken = error
            lanes = [*self._lanes]
        batches = [*self.ledger.values()]
        self.ledger.clear()
        self._publishing.clear()
        for lane in {*lanes, *(batch.lane for batch in batches)}:
            lane.fail(error)
        for batch in batches:
            batch.lane.fail_batch(batch, error)
        for end_pause, timer in [*self._timers.items()]:
            timer.cancel()
            end_pause()
        self.inbox.let_go(reached=True)
        self._idle.set()
        self.changed.set()

    def later(self, delay_s: float, lane: Lane, callback: Callable[[], None]) -> None:
        """Have something put into a lane after a pause; the lane counts as outstanding meanwhile."""
        lane.paused += 1

        def fire() -> None:
            del self._timers[fire]
            lane.paused -= 1
            callback()
            if self.broken is not None:
                lane.fail(self.broken)
            self.wake(lane)

        self._timers[fire] = self.loop.loop.call_later(delay_s, fire)

    def adopt(self, lane: Lane) -> None:
        """Know a lane, so that its calls fail when all is lost. From any thread, under :attr:`lock`."""
        self._lanes.add(lane)

    def lanes(self) -> list[Lane]:
        """All lanes in use."""
        with self.lock:
            return [*self._lanes]

    # --- out ------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Make batches of what waits, as many as the slots call for."""
        self._wake_pending = False
        if self.publisher is None or self.broken is not None:
            if self.broken is not None:
                self._fail_touched()
            return
        for lane in self._taken_touched():
            self._flush_lane(lane)
        self.note_change()

    def _taken_touched(self) -> Iterable[Lane]:
        for _ in range(len(self._touched)):  # what is appended meanwhile brings a flush of its own
            lane = self._touched.popleft()
            lane.listed = False  # first: who appends from now on lists it again
            yield lane

    def _fail_touched(self) -> None:
        for lane in self._taken_touched():
            lane.fail(self.broken or PoolBroken("The executor is gone."))

    def _flush_lane(self, lane: Lane) -> None:
        slots = self._slots(lane.options.pool)
        while lane.backlog and batcher.messages_allowed(lane.out, slots):
            size = batcher.batch_size(lane.backlog, slots, lane.durations.seconds, lane.out, lane.chunksize)
            root = f"{self.client}-{next(self._numbers):x}"
            cargo = self._taken(lane, size, root)
            if cargo is None:
                continue
            batch = Batch(root, lane, cargo, bytearray(cargo.count), cargo.count, restored=lane.missed_function)
            self.ledger[root] = batch
            lane.out += 1
            self._publishing.add(batch)

    def _taken(self, lane: Lane, size: int, root: str) -> Cargo | None:
        if not isinstance(lane, CallLane):
            return lane.take(size)  # its items are pickled now, by code of the user's: not under the lock
        with self.lock:
            cargo = lane.take(size)
            for index, future in enumerate(cargo.members if cargo is not None else ()):
                future.root, future.index = root, index
        return cargo

    # --- back -----------------------------------------------------------------------------------

    def take_back(self, batch: Batch, lost: set[str]) -> None:
        """Have the unsettled calls of messages that are not at the broker wait in their lane again."""
        for index in range(batch.cargo.count - 1, -1, -1):
            if batch.message_of(index) in lost and batch.settle(index, 1):
                batch.lane.put_back(batch, index)
        self.after(batch)

    def after(self, batch: Batch) -> None:
        """Some of a batch has been settled."""
        if batch.remaining == 0 and self.ledger.pop(batch.root, None) is not None:
            batch.lane.out -= 1
            batch.lane.forget(batch)
        if batch.lane.backlog:
            self.wake(batch.lane)
        self.note_change()

    def settled_without_reply(self, batch: Batch, index: int) -> bool:
        """A call will not run: note it as settled; False where its outcome has arrived."""
        if not batch.settle(index, 1):
            return False
        self.after(batch)
        return True

    # --- for the other rooms --------------------------------------------------------------------

    def connected(self) -> Publisher:
        """The publisher, once started."""
        assert self.publisher is not None
        return self.publisher

    async def guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run work that goes on until it is cancelled; where it fails instead, all is lost."""
        try:
            await work()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if not isinstance(error, BrokerError):
                log.exception("The dispatcher has failed.")
                error = PoolBroken(f"The dispatcher failed: {error!r}")
            self.break_with(error)

    def _is_idle(self) -> bool:
        return not (self.ledger or self._timers or self._touched)

    def note_change(self) -> None:
        """Calls have gone out, or been settled: tell who waits for that."""
        self.changed.set()
        idle = self._is_idle()
        if idle:
            self._idle.set()
        if self._on_busy is not None and self._busy == idle:
            self._busy = not idle
            self._on_busy(self._busy)


async def _cancelled(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended: once may not do.

    ``asyncio.wait_for`` of Python 3.11, in which redis-py sends, forgets a cancellation that arrives in the moment in
    which the sending is done.
    """
    while waiting := [task for task in tasks if not task.done()]:
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting, timeout=0.1)
