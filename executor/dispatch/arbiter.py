"""Cancelling calls that are out. The broker decides: a call is either claimed by a worker or cancelled, never both."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from executor.dispatch.future import CallFuture, running_loop

if TYPE_CHECKING:
    from executor.dispatch.dispatcher import Dispatcher
    from executor.dispatch.lanes import Batch

log = logging.getLogger("executor")

#: A caller waits this long for the broker's word; without it, ``cancel()`` is False. Seconds.
ANSWER_S = 1.0
#: Calls behind the first of a claimed batch are run or handed back within the split time; so long we ask again.
SPLIT_WAIT_S = 0.3
_POLL_S = 0.03


class Arbiter:
    """Asks the broker for one dispatcher."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def cancel_one(self, future: CallFuture[Any]) -> bool:
        """From any thread. On an event loop nothing is waited for: False, and the broker is asked all the same."""
        work = self.cancel([future])
        if running_loop() is not None:
            self._dispatcher.loop.start(work)
            return False
        try:
            return self._dispatcher.loop.run(work, ANSWER_S) == 1
        except TimeoutError:
            return False
        except Exception as error:
            log.debug("the broker could not be asked to cancel: %s", error)
            return False

    def refresh_running(self, future: CallFuture[Any]) -> None:
        """From any thread but an event loop's."""
        if running_loop() is not None:
            return
        try:
            self._dispatcher.loop.run(self._refresh_running(future), ANSWER_S)
        except Exception as error:
            log.debug("the broker could not be asked who has a call: %s", error)

    async def _refresh_running(self, future: CallFuture[Any]) -> None:
        batch = self._dispatcher.ledger.get(future.root or "")
        if batch is None or self._dispatcher.publisher is None:
            return
        (holder,) = await self._dispatcher.publisher.holders([batch.message_of(future.index)])
        if holder and not batch.settled[future.index]:
            future.mark_running()

    async def cancel(self, futures: Sequence[CallFuture[Any]], error: BaseException | None = None) -> int:
        """Keep calls from running.

        Args:
            futures: Calls of single-call lanes, in any state.
            error: Settle them with this instead of cancelling them (expiry).

        Returns:
            How many will never run.
        """
        kept = 0
        wanted: list[tuple[Batch, int]] = []
        for future in futures:
            with self._dispatcher.lock:
                here = future.root is None
            if here:
                kept += future.mark_cancelled() if error is None else future.settle(None, error)
            elif (batch := self._dispatcher.ledger.get(future.root or "")) is not None:
                wanted.append((batch, future.index))
        return kept + await self.cancel_out(wanted, error)

    async def cancel_out(self, wanted: list[tuple[Batch, int]], error: BaseException | None = None) -> int:
        """Keep calls that are out from running; see :meth:`cancel`."""
        kept = 0
        deadline = self._dispatcher.loop.loop.time() + SPLIT_WAIT_S
        while wanted:
            kept += self._cancel_held([item for item in wanted if item[0].held], error)
            wanted = [item for item in wanted if not item[0].held]
            grouped: dict[tuple[str, str], list[int]] = {}
            batches: dict[str, Batch] = {}
            for batch, index in wanted:
                batches[batch.root] = batch
                grouped.setdefault((batch.root, batch.message_of(index)), []).append(index)
            answers = await self._ask(grouped) if grouped else []
            if any(batches[root].cargo.count > 1 for root, _ in grouped):
                await self._dispatcher.inbox.caught_up()  # where a call travels may have changed before we asked
            wanted = []
            for ((root, message), indexes), answer in zip(grouped.items(), answers, strict=True):
                batch = batches[root]
                if answer == "cancelled":
                    there = [index for index in indexes if batch.message_of(index) == message]
                    kept += sum(self._cancelled(batch, index, error) for index in there)
                    wanted += [(batch, i) for i in indexes if i not in there and not batch.settled[i]]
                elif batch.cargo.count > 1 or not batch.published:
                    wanted += [(batch, index) for index in indexes if not batch.settled[index]]
                elif answer != "gone":
                    self._claimed(batch, indexes)
            if wanted and self._dispatcher.loop.loop.time() > deadline:
                break
            if wanted:
                await asyncio.sleep(_POLL_S)
                await self._dispatcher.inbox.caught_up()
                wanted = [(batch, index) for batch, index in wanted if not batch.settled[index]]
        return kept

    def _cancel_held(self, wanted: list[tuple[Batch, int]], error: BaseException | None) -> int:
        """Cancel calls that have never come to the broker; what else is in their batches waits for another one."""
        kept = sum(self._cancelled(batch, index, error) for batch, index in wanted)
        for batch in {batch.root: batch for batch, _ in wanted}.values():
            if batch.remaining:
                self._dispatcher.take_back(batch, {batch.root})
        return kept

    async def _ask(self, grouped: dict[tuple[str, str], list[int]]) -> list[str]:
        assert self._dispatcher.publisher is not None
        return await self._dispatcher.publisher.cancel(
            [(message, ",".join(map(str, indexes))) for (_, message), indexes in grouped.items()]
        )

    def _cancelled(self, batch: Batch, index: int, error: BaseException | None) -> bool:
        if not self._dispatcher.settled_without_reply(batch, index):
            return False
        batch.lane.cancel_index(batch, index, error)
        return True

    @staticmethod
    def _claimed(batch: Batch, indexes: list[int]) -> None:
        if batch.cargo.kind == "calls":
            for index in indexes:
                batch.cargo.members[index].mark_running()

    async def interrupt(self, future: CallFuture[Any], *, kill: bool) -> str:
        """Interrupt a call wherever it is.

        Returns:
            ``"not sent"``, ``"cancelled"`` (was queued), ``"interrupted"`` (its worker was told), or ``"too late"``.
        """
        if future.root is None and not future.done():
            return "not sent" if await self.cancel([future]) else "too late"
        if await self.cancel([future]):
            return "cancelled"
        batch = self._dispatcher.ledger.get(future.root or "")
        if batch is None or self._dispatcher.publisher is None or batch.settled[future.index]:
            return "too late"
        message = batch.message_of(future.index)
        (worker,) = await self._dispatcher.publisher.holders([message])
        if not worker:
            return "too late"
        order = {"op": "cancel", "id": message, "indexes": [future.index], "signal": "kill" if kill else "interrupt"}
        await self._dispatcher.publisher.control(worker, json.dumps(order))
        return "interrupted"
