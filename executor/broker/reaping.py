"""Takes everything away from a dead worker: its messages go back to their queues, or are given up.

Safe to run from anywhere, by several at once: each message is taken by compare and set. The worker's tombstone goes
up first, so that one that was only frozen can neither claim nor beat under this id again; its outcomes count until the
moment its message is taken.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from executor.broker import keys
from executor.broker.requeueing import (
    TASK_DEATHS,
    UNBEGUN,
    Entry,
    Replies,
    Script,
    charged,
    dead_letter,
    given_up,
    redelivered,
    take_away,
    task_letter,
    worker_lost,
)
from executor.broker.scripts import Scripts, text
from executor.errors import CallError
from executor.wire import envelope as wire
from executor.wire import frame, outcome, signing

if TYPE_CHECKING:
    import redis

logger = logging.getLogger(__name__)

#: How long a reaped id stays refused, in seconds.
TOMB_TTL_S = 3600
#: A lost node's BLMOVE stays registered for so long after its connection died; its inboxes are swept again then.
SECOND_SWEEP_S = 1.3
#: Between the id that a worker was started with and the number of its later ones.
GENERATION = "~"


def client_name(worker: str) -> str:
    """How a worker's connections are called in ``CLIENT LIST``."""
    return "ke:" + worker.partition(GENERATION)[0]


@dataclass(slots=True)
class Grave:
    """A worker whose messages have been taken; to be swept once more."""

    worker: str
    queues: Sequence[str]
    sweep_at: float


class Reaper:
    """Reaps workers.

    Args:
        client: A connection; blocking.
        by: Who reaps.
        master: The master key: what goes back is not signed anew, but what is given up is answered.
        max_task_deaths: Deaths after which a plain Celery task is given up.
        fail_task: Stores the failure of such a task in its result backend; gets the message and the deaths.
    """

    def __init__(
        self,
        client: redis.Redis,
        by: str,
        master: bytes,
        max_task_deaths: int,
        fail_task: Callable[[Mapping[str, Any], Sequence[Mapping[str, Any]]], None] | None = None,
        scripts: Scripts | None = None,
    ) -> None:
        self._client, self._by, self._master = client, by, master
        self._scripts = scripts or Scripts(client)
        self._max_task_deaths, self._fail_task = max_task_deaths, fail_task
        self._graves: dict[str, Grave] = {}

    def reap(self, worker: str, beat: str = "") -> bool:
        """Begin with a worker, if it is dead.

        Args:
            worker: Its id.
            beat: As last seen; empty where an obituary says that it is dead.

        Returns:
            Whether it was this one who took its messages.

        Raises:
            redis.RedisError: The server is away; to be begun again.
        """
        if worker in self._graves:
            return False
        names = [keys.LEASES, keys.tomb(worker), keys.OBITUARIES, keys.inflight(worker), keys.WORKERS, _reaping(worker)]
        reply = self._scripts.run("reap_begin", names, [worker, beat, self._by, TOMB_TTL_S])
        if not isinstance(reply, list):
            return False
        fields, description, obituary = reply
        known = _json(description)
        story = _story(worker, known, _json(obituary))
        logger.warning("Reaping worker %s: %s.", worker, story["reason"])
        self.cut_off(worker)
        self._take_all(worker, _pairs(fields), story, str(known.get("pool") or "default"))
        queues = [str(queue) for queue in known.get("queues") or []]
        self.sweep(worker, queues)
        self._graves[worker] = Grave(worker, queues, monotonic() + SECOND_SWEEP_S)
        return True

    def work(self) -> None:
        """Sweep once more behind those reaped a moment ago, and forget them."""
        for grave in list(self._graves.values()):
            if monotonic() < grave.sweep_at:
                continue
            self.sweep(grave.worker, grave.queues)
            worker = grave.worker
            names = [keys.LEASES, keys.WORKERS, keys.OBITUARIES]
            names += [keys.inflight(worker), keys.control(worker), _reaping(worker)]
            status = text(self._scripts.run("reap_end", names, [worker]))
            del self._graves[worker]
            if status == "HELD":
                logger.error("Messages are still in flight at %s, which was reaped; it will be reaped again.", worker)

    def take(
        self,
        worker: str,
        tag: str,
        value: bytes,
        recorded: tuple[str, str],
        story: Mapping[str, Any],
        pool: str,
    ) -> str:
        """Take one message away; gives the script's status.

        Args:
            worker: Whose it was.
            tag: Its field in the in-flight hash.
            value: The entry: list and message.
            recorded: ``done`` and ``end`` as they stand there.
            story: How the worker died.
            pool: Of the worker.
        """
        queue_key, _, raw = value.partition(b"\n")
        entry = Entry(worker, tag, queue_key.decode(), recorded, pool)
        try:
            message = json.loads(raw)
            script = self._call(entry, message, story) if _is_call(message) else self._task(entry, message, raw, story)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # it may be anything
            logger.exception("A message of %s cannot be read; it is kept among the dead letters.", worker)
            script = entry.requeue("", "", task_letter({}, raw, entry.queue_key, [story], pool), [], [])
        return text(self._scripts.run(*script))

    def return_unstarted(self, worker: str, tag: str, value: bytes, pool: str) -> str:
        """Put a message that nobody has started back as it was, uncharged; gives the script's status."""
        queue_key, _, raw = value.partition(b"\n")
        entry = Entry(worker, tag, queue_key.decode(), ("", ""), pool)
        headers = _json(raw).get("headers") or {}
        client, _, message = str(headers.get("ke") or "").partition(":")
        return text(self._scripts.run(*entry.requeue(client, message, "", [], [(message, raw)])))

    def _take_all(self, worker: str, fields: Mapping[str, bytes], story: Mapping[str, Any], pool: str) -> None:
        for tag, value in fields.items():
            if ":" in tag:
                continue
            recorded = (fields.get(f"{tag}:done", b"").decode(), fields.get(f"{tag}:end", b"").decode())
            if self.take(worker, tag, value, recorded, story, pool) == "CHANGED":  # it still lives, for a moment
                self._take_again(worker, tag, story, pool)

    def _take_again(self, worker: str, tag: str, story: Mapping[str, Any], pool: str) -> None:
        fields: Any = self._client.hmget(keys.inflight(worker), [tag, f"{tag}:done", f"{tag}:end"])
        value, done, end = fields
        if value is not None:
            self.take(worker, tag, value, ((done or b"").decode(), (end or b"").decode()), story, pool)

    # --- what becomes of a message ---------------------------------------------------------------

    def _call(self, entry: Entry, message: Mapping[str, Any], story: Mapping[str, Any]) -> Script:
        envelope = wire.decoded(message)
        key = signing.client_key(self._master, envelope.client)
        answers = Replies(key, envelope, self._by, 0)
        done, end = entry.recorded
        rest = envelope._replace(first=int(done or envelope.first), end=int(end or envelope.end))
        count = rest.end - rest.first
        if count <= 0:
            return take_away(entry, envelope, answers, [], [])
        if count > 1:  # which one ran is not known: each runs alone now, and is charged with what happens then
            deaths = [*envelope.deaths, {**story, "charged": False, UNBEGUN: True}]
            return take_away(entry, envelope, answers, [rest._replace(deaths=deaths)], [])
        deaths = [*envelope.deaths, story]
        verdict = self._verdict(key, envelope, deaths)
        if verdict is None:
            return take_away(entry, envelope, answers, [rest._replace(deaths=deaths)], [])
        letter = dead_letter(envelope, rest.first, deaths, entry.pool)
        return take_away(entry, envelope, answers, [], [answers.outcomes(rest.first, [verdict])], letter)

    def _verdict(self, key: bytes, envelope: wire.Envelope, deaths: Sequence[Mapping[str, Any]]) -> bytes | None:
        try:
            header, _ = frame.opened(key, frame.CALL, envelope.frame)
        except CallError as error:
            return outcome.error(type(error).__name__, str(error), error.details)
        return worker_lost(deaths) if given_up(deaths, int(header.get("max_deliveries") or 3)) else None

    def _task(self, entry: Entry, message: Mapping[str, Any], raw: bytes, story: Mapping[str, Any]) -> Script:
        headers = message.get("headers") or {}
        before = headers.get(TASK_DEATHS)
        deaths = [*(before if isinstance(before, list) else []), story]
        if charged(deaths) < self._max_task_deaths:
            return entry.requeue("", "", "", [], [("", redelivered(message, deaths))])
        if self._fail_task is not None:
            self._fail_task(message, deaths)
        queue = entry.queue_key.partition(keys.PRIORITY_SEPARATOR)[0]
        return entry.requeue("", "", task_letter(message, raw, queue, deaths, entry.pool), [], [])

    # --- what else it left -----------------------------------------------------------------------

    def cut_off(self, worker: str) -> None:
        """Close a worker's connections, but this one: a blocked pop of a dead node would go on taking messages."""
        name = client_name(worker)
        try:
            own = self._client.client_id()
            for each in self._client.client_list():
                if each.get("name") == name and int(each["id"]) != own:
                    self._client.client_kill_filter(_id=each["id"])
        except ResponseError as error:
            logger.info("The connections of %s could not be closed: %s", worker, error)

    def sweep(self, worker: str, queues: Sequence[str]) -> None:
        """Put back what a worker's ``BLMOVE`` took and no claim has registered."""
        names = keys.inboxes(worker, queues)
        if names and (moved := self._scripts.run("sweep", names, [])):
            logger.info("%s messages that %s had not yet claimed are back in their queues.", moved, worker)


def _story(worker: str, known: Mapping[str, Any], obituary: Mapping[str, Any]) -> dict[str, Any]:
    story = {
        "reason": "lease expired",
        "exit_code": None,
        "signal": None,
        "host": known.get("host"),
        "worker": worker,
        "output": "",
    }
    return {**story, **{name: value for name, value in obituary.items() if value is not None}}


def _reaping(worker: str) -> str:
    return f"ke:reaping:{worker}"


def _is_call(message: Mapping[str, Any]) -> bool:
    headers = message["headers"]
    return headers.get("task") == wire.CALL_TASK and "ke" in headers


def _pairs(flat: Sequence[bytes]) -> dict[str, bytes]:
    return {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _json(data: bytes | str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
