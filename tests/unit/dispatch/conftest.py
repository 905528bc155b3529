"""Coroutine tests of this room run on a loop whose clock jumps, where they ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from tests.unit.dispatch.doubles import VirtualLoop

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture
def virtual() -> Iterator[VirtualLoop]:
    """A loop with a virtual clock; what is left on it is cancelled at the end."""
    loop = VirtualLoop()
    asyncio.set_event_loop(None)
    yield loop
    rest = asyncio.all_tasks(loop)
    for task in rest:
        task.cancel()
    if rest:
        loop.run_until_complete(asyncio.wait(rest))
    loop.close()


@pytest.fixture
def run(virtual: VirtualLoop) -> Run:
    """Runs a coroutine on the virtual loop."""
    return virtual.run_until_complete
