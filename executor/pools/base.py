"""Capacity: what worker processes are today and pods are besides. A pool runs workers and knows nothing of calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from executor.broker.address import BrokerAddress
    from executor.tasks.pool_spec import PoolSpec

__all__ = ["PoolState", "PoolStatus", "WorkerDeath", "WorkerPool"]


class PoolState(StrEnum):
    """Where a pool is in its life; it only moves downwards."""

    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    BROKEN = "broken"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True)
class WorkerDeath:
    """How a worker ended that nobody asked to.

    Attributes:
        host: Where it ran.
        pid: Its process id there.
        reason: One word in the system's own spelling: ``SIGKILL``, ``OOMKilled``, ``Exited``, ...
        exit_code: What it exited with, or None when a signal ended it.
        signal: Name of that signal, or None.
        output: Last lines of its log.
    """

    host: str
    pid: int
    reason: str
    exit_code: int | None = None
    signal: str | None = None
    output: str = ""


@dataclass(frozen=True, kw_only=True)
class PoolStatus:
    """A pool at one moment; a snapshot, never updated.

    Attributes:
        name: Of the pool.
        state: Where it is in its life.
        slots: Calls it can run at a time when all workers are up.
        workers: Process ids (or names of pods) of the workers that run.
        restarts: How often a worker was replaced.
        last_death: How the last one ended, if any did.
        reason: Why the pool is broken, else None.
    """

    name: str
    state: PoolState
    slots: int
    workers: tuple[str, ...] = ()
    restarts: int = 0
    last_death: WorkerDeath | None = None
    reason: str | None = None


class WorkerPool(ABC):
    """Workers of one shape that serve the queues of one :class:`PoolSpec`.

    All methods are called on the executor's loop thread, and the callbacks call back there.

    Attributes:
        spec: What was declared.
        on_broken: Called once when the workers are gone for good, with the exception for every open future.
        store: Locator of the store for large values, or None.
        owned: Whether it ends with this executor, and its queues with it.
        on_worker_died: Called for each worker that ended unasked; it is being replaced meanwhile.
    """

    owned = True

    def __init__(self, spec: PoolSpec) -> None:
        self.spec = spec
        self.store: str | None = None
        self.on_broken: Callable[[BaseException], None] | None = None
        self.on_worker_died: Callable[[WorkerDeath], None] | None = None

    @property
    @abstractmethod
    def slots(self) -> int:
        """Calls that run at a time when all workers are up."""

    @property
    @abstractmethod
    def address(self) -> BrokerAddress:
        """The broker as the client reaches it; known once :meth:`start` has been entered."""

    @property
    def service_url(self) -> str:
        """The broker's URL, with its password, as services beside the workers reach it."""
        return self.address.url

    @abstractmethod
    def join(self, other: WorkerPool) -> None:
        """Use the broker of another pool, started before this one and stopped after it. Called before :meth:`start`."""

    @abstractmethod
    async def start(self) -> None:
        """Bring up the broker, if it is ours, and begin to bring up workers; does not wait for the workers.

        Raises:
            BrokerError: The broker cannot be used.
            PoolStartError: Nothing can be started here.
        """

    @abstractmethod
    async def stop(self, wait: bool = True, *, grace_s: float | None = None) -> None:
        """End the workers, and the broker if it is ours. May be called in any state, and again.

        Args:
            wait: Return when everything is gone; else at once, and it goes by itself.
            grace_s: Seconds that workers get to finish what they run; 0 kills them; None is the pool's own setting.
        """

    @abstractmethod
    def status(self) -> PoolStatus:
        """The pool as it is now."""

    def __repr__(self) -> str:
        status = self.status()
        return (
            f"<{type(self).__name__} {status.name!r} {status.state}, {status.slots} slots, "
            f"{len(status.workers)} workers, {status.restarts} restarts>"
        )
