"""Stock Celery: ``celery worker -P prefork -c N`` on a private server, results in the same server."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

from benchmarks.peers.base import Handle, Peer
from benchmarks.peers.mp_pool import PoolHandle

#: Items in one message of `Task.chunks`.
CHUNK = 1_000


class StockCelery(Peer):
    title = "stock Celery"
    distributions = ("celery", "kombu", "redis", "hiredis")
    import_statement = "from celery import Celery"
    slow = True
    map_note = f"`Task.chunks` of {CHUNK:,}"

    def load(self) -> None:
        import celery

        self._celery: Any = celery

    def start(self, workers: int) -> None:
        from benchmarks.peers.redis_server import RedisServer

        self._server = RedisServer()
        os.environ["BENCHMARK_CELERY_URL"] = f"redis+socket://{self._server.socket_path}"
        from benchmarks.peers.celery_tasks import TASKS

        self._tasks = TASKS
        # Root is common in containers, where the worker refuses pickle unless told otherwise.
        environment = os.environ | {"C_FORCE_ROOT": "1"}
        self._worker = subprocess.Popen(_worker_command(workers), env=environment, stdout=subprocess.DEVNULL)

    def submit(self, fn: Callable[..., Any], *arguments: Any) -> Handle:
        return PoolHandle(self._tasks[fn].delay(*arguments))

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
        return chain.from_iterable(self._tasks[fn].chunks(zip(items, strict=True), CHUNK).apply_async().get())

    def stop(self) -> None:
        self._worker.terminate()
        self._worker.wait()
        self._server.stop()


def _worker_command(workers: int) -> list[str]:
    application = ["-A", "benchmarks.peers.celery_tasks"]
    return [sys.executable, "-m", "celery", *application, "worker", "-P", "prefork", "-c", str(workers), "-l", "ERROR"]
