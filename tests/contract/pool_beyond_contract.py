"""What our ``Pool`` promises beyond ``multiprocessing.Pool``: where that one hangs, this one says what happened."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from typing import Any

import pytest

from executor.errors import ChildCrashed, PoolBroken, SerializationError
from tests.contract import calls
from tests.support import DEADLINE_S, Gate, until


class BeyondContract:
    def test_a_crash_fails_its_call_only(self, pool: Any) -> None:
        crashed = pool.apply_async(calls.exit_process, (3,))
        with pytest.raises(ChildCrashed):
            crashed.get(DEADLINE_S)
        with pytest.raises(ChildCrashed):
            pool.map(_exit_on_three, range(6), chunksize=1)
        assert list(pool.imap(calls.square, range(4))) == [0, 1, 4, 9]

    def test_iteration_goes_on_after_a_crash(self, pool: Any) -> None:
        values = pool.imap(_exit_on_three, range(6))
        assert [next(values) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ChildCrashed):
            next(values)
        assert list(values) == [4, 5]

    def test_sys_exit_is_an_exception_like_any_other(self, pool: Any) -> None:
        with pytest.raises(SystemExit):
            pool.apply(calls.exit_with, (3,))
        assert pool.apply(calls.square, (3,)) == 9

    def test_a_callback_that_raises_is_logged(self, pool: Any, caplog: pytest.LogCaptureFixture) -> None:
        result = pool.apply_async(calls.square, (3,), callback=lambda _: calls.fail("in a callback"))
        assert result.get(DEADLINE_S) == 9
        assert "in a callback" in caplog.text
        seen: list[int] = []
        pool.apply_async(calls.square, (4,), callback=seen.append).get(DEADLINE_S)
        assert seen == [16]

    def test_an_endless_iterable_stays_out_of_memory_and_lets_others_through(self, make_pool: Any) -> None:
        taken = 0

        def count() -> Iterator[int]:
            nonlocal taken
            while True:
                taken += 1
                yield taken

        gate_values: list[int] = []
        with make_pool(2) as pool:
            values = pool.imap(calls.square, count())
            gate_values.extend(itertools.islice(values, 1000))
            assert pool.apply(calls.add, (1, 2)) == 3
        assert gate_values == [x * x for x in range(1, 1001)]
        with pytest.raises(PoolBroken):
            list(values)

    def test_an_endless_iterable_is_taken_no_further_than_the_work(self, make_pool: Any, gate: Gate) -> None:
        taken: list[int] = []
        with make_pool(1) as pool:
            pool.imap(gate.pass_through, (taken.append(x) for x in itertools.count()))
            gate.wait_arrivals()
            until(lambda: len(taken) >= 256)
            assert len(taken) < 300

    def test_terminate_settles_what_is_unfinished(self, make_pool: Any, gate: Gate) -> None:
        errors: list[BaseException] = []
        pool = make_pool(2)
        one = pool.apply_async(calls.wait_at, (gate,), error_callback=errors.append)
        many = pool.map_async(gate.pass_through, range(10))
        values = pool.imap(gate.pass_through, range(10))
        gate.wait_arrivals(2)
        pool.terminate()
        for result in (one, many):
            with pytest.raises(PoolBroken, match="terminated"):
                result.get(DEADLINE_S)
        with pytest.raises(PoolBroken, match="terminated"):
            values.next(DEADLINE_S)
        pool.join()
        assert len(errors) == 1

    def test_failing_initializer_breaks_the_pool(self, make_pool: Any) -> None:
        with make_pool(1, calls.fail_to_initialize) as pool, pytest.raises(BrokenExecutor, match="initializer"):
            pool.apply_async(calls.square, (3,)).get(DEADLINE_S)

    def test_join_from_a_callback_is_refused(self, make_pool: Any) -> None:
        pool = make_pool(1)
        errors: list[BaseException] = []

        def join(_: int) -> None:
            pool.close()
            try:
                pool.join()
            except RuntimeError as error:
                errors.append(error)

        pool.apply_async(calls.square, (3,), callback=join).get(DEADLINE_S)
        pool.join()
        assert len(errors) == 1

    def test_lambdas_and_closures(self, pool: Any) -> None:
        factor = 3
        assert pool.map(lambda x: factor * x, range(4)) == [0, 3, 6, 9]
        assert pool.apply(lambda: factor) == 3
        assert list(pool.imap_unordered(lambda x: factor, range(2), 2)) == [3, 3]
        assert pool.starmap(lambda x, y: x + y + factor, [(1, 2)]) == [6]

    async def test_a_pool_can_be_used_where_a_loop_runs(self, pool: Any) -> None:
        # As in a notebook: blocking the loop is the user's choice, hanging would be ours.
        assert pool.map(calls.square, range(4)) == [0, 1, 4, 9]
        assert pool.apply(calls.square, (3,)) == 9
        assert list(pool.imap(calls.square, range(4), 2)) == [0, 1, 4, 9]
        seen: list[int] = []
        assert pool.apply_async(calls.square, (3,), callback=seen.append).get(DEADLINE_S) == 9
        assert seen == [9]
        assert await asyncio.to_thread(pool.apply, calls.square, (5,)) == 25

    def test_encoding_errors_are_of_both_kinds(self, pool: Any) -> None:
        with pytest.raises(SerializationError) as caught:
            pool.apply(calls.make_lock)
        assert isinstance(caught.value, (pickle.PicklingError, multiprocessing.pool.MaybeEncodingError))  # type: ignore[attr-defined]
        again = pickle.loads(pickle.dumps(caught.value))
        assert str(again) == str(caught.value)
        assert again.details == caught.value.details

    def test_chunked_iterators_have_a_timeout_too(self, pool: Any, gate: Gate) -> None:
        values = pool.imap(gate.pass_through, range(4), chunksize=2)
        with pytest.raises(multiprocessing.TimeoutError):
            values.next(0.01)
        gate.open()
        assert [values.next(DEADLINE_S) for _ in range(4)] == [0, 1, 2, 3]

    @pytest.mark.parametrize("chunksize", [0, -3])
    def test_map_refuses_a_chunksize_below_one(self, pool: Any, chunksize: int) -> None:
        for method in (pool.map, pool.map_async, pool.starmap):
            with pytest.raises(ValueError, match=r"Chunksize must be 1\+"):
                method(calls.square, [1], chunksize)

    def test_many_threads_share_a_pool(self, pool: Any) -> None:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(8) as threads:
            runs = [threads.submit(pool.map, calls.square, range(30)) for _ in range(16)]
            assert all(run.result(DEADLINE_S) == [x * x for x in range(30)] for run in runs)

    def test_repr_of_a_result_tells_its_state(self, pool: Any, gate: Gate) -> None:
        result = pool.apply_async(calls.wait_at, (gate,))
        assert "pending" in repr(result)
        gate.open()
        result.get(DEADLINE_S)
        assert "value" in repr(result)


def _exit_on_three(x: int) -> int:
    return x if x != 3 else calls.exit_process(9)
