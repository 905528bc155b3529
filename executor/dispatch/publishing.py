"""From batches to the broker: published in order, tried again, given up in the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from executor.broker import failures, keys
from executor.broker.failures import Refusal
from executor.broker.publisher import Message

if TYPE_CHECKING:
    from executor.dispatch.dispatcher import Dispatcher
    from executor.dispatch.lanes import Batch
    from executor.errors import BrokerError

log = logging.getLogger("executor")


class Publishing:
    """Publishes the batches of one dispatcher.

    Args:
        dispatcher: Whose ledger says which batches are still wanted.
        queue: Celery queue of a pool, by pool name.
    """

    def __init__(self, dispatcher: Dispatcher, queue: Callable[[str], str]) -> None:
        self._dispatcher, self._queue = dispatcher, queue
        self._outgoing: list[Batch] = []
        self._ready = asyncio.Event()

    def add(self, batch: Batch) -> None:
        """A batch is to go out; it is in the ledger."""
        self._outgoing.append(batch)
        self._ready.set()

    def clear(self) -> None:
        """Nothing of what has not been tried yet is to go out."""
        self._outgoing.clear()

    async def publish_forever(self) -> None:
        """Publish what comes.

        Raises:
            BrokerUnavailable, BrokerRefused: The broker has been away, or has refused, for too long.
        """
        while True:
            await self._ready.wait()
            self._ready.clear()
            batches, self._outgoing = self._outgoing, []
            await self._publish(batches)
            del batches  # with their futures, and whatever these have returned when the next ones come

    async def _publish(self, batches: list[Batch]) -> None:
        dispatcher = self._dispatcher
        patience = dispatcher.recovery.patience()
        while batches := [batch for batch in batches if batch.remaining and batch.root in dispatcher.ledger]:
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
                given_up = patience.spent(error, dispatcher.loop.loop.time())
                if given_up is not None and refusal is Refusal.FULL:
                    self._give_up_held(given_up)
                elif given_up is not None:
                    raise given_up from error
            await asyncio.sleep(patience.pause_s())

    async def _offer(self, batches: list[Batch]) -> None:
        messages = [self._message(batch) for batch in batches]
        for batch in batches:
            batch.offered = True
        publisher = self._dispatcher.connected()
        if ttl_s := max((batch.lane.options.result_ttl or 0.0 for batch in batches), default=0.0):
            await publisher.keep_for(ttl_s)
        await publisher.publish(messages, self._new_functions(batches))
        for batch in batches:
            batch.published = True

    def _message(self, batch: Batch) -> Message:
        options = batch.lane.options
        queue = self._queue(options.pool)
        raw = self._dispatcher.frames.envelope(batch, queue)
        return Message(batch.root, keys.priority_queue(queue, options.priority), raw)

    def _new_functions(self, batches: list[Batch]) -> list[tuple[str, bytes]]:
        publisher, frames = self._dispatcher.connected(), self._dispatcher.frames
        functions = {batch.lane.function.digest: batch.lane.function for batch in batches}
        return [(name, frames.function(function)) for name, function in functions.items() if not publisher.knows(name)]

    async def _not_arrived(self, batches: list[Batch], error: Exception) -> list[Batch]:
        """After the answer to a publish was lost: those of the batches that the broker does not have."""
        log.warning("Lost the broker while publishing: %s. Trying again.", error)
        recovery = self._dispatcher.recovery
        await recovery.reconnected()
        absent = [batch for batch, names in await recovery.not_at_broker(batches) if names == batch.messages()]
        missing = {batch.root for batch in absent}
        for batch in batches:
            batch.published = batch.root not in missing
        return absent

    def _give_up_held(self, error: BrokerError) -> None:
        """Fail the calls that have never come to a full server; those that have go on, and so does the executor."""
        self.clear()
        dispatcher = self._dispatcher
        batches = [batch for batch in dispatcher.ledger.values() if batch.held]
        for batch in batches:
            del dispatcher.ledger[batch.root]
            batch.lane.out -= 1
        for lane in dispatcher.lanes():  # before callbacks of the others put new ones into them
            lane.fail(error)
        for batch in batches:
            batch.lane.fail_batch(batch, error)
            batch.lane.forget(batch)
        dispatcher.note_change()
