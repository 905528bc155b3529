"""Calls that compute in parallel themselves: by threads, processes, or the very executor they run in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.contract import calls
from tests.support import DEADLINE_S


class InnerContract:
    def test_threads_in_a_call(self, executor: Any) -> None:
        assert executor.submit(calls.use_threads, 10).result(DEADLINE_S) == [x * x for x in range(10)]

    def test_a_process_pool_in_a_call(self, executor: Any) -> None:
        assert executor.submit(calls.use_process_pool, 5).result(DEADLINE_S) == [0, 1, 4, 9, 16]

    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_multiprocessing_in_a_call(self, executor: Any, method: str) -> None:
        assert executor.submit(calls.use_multiprocessing, 5, method).result(DEADLINE_S) == [0, 1, 4, 9, 16]
        assert executor.submit(calls.square, 3).result(DEADLINE_S) == 9


class NestedContract:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_call_submits_to_its_own_executor(self, make_executor: Callable[..., Any], workers: int) -> None:
        with make_executor(max_workers=workers) as executor:
            assert executor.submit(calls.submit_within, executor, 3).result(2 * DEADLINE_S) == 3
            assert executor.submit(calls.map_within, executor, 20).result(DEADLINE_S) == [x * x for x in range(20)]
            assert executor.submit(calls.square, 3).result(DEADLINE_S) == 9

    def test_a_tree_of_calls(self, make_executor: Callable[..., Any]) -> None:
        with make_executor(max_workers=2) as executor:
            assert executor.submit(calls.fibonacci_within, executor, 6).result(2 * DEADLINE_S) == 8

    def test_many_nested_calls_at_once(self, make_executor: Callable[..., Any]) -> None:
        with make_executor(max_workers=2) as executor:
            futures = [executor.submit(calls.submit_within, executor, 1) for _ in range(10)]
            assert [future.result(2 * DEADLINE_S) for future in futures] == [1] * 10

    def test_an_executor_cannot_be_opened_elsewhere(self, executor: Any) -> None:
        import pickle

        data = pickle.dumps(executor)
        with pytest.raises(RuntimeError, match="workers"):
            pickle.loads(data)
