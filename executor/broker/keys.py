"""Names of everything we keep in Redis. ``docs/architecture.md`` has the table of types and lifetimes."""

from __future__ import annotations

from collections.abc import Iterable

LEASES = "ke:leases"
WORKERS = "ke:workers"
OBITUARIES = "ke:obituaries"

#: kombu's priority lists: ``QUEUE`` itself is priority 0, the others carry a suffix.
PRIORITY_SEPARATOR = "\x06\x16"
PRIORITY_STEPS = (0, 3, 6, 9)


def pool_queue(executor: str, pool: str) -> str:
    """Our own queue of a pool of one executor; services' queues keep their raw names."""
    return f"ke.{executor}.{pool}"


def queue_keys(queue: str) -> list[str]:
    """All that kombu keeps for a queue: its priority lists, and what it is bound to."""
    return [*priority_queues(queue), f"_kombu.binding.{queue}", f"_kombu.binding_permanent.{queue}"]


def executor_of(queue: str) -> str:
    """The executor in a name of :func:`pool_queue`."""
    return queue.removeprefix("ke.").rpartition(".")[0]


def priority_queue(queue: str, priority: int) -> str:
    """The list that holds one priority of a queue, as kombu names it; 0 is served first.

    Args:
        queue: Name of the queue.
        priority: 0..9; rounded down to a step of :data:`PRIORITY_STEPS`.
    """
    step = max(s for s in PRIORITY_STEPS if s <= priority)
    return f"{queue}{PRIORITY_SEPARATOR}{step}" if step else queue


def priority_queues(queue: str) -> list[str]:
    """All priority lists of a queue, most urgent first."""
    return [priority_queue(queue, step) for step in PRIORITY_STEPS]


def executor_alive(executor: str) -> str:
    """Mark that somebody uses an executor on a cluster: without it, its broker ends."""
    return f"ke:alive:{executor}"


def inflight(worker: str) -> str:
    """Hash of what a worker has claimed: tag to queue and message."""
    return f"ke:inflight:{worker}"


def inbox(worker: str, queue_key: str) -> str:
    """List into which BLMOVE moves a message for a worker."""
    return f"ke:inbox:{worker}:{queue_key}"


def inboxes(worker: str, queues: Iterable[str]) -> list[str]:
    """Each inbox that a worker may have, and the list it was filled from, in turn: KEYS of ``sweep.lua``."""
    lists = [key for queue in queues for key in priority_queues(queue)]
    return [name for key in lists for name in (inbox(worker, key), key)]


def tomb(worker: str) -> str:
    """Mark of a worker that was reaped."""
    return f"ke:tomb:{worker}"


def control(worker: str) -> str:
    """List of control messages for a worker."""
    return f"ke:ctl:{worker}"


def client(client_id: str) -> str:
    """Alive mark of a client."""
    return f"ke:client:{client_id}"


def replies(client_id: str) -> str:
    """Stream of outcomes for a client."""
    return f"ke:replies:{client_id}"


def batches(client_id: str) -> str:
    """Hash of a client's messages: empty while queued, else the worker."""
    return f"ke:batches:{client_id}"


def cancels(client_id: str) -> str:
    """Hash of calls of a client that must not run, by message."""
    return f"ke:cancels:{client_id}"


def function(client_id: str, digest: str) -> str:
    """A signed function of a client."""
    return f"ke:fn:{client_id}:{digest}"


def buffer(client_id: str, name: str) -> str:
    """One large value of a client."""
    return f"ke:buf:{client_id}:{name}"


def dead_letters(pool: str) -> str:
    """List of the dead letters of a pool."""
    return f"ke:dead:{pool}"
