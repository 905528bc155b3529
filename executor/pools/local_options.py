"""What worker processes on this machine need beside the declaration of their pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from executor.broker.address import BrokerAddress

__all__ = ["MAX_LEASE_S", "MIN_LEASE_S", "LocalOptions"]

#: Shorter than this, a busy machine makes living workers look dead; longer, and a dead one is hardly ever noticed.
MIN_LEASE_S, MAX_LEASE_S = 1.0, 3600.0


@dataclass(frozen=True, kw_only=True)
class LocalOptions:
    """What a :class:`~executor.pools.local.LocalPool` needs beside its :class:`PoolSpec`.

    Attributes:
        owner: Id of the client.
        queues: Our own queues that the workers serve (see :func:`executor.broker.keys.pool_queue`).
        broker: A server that runs already; None starts an embedded one.
        key: Master key of the signatures; None makes one.
        store: Locator of the store for large values; None makes one in shared memory, where there is any.
        initializer: What each child unpickles and runs once, or None.
        max_tasks_per_child: Messages after which a child process is replaced, or None.
        lease_s: How long a worker may be silent before its calls go to others, in seconds.
        grace_s: How long workers may finish what they run when the pool stops, in seconds.
        maxmemory_bytes: Limit of the embedded server; 0 is the memory of the machine.
        runtime_dir: Where sockets and keys go; None is the temporary directory.
        worker_argv: Command of a worker instead of the usual one, for tests.

    Raises:
        ValueError, TypeError: The lease does not make sense; a worker would not start with it.
    """

    owner: str
    queues: Sequence[str]
    broker: BrokerAddress | None = None
    key: bytes | None = None
    store: str | None = None
    initializer: bytes | None = None
    max_tasks_per_child: int | None = None
    lease_s: float = 5.0
    grace_s: float = 5.0
    maxmemory_bytes: int = 0
    runtime_dir: Path | None = None
    worker_argv: Sequence[str] | None = None

    def __post_init__(self) -> None:
        lease: object = self.lease_s  # it holds whatever was given
        if not isinstance(lease, int | float):
            raise TypeError(f"lease={lease!r} must be a number of seconds.")
        if not MIN_LEASE_S <= lease <= MAX_LEASE_S:
            raise ValueError(f"lease={lease!r} must be from {MIN_LEASE_S:g} to {MAX_LEASE_S:g} seconds.")
