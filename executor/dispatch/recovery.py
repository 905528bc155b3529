"""What is done when the broker was lost, refuses, or has forgotten what it was told.

::

    a command failed ──► mended() ─► reconnected() ─┬─ knows us: go on
                                                    └─ has lost its data ─► start_over() ─► not_at_broker() ─► take_back

Which batches are out is the dispatcher's ledger; what is in it and not at the broker is published again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from executor.broker import failures
from executor.broker.publisher import CLIENT_TTL_S
from executor.dispatch.patience import Patience

if TYPE_CHECKING:
    from executor.dispatch.dispatcher import Dispatcher
    from executor.dispatch.lanes import Batch

log = logging.getLogger("executor")

#: After a server lost its data, workers that still run our calls say so within a lease; published again after that.
RESTATE_S = 6.0
#: While calls are out, how often the server is asked whether it still knows us, in seconds.
CHECK_S = 2.0


class Recovery:
    """Recovers the calls of one dispatcher."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        #: Publishes again what the server has lost; None as long as it has lost nothing.
        self.task: asyncio.Task[None] | None = None

    # --- waiting for the broker -----------------------------------------------------------------

    def patience(self) -> Patience:
        """For something that is tried again and again."""
        return Patience(self._dispatcher.connected().explain)

    async def mended(self, error: Exception, patience: Patience) -> str:
        """After something failed: wait until it may be tried again; gives the broker's run id.

        Raises:
            BrokerUnavailable, BrokerRefused: The broker has been away, or has refused it, for too long.
        """
        if failures.refusal(error) is None:
            await asyncio.sleep(0.05)
        else:
            await self._bear(error, patience)
        return await self.reconnected()

    async def reconnected(self) -> str:
        """Wait until the broker answers again, and show that we live; gives its run id.

        Raises:
            BrokerUnavailable, BrokerRefused: It has been away, or has refused that, for too long.
        """
        publisher, patience = self._dispatcher.connected(), self.patience()
        while True:
            try:
                if not await publisher.stay_alive():
                    self.start_over()
                return await publisher.server_run()
            except failures.LOST as error:
                await self._bear(error, patience)

    async def stay_alive_forever(self) -> None:
        """Show that we live, and look whether the broker still knows us.

        Raises:
            BrokerRefused: It has refused that for too long.
        """
        dispatcher, publisher, patience = self._dispatcher, self._dispatcher.connected(), self.patience()
        renewed = dispatcher.loop.loop.time()
        while True:
            await asyncio.sleep(CHECK_S)
            due = dispatcher.loop.loop.time() - renewed > CLIENT_TTL_S / 10
            try:
                if not due and not (dispatcher.ledger and not await publisher.is_known()):
                    continue
                renewed = dispatcher.loop.loop.time()
                if not await publisher.stay_alive():
                    log.warning("The broker has lost its data.")
                    self.start_over()
                patience.reset()
            except failures.LOST as error:
                log.debug("no sign of life reached the broker: %s", error)
                if failures.refusal(error) is not None:  # the inbox sees a lost connection, but not this
                    await self._bear(error, patience)

    async def _bear(self, error: Exception, patience: Patience) -> None:
        """Wait before what has failed is tried again.

        Raises:
            BrokerUnavailable, BrokerRefused: It has failed for too long.
        """
        given_up = patience.spent(error, self._dispatcher.loop.loop.time())
        if given_up is not None:
            raise given_up from error
        await asyncio.sleep(patience.pause_s())

    # --- what the broker has forgotten ----------------------------------------------------------

    def start_over(self) -> None:
        """The server has restarted, or lost its data: nothing is certain that it was told."""
        self._dispatcher.inbox.start_over()
        self._dispatcher.connected().forget()
        if self.task is not None:
            self.task.cancel()
        self.task = asyncio.create_task(self._dispatcher.guarded(self._recover))

    async def _recover(self) -> None:
        """What the server has lost, and nobody runs, is published again."""
        await asyncio.sleep(RESTATE_S)
        dispatcher = self._dispatcher
        lost = await self.not_at_broker([batch for batch in dispatcher.ledger.values() if batch.published])
        if lost:
            log.warning("The broker has lost calls of %d batches; publishing them again.", len(lost))
        for batch, messages in lost:
            dispatcher.take_back(batch, set(messages))
        dispatcher.flush()

    async def not_at_broker(self, batches: list[Batch]) -> list[tuple[Batch, list[str]]]:
        """Which of these batches have calls with neither an outcome nor a message at the broker; and those messages.

        Raises:
            BrokerUnavailable, BrokerRefused: The broker has been away, or has refused to say, for too long.
        """
        patience = self.patience()
        while True:
            try:
                return await self._asked_for(batches)
            except failures.LOST as error:
                log.warning("Lost the broker while asking what it has: %s. Trying again.", error)
                await self.mended(error, patience)

    async def _asked_for(self, batches: list[Batch]) -> list[tuple[Batch, list[str]]]:
        dispatcher = self._dispatcher
        missing: list[tuple[Batch, list[str]]] = []
        asked = list(batches)
        while asked:
            names = [batch.messages() for batch in asked]
            holders = iter(await dispatcher.connected().holders([name for several in names for name in several]))
            absent = [[name for name in several if next(holders) is None] for several in names]
            await dispatcher.inbox.caught_up()
            known = [
                (batch, several, gone)
                for batch, several, gone in zip(asked, names, absent, strict=True)
                if gone and batch.remaining and batch.root in dispatcher.ledger
            ]
            missing += [(batch, gone) for batch, several, gone in known if batch.messages() == several]
            asked = [batch for batch, several, _ in known if batch.messages() != several]  # requeued under another id
        return missing
