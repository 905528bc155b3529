"""The loop thread: work from any thread, an end that leaves nobody waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from executor.dispatch.loop_thread import LoopThread


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    one = LoopThread("test")
    yield one
    one.stop()


async def double(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x


def test_loop_thread_runs_work_of_many_threads(thread: LoopThread) -> None:
    seen: list[int] = []
    threads = [threading.Thread(target=lambda n=n: seen.append(thread.run(double(n)))) for n in range(8)]  # type: ignore[misc]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(seen) == [0, 2, 4, 6, 8, 10, 12, 14]


def test_loop_thread_knows_itself(thread: LoopThread) -> None:
    async def current() -> bool:
        return thread.is_current

    assert thread.run(current())
    assert not thread.is_current


def test_work_that_takes_too_long_is_cancelled(thread: LoopThread) -> None:
    ended = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        thread.run(forever(), 0.01)
    assert ended.wait(10)


def test_callback_that_exits_does_not_end_the_thread(thread: LoopThread, caplog: pytest.LogCaptureFixture) -> None:
    def leave() -> None:
        raise SystemExit(3)

    thread.call(leave)
    assert thread.run(double(21)) == 42
    assert "tried to end the loop thread" in caplog.text


def test_end_cancels_what_still_runs() -> None:
    thread = LoopThread("test")

    async def forever() -> None:
        await asyncio.Event().wait()

    waiting = [thread.start(forever()) for _ in range(3)]
    thread.run(double(1))
    thread.stop()
    for one in waiting:
        with pytest.raises(CancelledError):
            one.result(10)


def test_work_after_the_end_fails_at_once_and_warns_of_nothing() -> None:
    thread = LoopThread("test")
    thread.stop()
    thread.stop()
    thread.end()
    with pytest.raises(RuntimeError, match="closed"):
        thread.run(double(1))
    assert isinstance(thread.start(double(1)).exception(0), RuntimeError)


def test_stop_from_the_loop_itself_does_not_wait_for_itself() -> None:
    thread = LoopThread("test")

    async def stop() -> None:
        thread.stop()

    thread.run(stop(), 10)
    thread._thread.join(10)
    assert not thread._thread.is_alive()


def test_stop_against_work_from_many_threads_leaves_nobody_waiting() -> None:
    for _ in range(20):
        thread = LoopThread("test")
        begin = threading.Barrier(4)
        ends: list[object] = []

        def work(thread: LoopThread = thread, begin: threading.Barrier = begin, ends: list[object] = ends) -> None:
            begin.wait()
            for _ in range(20):
                try:
                    ends.append(thread.run(double(1), 10))
                except (RuntimeError, CancelledError) as error:
                    ends.append(error)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for one in threads:
            one.start()
        begin.wait()
        thread.stop()
        for one in threads:
            one.join(20)
        assert len(ends) == 60
        assert not any(isinstance(end, TimeoutError) for end in ends)
