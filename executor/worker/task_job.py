"""A plain Celery task on its way through a child of ours.

Celery's request hears what it would hear of its own pool; the difference is a child that was killed from outside: its
message goes back to the queue, fenced and counted, where stock Celery has neither outcome nor message left.
"""

from __future__ import annotations

import logging
import pickle
import signal
import struct
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, WorkerLostError
from celery.worker import state

from executor.broker.requeueing import TASK_DEATHS, charged, redelivered, task_letter
from executor.worker import pipe
from executor.worker.call_job import DRAINED, FENCED, TIMED_OUT, story_of
from executor.worker.child_process import DEAF
from executor.worker.settler import Settler, Step

if TYPE_CHECKING:
    from executor.worker.child_process import ChildProcess, Death
    from executor.worker.deliveries import Delivery, Held

logger = logging.getLogger(__name__)

_NUMBER = struct.Struct("<Q")
#: How a task's trace ended: it returned, it failed, or it raised what ends processes.
RETURNED, FAILED, ENDED = 0, 1, 2
#: Prefix of the reason for a child killed by ``revoke(terminate=True)``.
TERMINATED = "terminated by signal "


class TaskJob:
    """One plain task.

    Args:
        request: Celery's request.
        delivery: The claimed message.
        arguments: Of Celery's trace function, pickled.
        options: What ``apply_async`` of the pool was given.
        later: Runs a function on the hub thread: Celery's state belongs to it.
        settler: Where requeued messages go.
        limits: Name of the pool, and deaths after which a task is given up.
    """

    def __init__(
        self,
        request: Any,
        delivery: Delivery,
        arguments: bytes,
        options: dict[str, Any],
        later: Callable[[Callable[[], None]], None],
        settler: Settler,
        limits: tuple[str, int],
    ) -> None:
        self.id: str = request.id
        self.begun = self.settled = False
        self._request, self._delivery, self._arguments = request, delivery, arguments
        self._options, self._later, self._settler = options, later, settler
        self._pool, self._max_deaths = limits
        self._soft_s, self._hard_s = options.get("soft_timeout"), options.get("timeout")
        self._began = 0.0

    def begin(self, child: ChildProcess, number: int) -> bool:
        """Hand the task to a child; False where it could not take it."""
        self._began = monotonic()
        child.begin(number, 0, 1)
        taken = child.send(pipe.TASK, _NUMBER.pack(number), self._arguments)
        self.begun |= taken
        if taken:
            accepted, pid, began = self._options["accept_callback"], child.pid, self._began
            self._later(lambda: accepted(pid, began))
        return taken

    def on_results(self, child: ChildProcess, kind: int, body: memoryview) -> bool:
        """Take TASK_DONE."""
        if kind != pipe.TASK_DONE:
            return False
        self.settled = True
        how, data = body[0], bytes(body[1:])
        self._later(lambda: self._report(how, data))
        return True

    def _report(self, how: int, data: bytes) -> None:
        try:
            value, runtime = pickle.loads(data)
        except Exception as error:
            value, runtime = _info(RuntimeError(f"the task's failure cannot be unpickled: {error!r}")), 0.0
        if how == ENDED:
            self._options["error_callback"](_info(WorkerLostError(f"Worker exited prematurely: {value}.")))
        else:
            self._options["callback"]((how == FAILED, value, runtime))

    def next_check_s(self, child: ChildProcess) -> float | None:
        """Seconds until a time limit is over, or None."""
        ran_s = monotonic() - self._began
        waits = [limit - ran_s for limit in (self._soft_s, self._hard_s) if limit]
        return max(0.001, min(waits)) if waits else None

    def check(self, child: ChildProcess) -> None:
        """Enforce the soft (SIGUSR1) and the hard (SIGKILL) time limit."""
        ran_s = monotonic() - self._began
        if self._hard_s and ran_s >= self._hard_s:
            child.kill(TIMED_OUT)
        elif self._soft_s and ran_s >= self._soft_s:
            limit, self._soft_s = self._soft_s, None
            child.signal(signal.SIGUSR1)
            self._later(lambda: self._options["timeout_callback"](True, limit))

    def cancel(self, indexes: frozenset[int], how: str | None, child: ChildProcess | None) -> None:
        """Plain tasks are revoked through Celery."""

    def on_death(self, child: ChildProcess, death: Death) -> None:
        """The child is dead and has not reported."""
        if self.settled:
            return
        self.settled = True
        reason = child.kill_reason
        if reason == FENCED:
            self._settler.forget(self._delivery)
            self._let_go()
        elif reason == DRAINED:
            self._hand_back()
        elif reason == TIMED_OUT:
            self._later(lambda: self._options["timeout_callback"](False, self._hard_s))
        elif reason.startswith(TERMINATED):
            number = int(reason.removeprefix(TERMINATED))
            self._fail(Terminated(-number, None))
        else:
            self._judge(death, by_itself=(death.by_itself and not reason) or reason == DEAF)

    def _judge(self, death: Death, by_itself: bool) -> None:
        lost = WorkerLostError(f"Worker exited prematurely: {death.reason}. Last output: {death.output.strip() or '-'}")
        if by_itself or self._request.acknowledged or not self._request.task.acks_late:
            self._fail(lost)
            return
        message, raw = self._delivery.message, self._delivery.raw
        before = (message.get("headers") or {}).get(TASK_DEATHS)
        deaths = [*(before if isinstance(before, list) else []), story_of(death, self._delivery.worker)]
        if charged(deaths) < self._max_deaths:
            self._requeue("", [("", redelivered(message, deaths))])
            self._let_go()
        else:
            self._requeue(task_letter(message, raw, self._delivery.queue, deaths, self._pool), [])
            self._fail(lost)

    def release(self, held: Held) -> None:
        """The message no longer counts against the worker's credit."""
        held.release(self._delivery)

    def hand_back(self) -> None:
        """Put the message back to the head of its queue, uncharged."""
        if not self.settled:
            self.settled = True
            self._hand_back()

    def _hand_back(self) -> None:
        if self._request.acknowledged:
            logger.error("The task %s was acknowledged before it ran (acks_late=False); it is lost.", self.id)
        else:
            self._requeue("", [("", self._delivery.raw)])
        self._let_go()

    def _requeue(self, letter: str, messages: list[tuple[str, str | bytes]]) -> None:
        script = self._delivery.entry(self._pool).requeue("", "", letter, [], messages)
        self._settler.add(Step(*script, lambda _: self._settler.forget(self._delivery)))

    def _let_go(self) -> None:
        """Celery forgets the request without an outcome: the message is elsewhere."""
        request = self._request

        def forget() -> None:
            request.acknowledged = True
            state.task_ready(request)

        self._later(forget)

    def _fail(self, error: Exception) -> None:
        self._later(lambda: self._options["error_callback"](_info(error)))


def task_job(
    args: tuple[Any, ...],
    options: dict[str, Any],
    held: Held,
    later: Callable[[Callable[[], None]], None],
    settler: Settler,
    limits: tuple[str, int],
) -> TaskJob | None:
    """The job of a request that Celery applies to the pool; None where its message was taken away while it waited.

    Args:
        args: Of Celery's trace function.
        options: Callbacks and time limits.
        held: Where deliveries are found by their tags.
        later: See :class:`TaskJob`.
        settler: See :class:`TaskJob`.
        limits: See :class:`TaskJob`.
    """
    request = options["accept_callback"].__self__  # the pool's interface passes no other way to the message
    worker, _, tag = request.message.delivery_tag.rpartition("#")
    delivery = held.get(worker, tag)
    if delivery is None:
        request.acknowledged = True
        state.task_ready(request)
        return None
    delivery.in_pool = True
    return TaskJob(request, delivery, pickle.dumps(args, 5), options, later, settler, limits)


def _info(error: Exception) -> Any:
    try:
        raise error
    except type(error):
        return ExceptionInfo()
