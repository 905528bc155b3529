"""The context of a worker's child process."""

from __future__ import annotations

from executor.tasks.worker_context import WorkerContext, set_worker_context, worker_context


def test_worker_context_is_none_outside_of_workers_and_what_was_set_inside() -> None:
    assert worker_context() is None
    context = WorkerContext("redis://", "/key", "default", "ke.x.default", 2, None, lambda _: None)
    set_worker_context(context)
    try:
        assert worker_context() is context
    finally:
        set_worker_context(None)
