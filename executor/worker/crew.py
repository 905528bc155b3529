"""The children of a worker, and the thread that attends to them.

Celery's hub thread brings jobs (:meth:`Crew.submit`) and writes them to an idle child itself. The crew thread does the
rest: it reads what children say, hands outcomes to the :class:`~executor.worker.settler.Settler`, watches the time,
buries the dead and starts new ones. It goes on while the hub is blocked in a reconnect.
"""

from __future__ import annotations

import itertools
import logging
import os
import selectors
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic, sleep
from typing import TYPE_CHECKING, Protocol

from executor.worker import pipe
from executor.worker.call_job import DRAINED, FENCED
from executor.worker.pace import WAIT_AT_MOST_S, Pace
from executor.worker.starts import Starts

if TYPE_CHECKING:
    from executor.worker.child_process import ChildProcess, Death
    from executor.worker.deliveries import Held
    from executor.worker.functions import FunctionSource
    from executor.worker.settler import Settler

logger = logging.getLogger(__name__)

#: A child beyond the slots, which calls that wait for others had lent, is kept for so long: calls that wait come in
#: swarms, and a start takes some tenths of a second. In seconds.
SPARE_S = 10.0
#: Longest sleep of the crew thread, in seconds.
IDLE_S = 1.0
#: How long a finished crew keeps trying to deliver outcomes to a server that is away, in seconds.
SETTLE_AT_STOP_S = 5.0


class Job(Protocol):
    """What a child can do: a :class:`~executor.worker.call_job.CallJob`, or a plain Celery task."""

    id: str
    begun: bool
    settled: bool

    def begin(self, child: ChildProcess, number: int) -> bool:
        """Hand it to a child; False where the child could not take it."""

    def on_results(self, child: ChildProcess, kind: int, body: memoryview) -> bool:
        """Take what the child says; True when that was all."""

    def on_death(self, child: ChildProcess, death: Death) -> None:
        """The child is dead."""

    def next_check_s(self, child: ChildProcess) -> float | None:
        """Seconds until :meth:`check` should look again, or None."""

    def check(self, child: ChildProcess) -> None:
        """Look at the time."""

    def cancel(self, indexes: frozenset[int], how: str | None, child: ChildProcess | None) -> None:
        """Keep calls from running."""

    def hand_back(self) -> None:
        """Back to the queue, uncharged."""

    def release(self, held: Held) -> None:
        """It no longer counts against the worker's credit."""


class Crew:
    """Runs jobs in children.

    Args:
        slots: Children that work at a time.
        start_child: Starts one.
        held: What this worker holds.
        settler: Where outcomes go; used by the crew thread only.
        functions: Where children's functions come from.

    Attributes:
        on_free: Called on the crew thread when credit has come back.
        on_broken: Called on the crew thread, once, when no child can be set up; gets the reason.
    """

    def __init__(
        self,
        slots: int,
        start_child: Callable[[], ChildProcess],
        held: Held,
        settler: Settler,
        functions: FunctionSource,
    ) -> None:
        self.slots, self.held, self.settler = slots, held, settler
        self.on_free: Callable[[], None] = lambda: None
        self.on_broken: Callable[[str], None] = lambda reason: None
        self._start_child, self._functions = start_child, functions
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._children: dict[int, ChildProcess] = {}
        self._idle: list[ChildProcess] = []
        self._waiting: deque[Job] = deque()
        self._waiting_since = 0.0
        self._pace = Pace(slots)
        self._posted: deque[Callable[[], None]] = deque()
        self._lent = 0
        self._starts = Starts()
        self._broken = False
        self._stopping = self._stopped = False
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._woken)
        self._thread = threading.Thread(target=self._run, name="ke-crew", daemon=True)

    # --- from any thread -------------------------------------------------------------------------

    def start(self, children: list[ChildProcess]) -> None:
        """Start the thread, with the children that were started before it."""
        for child in children:
            self._adopt(child)
        self._thread.start()

    @property
    def capacity(self) -> int:
        """Jobs that may be here at a time; more than slots while slots are lent out, or jobs are short."""
        if self._stopping or self._broken:
            return 0
        return self.slots + (self._lent or self._pace.ahead)

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` is through, so that nothing posted will run."""
        return self._stopped

    def submit(self, job: Job) -> None:
        """Run a job: at once on an idle child, written by the calling thread, else in its turn."""
        if self._broken or self._stopping:  # claimed in the last moment: nobody here will run it
            self.post(lambda: self._return(job))
            return
        with self._lock:
            child = self._idle.pop() if self._idle else None
            if child is None:
                self._waiting.append(job)
                self._waiting_since = monotonic()
            else:
                child.job = job
        if child is None:
            self._wake()
        else:
            self._begin(child, job)
            if job.next_check_s(child) is not None:
                self._wake()

    def post(self, action: Callable[[], None]) -> None:
        """Run something on the crew thread, soon."""
        self._posted.append(action)
        self._wake()

    def pids(self) -> list[int]:
        """Process ids of the children."""
        return list(self._children)

    def kill_all(self, reason: str) -> None:
        """Kill every child that works; its job hears the reason."""
        self.post(lambda: self._kill_busy(reason))

    def cancel(self, job_id: str, indexes: frozenset[int], how: str | None) -> None:
        """Pass a wish to cancel on to the job, if it is here."""
        self.post(lambda: self._cancel(job_id, indexes, how))

    def terminate(self, pid: int, reason: str) -> None:
        """Kill one child, on behalf of Celery's ``revoke(terminate=True)``."""
        self.post(lambda: self._terminate(pid, reason))

    def declare_broken(self, reason: str) -> None:
        """This worker cannot work at all."""
        self.post(lambda: self._break(reason))

    def stop(self, grace_s: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Let running jobs finish, hand back the rest, end the children; blocks for the grace period at most.

        Args:
            grace_s: How long jobs may run on, in seconds.
            meanwhile: Called again and again while waiting.
        """
        if self._stopped:
            return
        self._stopping = True
        self.post(self._hand_back_waiting)
        self._wait(grace_s, lambda: self._busy() or bool(self._posted), meanwhile)
        self.kill_all(DRAINED)
        self._wait(SETTLE_AT_STOP_S, lambda: self._busy() or self._unsettled(), meanwhile)
        self._stopped = True
        self._wake()
        self._thread.join(5)
        for child in list(self._children.values()):
            child.close()

    def _wait(self, timeout_s: float, unless: Callable[[], bool], meanwhile: Callable[[], None]) -> None:
        deadline = monotonic() + timeout_s
        while True:
            meanwhile()
            if not unless() or monotonic() > deadline or not self._thread.is_alive():
                return
            sleep(0.01)

    # --- the crew thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._turn()
            except Exception:  # one bad job must not end the attendance on all others
                logger.exception("The crew thread stumbled; it goes on.")

    def _turn(self) -> None:
        self._ensure_children()
        for key, _ in self._selector.select(self._sleep_s()):
            key.data()
        while self._posted:
            self._posted.popleft()()
        for child in list(self._children.values()):
            child.kill_if_deaf()
            if child.job is not None and child.job.begun and not child.kill_reason:
                child.job.check(child)
        self._dismiss_spare()
        if self._fetched_too_early():
            self._hand_back_surplus()
        self._functions.work()
        self.settler.work()

    def _sleep_s(self) -> float:
        waits = [IDLE_S, self.settler.next_try_s(), self._functions.next_try_s()]
        if self._waiting:
            waits.append(WAIT_AT_MOST_S)
        if (pause_s := self._starts.wait_s(monotonic())) > 0:
            waits.append(pause_s)
        for child in list(self._children.values()):
            job = child.job
            if job is not None and job.begun and not child.kill_reason:
                waits.append(job.next_check_s(child))
            if child.pidfd is None or child.deaf_since is not None:
                waits.append(0.02)
        return min(wait for wait in waits if wait is not None)

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"!")
        except (BlockingIOError, OSError):
            pass  # full: it will wake anyway

    def _woken(self) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            pass

    # --- children --------------------------------------------------------------------------------

    def _ensure_children(self) -> None:
        for child in [child for child in self._children.values() if child.pidfd is None and child.poll()]:
            self._ended(child)
        if self._stopping or self._broken:
            return
        starting = sum(not child.ready for child in self._children.values())
        wanted = self.slots + self._lent - len(self._children)
        if wanted > 0 and (not starting or len(self._waiting) > starting) and not self._starts.wait_s(monotonic()):
            self._adopt(self._start_child())

    def _adopt(self, child: ChildProcess) -> None:
        self._children[child.pid] = child
        self._selector.register(child.sock, selectors.EVENT_READ, lambda: self._read(child))
        if child.pidfd is not None:
            self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._ended(child))

    def _begin(self, child: ChildProcess, job: Job) -> None:
        if child.tasks_left is not None:
            child.tasks_left -= 1
        if not job.begin(child, next(self._numbers)):
            self._wake()  # the child is dead or dying; its end brings the job back

    def _next_job(self, child: ChildProcess) -> None:
        """Give a free child the next job, or let it rest."""
        if child.kill_reason:  # the kill and the end of its job have crossed: it is dying
            child.job = None
            return
        if child.tasks_left is not None and child.tasks_left <= 0:
            self._retire(child)
            return
        with self._lock:
            job = child.job = self._waiting.popleft() if self._waiting else None
            if job is None:
                child.began = monotonic()
                self._idle.append(child)
        if job is not None:
            self._begin(child, job)

    def _retire(self, child: ChildProcess) -> None:
        """It has done its share (``max_tasks_per_child``): another takes its place."""
        child.job = None
        child.kill_reason = "retired"
        child.send(pipe.EXIT)

    def _dismiss_spare(self) -> None:
        """One child that slots were lent for, and that nobody has needed for some time."""
        if self._lent or len(self._children) <= self.slots:
            return
        with self._lock:
            child = self._idle[0] if self._idle else None  # the last one in is the first one out again
        if child is not None and monotonic() - child.began > SPARE_S:
            self._dismiss(child)

    def _dismiss(self, child: ChildProcess) -> None:
        with self._lock:
            if child not in self._idle:
                return
            self._idle.remove(child)
        child.send(pipe.EXIT)

    def _read(self, child: ChildProcess) -> None:
        for kind, body in child.inlet.read():
            self._on_message(child, kind, body)
        if child.inlet.eof and child.pid in self._children:
            self._selector.unregister(child.sock)
            child.deaf_since = monotonic()

    def _on_message(self, child: ChildProcess, kind: int, body: memoryview) -> None:
        if kind in (pipe.PART, pipe.DONE, pipe.TASK_DONE):
            self._on_results(child, kind, body)
        elif kind == pipe.NEED:
            self._functions.send(child, bytes(body).decode(), child.job)
        elif kind == pipe.READY:
            self._on_ready(child, str(body, "utf-8"))
        elif kind in (pipe.LENT, pipe.TAKEN):
            change = 1 if kind == pipe.LENT else -1
            self._lent += change
            child.lent += change
            self.on_free()

    def _on_results(self, child: ChildProcess, kind: int, body: memoryview) -> None:
        job = child.job
        if job is None:
            return
        if not job.on_results(child, kind, body):
            return
        # Before the outcome is published: the next job runs meanwhile, and the hub claims another, unless it waits for
        # one already: waking it would cost more than it brings.
        self._pace.ended(monotonic() - child.began)
        job.release(self.held)
        self._next_job(child)
        ahead = self._pace.ahead
        if not ahead:
            self.on_free()
        self.settler.work()
        if ahead:
            self.on_free()

    def _on_ready(self, child: ChildProcess, error: str) -> None:
        if error:
            self._break(f"A worker process could not be set up:\n{error}")
            return
        child.ready = True
        self._starts.succeeded()
        self._next_job(child)

    def _ended(self, child: ChildProcess) -> None:
        """A child is dead: take what it still said, judge its job, forget it."""
        if not child.poll() or self._children.pop(child.pid, None) is None:
            return
        self._forget(child)
        while messages := child.inlet.read():
            for kind, body in messages:
                if kind in (pipe.PART, pipe.DONE, pipe.TASK_DONE) and child.job is not None:
                    child.job.on_results(child, kind, body)
        death = child.death()
        child.close()
        self._lent -= child.lent
        job, child.job = child.job, None
        if job is not None:
            self._bereaved(job, child, death)
        elif not child.ready:
            self._start_failed(death)
        elif not child.kill_reason:
            logger.warning("An idle child (pid %s) ended: %s.", child.pid, death.reason)

    def _bereaved(self, job: Job, child: ChildProcess, death: Death) -> None:
        logger.warning("Child %s ended while it ran %s: %s.", child.pid, job.id, child.kill_reason or death.reason)
        if not job.begun:
            self.submit(job)
            return
        job.release(self.held)
        job.on_death(child, death)
        self.on_free()

    def _start_failed(self, death: Death) -> None:
        self._starts.failed(monotonic(), by_itself=death.by_itself)
        logger.error("A child ended before it was ready: %s. %s", death.reason, death.output)
        if self._starts.hopeless:
            last = f"Their last output:\n{said}" if (said := death.output.strip()) else "They printed nothing."
            self._break(f"Worker processes end before they are ready ({death.reason}). {last}")

    def _forget(self, child: ChildProcess) -> None:
        with self._lock:
            if child in self._idle:
                self._idle.remove(child)
        for watched in (child.sock, child.pidfd):
            try:
                if watched is not None:
                    self._selector.unregister(watched)
            except (KeyError, ValueError):
                pass

    def _break(self, reason: str) -> None:
        if not self._broken:
            self._broken = True
            self._hand_back_waiting()
            self.on_broken(reason)

    def _unsettled(self) -> bool:
        return bool(self._posted or self.settler.waiting or len(self.held))

    # --- fetched ahead ---------------------------------------------------------------------------

    def _fetched_too_early(self) -> bool:
        return bool(self._waiting) and monotonic() - self._waiting_since > WAIT_AT_MOST_S and self._surplus() > 0

    def _surplus(self) -> int:
        """Jobs here that no slot is free for."""
        with self._lock:
            busy = sum(child.job is not None for child in self._children.values())
            return len(self._waiting) - max(0, self.slots + self._lent - busy)

    def _hand_back_surplus(self) -> None:
        """What was fetched ahead waits behind long jobs: others shall have it."""
        self._pace.waited_too_long()
        for _ in range(self._surplus()):
            with self._lock:
                job = self._waiting.pop() if self._waiting else None
            if job is not None:
                self._return(job)

    # --- posted ----------------------------------------------------------------------------------

    def _busy(self) -> bool:
        with self._lock:
            return bool(self._waiting) or any(child.job is not None for child in list(self._children.values()))

    def _hand_back_waiting(self) -> None:
        with self._lock:
            waiting, self._waiting = list(self._waiting), deque()
        for job in reversed(waiting):  # each goes to the head of its queue
            self._return(job)

    def _return(self, job: Job) -> None:
        job.release(self.held)
        job.hand_back()

    def _kill_busy(self, reason: str) -> None:
        for child in list(self._children.values()):
            if child.job is not None:
                child.kill(reason)
        if reason == FENCED:  # taken away as well: their fences say so
            self._hand_back_waiting()

    def _cancel(self, job_id: str, indexes: frozenset[int], how: str | None) -> None:
        with self._lock:
            found = [(child.job, child) for child in self._children.values() if child.job and child.job.id == job_id]
            waiting = [(job, None) for job in self._waiting if job.id == job_id]
        for job, child in [*found, *waiting]:
            job.cancel(indexes, how, child)

    def _terminate(self, pid: int, reason: str) -> None:
        child = self._children.get(pid)
        if child is not None and child.job is not None:
            child.kill(reason)
