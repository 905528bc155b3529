"""The failure of a plain Celery task that nobody will run again: told to its result backend, chords and errbacks."""

from __future__ import annotations

import logging
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any

from billiard.exceptions import WorkerLostError
from celery.app.task import Context
from kombu import serialization

from executor.broker.requeueing import charged

logger = logging.getLogger(__name__)
_serialization: Any = serialization  # half typed


def fail_task(app: Any, message: Mapping[str, Any], deaths: Sequence[Mapping[str, Any]]) -> None:
    """Store FAILURE for a task whose workers died under it.

    Args:
        app: The Celery app.
        message: The task's message, as it was queued.
        deaths: The story of each attempt.
    """
    headers = message.get("headers") or {}
    task = app.tasks.get(headers.get("task"))
    reasons = ", ".join(str(death.get("reason")) for death in deaths)
    error = WorkerLostError(f"Worker lost {charged(deaths)} times under this task ({reasons}).")
    try:
        request = Context({**headers, **_embedded(app, message), "delivery_info": {}})
        backend = app.backend if task is None else task.backend
        backend.mark_as_failure(headers["id"], error, request=request, store_result=not request.ignore_result)
    except Exception:
        logger.exception("The failure of task %s could not be stored.", headers.get("id"))


def _embedded(app: Any, message: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments, callbacks, errbacks and chord of a message."""
    body = message.get("body") or ""
    base64 = message["properties"].get("body_encoding") == "base64"
    data = b64decode(body) if base64 else body.encode()
    accept = _serialization.prepare_accept_content(app.conf.accept_content)
    args, kwargs, embed = _serialization.loads(
        data, message["content-type"], message["content-encoding"], accept=accept
    )
    return {"args": args, "kwargs": kwargs, **(embed or {})}
