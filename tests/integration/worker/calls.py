"""What the worker tests have run in children."""

from __future__ import annotations

import os
import signal
import sys
import time

from tests.faults import Journal
from tests.support import Gate, until


def add(a: int, b: int) -> int:
    return a + b


def fails(text: str) -> None:
    raise ValueError(text)


def exits() -> None:
    sys.exit("bye")


async def awaited(x: int) -> int:
    import asyncio

    await asyncio.sleep(0)
    return x


def sleeps(seconds: float, value: object) -> object:
    time.sleep(seconds)
    return value


def noted(path: str, call: object) -> object:
    Journal(path).note("started", call)  # type: ignore[arg-type]
    return call


def waits(path: str, gate: Gate, call: object) -> object:
    journal = Journal(path)  # type: ignore[arg-type]
    journal.note("started", call)
    until(gate.is_open, 120, "the gate")
    journal.note("finished", call)
    return call


def dies_once(path: str, call: object, number: int = signal.SIGKILL) -> object:
    journal = Journal(path)  # type: ignore[arg-type]
    journal.note("started", call)
    if journal.starts(call) == 1:
        os.kill(os.getpid(), number)
        time.sleep(30)
    return call


def dies(number: int = signal.SIGKILL) -> None:
    print("last words", flush=True)
    os.kill(os.getpid(), number)
    time.sleep(30)


def pid() -> int:
    return os.getpid()


def prints(text: str) -> None:
    print(text)


def with_children() -> list[int]:
    """Uses a pool of its own: children are not daemons here."""
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(abs, [-1, -2, -3])
