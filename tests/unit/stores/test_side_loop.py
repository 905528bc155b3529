"""A loop on the side: threads wait for it, loops too, and nothing is left at its end."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError

import pytest

from executor.stores.side_loop import SideLoop


@pytest.fixture
def side():
    side = SideLoop("test")
    yield side
    if not side._ended:
        side.close(nothing())


async def nothing():
    pass


async def answer(value):
    await asyncio.sleep(0)
    return value


def test_threads_get_their_answers(side):
    answers = []
    threads = [threading.Thread(target=lambda i=i: answers.append(side.run(answer(i)))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == list(range(8))


async def test_a_loop_may_wait_for_it(side):
    assert side.run(answer(3)) == 3


def test_exceptions_come_home(side):
    async def fails():
        raise KeyError("x")

    with pytest.raises(KeyError):
        side.run(fails())


def test_background_work_is_finished_first(side):
    done = []

    async def later():
        await asyncio.sleep(0.05)
        done.append("later")

    async def begin():
        side.beside(later())

    async def last():
        done.append("last")

    side.run(begin())
    side.close(last())
    assert done == ["later", "last"]
    assert "test" not in [thread.name for thread in threading.enumerate()]


def test_who_waits_at_the_end_is_told(side):
    entered, failures = threading.Event(), []

    async def forever():
        entered.set()
        await asyncio.Event().wait()

    def wait():
        try:
            side.run(forever())
        except CancelledError as error:
            failures.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    entered.wait(10)
    side.close(nothing())
    waiting.join()
    assert len(failures) == 1
    with pytest.raises(RuntimeError, match="closed while it was being used"):
        side.run(answer(1))
