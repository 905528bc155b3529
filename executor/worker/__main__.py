"""``python -m executor.worker``: one worker.

What takes time overlaps: the first child starts before Redis and Celery are imported.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading

from executor.settings import WorkerSettings
from executor.worker import config as worker_config
from executor.worker.capture import Capture
from executor.worker.child_process import ChildProcess
from executor.worker.lean_imports import lean_imports


def main() -> int:
    """Run the worker that the environment describes; returns its exit code."""
    try:
        settings = WorkerSettings.from_environment()
    except ValueError as error:
        print(f"kube-executor: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(
        filename=settings.log,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(threadName)s %(name)s: %(message)s",
    )
    config = worker_config.read(settings.config, settings.worker)
    if settings.home is not None:
        _make_home(settings.home)
    for entry in reversed(config.sys_path):
        if entry not in sys.path:
            sys.path.insert(0, entry)
    capture = Capture()
    first = ChildProcess(config.setup(), capture)
    if settings.life_fd is not None:
        os.set_inheritable(settings.life_fd, False)
        threading.Thread(target=_die_with_supervisor, args=(settings.life_fd,), name="ke-life", daemon=True).start()

    gc.disable()  # what imports make stays: looking through it again and again costs a tenth of the start
    with lean_imports(config.celery_app is None):
        from executor.worker.program import Program
    gc.freeze()
    gc.enable()

    return Program(config, capture, [first]).run()


def _make_home(path: str) -> None:
    """In a pod it is on scratch space, and new."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError:
        pass  # a call that needs it will say so


def _die_with_supervisor(fd: int) -> None:
    try:
        while os.read(fd, 1):
            pass
    except OSError:
        pass
    os._exit(1)  # children see their sockets close, and end with their process groups


if __name__ == "__main__":
    sys.exit(main())
