"""Results of a map on their way to the user: in order, from threads and from loops, closed at any moment."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.dispatch.map_result import Failed, MapResult, MapState
from tests.unit.dispatch.conftest import Run


class Given:
    """A run that the test fills by hand; counts how often it was given up."""

    def __init__(self, total: int | None = None, *, ordered: bool = True, **how: Any) -> None:
        self.state = MapState(ordered=ordered)
        self.closed = 0
        if total is not None:
            self.state.added = total
            self.state.end(total)
        self.how: dict[str, Any] = {"timeout": None, "feed": None, "feed_async": None, **how}

    def result(self) -> MapResult[Any]:
        return MapResult(self.state, on_close=self._close, **self.how)

    def _close(self) -> None:
        self.closed += 1


def cut(count: int, sizes: list[int]) -> list[list[int]]:
    """The numbers below ``count`` in slices of these sizes."""
    numbers, slices = list(range(count)), []
    for size in itertools.cycle(sizes):
        if not numbers:
            return slices
        slices.append(numbers[:size])
        del numbers[:size]
    return slices


# ── order ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(0, 60), st.lists(st.integers(1, 9), min_size=1), st.randoms(use_true_random=False))
def test_ordered_results_come_in_order_however_they_arrive(count: int, sizes: list[int], chance: Any) -> None:
    one = Given(count)
    slices = cut(count, sizes)
    chance.shuffle(slices)
    for values in slices:
        one.state.fill(values[0], values)
    assert list(one.result()) == list(range(count))
    assert one.closed == 0


@given(st.integers(0, 60), st.lists(st.integers(1, 9), min_size=1), st.randoms(use_true_random=False))
def test_unordered_results_come_as_they_arrive(count: int, sizes: list[int], chance: Any) -> None:
    one = Given(count, ordered=False)
    slices = cut(count, sizes)
    chance.shuffle(slices)
    for values in slices:
        one.state.fill(values[0], values)
    assert list(one.result()) == [value for values in slices for value in values]


def test_results_are_waited_for() -> None:
    one = Given(100)
    results = one.result()

    def fill() -> None:
        for n in reversed(range(100)):
            one.state.fill(n, [n])

    thread = threading.Thread(target=fill)
    thread.start()
    assert list(results) == list(range(100))
    thread.join()


async def test_results_are_awaited() -> None:
    one = Given(100)
    results = one.result()

    def fill() -> None:
        for n in reversed(range(100)):
            one.state.fill(n, [n])

    thread = threading.Thread(target=fill)
    thread.start()
    assert [value async for value in results] == list(range(100))
    thread.join()
    assert one.closed == 0


def test_next_and_for_may_be_mixed() -> None:
    one = Given(5)
    one.state.fill(0, [0, 1, 2, 3, 4])
    results = one.result()
    assert next(results) == 0
    assert list(results) == [1, 2, 3, 4]
    assert next(results, "end") == "end"


def test_memory_of_given_results_is_let_go() -> None:
    class Big:
        pass

    one = Given(3)
    big = [Big() for _ in range(3)]
    gone = weakref.ref(big[0])
    for n in range(3):
        one.state.fill(n, [big[n]])
    del big
    results = one.result()
    next(results)
    next(results)
    gc.collect()
    assert gone() is None


# ── failures ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_exception_comes_at_its_item_and_ends_the_run() -> None:
    one = Given(4)
    one.state.fill(2, [2, 3])
    one.state.fill(0, [0, Failed(error := KeyError("one"))], failed=1)
    results = one.result()
    assert next(results) == 0
    with pytest.raises(KeyError) as caught:
        next(results)
    assert caught.value is error
    assert next(results, "end") == "end"
    assert one.closed == 1


async def test_exception_comes_at_its_item_and_ends_the_run_on_a_loop() -> None:
    one = Given(4)
    one.state.fill(0, [0, Failed(KeyError("one"))], failed=1)
    results = one.result()
    assert await anext(results) == 0
    with pytest.raises(KeyError):
        await anext(results)
    with pytest.raises(StopAsyncIteration):
        await anext(results)
    assert one.closed == 1


def test_timeout_ends_the_run() -> None:
    one = Given(2, timeout=0.01)
    one.state.fill(0, [0])
    results = one.result()
    assert next(results) == 0
    with pytest.raises(TimeoutError, match="within its timeout="):
        next(results)
    assert next(results, "end") == "end"
    assert one.closed == 1


async def test_timeout_ends_the_run_on_a_loop() -> None:
    one = Given(2, timeout=0.01)
    results = one.result()
    with pytest.raises(TimeoutError, match="within its timeout="):
        await anext(results)
    with pytest.raises(StopAsyncIteration):
        await anext(results)
    assert one.closed == 1


def test_values_that_are_there_come_after_the_timeout_too() -> None:
    one = Given(2, timeout=0)
    one.state.fill(0, [0, 1])
    assert list(one.result()) == [0, 1]


# ── closing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_close_gives_up_once_and_ends_the_iteration() -> None:
    one = Given(10)
    one.state.fill(0, [0, 1, 2])
    results = one.result()
    assert next(results) == 0
    results.close()
    results.close()
    assert list(results) == []
    assert one.closed == 1


def test_close_of_an_untouched_run_gives_it_up() -> None:
    one = Given(10)
    one.result().close()
    assert one.closed == 1


def test_close_after_the_end_gives_nothing_up() -> None:
    one = Given(2)
    one.state.fill(0, [0, 1])
    results = one.result()
    assert list(results) == [0, 1]
    results.close()
    assert one.closed == 0


def test_close_from_another_thread_wakes_who_waits() -> None:
    one = Given(10)
    results = one.result()
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(list(results)))
    thread.start()
    one.state.fill(0, [0])
    results.close()
    thread.join(10)
    assert not thread.is_alive()
    assert seen in ([[0]], [[]])
    assert one.closed == 1


def test_aclose_wakes_another_task_that_waits(run: Run) -> None:
    async def scenario() -> None:
        one = Given(10)
        results = one.result()
        waiting = asyncio.ensure_future(anext(results, "end"))  # type: ignore[arg-type]
        await asyncio.sleep(1)
        await results.aclose()
        assert await asyncio.wait_for(waiting, 1) == "end"
        assert one.closed == 1

    run(scenario())


def test_close_while_results_arrive_loses_no_thread_and_keeps_no_value() -> None:
    for _ in range(50):
        one = Given(200)
        results = one.result()
        begin = threading.Barrier(3)

        def fill(one: Given = one, begin: threading.Barrier = begin) -> None:
            begin.wait()
            for n in range(200):
                one.state.fill(n, [n])

        def take(results: Any = results, begin: threading.Barrier = begin) -> None:
            begin.wait()
            seen = list(results)
            assert seen == list(range(len(seen)))

        threads = [threading.Thread(target=work) for work in (fill, take)]
        for thread in threads:
            thread.start()
        begin.wait()
        results.close()
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads)
        assert one.state._slices == {}


def test_results_that_arrive_after_the_close_are_dropped() -> None:
    one = Given(10)
    one.result().close()
    one.state.fill(0, [0, 1])
    assert one.state.next_slice() is None
    assert one.state.filled == 0


@pytest.mark.parametrize("begin", [iter, lambda results: results], ids=["for", "next"])
def test_run_dropped_half_way_is_given_up_at_once(begin: Callable[[Any], Any]) -> None:
    one = Given(10)
    one.state.fill(0, [0, 1])
    iterator = begin(one.result())
    assert next(iterator) == 0
    assert one.closed == 0
    gc.disable()
    try:
        del iterator
        assert one.closed == 1  # at once, not at the next collection of garbage
    finally:
        gc.enable()


async def test_run_dropped_half_way_on_a_loop_is_given_up_at_once() -> None:
    one = Given(10)
    one.state.fill(0, [0, 1])
    async for _ in one.result():
        break
    assert one.closed == 1


def test_run_that_nobody_looks_at_goes_on() -> None:
    one = Given(10)
    del_me = one.result()
    del del_me
    gc.collect()
    assert one.closed == 0


def test_iterator_goes_on_where_the_result_itself_was_dropped() -> None:
    one = Given(3)
    one.state.fill(0, [0, 1, 2])
    iterator = iter(one.result())
    gc.collect()
    assert list(iterator) == [0, 1, 2]
    assert one.closed == 0


# ── on loops that come and go ───────────────────────────────────────────────────────────────────────────────────────


def test_cancelled_wait_may_be_repeated(run: Run) -> None:
    async def scenario() -> None:
        one = Given(2)
        results = one.result()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(results), 1)
        one.state.fill(0, [0, 1])
        assert [value async for value in results] == [0, 1]
        assert one.closed == 0

    run(scenario())


def test_loop_that_was_closed_while_waiting_harms_nobody() -> None:
    one = Given(2)
    results = one.result()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(results), 0.001)

    asyncio.run(give_up())
    one.state.fill(0, [0, 1])
    assert list(results) == [0, 1]


def test_one_run_may_be_read_from_one_loop_after_another() -> None:
    one = Given(4)
    one.state.fill(0, [0])
    one.state.fill(1, [1])
    results = one.result()

    async def some() -> list[Any]:
        return [await anext(results), await anext(results)]

    found = asyncio.run(some())
    one.state.fill(2, [2, 3])
    assert found + asyncio.run(some()) == [0, 1, 2, 3]


# ── progress ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Shown:
    """A reporter that notes what it is told."""

    def __init__(self, fails: bool = False) -> None:
        self.told: list[Any] = []
        self.fails = fails

    def set_total(self, total: int) -> None:
        self.total = total

    def advance(self, done: int, failed: int) -> None:
        if self.fails:
            raise BrokenPipeError("stderr is closed")
        self.told.append((done, failed))

    def close(self) -> None:
        self.told.append("closed")


def test_progress_is_told_until_all_is_there() -> None:
    one, shown = Given(3), Shown()
    one.state.show(shown)
    one.state.fill(0, [0, Failed(KeyError())], failed=1)
    one.state.fill(2, [2])
    assert [told for told in shown.told if told != (0, 0)] == [(2, 1), (1, 0), "closed"]


def test_progress_of_input_without_a_known_end_is_closed_when_it_ends() -> None:
    one, shown = Given(), Shown()
    one.state.show(shown)
    one.state.fill(0, [0])
    assert shown.told == [(1, 0)]
    one.state.end(1)
    assert shown.told[-1] == "closed"


def test_progress_of_a_run_given_up_is_closed() -> None:
    one, shown = Given(3), Shown()
    one.state.show(shown)
    one.result().close()
    assert shown.told[-1] == "closed"


def test_progress_that_cannot_be_shown_loses_no_result(caplog: pytest.LogCaptureFixture) -> None:
    one = Given(3)
    one.state.show(Shown(fails=True))
    one.state.fill(0, [0, 1])
    one.state.fill(2, [2])
    assert list(one.result()) == [0, 1, 2]
    assert caplog.text.count("no longer shown") == 1
