"""What the standard library documents for ``multiprocessing.Pool`` and its results, and what its source does.

A binding is a small test module with these names, and classes of its own that inherit from the contracts:

``pool``
    Fixture: a pool of two processes, shared by the tests of the module. No test may harm it.
``make_pool``
    Fixture: makes one that a test may end; takes the arguments of ``multiprocessing.Pool``.
``pool_head``
    Fixture: a line that imports its class as ``Pool``, for scripts.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract import calls
from tests.contract.future_contract import CANNOT_PICKLE
from tests.support import DEADLINE_S, Gate, until

if TYPE_CHECKING:
    pass

MakePool = Callable[..., Any]


class Sized:
    """A collection whose iteration fails after some items, though it told its length."""

    def __init__(self, length: int, good: int) -> None:
        self.length, self.good = length, good

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        yield from range(self.good)
        raise calls.CustomError(self.good)


def failing_after(good: int) -> Iterator[int]:
    """Without a length."""
    yield from range(good)
    raise calls.CustomError(good)


class ApplyContract:
    def test_apply(self, pool: Any) -> None:
        assert pool.apply(calls.square, (7,)) == 49
        assert pool.apply(calls.add, (1,), {"y": 2}) == 3
        assert pool.apply(calls.pid) != os.getpid()
        assert pool.apply(calls.everything, args=[1], kwds={"func": 2}) == ((1,), {"func": 2})

    def test_apply_raises_what_the_call_raises(self, pool: Any) -> None:
        with pytest.raises(calls.CustomError) as caught:
            pool.apply(calls.fail_deeply, (3,))
        assert caught.value.code == 42
        assert str(caught.value.__cause__).count("in fail_deeply") == 4

    def test_async_result_goes_from_pending_to_ready(self, pool: Any, gate: Gate) -> None:
        result = pool.apply_async(calls.wait_at, (gate, "value"))
        assert not result.ready()
        with pytest.raises(ValueError, match="not ready"):
            result.successful()
        gate.open()
        assert result.get(DEADLINE_S) == "value"
        assert result.ready()
        assert result.successful()
        assert result.get() == result.get(0) == "value"

    def test_get_and_wait_time_out(self, pool: Any, gate: Gate) -> None:
        result = pool.apply_async(calls.wait_at, (gate,))
        for timeout in (0, 0.01):
            with pytest.raises(multiprocessing.TimeoutError):
                result.get(timeout)
            with pytest.raises(multiprocessing.TimeoutError):
                result.get(timeout=timeout)
            assert result.wait(timeout) is None
        gate.open()
        result.wait()
        assert result.ready()

    def test_failed_result(self, pool: Any) -> None:
        result = pool.apply_async(calls.fail, ("text",))
        result.wait(DEADLINE_S)
        assert result.ready()
        assert not result.successful()
        for _ in range(2):
            with pytest.raises(ValueError, match="text"):
                result.get()

    def test_callbacks_run_before_the_result_is_ready(self, pool: Any) -> None:
        seen: list[Any] = []
        value = pool.apply_async(calls.square, (3,), callback=seen.append, error_callback=seen.append)
        assert value.get(DEADLINE_S) == 9
        assert seen == [9]
        error = pool.apply_async(calls.fail, callback=seen.append, error_callback=seen.append)
        error.wait(DEADLINE_S)
        assert seen[0] == 9
        assert [type(one) for one in seen] == [int, ValueError]

    def test_callbacks_run_in_one_thread_that_is_not_the_callers(self, pool: Any) -> None:
        threads: list[threading.Thread] = []
        results = [
            pool.apply_async(calls.square, (x,), callback=lambda _: threads.append(threading.current_thread()))
            for x in range(20)
        ]
        assert [result.get(DEADLINE_S) for result in results] == [x * x for x in range(20)]
        assert len(threads) == 20
        assert len(set(threads)) == 1
        assert threads[0] is not threading.current_thread()

    def test_callback_of_none_and_falsy_values(self, pool: Any) -> None:
        seen: list[Any] = []
        for value in (None, 0, [], ""):
            pool.apply_async(calls.identity, (value,), callback=seen.append).get(DEADLINE_S)
        assert seen == [None, 0, [], ""]

    def test_callback_may_use_the_pool(self, pool: Any) -> None:
        seen: list[Any] = []
        pool.apply_async(
            calls.square, (3,), callback=lambda y: pool.apply_async(calls.square, (y,), callback=seen.append)
        )
        until(lambda: seen == [81])

    def test_unpicklable_argument_fails_its_call_only(self, pool: Any) -> None:
        seen: list[Any] = []
        result = pool.apply_async(calls.identity, (threading.Lock(),), error_callback=seen.append)
        with pytest.raises(CANNOT_PICKLE):
            result.get(DEADLINE_S)
        assert isinstance(seen[0], CANNOT_PICKLE)
        assert pool.apply(calls.square, (3,)) == 9

    @pytest.mark.parametrize("function", [calls.make_lock, calls.make_generator, calls.raise_locked])
    def test_unpicklable_outcome_is_a_maybe_encoding_error(self, pool: Any, function: Callable[[], Any]) -> None:
        with pytest.raises(multiprocessing.pool.MaybeEncodingError) as caught:  # type: ignore[attr-defined]
            pool.apply(function)
        assert "Error sending result" in str(caught.value)
        assert pool.apply(calls.square, (3,)) == 9

    def test_results_of_many_calls(self, pool: Any) -> None:
        results = [pool.apply_async(calls.square, (x,)) for x in range(200)]
        assert [result.get(DEADLINE_S) for result in results] == [x * x for x in range(200)]


class MapContract:
    @pytest.mark.parametrize("chunksize", [None, 1, 3, 1000])
    def test_map(self, pool: Any, chunksize: int | None) -> None:
        expected = [x * x for x in range(50)]
        assert pool.map(calls.square, range(50), chunksize) == expected
        assert pool.map(calls.square, iter(range(50)), chunksize=chunksize) == expected
        assert pool.map_async(calls.square, range(50), chunksize).get(DEADLINE_S) == expected

    @pytest.mark.parametrize("items", [[], (), {}, iter([]), [3]])
    def test_map_of_few_items(self, pool: Any, items: Any) -> None:
        items = list(items)
        assert pool.map(calls.square, items) == [x * x for x in items]
        assert pool.map(calls.square, (x for x in items)) == [x * x for x in items]
        assert pool.starmap(calls.square, [(x,) for x in items]) == [x * x for x in items]
        assert list(pool.imap(calls.square, items)) == [x * x for x in items]

    def test_map_of_any_iterable(self, pool: Any) -> None:
        assert pool.map(calls.identity, {"a": 1, "b": 2}) == ["a", "b"]
        assert pool.map(calls.identity, "xyz") == ["x", "y", "z"]
        assert sorted(pool.map(calls.identity, {3, 1, 2})) == [1, 2, 3]

    @pytest.mark.parametrize("chunksize", [None, 1, 4])
    def test_starmap(self, pool: Any, chunksize: int | None) -> None:
        pairs = list(zip(range(20), range(20, 40), strict=True))
        assert pool.starmap(calls.add, pairs, chunksize) == [x + y for x, y in pairs]
        assert pool.starmap(calls.add, iter(pairs), chunksize=chunksize) == [x + y for x, y in pairs]
        assert pool.starmap_async(calls.add, pairs, chunksize).get(DEADLINE_S) == [x + y for x, y in pairs]

    def test_starmap_unpacks_any_iterable(self, pool: Any) -> None:
        assert pool.starmap(calls.everything, [[1, 2], "ab", ()]) == [((1, 2), {}), (("a", "b"), {}), ((), {})]

    def test_map_raises_what_a_call_raises(self, pool: Any) -> None:
        with pytest.raises(calls.CustomError) as caught:
            pool.starmap(calls.fail_on, [(7, x) for x in range(20)])
        assert caught.value.code == 7
        assert "raise CustomError(x)" in str(caught.value.__cause__)

    def test_map_is_ready_when_all_is_done_even_if_one_failed(self, pool: Any, gate: Gate) -> None:
        errors: list[BaseException] = []
        result = pool.starmap_async(_wait_or_fail, [(gate, 0), (gate, 1)], 1, error_callback=errors.append)
        gate.wait_arrivals(2)
        assert not result.ready()
        gate.open()
        with pytest.raises(calls.CustomError):
            result.get(DEADLINE_S)
        assert len(errors) == 1
        assert not result.successful()

    def test_one_error_does_not_keep_other_chunks_from_running(self, pool: Any, new_gate: Callable[[], Gate]) -> None:
        trace = new_gate()
        with pytest.raises(ZeroDivisionError):
            pool.starmap(_trace_and_divide, [(trace, x) for x in range(6)], chunksize=1)
        assert trace.arrivals == 6

    def test_the_first_error_to_arrive_is_raised(self, pool: Any, gate: Gate) -> None:
        result = pool.starmap_async(_wait_and_fail, [(gate, 1), (None, 2)], chunksize=1)
        gate.wait_arrivals()
        assert pool.apply(calls.square, (3,)) == 9  # by the other worker, after the second item
        gate.open()
        with pytest.raises(calls.CustomError) as caught:
            result.get(DEADLINE_S)
        assert caught.value.code == 2

    def test_map_callbacks(self, pool: Any) -> None:
        values: list[Any] = []
        errors: list[Any] = []
        good = pool.map_async(calls.square, range(5), 1, values.append, errors.append)
        bad = pool.map_async(calls.raise_, [KeyError(1)] * 5, 1, values.append, errors.append)
        good.wait(DEADLINE_S)
        bad.wait(DEADLINE_S)
        assert values == [[0, 1, 4, 9, 16]]
        assert [type(error) for error in errors] == [KeyError]

    def test_empty_map_is_ready_at_once_and_calls_nothing_back(self, pool: Any) -> None:
        seen: list[Any] = []
        result = pool.map_async(calls.square, [], None, seen.append, seen.append)
        assert result.ready()
        assert result.successful()
        assert result.get() == []
        pool.apply(calls.square, (1,))
        assert seen == []

    def test_map_of_an_iterable_that_fails(self, pool: Any) -> None:
        with pytest.raises(calls.CustomError):
            pool.map(calls.square, failing_after(3))
        with pytest.raises(calls.CustomError):
            pool.map_async(calls.square, failing_after(3))  # it has no length: it is taken at the call
        with pytest.raises(calls.CustomError):
            pool.map(calls.square, Sized(1, 0), 1)
        result = pool.map_async(calls.square, Sized(1, 0), 1)
        with pytest.raises(calls.CustomError):
            result.get(DEADLINE_S)
        assert pool.apply(calls.square, (3,)) == 9

    def test_map_of_what_cannot_be_iterated(self, pool: Any) -> None:
        with pytest.raises(TypeError):
            pool.map(calls.square, 5)

    def test_unpicklable_items_and_functions(self, pool: Any) -> None:
        with pytest.raises(CANNOT_PICKLE):
            pool.map(calls.identity, [1, threading.Lock()])
        with pytest.raises(CANNOT_PICKLE):
            pool.map(threading.Lock().acquire, [1])
        assert pool.map(calls.square, [2, 3]) == [4, 9]


class IMapContract:
    @pytest.mark.parametrize("chunksize", [1, 3, 1000])
    def test_imap_and_imap_unordered(self, pool: Any, chunksize: int) -> None:
        expected = [x * x for x in range(50)]
        assert list(pool.imap(calls.square, range(50), chunksize)) == expected
        assert list(pool.imap(calls.square, iter(range(50)), chunksize=chunksize)) == expected
        assert sorted(pool.imap_unordered(calls.square, iter(range(50)), chunksize)) == expected

    def test_imap_is_an_iterator(self, pool: Any) -> None:
        values = pool.imap(calls.square, [2, 3])
        assert iter(values) is values
        assert next(values) == 4
        assert values.next() == 9
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(values)
            with pytest.raises(StopIteration):
                values.next(0)

    @pytest.mark.parametrize("method", ["imap", "imap_unordered"])
    def test_next_times_out_and_can_be_repeated(self, pool: Any, gate: Gate, method: str) -> None:
        values = getattr(pool, method)(gate.pass_through, [5])
        for _ in range(2):
            with pytest.raises(multiprocessing.TimeoutError):
                values.next(timeout=0.01)
        gate.open()
        assert values.next(DEADLINE_S) == 5
        with pytest.raises(StopIteration):
            values.next(DEADLINE_S)

    def test_imap_hands_out_values_as_soon_as_they_are_there(self, pool: Any, gate: Gate) -> None:
        values = pool.imap(_WaitIfTwo(gate), [0, 1, 2])
        assert [next(values), next(values)] == [0, 1]
        gate.open()
        assert next(values) == 2

    def test_imap_waits_for_the_first_and_imap_unordered_does_not(self, pool: Any, gate: Gate) -> None:
        ordered = pool.imap(_WaitIfTwo(gate), [2, 0])
        with pytest.raises(multiprocessing.TimeoutError):
            ordered.next(0.1)
        gate.open()
        assert list(ordered) == [2, 0]

    def test_imap_unordered_hands_out_what_is_there(self, pool: Any, gate: Gate) -> None:
        values = pool.imap_unordered(_WaitIfTwo(gate), [2, 0, 1])
        assert [next(values), next(values)] == [0, 1]
        gate.open()
        assert list(values) == [2]

    def test_iteration_goes_on_after_an_exception(self, pool: Any) -> None:
        values = pool.imap(calls.factorial, [2, "x", 3])
        assert next(values) == 2
        with pytest.raises(TypeError):
            next(values)
        assert next(values) == 6
        with pytest.raises(StopIteration):
            next(values)

    def test_iteration_of_chunks_ends_with_an_exception(self, pool: Any) -> None:
        values = pool.imap(calls.factorial, [2, 3, "x", 3, 4, 5], chunksize=2)
        assert [next(values), next(values)] == [2, 6]
        with pytest.raises(TypeError):
            next(values)
        with pytest.raises(StopIteration):
            next(values)

    @pytest.mark.parametrize("method", ["imap", "imap_unordered"])
    def test_imap_of_an_iterable_that_fails(self, pool: Any, method: str) -> None:
        values = getattr(pool, method)(calls.square, failing_after(3))
        seen: list[int] = []
        with pytest.raises(calls.CustomError):
            seen.extend(iter(values.next, None))
        assert method == "imap_unordered" or seen == [0, 1, 4]
        assert len(list(values)) == 3 - len(seen)
        with pytest.raises(calls.CustomError):
            next(getattr(pool, method)(calls.square, failing_after(0)))
        assert pool.apply(calls.square, (3,)) == 9

    def test_imap_of_chunks_of_an_iterable_that_fails(self, pool: Any) -> None:
        values = pool.imap(calls.square, failing_after(7), 2)
        assert [next(values) for _ in range(6)] == [0, 1, 4, 9, 16, 25]
        with pytest.raises(calls.CustomError):
            next(values)

    def test_imap_of_what_cannot_be_iterated_fails_at_next(self, pool: Any) -> None:
        values = pool.imap(calls.square, 5)
        with pytest.raises(TypeError):
            next(values)

    @pytest.mark.parametrize("method", ["imap", "imap_unordered"])
    def test_chunksize_below_one_is_refused(self, pool: Any, method: str) -> None:
        for chunksize in (0, -1):
            with pytest.raises(ValueError, match=r"Chunksize must be 1\+"):
                getattr(pool, method)(calls.square, [1], chunksize)

    def test_imap_takes_its_iterable_before_anybody_looks(self, pool: Any) -> None:
        taken: list[int] = []
        pool.imap(calls.nothing, (taken.append(x) for x in range(20)))
        until(lambda: len(taken) == 20)

    def test_imap_of_unpicklable_items(self, pool: Any) -> None:
        values = pool.imap(calls.identity, [1, threading.Lock(), 3])
        assert next(values) == 1
        with pytest.raises(CANNOT_PICKLE):
            next(values)
        assert next(values) == 3


def _wait_or_fail(gate: Gate, x: int) -> int:
    gate.arrive()
    if x == 0:
        raise calls.CustomError(0)
    until(gate.is_open)
    return x


def _wait_and_fail(gate: Gate | None, code: int) -> int:
    if gate is not None:
        gate.pass_through()
    raise calls.CustomError(code)


def _trace_and_divide(trace: Gate, x: int) -> float:
    trace.arrive()
    return 1 / x


class _WaitIfTwo:
    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def __call__(self, x: int) -> int:
        return int(self.gate.pass_through(x)) if x == 2 else x
