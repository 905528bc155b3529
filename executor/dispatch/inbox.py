"""The inbox of one client: reads replies in order, and knows up to where they have been settled."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from executor.broker import failures
from executor.dispatch.settling import Settling

if TYPE_CHECKING:
    from executor.broker.replies import EntryId, Replies
    from executor.dispatch.dispatcher import Dispatcher

log = logging.getLogger("executor")


class Inbox:
    """Reads the reply stream for one dispatcher."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._settling = Settling(dispatcher)
        #: The stream, once there is a broker.
        self.replies: Replies | None = None
        #: Replies up to this id have been settled.
        self._settled: EntryId = (0, 0)
        #: Who waits until the replies up to an id have been settled.
        self._awaited: list[tuple[EntryId, asyncio.Future[bool]]] = []

    async def read_forever(self, run: str) -> None:
        """Read and settle.

        Args:
            run: Of the server, as it was when calls began to be published.

        Raises:
            BrokerUnavailable, BrokerRefused: The broker has been away, or has refused, for too long.
        """
        assert self.replies is not None
        recovery = self._dispatcher.recovery
        patience = recovery.patience()
        while True:
            try:
                for value in await self.replies.read():
                    self._settling.take(value)
                patience.reset()
            except failures.LOST as error:
                log.warning("Lost the broker while waiting for results: %s. Trying again.", error)
                now = await recovery.mended(error, patience)
                if now != run:
                    run = now
                    recovery.start_over()
            self._settled_up_to(self.replies.position)
            self._dispatcher.flush()

    async def caught_up(self) -> None:
        """Wait until every outcome has been settled that was at the broker when this was called."""
        reached = False
        while not reached:
            last = await self._dispatcher.connected().last_reply()
            if last is None or last <= self._settled:
                return
            waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self._awaited.append((last, waiter))
            reached = await waiter

    def start_over(self) -> None:
        """The stream is another one, with ids of its own."""
        assert self.replies is not None
        self.replies.rewind()
        self._settled = (0, 0)
        self.let_go(reached=False)

    def _settled_up_to(self, position: EntryId) -> None:
        """Replies up to this one have been dealt with."""
        self._settled = position
        self.let_go(reached=True, position=position)

    def let_go(self, *, reached: bool, position: EntryId | None = None) -> None:
        """Wake who waits for replies up to ``position``, or all: not reached means that the stream is another one."""
        waiting, self._awaited = self._awaited, []
        for entry in waiting:
            last, waiter = entry
            if position is not None and last > position:
                self._awaited.append(entry)
            elif not waiter.done():
                waiter.set_result(reached)
