"""A service's Celery app, with nothing of ours in it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Celery

app = Celery("shop", broker=os.environ.get("SHOP_BROKER"), backend=os.environ.get("SHOP_BROKER"))
app.conf.update(task_acks_late=True, task_default_queue="shop", result_expires=600)


def note(path: str, word: str) -> int:
    with Path(path).open("a") as file:
        file.write(f"{word} {os.getpid()}\n")
    return Path(path).read_text().count(f"{word} ")


@app.task
def add(a: int, b: int) -> int:
    return a + b


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def fails() -> None:
    raise ValueError("no")


@app.task(bind=True, max_retries=3)
def flaky(self: Any) -> int:
    if self.request.retries < 2:
        raise self.retry(countdown=0.1)
    return int(self.request.retries)


@app.task
def waits(path: str, gate: str, word: str) -> str:
    note(path, word)
    while not Path(gate).exists():
        time.sleep(0.01)
    return word


@app.task
def killed_once(path: str) -> str:
    if note(path, "started") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


@app.task
def dies(how: str) -> None:
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(time_limit=1)
def over_its_limit() -> None:
    time.sleep(60)


@app.task(soft_time_limit=1)
def over_its_soft_limit() -> str:
    from billiard.exceptions import SoftTimeLimitExceeded

    try:
        time.sleep(60)
    except SoftTimeLimitExceeded:
        return "cleaned up"
    return "slept"
