"""Call messages inside Celery: the task ``executor.call``, how it is received, and what Celery sees of it.

The frame is never decoded by kombu's serializers: it is verified here, in the parent, before anything reaches a child.
What cannot be verified is answered with an error if its client is known, and never unpickled.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery import Task
from celery.worker import state

from executor.errors import BadSignature, CallError, VersionMismatch
from executor.wire import envelope as wire
from executor.wire import frame, outcome, signing
from executor.worker.call_job import CallJob

if TYPE_CHECKING:
    from executor.worker.crew import Crew
    from executor.worker.deliveries import Delivery, Held

logger = logging.getLogger(__name__)

#: More calls than any client puts into one batch: a range outside the signature must not make us answer for ever.
MOST_CALLS = 1_000_000
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


class CallRequest:
    """What Celery's bookkeeping (``inspect active``, shutdown) knows of a call message.

    Args:
        job: Its way through a child.
        task: The task ``executor.call``.
    """

    __slots__ = (
        "__weakref__",
        "_eta_timer_entry",
        "acknowledged",
        "id",
        "job",
        "name",
        "task",
        "time_start",
        "worker_pid",
    )

    def __init__(self, job: CallJob, task: Task) -> None:
        self.id = job.id
        self.name = job.header.get("name") or wire.CALL_TASK
        self.job, self.task = job, task
        self.acknowledged = False
        self.time_start: float | None = None
        self.worker_pid: int | None = None
        self._eta_timer_entry = None

    def info(self, safe: bool = False) -> dict[str, Any]:
        """For ``inspect``."""
        return {
            "id": self.id,
            "name": self.name,
            "type": wire.CALL_TASK,
            "args": [],
            "kwargs": {},
            "hostname": self.job.delivery.worker,
            "time_start": self.time_start,
            "acknowledged": self.acknowledged,
            "delivery_info": {"routing_key": self.job.envelope.queue},
            "worker_pid": self.worker_pid,
        }

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """Celery cancels active requests at a cold shutdown; the pool hands calls back by itself."""

    terminate = cancel

    def __repr__(self) -> str:
        return f"<CallRequest {self.id}>"


class Intake:
    """Turns call messages into jobs.

    Args:
        crew: Who runs them.
        held: What this worker holds.
        master: The master key.
        pool: Name of the pool.
    """

    def __init__(self, crew: Crew, held: Held, master: bytes, pool: str) -> None:
        self._crew, self._held, self._master, self._pool = crew, held, master, pool
        self._keys: dict[str, bytes] = {}

    def job(self, delivery: Delivery) -> CallJob | None:
        """The job of a message; None where it was answered with an error or dropped."""
        delivery.in_pool = True
        try:
            envelope = _readable(delivery)
        except Exception:  # nothing of it is verified yet: it may be anything
            logger.exception("A call message cannot be read; it was dropped.")
            self._crew.post(lambda: self._drop(delivery))
            return None
        key = self._key(envelope.client)
        try:
            header, payload = frame.opened(key, frame.CALL, envelope.frame)
            _check(header, envelope)
        except CallError as error:
            self._refuse(delivery, envelope, key, error)
            return None
        return CallJob(delivery, envelope, header, payload, key, self._crew.settler, self._pool)

    def start(self, job: CallJob) -> None:
        """Have the crew run it."""
        if job.isolated:
            self._crew.post(lambda: self._isolate(job))
        else:
            self._crew.submit(job)

    def _key(self, client: str) -> bytes:
        known = self._keys.get(client)
        if known is None:
            if len(self._keys) > 1024:
                self._keys.clear()
            known = self._keys[client] = signing.client_key(self._master, client)
        return known

    def _refuse(self, delivery: Delivery, envelope: wire.Envelope, key: bytes, error: CallError) -> None:
        logger.error("The message %s of client %s was refused: %s", envelope.id, envelope.client, error)
        job = CallJob(delivery, envelope, {}, memoryview(b""), key, self._crew.settler, self._pool)
        answer = outcome.error(type(error).__name__, str(error), error.details)
        self._crew.post(lambda: self._answer(job, answer))

    def _isolate(self, job: CallJob) -> None:
        job.isolate()
        self._crew.submit(job)

    def _answer(self, job: CallJob, answer: bytes) -> None:
        job.release(self._held)
        job.fail(answer)

    def _drop(self, delivery: Delivery) -> None:
        self._held.release(delivery)
        self._crew.settler.drop(delivery)


class Reception:
    """Where the transport brings call messages.

    Args:
        app: A Celery app; gets the task ``executor.call``, for the eyes of ``inspect``.
        intake: Makes jobs of messages.
        later: Runs a function on the hub thread, when that is woken next: Celery's state belongs to it.
    """

    def __init__(self, app: Any, intake: Intake, later: Callable[[Callable[[], None]], None]) -> None:
        self._task = app.register_task(_Call())
        self._intake, self._later = intake, later

    def receive(self, delivery: Delivery) -> None:
        """Take a message, on the hub thread."""
        job = self._intake.job(delivery)
        if job is None:
            return
        request = CallRequest(job, self._task)
        job.on_release = lambda: self._later(lambda: state.task_ready(request))
        request.time_start = time.time()
        request.worker_pid = os.getpid()
        state.task_reserved(request)
        state.task_accepted(request)
        self._intake.start(job)


class _Call(Task):
    """The task that call messages name."""

    name = wire.CALL_TASK
    ignore_result = True
    acks_late = True

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Not this way."""
        raise RuntimeError("executor.call is run by workers of kube-executor only.")


def _readable(delivery: Delivery) -> wire.Envelope:
    """The envelope of a message, if it may be answered at all.

    Raises:
        ValueError: It names more calls than any batch has.
        Exception: It is not one of ours.
    """
    envelope = wire.decoded(delivery.message)
    if not 0 < envelope.end - envelope.first <= MOST_CALLS:
        raise ValueError(f"calls {envelope.first} to {envelope.end}")
    return envelope


def _check(header: dict[str, Any], envelope: wire.Envelope) -> None:
    """Refuse what is signed but does not fit.

    Raises:
        BadSignature: Header and envelope contradict each other: a message was put together from others.
        VersionMismatch: Pickles of another Python.
    """
    if header.get("root") != envelope.root or header.get("client") != envelope.client:
        raise BadSignature("The envelope of a call names another batch or client than its signed header.")
    if not 0 <= envelope.first < envelope.end <= int(header.get("n", 0)):
        raise BadSignature("The envelope of a call names calls that its signed header does not have.")
    if header.get("py") != PYTHON:
        raise VersionMismatch(
            f"The client runs Python {header.get('py')}, this worker runs {PYTHON}: pickles do not travel between "
            "them. Use a worker image with the client's Python version.",
            {"client": header.get("py"), "worker": PYTHON},
        )
