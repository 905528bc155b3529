"""Where am I? Set in a worker's child process, so that an executor captured by a call finds its broker.

The handle that travels inside a call names no broker and holds no key: both come from here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What a child process knows of its worker.

    Attributes:
        broker_url: Address of the broker, with its password.
        key_file: Path of the file that holds the master key in hex.
        pool: Name of the pool.
        queue: Our own queue that this worker serves.
        slots: Calls that run here at a time.
        store: Locator of the store for large values, or None.
        lend: Called with True when the running call begins to wait on calls of its own, with False when it no
            longer does: the worker lends its slot out meanwhile, else a pool of one would wait on itself for ever.
    """

    broker_url: str
    key_file: str
    pool: str
    queue: str
    slots: int
    store: str | None
    lend: Callable[[bool], None]


_current: WorkerContext | None = None


def set_worker_context(context: WorkerContext | None) -> None:
    """Called once by a child process at its start."""
    global _current
    _current = context


def worker_context() -> WorkerContext | None:
    """The context of this process, or None outside of workers."""
    return _current
