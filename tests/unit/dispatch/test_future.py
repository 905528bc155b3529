"""CallFuture: the standard library's Future to the letter, lighter, and awaitable."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Future,
    InvalidStateError,
    as_completed,
    wait,
)
from typing import Any

import pytest

from executor.dispatch import future as future_module
from executor.dispatch.future import CallFuture

Kind = type[Future[Any]]


@pytest.fixture(params=[Future, CallFuture], ids=["stdlib", "ours"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Both must pass: what a test claims of the standard library is so."""
    return request.param  # type: ignore[no-any-return]


def settle(future: Future[Any], value: Any = None, error: BaseException | None = None) -> None:
    if isinstance(future, CallFuture):
        assert future.settle(value, error)
    elif error is not None:
        future.set_exception(error)
    else:
        future.set_result(value)


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


class Asked:
    """Stands for a dispatcher: notes what it is asked."""

    def __init__(self, answer: bool = False) -> None:
        self.answer, self.cancelled, self.soon = answer, [], []  # type: ignore[var-annotated]

    def cancel_one(self, future: CallFuture[Any]) -> bool:
        self.cancelled.append(future)
        return self.answer and future.mark_cancelled()

    def cancel_soon(self, futures: list[CallFuture[Any]]) -> None:
        self.soon += futures

    def refresh_running(self, future: CallFuture[Any]) -> None:
        future.mark_running()


# ── the standard library's contract ─────────────────────────────────────────────────────────────────────────────────


def test_future_begins_pending(kind: Kind) -> None:
    future = kind()
    assert (future.done(), future.running(), future.cancelled()) == (False, False, False)
    assert "state=pending" in repr(future)


def test_future_gives_its_result_again_and_again(kind: Kind) -> None:
    future = kind()
    settle(future, 42)
    assert [future.result(), future.result(timeout=0), future.exception(), future.done()] == [42, 42, None, True]
    assert "returned int" in repr(future)


def test_future_raises_the_very_exception(kind: Kind) -> None:
    future, error = kind(), KeyError("key")
    settle(future, error=error)
    with pytest.raises(KeyError) as caught:
        future.result()
    assert caught.value is error is future.exception()
    assert "raised KeyError" in repr(future)


def test_future_result_may_be_none_false_or_an_exception_object(kind: Kind) -> None:
    for value in (None, False, 0, ValueError("a value")):
        future = kind()
        settle(future, value)
        assert future.result() is value
        assert future.exception() is None


@pytest.mark.parametrize("method", ["result", "exception"])
def test_future_times_out(kind: Kind, method: str) -> None:
    for timeout in (0, 0.001):
        with pytest.raises(TimeoutError):
            getattr(kind(), method)(timeout=timeout)


@pytest.mark.parametrize("method", ["result", "exception"])
def test_cancelled_future_raises(kind: Kind, method: str) -> None:
    future = kind()
    assert future.cancel()
    with pytest.raises(CancelledError):
        getattr(future, method)(timeout=0)


@pytest.mark.parametrize("method", ["result", "exception"])
def test_cancelling_wakes_who_waits(kind: Kind, method: str) -> None:
    future, seen = kind(), []

    def get() -> None:
        try:
            getattr(future, method)()
        except CancelledError as error:
            seen.append(error)

    thread = in_thread(get)
    future.cancel()
    thread.join()
    assert len(seen) == 1


def test_result_wakes_all_who_wait(kind: Kind) -> None:
    future, seen = kind(), []
    threads = [in_thread(lambda: seen.append(future.result())) for _ in range(5)]
    settle(future, 42)
    for thread in threads:
        thread.join()
    assert seen == [42] * 5


def test_cancel_states(kind: Kind) -> None:
    pending, running, finished, cancelled = kind(), kind(), kind(), kind()
    running.set_running_or_notify_cancel()
    settle(finished, 1)
    cancelled.cancel()
    assert [each.cancel() for each in (pending, running, finished, cancelled)] == [True, False, False, True]
    assert [each.cancelled() for each in (pending, running, finished, cancelled)] == [True, False, False, True]
    assert [each.running() for each in (pending, running, finished, cancelled)] == [False, True, False, False]


def test_set_running_or_notify_cancel_states(kind: Kind) -> None:
    future = kind()
    assert future.set_running_or_notify_cancel()
    assert future.running()
    settle(future, 1)
    with pytest.raises(RuntimeError, match="unexpected state"):
        future.set_running_or_notify_cancel()


def test_result_can_be_set_but_once(kind: Kind) -> None:
    future = kind()
    future.set_result(1)
    with pytest.raises(InvalidStateError):
        future.set_result(2)
    with pytest.raises(InvalidStateError):
        future.set_exception(KeyError())
    assert future.result() == 1


# ── callbacks ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["result", "error", "cancel"])
def test_callbacks_are_called_once_in_order_with_the_future(kind: Kind, how: str) -> None:
    future, seen = kind(), []
    for number in range(3):
        future.add_done_callback(lambda done, number=number: seen.append((number, done)))  # type: ignore[misc]
    _end(future, how)
    assert seen == [(number, future) for number in range(3)]


def _end(future: Future[Any], how: str) -> None:
    if how == "cancel":
        future.cancel()
    else:
        settle(future, 1, KeyError() if how == "error" else None)


@pytest.mark.parametrize("how", ["result", "error", "cancel"])
def test_callback_added_to_a_done_future_is_called_at_once(kind: Kind, how: str) -> None:
    future, seen = kind(), []
    _end(future, how)
    future.add_done_callback(seen.append)
    assert seen == [future]


def test_callback_sees_the_future_done(kind: Kind) -> None:
    future, seen = kind(), []
    future.add_done_callback(lambda done: seen.append((done.done(), done.result(timeout=0))))
    settle(future, 42)
    assert seen == [(True, 42)]


def test_callback_that_raises_is_logged_and_the_others_are_called(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    future, seen = kind(), []
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(seen.append)
    with caplog.at_level(logging.ERROR, "concurrent.futures"):
        settle(future, 1)
    assert seen == [future]
    assert "exception calling callback" in caplog.text


def test_callback_may_ask_anything_of_its_future(kind: Kind) -> None:
    future, seen = kind(), []

    def ask(done: Future[Any]) -> None:
        done.add_done_callback(seen.append)
        seen.append((done.cancel(), done.running(), repr(done)[:1]))

    future.add_done_callback(ask)
    settle(future, 1)
    assert seen == [future, (False, False, "<")]


def test_remove_done_callback_says_how_many_there_were() -> None:
    future: CallFuture[int] = CallFuture()
    seen: list[object] = []
    keep, remove = seen.append, lambda done: seen.append("removed")
    for callback in (remove, keep, remove):
        future.add_done_callback(callback)
    assert future.remove_done_callback(remove) == 2
    assert future.remove_done_callback(remove) == 0
    future.settle(1)
    assert seen == [future]


async def test_remove_done_callback_finds_those_added_on_a_loop() -> None:
    future: CallFuture[int] = CallFuture()
    seen: list[object] = []
    future.add_done_callback(seen.append)
    assert future.remove_done_callback(seen.append) == 1
    future.settle(1)
    await asyncio.sleep(0)
    assert seen == []


# ── wait and as_completed ───────────────────────────────────────────────────────────────────────────────────────────


def test_wait_returns_at_the_first_completed(kind: Kind) -> None:
    futures = [kind() for _ in range(3)]
    settle(futures[1], 1)
    done, pending = wait(futures, return_when=FIRST_COMPLETED)
    assert (done, pending) == ({futures[1]}, {futures[0], futures[2]})


def test_wait_returns_at_the_first_exception(kind: Kind) -> None:
    futures = [kind() for _ in range(3)]
    settle(futures[0], 1)
    thread = in_thread(lambda: settle(futures[1], error=KeyError()))
    done, pending = wait(futures, return_when=FIRST_EXCEPTION)
    thread.join()
    assert futures[1] in done
    assert pending == {futures[2]}


def test_wait_sees_results_errors_and_cancellation(kind: Kind) -> None:
    futures = [kind() for _ in range(3)]

    def end_all() -> None:
        settle(futures[0], 1)
        settle(futures[1], error=KeyError())
        futures[2].cancel()
        if kind is Future:
            futures[2].set_running_or_notify_cancel()  # an executor's part; ours has done it

    thread = in_thread(end_all)
    done, pending = wait(futures, timeout=10, return_when=ALL_COMPLETED)
    thread.join()
    assert (done, pending) == (set(futures), set())


def test_wait_times_out(kind: Kind) -> None:
    futures = [kind(), kind()]
    settle(futures[0], 1)
    assert wait(futures, timeout=0.001) == ({futures[0]}, {futures[1]})


def test_as_completed_gives_each_once_as_they_end() -> None:
    futures = [CallFuture[int]() for _ in range(50)]
    order = random.Random(1).sample(futures, len(futures))
    futures[0].mark_running()

    def end_all() -> None:
        for number, future in enumerate(order):
            if number % 3 == 0 and future is not futures[0]:
                future.mark_cancelled()
            else:
                future.settle(number, KeyError() if number % 3 == 1 else None)

    thread = in_thread(end_all)
    seen = list(as_completed([*futures, *futures], timeout=10))
    thread.join()
    assert len(seen) == 50
    assert set(seen) == set(futures)


def test_as_completed_times_out(kind: Kind) -> None:
    with pytest.raises(TimeoutError, match="1 \\(of 1\\) futures unfinished"):
        list(as_completed([kind()], timeout=0.001))


# ── settling and cancelling ─────────────────────────────────────────────────────────────────────────────────────────


def test_settle_is_true_but_once() -> None:
    future: CallFuture[int] = CallFuture()
    assert future.settle(1)
    assert not future.settle(2)
    assert not future.settle(None, KeyError())
    assert future.result() == 1


def test_settle_after_a_condition_was_made_is_true_but_once() -> None:
    future: CallFuture[int] = CallFuture()
    future.add_done_callback(lambda _: None)
    assert future.settle(None, KeyError())
    assert not future.settle(2)
    assert isinstance(future.exception(), KeyError)


def test_settle_does_nothing_to_a_cancelled_future() -> None:
    future: CallFuture[int] = CallFuture()
    assert future.mark_cancelled()
    assert not future.settle(1)
    assert future.cancelled()


def test_cancelled_by_many_at_once_calls_back_once_and_raises_nothing() -> None:
    for _ in range(100):
        future: CallFuture[int] = CallFuture()
        seen: list[object] = []
        said: list[bool] = []
        future.add_done_callback(seen.append)
        begin = threading.Barrier(4)

        def cancel(future: CallFuture[int] = future, begin: Any = begin, said: list[bool] = said) -> None:
            begin.wait()
            said.append(future.mark_cancelled())

        threads = [in_thread(cancel) for _ in range(4)]
        for thread in threads:
            thread.join()
        assert said == [True] * 4
        assert seen == [future]


def test_settle_against_cancel_has_one_winner_who_calls_back_once() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for number in range(300):
            _race(number)
    finally:
        sys.setswitchinterval(interval)


def _race(number: int) -> None:
    future: CallFuture[int] = CallFuture()
    seen: list[object] = []
    said: dict[str, bool] = {}
    begin = threading.Barrier(3)
    steps = {
        "settle": lambda: future.settle(number),
        "cancel": lambda: future.mark_cancelled(),
        "callback": lambda: future.add_done_callback(seen.append) or True,
    }

    def run(name: str) -> None:
        begin.wait()
        said[name] = steps[name]()

    threads = [in_thread(lambda name=name: run(name)) for name in steps]  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert said["settle"] != said["cancel"]
    assert future.cancelled() == said["cancel"]
    assert seen == [future]


def test_cancel_asks_the_dispatcher_only_where_it_must() -> None:
    asked = Asked()
    future: CallFuture[int] = CallFuture()
    future.dispatcher = asked  # type: ignore[assignment]
    assert not future.cancel()
    future.mark_running()
    assert not future.cancel()
    future.settle(1)
    assert not future.cancel()
    assert asked.cancelled == [future]


def test_running_asks_where_a_call_is_that_is_out() -> None:
    future: CallFuture[int] = CallFuture()
    future.dispatcher = Asked()  # type: ignore[assignment]
    assert not future.running()
    future.root = "r1"
    assert future.running()


def test_mark_running_changes_only_what_is_pending() -> None:
    future: CallFuture[int] = CallFuture()
    future.settle(1)
    future.mark_running()
    assert future.done()
    assert future.result() == 1


def test_cancel_callback_may_use_the_dispatchers_lock_in_another_thread() -> None:
    future: CallFuture[int] = CallFuture()
    lock = threading.RLock()
    free: list[bool] = []

    def try_lock() -> None:
        free.append(lock.acquire(timeout=1))

    future.add_done_callback(lambda _: in_thread(try_lock).join())
    with lock:
        assert future.begin_cancel()
    future.finish_cancel()
    assert free == [True]


# ── on event loops ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_await_gives_the_result_or_raises() -> None:
    done, failed, late = CallFuture[int](), CallFuture[int](), CallFuture[int]()
    done.settle(1)
    failed.settle(None, KeyError())
    asyncio.get_running_loop().call_soon(late.settle, 3)
    assert await done == 1
    with pytest.raises(KeyError):
        await failed
    assert await late == 3


async def test_await_from_another_thread_settled() -> None:
    future: CallFuture[int] = CallFuture()
    thread = in_thread(lambda: future.settle(42))
    assert await asyncio.wait_for(future, 10) == 42
    thread.join()


def test_await_from_several_loops_at_once() -> None:
    future: CallFuture[int] = CallFuture()
    seen: list[int] = []
    begin = threading.Barrier(5)

    async def get() -> None:
        begin.wait()
        seen.append(sum(await asyncio.gather(future, future)))

    threads = [in_thread(lambda: asyncio.run(get())) for _ in range(4)]
    begin.wait()
    future.settle(21)
    for thread in threads:
        thread.join()
    assert seen == [42] * 4


async def test_cancelled_await_cancels_the_call_soon() -> None:
    future: CallFuture[int] = CallFuture()
    future.dispatcher = asked = Asked()  # type: ignore[assignment]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(future, 0.001)
    assert asked.soon == [future]
    assert asked.cancelled == []


async def test_shielded_await_does_not_cancel_the_call() -> None:
    future: CallFuture[int] = CallFuture()
    future.dispatcher = asked = Asked()  # type: ignore[assignment]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(future), 0.001)
    assert asked.soon == []
    future.settle(1)
    await asyncio.sleep(0)


async def test_asyncio_wait_and_as_completed_take_it() -> None:
    first, second = CallFuture[int](), CallFuture[int]()
    asyncio.get_running_loop().call_soon(second.settle, 2)
    done, pending = await asyncio.wait([first, second], timeout=10, return_when=asyncio.FIRST_COMPLETED)  # type: ignore[type-var]
    assert (done, pending) == ({second}, {first})
    first.settle(1)
    assert sorted([await each for each in asyncio.as_completed([first, second])]) == [1, 2]


async def test_callback_added_on_a_loop_is_called_on_it() -> None:
    future: CallFuture[int] = CallFuture()
    called: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda done: called.set_result(threading.get_ident()))
    in_thread(lambda: future.settle(1)).join()
    assert await asyncio.wait_for(called, 10) == threading.get_ident()


def test_callback_of_a_loop_that_has_been_closed_harms_nobody() -> None:
    future: CallFuture[int] = CallFuture()

    async def add() -> None:
        future.add_done_callback(lambda _: None)

    asyncio.run(add())
    seen: list[object] = []
    future.add_done_callback(seen.append)
    assert future.settle(1)
    assert seen == [future]


async def test_gather_of_many_with_a_failure() -> None:
    futures = [CallFuture[int]() for _ in range(100)]
    for number, future in enumerate(futures):
        future.settle(number, KeyError(number) if number == 50 else None)
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert isinstance(results.pop(50), KeyError)
    assert results == [n for n in range(100) if n != 50]


# ── what it costs ───────────────────────────────────────────────────────────────────────────────────────────────────


def size_of(make: Callable[[], object], count: int = 2000) -> float:
    """Bytes of one object and all it holds."""
    kept = [make() for _ in range(10)]
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept += [make() for _ in range(count)]
    size = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return size / count


def test_pending_future_is_lighter_than_the_standard_librarys() -> None:
    asked = Asked()

    def submitted() -> CallFuture[int]:
        future: CallFuture[int] = CallFuture()
        future.data, future.buffers, future.dispatcher = os.urandom(50), [], asked  # type: ignore[assignment]
        return future

    ours, theirs = size_of(submitted), size_of(Future)
    assert ours < 1000
    assert ours < theirs / 2


def test_future_without_waiters_never_makes_a_condition() -> None:
    future: CallFuture[int] = CallFuture()
    future.done()
    future.settle(1)
    future.result()
    assert "_condition" not in future.__dict__
    assert CallFuture._condition is not None  # asked of the class: no error


def test_lazy_condition_is_one_for_all_threads() -> None:
    for _ in range(200):
        future: CallFuture[int] = CallFuture()
        begin = threading.Barrier(2)
        got: list[object] = []

        def get(future: Any = future, begin: Any = begin, got: list[object] = got) -> None:
            begin.wait()
            got.append(future._condition)

        threads = [in_thread(get) for _ in range(2)]
        for thread in threads:
            thread.join()
        assert got[0] is got[1]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_child_has_a_lock_of_its_own() -> None:
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with future_module._lock:
            held.set()
            go.wait(10)

    thread = in_thread(hold)
    held.wait()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if future_module._lock.acquire(timeout=0.5) else 1)
    status = os.waitpid(pid, 0)[1]
    go.set()
    thread.join()
    assert status == 0


def test_settling_is_quick() -> None:
    futures = [CallFuture[int]() for _ in range(10_000)]
    begin = time.perf_counter()
    for future in futures:
        future.settle(1)
    assert time.perf_counter() - begin < 1  # 10 ms in fact; a lock made for each would take 60


@pytest.mark.parametrize("kind_of_end", [SystemExit, KeyboardInterrupt])
def test_a_callback_that_ends_processes_ends_nothing_here(
    kind_of_end: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """It runs on the loop thread, which every other call of the executor needs, too."""

    def end(_: Future[Any]) -> None:
        raise kind_of_end

    future: CallFuture[int] = CallFuture()
    seen: list[Any] = []
    future.add_done_callback(end)
    future.add_done_callback(seen.append)
    future.settle(1)
    assert seen == [future]
    assert "exception calling callback" in caplog.text
