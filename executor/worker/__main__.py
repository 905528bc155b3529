"""``python -m executor.worker``: one worker.

What takes time overlaps: the first child starts before Redis and Celery are imported.
"""

from __future__ import annotations

import logging
import os
import sys
import threading

from executor.worker import config as worker_config
from executor.worker.capture import Capture
from executor.worker.child_process import ChildProcess


def main() -> int:
    """Run the worker that the environment describes; returns its exit code."""
    log = os.environ.get("KUBE_EXECUTOR_WORKER_LOG")
    logging.basicConfig(
        filename=log, level=logging.INFO, format="%(asctime)s %(levelname)s %(threadName)s %(name)s: %(message)s"
    )
    config = worker_config.read(os.environ["KUBE_EXECUTOR_WORKER_CONFIG"])
    for entry in reversed(config.sys_path):
        if entry not in sys.path:
            sys.path.insert(0, entry)
    capture = Capture()
    first = ChildProcess(config.setup(), capture)
    life_fd = os.environ.get("KUBE_EXECUTOR_LIFE_FD")
    if life_fd:
        os.set_inheritable(int(life_fd), False)
        threading.Thread(target=_die_with_supervisor, args=(int(life_fd), [first]), name="ke-life", daemon=True).start()

    from executor.worker.program import Program

    return Program(config, capture, [first]).run()


def _die_with_supervisor(fd: int, children: list[ChildProcess]) -> None:
    try:
        while os.read(fd, 1):
            pass
    except OSError:
        pass
    os._exit(1)  # children see their sockets close, and end with their process groups


if __name__ == "__main__":
    sys.exit(main())
