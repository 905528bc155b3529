"""The functions under test.

They live in an importable module: every peer pickles them by reference, and none is measured on how it ships code.
"""

import os
import time
from pathlib import Path
from typing import Any


def noop(*_arguments: object) -> None:
    """Do nothing: what is left is the price of the call."""


def echo(value: Any) -> Any:
    """Return the argument, so that it travels both ways."""
    return value


def sleep(seconds: float) -> None:
    """Take time without taking CPU."""
    time.sleep(seconds)


def warm_up(seconds: float) -> None:
    """Sleep under another name, so that a peer which learns durations has learned nothing about `sleep`."""
    time.sleep(seconds)


def process_ids(seconds: float) -> tuple[int, int]:
    """Return the ids of the worker process and of its parent, after `seconds`, so that each worker gets a turn."""
    time.sleep(seconds)
    return os.getpid(), os.getppid()


def wait_for_file(path: str) -> None:
    """Hold a worker until `path` exists."""
    while not Path(path).exists():
        time.sleep(0.05)
