"""The dispatcher: from lanes to the broker, and from the broker to futures.

::

    user threads ── lane.waiting.append, wake() ──┐
                                                  ▼
                        flush() ─► Batch ─► _outgoing ─► _publish_forever ─► Redis
                          ▲                                                    │
                          └── Settling.take ◄── _read_forever ◄── XREAD ◄──────┘

Everything here runs on the loop thread, except the methods under "from any thread". Which batches are out, and
what they carry, is the ledger (a dictionary); what is in it and not at the broker is published again.
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

from executor.broker import failures, keys
from executor.broker.failures import Refusal
from executor.broker.publisher import CLIENT_TTL_S, Message, Publisher
from executor.dispatch import batcher
from executor.dispatch.arbiter import Arbiter
from executor.dispatch.lanes import Batch, CallLane, Cargo, Lane
from executor.dispatch.patience import Patience
from executor.dispatch.settling import Settling
from executor.errors import BrokerError, PoolBroken

if TYPE_CHECKING:
    from executor.broker.replies import EntryId, Replies
    from executor.dispatch.call_frames import CallFrames
    from executor.dispatch.future import CallFuture
    from executor.dispatch.loop_thread import LoopThread

log = logging.getLogger("executor")

#: After a server lost its data, workers that still run our calls say so within a lease; published again after that.
RESTATE_S = 6.0
#: While calls are out, how often the server is asked whether it still knows us, in seconds.
CHECK_S = 2.0


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
        self._queue = queue
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
        self._outgoing: list[Batch] = []
        self._outgoing_ready = asyncio.Event()
        self._numbers = count()
        #: Who waits until the replies up to an id have been settled.
        self._awaited: list[tuple[EntryId, asyncio.Future[bool]]] = []
        #: Calls in a pause, and what ends it.
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._idle = asyncio.Event()
        #: Set whenever a batch has been settled, or all is lost.
        self.changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._recovery: asyncio.Task[None] | None = None
        #: Replies up to this id have been settled.
        self._settled: EntryId = (0, 0)
        self.broken: BaseException | None = None
        self.publisher: Publisher | None = None
        self._replies: Replies | None = None
        self.arbiter = Arbiter(self)
        self._settling = Settling(self)

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
        self.publisher, self._replies = publisher, replies
        try:
            await publisher.stay_alive()
            run = await publisher.server_run()
        except failures.LOST as error:
            raise publisher.explain(error) from error
        self._tasks = [
            asyncio.create_task(self._guarded(work))
            for work in (self._publish_forever, lambda: self._read_forever(run), self._stay_alive_forever)
        ]
        self.flush()

    async def drained(self) -> None:
        """Wait until no call is outstanding."""
        while not self._is_idle() and self.broken is None:
            self._idle.clear()
            await self._idle.wait()

    async def stop(self, queues: Sequence[str] = ()) -> None:
        """Stop sending and reading; leave nothing of this client at the broker.

        Args:
            queues: Queues that go with it.
        """
        await _cancelled([*self._tasks, *([self._recovery] if self._recovery is not None else [])])
        self._tasks = []
        if self.publisher is not None and self._replies is not None:
            try:
                if not isinstance(self.broken, BrokerError):
                    await asyncio.wait_for(self.publisher.leave(queues), 2)
            except Exception as error:
                log.debug("could not clean up at the broker: %s", error)
            await self.publisher.close()
            await self._replies.close()
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
        self._outgoing.clear()
        for lane in {*lanes, *(batch.lane for batch in batches)}:
            lane.fail(error)
        for batch in batches:
            batch.lane.fail_batch(batch, error)
        for end_pause, timer in [*self._timers.items()]:
            timer.cancel()
            end_pause()
        self._let_go(reached=True)
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
        self.changed.set()
        self._note_busy()

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
            self._outgoing.append(batch)
            self._outgoing_ready.set()

    def _taken(self, lane: Lane, size: int, root: str) -> Cargo | None:
        if not isinstance(lane, CallLane):
            return lane.take(size)  # its items are pickled now, by code of the user's: not under the lock
        with self.lock:
            cargo = lane.take(size)
            for index, future in enumerate(cargo.members if cargo is not None else ()):
                future.root, future.index = root, index
        return cargo

    async def _publish_forever(self) -> None:
        while True:
            await self._outgoing_ready.wait()
            self._outgoing_ready.clear()
            batches, self._outgoing = self._outgoing, []
            await self._publish(batches)

    async def _publish(self, batches: list[Batch]) -> None:
        patience = self._patience()
        while batches := [batch for batch in batches if batch.remaining and batch.root in self.ledger]:
            try:
                await self._offer(batches)
                return
            except failures.LOST as error:
                refusal = failures.refusal(error)
                if refusal is None:
                    batches = await self._not_arrived(batches, error)
                    await asyncio.sleep(patience.pause_s())
                    continue
                for batch in batches:
                    batch.offered = refusal is Refusal.FOR_GOOD  # else it has taken none of them
                log.warning("The broker refuses new calls for now: %s. They wait here.", failures.said(error))
                given_up = patience.spent(error, self.loop.loop.time())
                if given_up is not None and refusal is Refusal.FULL:
                    self._give_up_held(given_up)
                elif given_up is not None:
                    raise given_up from error
            await asyncio.sleep(patience.pause_s())

    async def _offer(self, batches: list[Batch]) -> None:
        messages = [self._message(batch) for batch in batches]
        for batch in batches:
            batch.offered = True
        await self.connected().publish(messages, self._new_functions(batches))
        for batch in batches:
            batch.published = True

    async def _not_arrived(self, batches: list[Batch], error: Exception) -> list[Batch]:
        """After the answer to a publish was lost: those of the batches that the broker does not have."""
        log.warning("Lost the broker while publishing: %s. Trying again.", error)
        await self._reconnected()
        absent = [batch for batch, names in await self._not_at_broker(batches) if names == batch.messages()]
        missing = {batch.root for batch in absent}
        for batch in batches:
            batch.published = batch.root not in missing
        return absent

    def _give_up_held(self, error: BrokerError) -> None:
        """Fail the calls that have never come to a full server; those that have go on, and so does the executor."""
        self._outgoing.clear()
        batches = [batch for batch in self.ledger.values() if batch.held]
        for batch in batches:
            del self.ledger[batch.root]
            batch.lane.out -= 1
        for lane in self.lanes():  # before callbacks of the others put new ones into them
            lane.fail(error)
        for batch in batches:
            batch.lane.fail_batch(batch, error)
            batch.lane.forget(batch)
        self.changed.set()
        self._note_busy()

    def _message(self, batch: Batch) -> Message:
        options = batch.lane.options
        queue = self._queue(options.pool)
        raw = self.frames.envelope(batch, queue)
        return Message(batch.root, keys.priority_queue(queue, options.priority), raw)

    def _new_functions(self, batches: list[Batch]) -> list[tuple[str, bytes]]:
        publisher = self.connected()
        functions = {batch.lane.function.digest: batch.lane.function for batch in batches}
        return [
            (name, self.frames.function(function)) for name, function in functions.items() if not publisher.knows(name)
        ]

    async def _not_at_broker(self, batches: list[Batch]) -> list[tuple[Batch, list[str]]]:
        """Which of these batches have calls with neither an outcome nor a message at the broker; and those messages."""
        patience = self._patience()
        while True:
            try:
                return await self._asked_for(batches)
            except failures.LOST as error:
                log.warning("Lost the broker while asking what it has: %s. Trying again.", error)
                await self._mended(error, patience)

    async def _asked_for(self, batches: list[Batch]) -> list[tuple[Batch, list[str]]]:
        missing: list[tuple[Batch, list[str]]] = []
        asked = list(batches)
        while asked:
            names = [batch.messages() for batch in asked]
            holders = iter(await self.connected().holders([name for several in names for name in several]))
            absent = [[name for name in several if next(holders) is None] for several in names]
            await self.caught_up()
            known = [
                (batch, several, gone)
                for batch, several, gone in zip(asked, names, absent, strict=True)
                if gone and batch.remaining and batch.root in self.ledger
            ]
            missing += [(batch, gone) for batch, several, gone in known if batch.messages() == several]
            asked = [batch for batch, several, _ in known if batch.messages() != several]  # requeued under another id
        return missing

    # --- back -----------------------------------------------------------------------------------

    async def _read_forever(self, run: str) -> None:
        assert self._replies is not None
        patience = self._patience()
        while True:
            try:
                for value in await self._replies.read():
                    self._settling.take(value)
                patience.reset()
            except failures.LOST as error:
                log.warning("Lost the broker while waiting for results: %s. Trying again.", error)
                now = await self._mended(error, patience)
                if now != run:
                    run = now
                    self._start_over()
            self._settled_up_to(self._replies.position)
            self.flush()

    def _start_over(self) -> None:
        """The server has restarted, or lost its data: nothing is certain that it was told."""
        assert self._replies is not None
        self._replies.rewind()
        self._settled = (0, 0)
        self._let_go(reached=False)
        self.connected().forget()
        if self._recovery is not None:
            self._recovery.cancel()
        self._recovery = asyncio.create_task(self._guarded(self._recover))

    async def _recover(self) -> None:
        """What the server has lost, and nobody runs, is published again."""
        await asyncio.sleep(RESTATE_S)
        lost = await self._not_at_broker([batch for batch in self.ledger.values() if batch.published])
        if lost:
            log.warning("The broker has lost calls of %d batches; publishing them again.", len(lost))
        for batch, messages in lost:
            self._take_back(batch, set(messages))
        self.flush()

    def withdraw(self, batch: Batch) -> None:
        """Have the unsettled calls of a batch that is :attr:`~Batch.held` wait in their lane again."""
        self._take_back(batch, {batch.root})

    def _take_back(self, batch: Batch, lost: set[str]) -> None:
        """Have the unsettled calls of lost messages wait in their lane again."""
        for index in range(batch.cargo.count - 1, -1, -1):
            if batch.message_of(index) in lost and batch.settle(index, 1):
                batch.lane.put_back(batch, index)
        self.after(batch)

    async def caught_up(self) -> None:
        """Wait until every outcome has been settled that was at the broker when this was called."""
        assert self._replies is not None
        reached = False
        while not reached:
            last = await self.connected().last_reply()
            if last is None or last <= self._settled:
                return
            waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._awaited.append((last, waiter))
            reached = await waiter

    def _settled_up_to(self, position: EntryId) -> None:
        """Replies up to this one have been dealt with."""
        self._settled = position
        self._let_go(reached=True, position=position)

    def _let_go(self, *, reached: bool, position: EntryId | None = None) -> None:
        """Wake who waits for replies up to ``position``, or all: not reached means that the stream is another one."""
        waiting, self._awaited = self._awaited, []
        for entry in waiting:
            last, waiter = entry
            if position is not None and last > position:
                self._awaited.append(entry)
            elif not waiter.done():
                waiter.set_result(reached)

    def after(self, batch: Batch) -> None:
        """Some of a batch has been settled."""
        if batch.remaining == 0 and self.ledger.pop(batch.root, None) is not None:
            batch.lane.out -= 1
            batch.lane.forget(batch)
        if batch.lane.backlog:
            self.wake(batch.lane)
        self.changed.set()
        self._note_busy()

    def settled_without_reply(self, batch: Batch, index: int) -> bool:
        """A call will not run: note it as settled; False where its outcome has arrived."""
        if not batch.settle(index, 1):
            return False
        self.after(batch)
        return True

    # --- the connection -------------------------------------------------------------------------

    def connected(self) -> Publisher:
        """The publisher, once started."""
        assert self.publisher is not None
        return self.publisher

    async def _reconnected(self) -> str:
        """Wait until the broker answers again, and show that we live; gives its run id.

        Raises:
            BrokerUnavailable, BrokerRefused: Not within BROKER_TIMEOUT_S, or not at all.
        """
        patience = self._patience()
        while True:
            try:
                if not await self.connected().stay_alive():
                    self._start_over()
                return await self.connected().server_run()
            except failures.LOST as error:
                await self._bear(error, patience)

    async def _mended(self, error: Exception, patience: Patience) -> str:
        """After something failed: wait until it may be tried again; gives the broker's run id.

        Raises:
            BrokerUnavailable, BrokerRefused: It has been refused, or the broker has been away, for too long.
        """
        if failures.refusal(error) is None:
            await asyncio.sleep(0.05)
        else:
            await self._bear(error, patience)
        return await self._reconnected()

    async def _bear(self, error: Exception, patience: Patience) -> None:
        """Wait before what has failed is tried again.

        Raises:
            BrokerUnavailable, BrokerRefused: It has failed for too long.
        """
        given_up = patience.spent(error, self.loop.loop.time())
        if given_up is not None:
            raise given_up from error
        await asyncio.sleep(patience.pause_s())

    def _patience(self) -> Patience:
        return Patience(self.connected().explain)

    async def _stay_alive_forever(self) -> None:
        renewed = self.loop.loop.time()
        patience = self._patience()
        while True:
            await asyncio.sleep(CHECK_S)
            due = self.loop.loop.time() - renewed > CLIENT_TTL_S / 10
            try:
                if not due and not (self.ledger and not await self.connected().is_known()):
                    continue
                renewed = self.loop.loop.time()
                if not await self.connected().stay_alive():
                    log.warning("The broker has lost its data.")
                    self._start_over()
                patience.reset()
            except failures.LOST as error:
                log.debug("no sign of life reached the broker: %s", error)
                if failures.refusal(error) is not None:  # who reads replies sees a lost connection, but not this
                    await self._bear(error, patience)

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
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

    def _note_busy(self) -> None:
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
