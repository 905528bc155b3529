"""The pool as a call sees it that runs inside: it is there already, and someone else looks after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor.broker.address import BrokerAddress
from executor.pools.base import PoolState, PoolStatus, WorkerPool
from executor.tasks.pool_spec import PoolSpec

if TYPE_CHECKING:
    from executor.tasks.worker_context import WorkerContext


class AttachedPool(WorkerPool):
    """Workers started by somebody else, known by their broker.

    Args:
        context: Of the worker that this process belongs to.
        name: Of the pool.
    """

    owned = False

    def __init__(self, context: WorkerContext, name: str) -> None:
        super().__init__(PoolSpec(name=name))
        self._context = context

        self.store = context.store

    @property
    def slots(self) -> int:
        """As the worker's own parent has them."""
        return self._context.slots

    @property
    def address(self) -> BrokerAddress:
        """The worker's broker."""
        return BrokerAddress.parse(self._context.broker_url)

    def join(self, other: WorkerPool) -> None:
        """It knows its broker."""

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self, wait: bool = True, *, grace_s: float | None = None) -> None:
        """Nothing to stop."""

    def status(self) -> PoolStatus:
        """Running, as far as can be seen from inside."""
        return PoolStatus(name=self.spec.name, state=PoolState.RUNNING, slots=self.slots)
