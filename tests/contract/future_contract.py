"""What the standard library documents for ``Future``, ``wait`` and ``as_completed``; see ``executor_contract``."""

from __future__ import annotations

import concurrent.futures
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Executor,
    Future,
    InvalidStateError,
    ThreadPoolExecutor,
)
from typing import Any

import pytest

from tests.contract import calls
from tests.contract.executor_contract import MANY, hold
from tests.support import DEADLINE_S, Gate, until

#: What plain pickle raises for things that cannot be pickled.
CANNOT_PICKLE = (pickle.PicklingError, TypeError, AttributeError)


class StateContract:
    def test_states_of_a_future_that_succeeds(self, executor: Executor, gate: Gate) -> None:
        future = executor.submit(calls.wait_at, gate, "value")
        gate.wait_arrivals()
        until(future.running)
        assert not future.done()
        assert not future.cancelled()
        gate.open()
        assert future.result(DEADLINE_S) == "value"
        assert future.exception() is None
        assert (future.running(), future.done(), future.cancelled()) == (False, True, False)

    def test_state_is_in_the_repr(self, executor: Executor, gate: Gate) -> None:
        future = executor.submit(calls.wait_at, gate)
        gate.wait_arrivals()
        until(future.running)
        assert "running" in repr(future)
        gate.open()
        future.result(DEADLINE_S)
        assert "finished" in repr(future)
        assert "NoneType" in repr(future)

    def test_result_and_exception_time_out(self, executor: Executor, gate: Gate) -> None:
        future = executor.submit(calls.wait_at, gate, 5)
        for timeout in (0, 0.01):
            with pytest.raises(TimeoutError):
                future.result(timeout)
            with pytest.raises(TimeoutError):
                future.exception(timeout=timeout)
        gate.open()
        assert future.result(timeout=DEADLINE_S) == 5

    def test_pending_can_be_cancelled(self, executor: Executor, gate: Gate) -> None:
        last = hold(executor, gate)[-1]
        assert (last.running(), last.done(), last.cancelled()) == (False, False, False)
        assert last.cancel()
        assert last.cancel()  # again: still True
        assert (last.running(), last.done(), last.cancelled()) == (False, True, True)
        assert "cancelled" in repr(last)
        for ask in (last.result, last.exception):
            with pytest.raises(CancelledError):
                ask(0)

    def test_cancelled_never_runs(self, executor: Executor, new_gate: Callable[[], Gate]) -> None:
        blocker, trace = new_gate(), new_gate()
        held = hold(executor, blocker)
        cancelled = [executor.submit(calls.mark_and_return, trace.path, i) for i in range(10)]
        assert all(future.cancel() for future in cancelled)
        kept = executor.submit(calls.square, 5)
        blocker.open()
        assert kept.result(DEADLINE_S) == 25
        assert [future.result(DEADLINE_S) for future in held] == list(range(MANY))
        assert trace.arrivals == 0

    def test_cancel_from_the_middle_leaves_the_others(self, executor: Executor, gate: Gate) -> None:
        futures = hold(executor, gate, 2 * MANY)
        assert all(future.cancel() for future in futures[-1:MANY:-2])
        gate.open()
        for i, future in enumerate(futures):
            if not future.cancelled():
                assert future.result(DEADLINE_S) == i
        assert sum(future.cancelled() for future in futures) == len(futures[-1:MANY:-2])

    def test_running_cannot_be_cancelled(self, executor: Executor, gate: Gate) -> None:
        future = executor.submit(calls.wait_at, gate, 5)
        gate.wait_arrivals()
        assert not future.cancel()
        assert not future.cancelled()
        assert not future.done()
        assert future.running()
        gate.open()
        assert future.result(DEADLINE_S) == 5

    def test_done_cannot_be_cancelled(self, executor: Executor) -> None:
        value, error = executor.submit(calls.square, 3), executor.submit(calls.fail)
        concurrent.futures.wait([value, error], DEADLINE_S)
        assert not value.cancel()
        assert not error.cancel()
        assert value.result() == 9
        assert isinstance(error.exception(), ValueError)

    def test_done_cannot_be_set_again(self, executor: Executor) -> None:
        future = executor.submit(calls.square, 3)
        assert future.result(DEADLINE_S) == 9
        with pytest.raises(InvalidStateError):
            future.set_result(1)
        with pytest.raises(InvalidStateError):
            future.set_exception(ValueError())
        assert future.result() == 9

    def test_exception_is_the_same_object_each_time(self, executor: Executor) -> None:
        future = executor.submit(calls.fail)
        seen = []
        for _ in range(2):
            with pytest.raises(ValueError, match="as planned") as caught:
                future.result(DEADLINE_S)
            seen.append(caught.value)
        assert seen[0] is seen[1] is future.exception()


class CallbackContract:
    def test_callback_gets_the_future_once(self, executor: Executor, gate: Gate) -> None:
        future = executor.submit(calls.wait_at, gate, 5)
        seen: list[Future[Any]] = []
        called = threading.Event()
        future.add_done_callback(seen.append)
        future.add_done_callback(lambda _: called.set())
        assert not seen
        gate.open()
        assert called.wait(DEADLINE_S)
        assert seen == [future]
        assert future.done()

    def test_callbacks_run_in_the_order_they_were_added(self, executor: Executor, gate: Gate) -> None:
        future = executor.submit(calls.wait_at, gate)
        seen: list[int] = []
        called = threading.Event()
        for i in range(10):
            future.add_done_callback(lambda _, i=i: seen.append(i))  # type: ignore[misc]
        future.add_done_callback(lambda _: called.set())
        gate.open()
        assert called.wait(DEADLINE_S)
        assert seen == list(range(10))

    def test_callback_of_a_failed_call(self, executor: Executor) -> None:
        errors: list[BaseException | None] = []
        called = threading.Event()
        future = executor.submit(calls.fail)
        future.add_done_callback(lambda done: errors.append(done.exception()))
        future.add_done_callback(lambda _: called.set())
        assert called.wait(DEADLINE_S)
        assert errors == [future.exception()]

    def test_callback_on_a_done_future_runs_at_once_in_this_thread(self, executor: Executor) -> None:
        future = executor.submit(calls.square, 3)
        future.result(DEADLINE_S)
        threads: list[threading.Thread] = []
        future.add_done_callback(lambda _: threads.append(threading.current_thread()))
        assert threads == [threading.current_thread()]

    def test_exception_in_a_callback_is_logged_and_harms_nobody(
        self, executor: Executor, gate: Gate, caplog: pytest.LogCaptureFixture
    ) -> None:
        future = executor.submit(calls.wait_at, gate, 5)
        called = threading.Event()
        future.add_done_callback(lambda _: calls.fail("in a callback"))
        future.add_done_callback(lambda _: called.set())
        gate.open()
        assert called.wait(DEADLINE_S)
        assert future.result(DEADLINE_S) == 5
        until(lambda: "in a callback" in caplog.text)
        assert {record.name for record in caplog.records if "exception calling callback" in record.message} == {
            "concurrent.futures"
        }
        assert executor.submit(calls.square, 2).result(DEADLINE_S) == 4

    def test_exception_in_a_late_callback_is_logged_and_not_raised(
        self, executor: Executor, caplog: pytest.LogCaptureFixture
    ) -> None:
        future = executor.submit(calls.square, 3)
        future.result(DEADLINE_S)
        future.add_done_callback(lambda _: calls.fail("in a late callback"))
        assert "in a late callback" in caplog.text

    def test_callback_on_a_cancelled_future(self, executor: Executor, gate: Gate) -> None:
        last = hold(executor, gate)[-1]
        seen: list[Future[Any]] = []
        last.add_done_callback(seen.append)
        assert last.cancel()
        until(lambda: seen == [last])
        last.add_done_callback(seen.append)
        assert seen == [last, last]

    def test_callback_may_submit(self, executor: Executor) -> None:
        second: Future[Future[Any]] = Future()
        executor.submit(calls.square, 3).add_done_callback(
            lambda first: second.set_result(executor.submit(calls.square, first.result()))
        )
        assert second.result(DEADLINE_S).result(DEADLINE_S) == 81

    def test_a_chain_of_callbacks_that_submit(self, executor: Executor) -> None:
        end: Future[int] = Future()

        def again(done: Future[int]) -> None:
            if done.result() == 50:
                end.set_result(50)
            else:
                executor.submit(calls.add, done.result(), 1).add_done_callback(again)

        executor.submit(calls.add, 0, 1).add_done_callback(again)
        assert end.result(DEADLINE_S) == 50


class WaitContract:
    def test_wait_for_all(self, executor: Executor) -> None:
        futures = {executor.submit(calls.square, x) for x in range(5)} | {executor.submit(calls.fail)}
        assert concurrent.futures.wait(futures, DEADLINE_S) == (futures, set())
        assert concurrent.futures.wait(futures, 0, ALL_COMPLETED) == (futures, set())

    def test_wait_for_the_first(self, executor: Executor, gate: Gate) -> None:
        late = executor.submit(calls.wait_at, gate)
        early = executor.submit(calls.square, 3)
        assert concurrent.futures.wait([late, early], DEADLINE_S, FIRST_COMPLETED) == ({early}, {late})
        assert concurrent.futures.wait([late, early], DEADLINE_S, FIRST_COMPLETED) == ({early}, {late})

    def test_wait_for_the_first_exception(self, executor: Executor, new_gate: Callable[[], Gate]) -> None:
        never, then = new_gate(), new_gate()
        late = executor.submit(calls.wait_at, never)
        failing = executor.submit(calls.wait_at_and_fail, then)
        then.wait_arrivals()
        opener = threading.Timer(0.05, then.open)
        opener.start()
        done, pending = concurrent.futures.wait([late, failing], DEADLINE_S, FIRST_EXCEPTION)
        opener.join()
        assert (done, pending) == ({failing}, {late})

    def test_wait_without_an_exception_waits_for_all(self, executor: Executor) -> None:
        futures = [executor.submit(calls.square, x) for x in range(5)]
        assert concurrent.futures.wait(futures, DEADLINE_S, FIRST_EXCEPTION) == (set(futures), set())

    def test_wait_times_out(self, executor: Executor, gate: Gate) -> None:
        late, early = executor.submit(calls.wait_at, gate), executor.submit(calls.square, 3)
        early.result(DEADLINE_S)
        assert concurrent.futures.wait([late, early], timeout=0.01) == ({early}, {late})

    def test_wait_for_duplicates_and_for_nothing(self, executor: Executor) -> None:
        future = executor.submit(calls.square, 3)
        assert concurrent.futures.wait([future, future], DEADLINE_S) == ({future}, set())
        assert concurrent.futures.wait([]) == (set(), set())
        assert list(concurrent.futures.as_completed([])) == []

    def test_wait_and_as_completed_see_a_cancelled_future(self, executor: Executor, gate: Gate) -> None:
        last = hold(executor, gate)[-1]
        waiter = ThreadPoolExecutor(1)
        waiting = waiter.submit(concurrent.futures.wait, [last], DEADLINE_S)
        assert last.cancel()
        gate.open()
        assert waiting.result(DEADLINE_S) == ({last}, set())
        assert list(concurrent.futures.as_completed([last], DEADLINE_S)) == [last]
        waiter.shutdown()

    def test_as_completed_yields_in_the_order_of_completion(
        self, executor: Executor, new_gate: Callable[[], Gate]
    ) -> None:
        gates = [new_gate(), new_gate()]
        slow, fast = (executor.submit(calls.wait_at, gate) for gate in gates)
        completed = concurrent.futures.as_completed([slow, fast], DEADLINE_S)
        gates[1].open()
        assert next(completed) is fast
        gates[0].open()
        assert next(completed) is slow
        assert list(completed) == []

    def test_as_completed_yields_each_once(self, executor: Executor) -> None:
        futures = [executor.submit(calls.square, x) for x in range(10)]
        futures[0].result(DEADLINE_S)
        twice = concurrent.futures.as_completed(futures + futures, DEADLINE_S)
        assert sorted(future.result() for future in twice) == [x * x for x in range(10)]

    def test_as_completed_times_out(self, executor: Executor, gate: Gate) -> None:
        late, early = executor.submit(calls.wait_at, gate), executor.submit(calls.square, 3)
        early.result(DEADLINE_S)
        completed = concurrent.futures.as_completed([late, early], timeout=0)
        assert next(completed) is early
        with pytest.raises(TimeoutError):
            next(completed)

    def test_futures_of_several_executors_can_be_mixed(self, executor: Executor) -> None:
        with ThreadPoolExecutor(1) as other:
            futures = {executor.submit(calls.square, 3), other.submit(calls.square, 4)}
            assert concurrent.futures.wait(futures, DEADLINE_S).done == futures
            assert {future.result() for future in concurrent.futures.as_completed(futures)} == {9, 16}


class ThreadContract:
    def test_many_threads_submit(self, executor: Executor) -> None:
        with ThreadPoolExecutor(8) as threads:
            jobs = [threads.submit(_submit_many, executor, start) for start in range(0, 800, 100)]
            assert [job.result(2 * DEADLINE_S) for job in jobs] == [
                [x * x for x in range(start, start + 100)] for start in range(0, 800, 100)
            ]

    def test_many_threads_map(self, executor: Executor) -> None:
        with ThreadPoolExecutor(4) as threads:
            jobs = [threads.submit(lambda: list(executor.map(calls.square, range(50)))) for _ in range(8)]
            assert all(job.result(2 * DEADLINE_S) == [x * x for x in range(50)] for job in jobs)

    def test_many_threads_wait_for_one_future(self, executor: Executor, gate: Gate) -> None:
        future = executor.submit(calls.wait_at, gate, "for all")
        with ThreadPoolExecutor(8) as threads:
            waiting = [threads.submit(future.result, DEADLINE_S) for _ in range(8)]
            gate.open()
            assert [one.result(DEADLINE_S) for one in waiting] == ["for all"] * 8

    def test_many_threads_cancel_one_future(self, executor: Executor, gate: Gate) -> None:
        last = hold(executor, gate)[-1]
        called: list[Future[Any]] = []
        last.add_done_callback(called.append)
        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(lambda _: last.cancel(), range(8)))
        assert called == [last]


class PicklingContract:
    @pytest.mark.parametrize("make", [threading.Lock, calls.make_generator, lambda: (threading.Lock(), 1)])
    def test_unpicklable_argument_fails_its_call_only(self, executor: Executor, make: Callable[[], Any]) -> None:
        before = executor.submit(calls.square, 2)
        future = executor.submit(calls.identity, make())
        after = executor.submit(calls.square, 3)
        with pytest.raises(CANNOT_PICKLE):
            future.result(DEADLINE_S)
        assert (before.result(DEADLINE_S), after.result(DEADLINE_S)) == (4, 9)

    def test_argument_whose_pickling_raises_fails_its_call_only(self, executor: Executor) -> None:
        future = executor.submit(calls.identity, calls.UnpicklableWith(calls.CustomError(11)))
        assert isinstance(future.exception(DEADLINE_S), (calls.CustomError, pickle.PicklingError))
        assert executor.submit(calls.square, 3).result(DEADLINE_S) == 9

    def test_unpicklable_keyword_fails_its_call_only(self, executor: Executor) -> None:
        with pytest.raises(CANNOT_PICKLE):
            executor.submit(calls.everything, key=threading.Lock()).result(DEADLINE_S)
        assert executor.submit(calls.square, 3).result(DEADLINE_S) == 9

    @pytest.mark.parametrize("make", [calls.make_lock, calls.make_generator])
    def test_unpicklable_result_fails_its_call_only(self, executor: Executor, make: Callable[[], Any]) -> None:
        before = executor.submit(calls.square, 2)
        future = executor.submit(make)
        after = executor.submit(calls.square, 3)
        with pytest.raises(CANNOT_PICKLE):
            future.result(DEADLINE_S)
        assert (before.result(DEADLINE_S), after.result(DEADLINE_S)) == (4, 9)

    def test_unpicklable_exception_fails_its_call_only(self, executor: Executor) -> None:
        future = executor.submit(calls.raise_locked)
        with pytest.raises(CANNOT_PICKLE):
            future.result(DEADLINE_S)
        assert executor.submit(calls.square, 3).result(DEADLINE_S) == 9

    def test_unpicklable_item_of_a_map_is_raised_in_its_place(self, executor: Executor) -> None:
        results = executor.map(calls.identity, [1, threading.Lock(), 3])
        assert next(results) == 1
        with pytest.raises(CANNOT_PICKLE):
            next(results)
        assert list(executor.map(calls.square, range(3))) == [0, 1, 4]

    def test_unpicklable_result_in_a_map_is_raised_in_its_place(self, executor: Executor) -> None:
        results = executor.map(_lock_on, [1] * 3, range(3))
        assert next(results) == 0
        with pytest.raises(CANNOT_PICKLE):
            next(results)
        assert list(executor.map(calls.square, range(3))) == [0, 1, 4]


def _lock_on(bad: int, x: int) -> Any:
    return threading.Lock() if x == bad else x


def _submit_many(executor: Executor, start: int) -> list[int]:
    futures = [executor.submit(calls.square, x) for x in range(start, start + 100)]
    return [future.result(DEADLINE_S) for future in futures]
