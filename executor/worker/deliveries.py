"""What this worker holds: every message it has claimed and not yet finished, under which of its ids.

One registry for the whole process. Connections come and go; what is held stays held.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import Any

from executor.broker import keys
from executor.broker.reaping import GENERATION
from executor.broker.requeueing import OWN, Entry
from executor.wire import envelope


@dataclass(slots=True, eq=False)
class Delivery:
    """One claimed message.

    Attributes:
        worker: Id of this worker at the claim; part of the fence.
        tag: Field in its in-flight hash.
        queue_key: The list it came from.
        raw: The message as it was there.
        cancelled: Indexes that must not run, as the claim found them.
        occupies: Whether it counts against the worker's credit: it is not yet through a child.
        in_pool: Whether the pool has it: it outlives a reconnect there.
    """

    worker: str
    tag: str
    queue_key: str
    raw: bytes
    cancelled: str = ""
    occupies: bool = True
    in_pool: bool = False
    _message: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def message(self) -> dict[str, Any]:
        """The message, parsed once.

        Raises:
            ValueError: It is not JSON.
        """
        if self._message is None:
            self._message = json.loads(self.raw)
        return self._message

    @property
    def queue(self) -> str:
        """Name of the queue, without its priority."""
        return self.queue_key.partition(keys.PRIORITY_SEPARATOR)[0]

    @property
    def inflight_key(self) -> str:
        """The hash that it is registered in."""
        return keys.inflight(self.worker)

    def entry(self, pool: str) -> Entry:
        """Its in-flight entry, as its own worker takes it away."""
        return Entry(self.worker, self.tag, self.queue_key, OWN, pool)

    def cancelled_indexes(self) -> frozenset[int]:
        """The indexes in :attr:`cancelled`."""
        return frozenset(int(part) for part in self.cancelled.split(",") if part.isdecimal())


def is_call(message: dict[str, Any]) -> bool:
    """Whether a message is one of ours, rather than a plain Celery task."""
    headers = message.get("headers")
    return isinstance(headers, dict) and headers.get("task") == envelope.CALL_TASK and "ke" in headers


class Held:
    """The registry; safe from any thread.

    Attributes:
        worker: The worker's id of today. It takes a new one when the old one was reaped.
        claimable: Whether the lease stands, so that messages may be claimed.
        run_id: The server run that knows of everything held; None before the first.
        next_tag: Number below the next tag.
        settled_below: Tags below this have been seen by the hub; what is in flight there and not held, is astray.
    """

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.claimable = False
        self.run_id: str | None = None
        self.next_tag = 0
        self.settled_below = 0
        self._generation = 0
        self._base = worker
        self._lock = threading.Lock()
        self._held: dict[tuple[str, str], Delivery] = {}
        self._occupying = 0

    def add(self, delivery: Delivery) -> None:
        """A message has been claimed."""
        with self._lock:
            self._held[delivery.worker, delivery.tag] = delivery
            self._occupying += delivery.occupies

    def get(self, worker: str, tag: str) -> Delivery | None:
        """A claimed message by its tag, if it is still held."""
        return self._held.get((worker, tag))

    def release(self, delivery: Delivery) -> None:
        """It no longer counts against the credit; its outcome may still be on its way."""
        with self._lock:
            if delivery.occupies:
                delivery.occupies = False
                self._occupying -= 1

    def remove(self, delivery: Delivery) -> None:
        """It is finished, handed back or taken away. What a child still runs goes on counting until released."""
        if not delivery.in_pool:
            self.release(delivery)
        with self._lock:
            self._held.pop((delivery.worker, delivery.tag), None)

    @property
    def occupying(self) -> int:
        """How many count against the credit."""
        return self._occupying

    def all(self) -> list[Delivery]:
        """Everything held."""
        with self._lock:
            return list(self._held.values())

    def rename(self) -> str:
        """Take a new id; what is held under the old one is lost to others. Returns the new id."""
        with self._lock:
            self._generation += 1
            self.worker = f"{self._base}{GENERATION}{self._generation}"
            return self.worker

    def __len__(self) -> int:
        return len(self._held)
