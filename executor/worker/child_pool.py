"""Celery's view of the crew: a worker pool class."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.concurrency.base import BasePool
from vine import promise

from executor.worker.task_job import TERMINATED, task_job

if TYPE_CHECKING:
    from executor.worker.config import WorkerConfig
    from executor.worker.crew import Crew

logger = logging.getLogger(__name__)


class HubCalls:
    """Runs functions on Celery's hub thread, in order (``hub.call_soon`` keeps none), and wakes it."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._hub: Any = None
        self._promise = promise(self.run)

    def attach(self, hub: Any) -> None:
        """Know Celery's loop."""
        self._hub = hub

    def add(self, function: Callable[[], None]) -> None:
        """Have something called on the hub thread, soon."""
        self._calls.append(function)
        self.wake()

    def at_next_turn(self, function: Callable[[], None]) -> None:
        """Have something called on the hub thread when it is woken next."""
        self._calls.append(function)

    def wake(self) -> None:
        """Have the hub look again at what it may claim."""
        hub = self._hub
        if hub is not None:
            hub.call_soon(self._promise)

    def run(self) -> None:
        """Run what waits; on the hub thread, or by whoever stops the worker."""
        while self._calls:
            try:
                self._calls.popleft()()
            except Exception:
                logger.exception("A task's callback failed.")


class ChildPool(BasePool):
    """The pool class of our workers; :func:`bind` gives it its crew."""

    signal_safe = False
    uses_semaphore = False
    body_can_be_buffer = True

    crew: Crew
    hub_calls: HubCalls
    grace_s: float
    limits: tuple[str, int]

    def on_start(self) -> None:
        """Celery starts the pool: credit that comes back wakes its loop."""
        self.crew.on_free = self.hub_calls.wake

    def register_with_event_loop(self, loop: Any) -> None:
        """Celery's loop is there."""
        self.hub_calls.attach(loop)

    def on_apply(self, target: Any, args: Any, kwargs: Any, **options: Any) -> None:
        """Run a plain Celery task."""
        crew = self.crew
        job = task_job(tuple(args), options, crew.held, self.hub_calls.add, crew.settler, self.limits)
        if job is not None:
            crew.submit(job)

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """End a task on behalf of ``revoke(terminate=True)``."""
        self.crew.terminate(pid, f"{TERMINATED}{int(signal or 15)}")

    def on_stop(self) -> None:
        """Warm shutdown: let what runs finish, hand back the rest."""
        self.crew.stop(self.grace_s, meanwhile=self.hub_calls.run)

    def on_terminate(self) -> None:
        """Cold shutdown: hand everything back."""
        self.crew.stop(0, meanwhile=self.hub_calls.run)

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "processes": self.crew.pids()}


def bind(crew: Crew, config: WorkerConfig) -> type[ChildPool]:
    """The pool class for one crew.

    Args:
        crew: Who works.
        config: The worker's settings.
    """
    limits = (config.pool, config.max_deliveries)
    bound = {"crew": crew, "hub_calls": HubCalls(), "grace_s": config.grace_s, "limits": limits}
    return type("ChildPool", (ChildPool,), bound)
