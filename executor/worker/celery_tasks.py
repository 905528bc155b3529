"""Plain tasks of a user's Celery app, in the child: the app is loaded as Celery's own pool loads it."""

from __future__ import annotations

import os
import pickle
import signal
from typing import TYPE_CHECKING, Any

from executor.worker import pipe
from executor.worker.outbox import flush_streams

if TYPE_CHECKING:
    from executor.worker.outbox import Outbox

_RETURNED, _FAILED, _ENDED = 0, 1, 2
_NUMBER_BYTES = 8


class CeleryTasks:
    """Runs tasks.

    Args:
        name: ``module:attribute`` of the app.
        hostname: Of the worker, for the task context.
        broker: URL of the broker for what tasks publish themselves, as kombu writes it.
        outbox: Where results go.
    """

    def __init__(self, name: str, hostname: str, broker: str, outbox: Outbox) -> None:
        self._outbox = outbox
        app = _load(name, hostname, broker)
        from celery.app.trace import fast_trace_task

        self._trace: Any = fast_trace_task
        self._app = app
        signal.signal(signal.SIGUSR1, _on_soft_limit)

    def run(self, body: memoryview) -> None:
        """Run one TASK message."""
        arguments = pickle.loads(body[_NUMBER_BYTES:])
        how, result = self._traced(arguments)
        flush_streams()
        self._outbox.say(pipe.TASK_DONE, bytes([how]), result)

    def _traced(self, arguments: tuple[Any, ...]) -> tuple[int, bytes]:
        try:
            failed, value, runtime = self._trace(*arguments)
        except BaseException as error:
            return _ENDED, pickle.dumps((repr(error), 0.0))
        try:
            return (_FAILED if failed else _RETURNED), pickle.dumps((value, runtime))
        except Exception:
            return _FAILED, pickle.dumps((_plain(value), runtime))


def _load(name: str, hostname: str, broker: str) -> Any:
    """What ``celery.concurrency.prefork.process_initializer`` does, without its signals and process title."""
    from celery import signals
    from celery._state import _set_task_join_will_block
    from celery.app import base, trace
    from celery.utils.imports import symbol_by_name

    os.environ["FORKED_BY_MULTIPROCESSING"] = "1"  # both decide how @app.task binds, and must come before the import
    base.USING_EXECV = True
    _set_task_join_will_block(True)
    app = symbol_by_name(name)
    app.conf.broker_url = app.conf.broker_write_url = broker
    app.loader.init_worker()
    app.loader.init_worker_process()
    app.log.setup("WARNING", None, redirect_stdouts=False, hostname=hostname)
    trace.setup_worker_optimizations(app, hostname)
    for task_name, task in app.tasks.items():
        task.__trace__ = trace.build_tracer(task_name, task, app.loader, hostname, app=app)
    signals.worker_process_init.send(sender=hostname)
    return app


def _on_soft_limit(signum: int, frame: object) -> None:
    from billiard.exceptions import SoftTimeLimitExceeded

    raise SoftTimeLimitExceeded


def _plain(info: Any) -> Any:
    """A failure that can be pickled, of the same text."""
    from billiard.einfo import ExceptionInfo

    try:
        raise RuntimeError(f"{getattr(info, 'type', None)}: {getattr(info, 'exception', info)!r}")
    except RuntimeError:
        return ExceptionInfo()
