"""Messages taken from a worker: what goes back to the queue, what is given up, and what is told of it. No I/O.

Used by the worker for its own children, and by whoever reaps a whole worker.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from executor.broker import keys, scripts
from executor.wire import frame, outcome, segments
from executor.wire.envelope import Envelope, encoded, message_id

#: ``done`` and ``end`` of one's own entry: nobody else changes it, so they are not compared.
OWN = ("*", "*")
#: Count of deaths in the headers of a plain Celery message.
TASK_DEATHS = "ke_deaths"


class Script(NamedTuple):
    """A script to run, with its KEYS and ARGV."""

    name: str
    keys: list[str]
    args: list[Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One in-flight entry.

    Attributes:
        worker: Whose.
        tag: Its field.
        queue_key: The list it came from.
        recorded: ``done`` and ``end`` as they stand there; see :data:`OWN`.
        pool: Whose dead letters it may go to.
    """

    worker: str
    tag: str
    queue_key: str
    recorded: tuple[str, str]
    pool: str

    def requeue(
        self,
        client: str,
        message: str,
        letter: str,
        replies: Sequence[bytes],
        messages: Sequence[tuple[str, str | bytes]],
    ) -> Script:
        """Take the entry away.

        Args:
            client: Whose message it is; empty for a plain Celery message.
            message: Its id.
            letter: The dead letter, or nothing.
            replies: Signed frames for the client.
            messages: Id and text of what goes back to the queue, in the order in which it shall be popped.
        """
        args: list[Any] = [self.tag, *self.recorded, client, message, letter, scripts.CLIENT_TTL_S, len(replies)]
        args += replies
        for pair in reversed(messages):
            args += pair
        return Script("requeue", [keys.inflight(self.worker), self.queue_key, keys.dead_letters(self.pool)], args)


class Replies:
    """Makes the frames that one worker, or its reaper, sends about one message.

    Args:
        key: The client's key.
        envelope: The message.
        worker: Who speaks.
        pid: Its process id.
    """

    def __init__(self, key: bytes, envelope: Envelope, worker: str, pid: int) -> None:
        self._key = key
        self._base = {"root": envelope.root, "id": envelope.id, "worker": worker, "pid": pid}

    def sealed(self, kind: str, payload: bytes | memoryview = b"", **fields: Any) -> bytes:
        """A signed reply."""
        return frame.sealed(self._key, frame.REPLY, {**self._base, "kind": kind, **fields}, payload)

    def outcomes(self, first: int, outcomes: Sequence[bytes]) -> bytes:
        """Outcomes that no child made."""
        return self.sealed("outcomes", segments.join(outcomes), first=first, n=len(outcomes), ns=0, bufs=None)

    def split(self, part: Envelope) -> bytes:
        """Calls from ``part.first`` on travel as another message now."""
        return self.sealed("split", at=part.first, part=part.id, end=part.end)


def take_away(
    entry: Entry,
    envelope: Envelope,
    answers: Replies,
    parts: Sequence[Envelope],
    replies: Sequence[bytes],
    letter: str = "",
) -> Script:
    """Requeue parts of a call message.

    Args:
        entry: Where it is in flight.
        envelope: The message as it was claimed.
        answers: Speaks to the client.
        parts: What goes back to the queue, in order.
        replies: What else the client is told.
        letter: The dead letter, or nothing.
    """
    notes = [answers.split(part) for part in parts if part.id != envelope.id]
    messages = [(part.id, encoded(part)) for part in parts]
    return entry.requeue(envelope.client, envelope.id, letter, [*replies, *notes], messages)


def charged(deaths: Sequence[Mapping[str, Any]]) -> int:
    """How many deaths count: those where it is known that this call ran."""
    return sum(bool(death.get("charged", True)) for death in deaths)


def worker_lost(deaths: Sequence[Mapping[str, Any]]) -> bytes:
    """The outcome of a call that has been started often enough."""
    counted = [death for death in deaths if death.get("charged", True)]
    reasons = ", ".join(f"{death.get('reason')} on {death.get('host')}" for death in counted)
    last = str(counted[-1].get("output") or "").strip() if counted else ""
    message = (
        f"The call was started {len(counted)} time(s), and each time its process was killed from outside ({reasons}). "
        "Likely causes: not enough memory, or a node that went away. It is kept among the dead letters."
    )
    return outcome.error("WorkerLost", f"{message} Last output:\n{last}" if last else message, {"deaths": list(deaths)})


def dead_letter(envelope: Envelope, index: int, deaths: Sequence[Mapping[str, Any]], pool: str) -> str:
    """The JSON that is kept of a call given up: ``raw`` is a message that may be queued again."""
    only = envelope._replace(first=index, end=index + 1, deaths=())
    return json.dumps(
        {
            "id": message_id(envelope.root, index),
            "client": envelope.client,
            "task": "executor.call",
            "index": index,
            "queue": envelope.queue,
            "pool": pool,
            "deaths": list(deaths),
            "at": round(time.time(), 3),
            "raw": encoded(only),
        }
    )


def task_letter(
    message: Mapping[str, Any], raw: bytes, queue: str, deaths: Sequence[Mapping[str, Any]], pool: str
) -> str:
    """The same for a plain Celery task."""
    headers = message.get("headers") or {}
    return json.dumps(
        {
            "id": headers.get("id"),
            "client": None,
            "task": headers.get("task"),
            "index": None,
            "queue": queue,
            "pool": pool,
            "deaths": list(deaths),
            "at": round(time.time(), 3),
            "raw": raw.decode("utf-8", "backslashreplace"),
        }
    )


def redelivered(message: Mapping[str, Any], deaths: Sequence[Mapping[str, Any]]) -> str:
    """A plain Celery message as it goes back to its queue."""
    properties = dict(message.get("properties") or {})
    properties["delivery_info"] = {**(properties.get("delivery_info") or {}), "redelivered": True}
    headers = {**(message.get("headers") or {}), "redelivered": True}
    if deaths:
        headers[TASK_DEATHS] = list(deaths)
    return json.dumps({**message, "headers": headers, "properties": properties})
