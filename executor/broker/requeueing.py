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
#: In the story of a death: the call was one of several in a message; where they may begin but once, none has begun.
UNBEGUN = "unbegun"
#: Class of the error, and likely cause, by the reason of the last death.
_CAUSES = {
    "OOMKilled": ("OOMKilled", "not enough memory"),
    "Evicted": ("Evicted", "its node was drained, or ran out of memory or disk"),
    "Preempted": ("Evicted", "a pod of higher priority took its place"),
    "NodeLost": ("NodeLost", "its node no longer answers, or is gone"),
    "drained": ("WorkerLost", "its worker was told to end, and the call did not within its time (grace period)"),
}


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


def given_up(deaths: Sequence[Mapping[str, Any]], max_deliveries: int) -> bool:
    """Whether a call may not be started again.

    At most once means that: whatever took the call away, charged or not, it may have begun.
    """
    if max_deliveries == 1:
        return any(not death.get(UNBEGUN) for death in deaths)
    return charged(deaths) >= max_deliveries


def worker_lost(deaths: Sequence[Mapping[str, Any]]) -> bytes:
    """The outcome of a call that is given up."""
    counted = [death for death in deaths if death.get("charged", True)] or list(deaths)
    reasons = ", ".join(f"{death.get('reason')} on {death.get('host')}" for death in counted)
    last = counted[-1] if counted else {}
    name, cause = _CAUSES.get(str(last.get("reason")), ("WorkerLost", "not enough memory, or a node that went away"))
    details: dict[str, Any] = {"deaths": list(deaths)}
    if name == "OOMKilled":
        details |= {each: last.get(each) for each in ("limit_bytes", "peak_bytes")}
        cause += _figures(**{each: last.get(each) for each in ("limit_bytes", "peak_bytes")})
    message = (
        f"The call was started {len(counted)} time(s), and each time its process was killed from outside ({reasons}). "
        f"Likely cause: {cause}. It is kept among the dead letters: kube-executor dead-letter."
    )
    said = str(last.get("output") or "").strip()
    return outcome.error(name, f"{message} Last output:\n{said}" if said else message, details)


def _figures(limit_bytes: int | None, peak_bytes: int | None) -> str:
    """What is known of the memory of a call that had too little."""
    known = [
        f"{what} {number / 2**20:,.0f} MiB"
        for what, number in (("its process had", peak_bytes), ("the limit is", limit_bytes))
        if number
    ]
    advice = "give it more (resources=Resources(memory=...)), or less to do at a time"
    return f" ({', '.join(known)}); {advice}" if known else f"; {advice}"


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
