"""The Celery application that the stock worker loads."""

import os
from collections.abc import Callable
from typing import Any

from celery import Celery

from benchmarks import calls

_URL = os.environ.get("BENCHMARK_CELERY_URL", "memory://")

app = Celery("benchmarks", broker=_URL, backend=_URL)
#: An array does not travel in JSON.
app.conf.update(task_serializer="pickle", result_serializer="pickle", accept_content=["pickle", "json"])

#: Function under test → its task.
TASKS: dict[Callable[..., Any], Any] = {
    fn: app.task(fn, name=f"benchmarks.{fn.__name__}")
    for fn in (calls.noop, calls.echo, calls.sleep, calls.warm_up, calls.process_ids, calls.wait_for_file)
}
