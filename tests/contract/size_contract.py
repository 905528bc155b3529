"""Much of everything: items, functions, input without an end, depth."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.contract import calls
from tests.contract.hostile_contract import nobody_harmed
from tests.support import DEADLINE_S, Gate


class SizeContract:
    def test_million_items_there_and_back(self, executor: Any) -> None:
        items = list(range(1_000_000))
        assert executor.submit(calls.size, items).result(DEADLINE_S) == 1_000_000
        assert executor.submit(calls.identity, items).result(DEADLINE_S) == items

    def test_map_of_many_items(self, executor: Any) -> None:
        assert sum(executor.map(calls.square, range(200_000))) == sum(x * x for x in range(200_000))

    def test_infinite_input_needs_a_buffersize(self, executor: Any) -> None:
        taken = 0

        def count() -> Iterator[int]:
            nonlocal taken
            while True:
                taken += 1
                yield taken

        results = executor.map(calls.square, count(), buffersize=20)
        for given, y in enumerate(itertools.islice(results, 500), 1):
            assert y == given * given
            assert taken <= given + 20
        results.close()
        assert list(results) == []
        assert executor.submit(calls.square, 3).result(DEADLINE_S) == 9

    @pytest.mark.parametrize("buffersize", [1, 2, 3, 1000])
    def test_buffersize(self, executor: Any, buffersize: int) -> None:
        expected = [x * x for x in range(50)]
        assert list(executor.map(calls.square, iter(range(50)), buffersize=buffersize)) == expected
        assert list(executor.map(calls.square, range(50), buffersize=buffersize, chunksize=7)) == expected
        assert list(executor.map(calls.square, [], buffersize=buffersize)) == []

    def test_lazy_input_that_fails_is_raised_in_its_place(self, executor: Any) -> None:
        def failing() -> Iterator[int]:
            yield from range(5)
            raise calls.CustomError(5)

        results = executor.map(calls.square, failing(), buffersize=2)
        seen: list[int] = []
        with pytest.raises(calls.CustomError):
            seen.extend(results)
        assert executor.submit(calls.square, 3).result(DEADLINE_S) == 9

    @pytest.mark.parametrize("buffersize", [0, -1])
    def test_buffersize_below_one_is_refused(self, executor: Any, buffersize: int) -> None:
        with pytest.raises(ValueError, match="buffersize"):
            executor.map(calls.square, [1], buffersize=buffersize)

    @pytest.mark.slow
    @pytest.mark.timeout(180)
    def test_ten_thousand_functions(self, executor: Any) -> None:
        futures = [executor.submit(_constant(i)) for i in range(10_000)]
        assert [future.result(120) for future in futures] == list(range(10_000))

    def test_deep_recursion_is_an_exception(self, executor: Any, gate: Gate) -> None:
        with nobody_harmed(executor, gate), pytest.raises(RecursionError):
            executor.submit(calls.set_recursion_limit_and_recurse, 10**6).result(DEADLINE_S)


def _constant(i: int) -> Callable[[], int]:
    return lambda: i
