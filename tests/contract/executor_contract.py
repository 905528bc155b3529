"""What the standard library documents for ``Executor``: submit, map, shutdown, initializers.

A binding is a small test module with these names, and classes of its own that inherit from the contracts:

``executor``
    Fixture: an executor of two workers, shared by the tests of the module. No test may harm it.
``make_executor``
    Fixture: makes one that a test may shut down; takes the arguments of ``ProcessPoolExecutor``.
"""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract import calls
from tests.support import DEADLINE_S, Gate, until

if TYPE_CHECKING:
    from pathlib import Path

#: More than any executor of two workers takes out of its own queue ahead of time.
MANY = 16

MakeExecutor = Callable[..., Executor]


def hold(executor: Executor, gate: Gate, count: int = MANY) -> list[Future[Any]]:
    """Submit calls that wait at the gate; when this returns, the first has started and the last has not."""
    futures = [executor.submit(calls.wait_at, gate, i) for i in range(count)]
    gate.wait_arrivals(1)
    return futures


class SubmitContract:
    def test_submit_returns_a_future_with_the_value(self, executor: Executor) -> None:
        future = executor.submit(calls.square, 7)
        assert isinstance(future, Future)
        assert future.result(DEADLINE_S) == 49
        assert future.done()

    def test_submit_passes_all_arguments(self, executor: Executor) -> None:
        future = executor.submit(calls.everything, 1, "b", self=2, fn=3, args=4, kwargs=5, timeout=6, callback=7)
        assert future.result(DEADLINE_S) == (
            (1, "b"),
            {"self": 2, "fn": 3, "args": 4, "kwargs": 5, "timeout": 6, "callback": 7},
        )

    def test_submit_takes_the_function_by_position_only(self, executor: Executor) -> None:
        with pytest.raises(TypeError):
            executor.submit()  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            executor.submit(fn=calls.square, x=3)  # type: ignore[call-arg]

    def test_calls_run_in_other_processes(self, executor: Executor) -> None:
        assert executor.submit(calls.pid).result(DEADLINE_S) != os.getpid()

    def test_two_workers_run_two_calls_at_once(self, executor: Executor, gate: Gate) -> None:
        futures = [executor.submit(calls.pid_at, gate) for _ in range(2)]
        gate.wait_arrivals(2)
        gate.open()
        assert len({future.result(DEADLINE_S) for future in futures}) == 2

    @pytest.mark.parametrize("index", range(len(calls.partials())))
    def test_any_picklable_callable_can_be_submitted(self, executor: Executor, index: int) -> None:
        function, args, value = calls.partials()[index]
        assert executor.submit(function, *args).result(DEADLINE_S) == value

    @pytest.mark.parametrize("value", [None, 0, "", (), [], ValueError("returned"), float("inf"), "ü\udc80", b"\x00"])
    def test_any_value_comes_back_as_it_is(self, executor: Executor, value: Any) -> None:
        result = executor.submit(calls.identity, value).result(DEADLINE_S)
        assert type(result) is type(value)
        assert repr(result) == repr(value)

    def test_large_values_travel_both_ways(self, executor: Executor) -> None:
        data = os.urandom(2**20) * 12
        assert executor.submit(calls.identity, data).result(DEADLINE_S) == data

    def test_exception_of_the_call_is_raised_by_result(self, executor: Executor) -> None:
        future = executor.submit(calls.fail, "with this text")
        with pytest.raises(ValueError, match=r"^with this text$"):
            future.result(DEADLINE_S)
        assert type(future.exception()) is ValueError
        assert future.exception() is future.exception()

    def test_exception_keeps_type_arguments_and_attributes(self, executor: Executor) -> None:
        error = executor.submit(calls.fail_deeply, 3).exception(DEADLINE_S)
        assert type(error) is calls.CustomError
        assert error.args == (42,)
        assert error.code == 42

    def test_exception_has_the_remote_traceback_as_its_cause(self, executor: Executor) -> None:
        error = executor.submit(calls.fail_deeply, 3).exception(DEADLINE_S)
        assert error is not None
        assert error.__cause__ is not None
        text = str(error.__cause__)
        assert text.count("in fail_deeply") == 4
        assert "raise CustomError(42)" in text
        assert "calls.py" in text

    def test_remote_traceback_tells_the_chain_of_causes(self, executor: Executor) -> None:
        error = executor.submit(calls.fail_from).exception(DEADLINE_S)
        text = str(error and error.__cause__)
        assert "the inner one" in text
        assert "direct cause" in text

    def test_system_exit_and_keyboard_interrupt_land_on_the_future(self, executor: Executor) -> None:
        error = executor.submit(calls.exit_with, 3).exception(DEADLINE_S)
        assert isinstance(error, SystemExit)
        assert error.code == 3
        assert isinstance(executor.submit(calls.raise_, KeyboardInterrupt()).exception(DEADLINE_S), KeyboardInterrupt)
        assert executor.submit(calls.square, 2).result(DEADLINE_S) == 4

    def test_user_exceptions_of_the_library_s_own_types_are_the_user_s(self, executor: Executor) -> None:
        for kind in (CancelledError, TimeoutError, BrokenExecutor, StopIteration, EOFError, ConnectionResetError):
            future = executor.submit(calls.raise_, kind("mine"))
            error = future.exception(DEADLINE_S)
            assert type(error) is kind
            assert error.args == ("mine",)
            assert not future.cancelled()
        assert executor.submit(calls.square, 2).result(DEADLINE_S) == 4


class MapContract:
    def test_map_keeps_the_order(self, executor: Executor) -> None:
        assert list(executor.map(calls.square, range(100))) == [x * x for x in range(100)]

    def test_map_keeps_the_order_when_the_first_is_last(self, executor: Executor, gate: Gate) -> None:
        results = executor.map(calls.wait_or_return, [gate] * 5, [0] * 5, range(5))
        gate.wait_arrivals()
        gate.open()
        assert list(results) == [0, 1, 2, 3, 4]

    def test_map_hands_out_values_before_all_are_there(self, executor: Executor, gate: Gate) -> None:
        results = executor.map(calls.wait_or_return, [gate] * 3, [2] * 3, range(3))
        assert next(results) == 0
        assert next(results) == 1
        gate.open()
        assert list(results) == [2]

    def test_map_returns_an_iterator(self, executor: Executor) -> None:
        results = executor.map(calls.square, [3])
        assert iter(results) is results
        assert next(results) == 9
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(results)

    @pytest.mark.parametrize("items", [[], [5], range(3)])
    def test_map_of_few_items(self, executor: Executor, items: list[int]) -> None:
        assert list(executor.map(calls.square, items)) == [x * x for x in items]
        assert list(executor.map(calls.square, items, chunksize=10)) == [x * x for x in items]

    def test_map_stops_at_the_shortest_iterable(self, executor: Executor) -> None:
        assert list(executor.map(calls.add, [1, 2, 3], [10, 20])) == [11, 22]
        assert list(executor.map(calls.add, itertools.count(), [10, 20])) == [10, 21]
        assert list(executor.map(calls.add, [1, 2], [])) == []

    def test_map_without_an_iterable_is_empty(self, executor: Executor) -> None:
        assert list(executor.map(calls.nothing)) == []

    def test_map_takes_all_its_input_at_the_call(self, executor: Executor) -> None:
        source = iter(range(50))
        results = executor.map(calls.square, source)
        assert next(source, "taken") == "taken"
        assert sum(results) == sum(x * x for x in range(50))

    def test_map_runs_even_if_nobody_looks(self, executor: Executor, gate: Gate) -> None:
        gate.open()
        results = executor.map(calls.wait_at, [gate] * 5)
        gate.wait_arrivals(5)
        del results

    def test_map_raises_at_once_what_its_iterable_raises(self, executor: Executor) -> None:
        def failing() -> Iterator[int]:
            yield 1
            raise calls.CustomError(9)

        with pytest.raises(calls.CustomError):
            executor.map(calls.square, failing())
        with pytest.raises(TypeError):
            executor.map(calls.square, 5)  # type: ignore[arg-type]

    def test_map_raises_an_exception_in_its_place(self, executor: Executor) -> None:
        results = executor.map(calls.fail_on, [2] * 5, range(5))
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(calls.CustomError) as caught:
            next(results)
        assert caught.value.code == 2
        assert "raise CustomError(x)" in str(caught.value.__cause__)
        with pytest.raises(StopIteration):  # as a generator that raised
            next(results)

    def test_map_raises_the_first_of_many_exceptions(self, executor: Executor) -> None:
        results = executor.map(divmod, [1, 1, 1, 1], [1, 0, "x", 0])
        assert next(results) == (1, 0)
        with pytest.raises(ZeroDivisionError):
            next(results)

    def test_map_times_out_where_a_value_is_late(self, executor: Executor, gate: Gate) -> None:
        assert list(executor.map(calls.nothing, range(2))) == [None, None]  # the workers are up
        results = executor.map(calls.wait_or_return, [gate] * 2, [1] * 2, range(2), timeout=2)
        assert next(results) == 0
        with pytest.raises(TimeoutError):
            next(results)
        gate.open()
        with pytest.raises(StopIteration):
            next(results)

    def test_map_in_time_does_not_time_out(self, executor: Executor) -> None:
        assert list(executor.map(calls.square, range(4), timeout=DEADLINE_S)) == [0, 1, 4, 9]

    def test_map_with_a_timeout_that_is_no_number_sends_nothing(self, executor: Any, gate: Gate) -> None:
        with pytest.raises(TypeError):
            executor.map(calls.wait_at, [gate], timeout="soon")
        assert executor.submit(calls.square, 3).result(DEADLINE_S) == 9
        assert gate.arrivals == 0

    @pytest.mark.parametrize("chunksize", [1, 2, 7, 1000])
    def test_map_with_chunksize(self, executor: Executor, chunksize: int) -> None:
        assert list(executor.map(calls.add, range(30), range(30), chunksize=chunksize)) == list(range(0, 60, 2))

    @pytest.mark.parametrize("chunksize", [0, -1])
    def test_map_refuses_a_chunksize_below_one(self, executor: Executor, chunksize: int) -> None:
        with pytest.raises(ValueError, match="chunksize"):
            executor.map(calls.square, [1], chunksize=chunksize)

    def test_maps_may_be_interleaved(self, executor: Executor) -> None:
        one, other = executor.map(calls.square, range(20)), executor.map(calls.add, range(20))
        assert list(zip(one, other, strict=True)) == [(x * x, x) for x in range(20)]

    def test_a_map_that_timed_out_cancels_what_has_not_started(
        self, executor: Executor, new_gate: Callable[[], Gate]
    ) -> None:
        blocker, started = new_gate(), new_gate()
        held = hold(executor, blocker)
        results = executor.map(calls.wait_at, [started] * 4, timeout=0)
        with pytest.raises(TimeoutError):
            next(results)
        blocker.open()
        assert [future.result(DEADLINE_S) for future in held] == list(range(MANY))
        assert list(executor.map(calls.square, range(50))) == [x * x for x in range(50)]
        assert started.arrivals == 0

    def test_closing_a_map_cancels_what_has_not_started(self, executor: Executor, gate: Gate) -> None:
        results = executor.map(calls.wait_or_return, [gate] * 3 * MANY, ["held"] * 3 * MANY, [0] + ["held"] * 3 * MANY)
        assert next(results) == 0
        results.close()  # type: ignore[attr-defined]
        gate.open()
        assert list(executor.map(calls.square, range(50))) == [x * x for x in range(50)]
        assert gate.arrivals < MANY
        with pytest.raises(StopIteration):
            next(results)


class ShutdownContract:
    def test_with_gives_the_executor_itself_and_waits(self, make_executor: MakeExecutor) -> None:
        executor = make_executor()
        with executor as inner:
            assert inner is executor
            future = inner.submit(calls.square, 3)
        assert future.done()
        assert future.result() == 9

    def test_with_shuts_down_and_lets_an_exception_through(self, make_executor: MakeExecutor) -> None:
        executor = make_executor()
        futures = []

        def use() -> None:
            with executor:
                futures.append(executor.submit(calls.square, 3))
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            use()
        assert futures[0].result(0) == 9
        with pytest.raises(RuntimeError):
            executor.submit(calls.square, 3)

    def test_leaving_with_by_sys_exit_waits_too(self, make_executor: MakeExecutor, gate: Gate) -> None:
        executor = make_executor()
        futures: list[Future[Any]] = []

        def use() -> None:
            with executor:
                futures.extend(hold(executor, gate))
                gate.open()
                raise SystemExit(3)

        with pytest.raises(SystemExit):
            use()
        assert [future.result(0) for future in futures] == list(range(MANY))

    def test_submit_and_map_after_shutdown_raise(self, make_executor: MakeExecutor) -> None:
        executor = make_executor()
        assert executor.submit(calls.square, 3).result(DEADLINE_S) == 9
        executor.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(calls.square, 3)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.map(calls.square, [3])

    def test_submit_after_shutdown_of_an_unused_executor_raises(self, make_executor: MakeExecutor) -> None:
        executor = make_executor()
        executor.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(calls.square, 3)

    def test_shutdown_may_be_repeated(self, make_executor: MakeExecutor) -> None:
        executor = make_executor()
        executor.submit(calls.square, 3)
        for wait in (False, True, True, False):
            executor.shutdown(wait=wait)

    def test_shutdown_waits_for_what_is_pending(self, make_executor: MakeExecutor, gate: Gate) -> None:
        executor = make_executor()
        futures = hold(executor, gate)
        stopper = threading.Thread(target=executor.shutdown)
        stopper.start()
        until(lambda: _is_shut(executor), what="shutdown has begun")
        assert not futures[-1].done()
        gate.open()
        stopper.join(DEADLINE_S)
        assert not stopper.is_alive()
        assert [future.result(0) for future in futures] == list(range(MANY))

    def test_shutdown_without_waiting_lets_pending_calls_finish(self, make_executor: MakeExecutor, gate: Gate) -> None:
        executor = make_executor()
        futures = hold(executor, gate)
        executor.shutdown(wait=False)  # would never return if it waited: the gate is closed
        assert not futures[0].done()
        gate.open()
        assert [future.result(DEADLINE_S) for future in futures] == list(range(MANY))

    def test_shutdown_can_cancel_what_has_not_started(self, make_executor: MakeExecutor, gate: Gate) -> None:
        executor = make_executor()
        futures = hold(executor, gate, 50)
        stopper = threading.Thread(target=executor.shutdown, kwargs={"cancel_futures": True})
        stopper.start()
        until(futures[-1].cancelled)
        gate.open()
        stopper.join(DEADLINE_S)
        assert not stopper.is_alive()
        assert all(future.done() for future in futures)
        finished = [i for i, future in enumerate(futures) if not future.cancelled()]
        assert 0 < len(finished) < 10
        assert [futures[i].result(0) for i in finished] == finished
        assert gate.arrivals == len(finished)  # a cancelled call has not run

    def test_shutdown_can_cancel_without_waiting(self, make_executor: MakeExecutor, gate: Gate) -> None:
        executor = make_executor()
        futures = hold(executor, gate, 50)
        executor.shutdown(wait=False, cancel_futures=True)
        until(futures[-1].cancelled)
        gate.open()
        until(lambda: all(future.done() for future in futures))
        assert sum(future.cancelled() for future in futures) > 40

    def test_shutdown_that_cancels_ends_a_map(self, make_executor: MakeExecutor, gate: Gate) -> None:
        executor = make_executor()
        results = executor.map(calls.wait_at, itertools.repeat(gate, 50), range(50))
        gate.wait_arrivals(1)
        executor.shutdown(wait=False, cancel_futures=True)
        gate.open()
        with pytest.raises(CancelledError):
            list(results)
        executor.shutdown()
        assert gate.arrivals < 10

    def test_shutdown_from_a_callback(self, make_executor: MakeExecutor) -> None:
        executor = make_executor()
        future = executor.submit(calls.square, 3)
        future.add_done_callback(lambda _: executor.shutdown(wait=False))
        assert future.result(DEADLINE_S) == 9
        until(lambda: _is_shut(executor))
        executor.shutdown()

    @pytest.mark.filterwarnings("ignore::ResourceWarning")  # an implementation may say that this is no good style
    def test_an_abandoned_executor_finishes_its_calls(self, make_executor: MakeExecutor, tmp_path: Path) -> None:
        futures = [make_executor().submit(calls.square, x) for x in (1, 2)]
        gc.collect()
        assert [future.result(DEADLINE_S) for future in futures] == [1, 4]

    def test_executors_live_side_by_side(self, executor: Executor, make_executor: MakeExecutor) -> None:
        with make_executor() as other:
            pids = {other.submit(calls.pid).result(DEADLINE_S), executor.submit(calls.pid).result(DEADLINE_S)}
            assert len(pids) == 2
        assert executor.submit(calls.square, 4).result(DEADLINE_S) == 16


class InitializerContract:
    @pytest.mark.parametrize("workers", [0, -1])
    def test_less_than_one_worker_is_refused(self, make_executor: MakeExecutor, workers: int) -> None:
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            make_executor(max_workers=workers)

    def test_initializer_must_be_callable(self, make_executor: MakeExecutor) -> None:
        with pytest.raises(TypeError, match="initializer must be a callable"):
            make_executor(initializer="no function")

    def test_initializer_runs_once_in_each_worker(self, make_executor: MakeExecutor) -> None:
        with make_executor(initializer=calls.initialize, initargs=("a", 1)) as executor:
            assert [executor.submit(calls.initialized).result(DEADLINE_S) for _ in range(5)] == [["a", 1]] * 5

    def test_failing_initializer_breaks_the_executor(self, make_executor: MakeExecutor) -> None:
        executor = make_executor(initializer=calls.fail_to_initialize)
        future = executor.submit(calls.square, 3)
        with pytest.raises(BrokenExecutor):
            future.result(DEADLINE_S)

        def refused() -> bool:
            try:
                executor.submit(calls.square, 3)
            except BrokenExecutor:
                return True
            return False

        until(refused, what="submit raises BrokenExecutor")
        executor.shutdown()

    def test_one_worker_runs_calls_in_the_order_of_their_submission(
        self, make_executor: MakeExecutor, tmp_path: Path
    ) -> None:
        with make_executor(max_workers=1) as executor:
            log = tmp_path / "log"
            concurrent.futures.wait([executor.submit(_append, log, i) for i in range(30)])
        assert log.read_text().split() == [str(i) for i in range(30)]


def _append(path: Path, value: int) -> None:
    with path.open("a") as file:
        file.write(f"{value}\n")


def _is_shut(executor: Executor) -> bool:
    """Whether ``submit`` is refused; what is taken by mistake is cancelled again."""
    try:
        executor.submit(calls.nothing).cancel()
    except RuntimeError:
        return True
    return False
