"""What only KubeExecutor promises about event loops: futures that can be awaited, results that ``async for`` takes."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest

from tests.contract import calls
from tests.contract.executor_contract import MANY, hold
from tests.support import DEADLINE_S, Gate, until


async def until_async(condition: Callable[[], Any]) -> None:
    """:func:`until`, without blocking the loop."""
    await asyncio.to_thread(until, condition)


async def numbers(count: int) -> AsyncIterator[int]:
    for i in range(count):
        await asyncio.sleep(0)
        yield i


class AwaitContract:
    async def test_await_gives_the_value(self, executor: Any) -> None:
        future = executor.submit(calls.square, 7)
        assert await future == 49
        assert await future == 49
        assert future.result(0) == 49

    async def test_await_raises_what_the_call_raises(self, executor: Any) -> None:
        with pytest.raises(calls.CustomError) as caught:
            await executor.submit(calls.fail_deeply, 2)
        assert str(caught.value.__cause__).count("in fail_deeply") == 3

    async def test_result_on_a_loop_does_not_deadlock(self, executor: Any) -> None:
        assert executor.submit(calls.square, 7).result(DEADLINE_S) == 49
        assert list(executor.map(calls.square, range(5))) == [0, 1, 4, 9, 16]

    async def test_await_does_not_block_the_loop(self, executor: Any, gate: Gate) -> None:
        waiting = asyncio.ensure_future(executor.submit(calls.wait_at, gate, 5))
        await until_async(lambda: gate.arrivals)
        gate.open()  # by the same loop
        assert await waiting == 5

    async def test_gather(self, executor: Any) -> None:
        assert await asyncio.gather(*(executor.submit(calls.square, x) for x in range(20))) == [
            x * x for x in range(20)
        ]
        outcomes = await asyncio.gather(
            executor.submit(calls.square, 2), executor.submit(calls.fail), return_exceptions=True
        )
        assert outcomes[0] == 4
        assert isinstance(outcomes[1], ValueError)

    async def test_wait(self, executor: Any, gate: Gate) -> None:
        late, early = executor.submit(calls.wait_at, gate), executor.submit(calls.square, 2)
        done, pending = await asyncio.wait([late, early], timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
        assert (done, pending) == ({early}, {late})
        gate.open()
        done, pending = await asyncio.wait([late, early], timeout=DEADLINE_S)
        assert (done, pending) == ({late, early}, set())

    async def test_wait_times_out(self, executor: Any, gate: Gate) -> None:
        late = executor.submit(calls.wait_at, gate, 5)
        assert await asyncio.wait([late], timeout=0.01) == (set(), {late})
        gate.open()
        assert await late == 5

    async def test_as_completed(self, executor: Any) -> None:
        futures = [executor.submit(calls.square, x) for x in range(10)]
        assert sorted([await one for one in asyncio.as_completed(futures)]) == [x * x for x in range(10)]

    async def test_wait_for(self, executor: Any, gate: Gate) -> None:
        assert await asyncio.wait_for(executor.submit(calls.square, 3), DEADLINE_S) == 9
        running = executor.submit(calls.wait_at, gate, 5)
        await until_async(lambda: gate.arrivals)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(running, 0.01)
        gate.open()
        assert await running == 5  # it had started: it is not cancelled

    async def test_timeout_block(self, executor: Any, gate: Gate) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await executor.submit(calls.wait_at, gate)

    async def test_shield_keeps_a_pending_call(self, executor: Any, gate: Gate) -> None:
        last = (await asyncio.to_thread(hold, executor, gate))[-1]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(last), 0.01)
        gate.open()
        assert await last == MANY - 1

    async def test_cancelled_await_cancels_a_pending_call(self, executor: Any, gate: Gate) -> None:
        last = (await asyncio.to_thread(hold, executor, gate))[-1]
        waiting = asyncio.ensure_future(last)
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until_async(last.cancelled)
        gate.open()

    async def test_await_of_a_cancelled_call_raises(self, executor: Any, gate: Gate) -> None:
        last = (await asyncio.to_thread(hold, executor, gate))[-1]
        assert await asyncio.to_thread(last.cancel)
        with pytest.raises((asyncio.CancelledError, CancelledError)):
            await last

    async def test_task_group(self, executor: Any) -> None:
        async def wait_for(x: int) -> int:
            return int(await executor.submit(calls.square, x))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(wait_for(x)) for x in range(5)]
        assert [task.result() for task in tasks] == [0, 1, 4, 9, 16]

    async def test_run_in_executor_and_wrap_future(self, executor: Any) -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(executor, calls.square, 3) == 9
        assert await asyncio.wrap_future(executor.submit(calls.square, 4)) == 16
        with pytest.raises(ValueError, match="as planned"):
            await loop.run_in_executor(executor, calls.fail)

    async def test_callback_added_on_a_loop_runs_on_it(self, executor: Any) -> None:
        called: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        threads: list[threading.Thread] = []
        future = executor.submit(calls.square, 3)
        future.add_done_callback(lambda _: threads.append(threading.current_thread()))
        future.add_done_callback(lambda done: called.set_result(done.result()))
        assert await asyncio.wait_for(called, DEADLINE_S) == 9
        assert threads == [threading.current_thread()]

    def test_many_loops_share_one_executor(self, executor: Any) -> None:
        async def work(start: int) -> list[int]:
            return list(await asyncio.gather(*(executor.submit(calls.add, start, x) for x in range(20))))

        with ThreadPoolExecutor(4) as threads:
            runs = [threads.submit(asyncio.run, work(start)) for start in range(8)]
            assert [run.result(DEADLINE_S) for run in runs] == [[start + x for x in range(20)] for start in range(8)]

    def test_two_loops_await_one_future(self, executor: Any, gate: Gate) -> None:
        future = executor.submit(calls.wait_at, gate, "both")

        async def wait() -> Any:
            return await future

        with ThreadPoolExecutor(2) as threads:
            runs = [threads.submit(asyncio.run, wait()) for _ in range(2)]
            gate.wait_arrivals()
            gate.open()
            assert [run.result(DEADLINE_S) for run in runs] == ["both", "both"]

    def test_a_loop_that_is_closed_before_the_result_harms_nobody(self, executor: Any, gate: Gate) -> None:
        futures: list[Any] = []

        async def leave() -> None:
            futures.append(executor.submit(calls.wait_at, gate, 5))
            futures[0].add_done_callback(lambda _: None)
            await until_async(lambda: gate.arrivals)

        asyncio.run(leave())
        gate.open()
        assert futures[0].result(DEADLINE_S) == 5
        assert executor.submit(calls.square, 3).result(DEADLINE_S) == 9


class AsyncFunctionContract:
    def test_coroutine_functions_run_to_their_end(self, executor: Any) -> None:
        assert executor.submit(calls.square_slowly, 7).result(DEADLINE_S) == 49
        assert isinstance(executor.submit(calls.fail_slowly).exception(DEADLINE_S), calls.CustomError)

    def test_map_of_a_coroutine_function(self, executor: Any) -> None:
        assert list(executor.map(calls.square_slowly, range(20))) == [x * x for x in range(20)]


class AsyncMapContract:
    async def test_async_for_over_a_map(self, executor: Any) -> None:
        assert [y async for y in executor.map(calls.square, range(50))] == [x * x for x in range(50)]
        assert [y async for y in executor.map(calls.add, [1, 2, 3], [10, 20])] == [11, 22]
        assert [y async for y in executor.map(calls.square, [])] == []

    async def test_async_for_raises_in_its_place_and_ends(self, executor: Any) -> None:
        results = executor.map(calls.fail_on, [2] * 5, range(5))
        assert [await anext(results), await anext(results)] == [0, 1]
        with pytest.raises(calls.CustomError):
            await anext(results)
        with pytest.raises(StopAsyncIteration):
            await anext(results)

    @pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration])
    async def test_a_call_that_raises_what_ends_loops_does_not_end_them(self, executor: Any, kind: Any) -> None:
        with pytest.raises(RuntimeError, match=kind.__name__):
            async for _ in executor.map(calls.stop_iterating, [kind]):
                pass

    async def test_async_for_times_out(self, executor: Any, gate: Gate) -> None:
        results = executor.map(calls.wait_at, [gate], timeout=0.05)
        with pytest.raises(TimeoutError):
            await anext(results)

    async def test_async_for_lets_the_loop_run(self, executor: Any, gate: Gate) -> None:
        async def open_it() -> None:
            await until_async(lambda: gate.arrivals)
            gate.open()

        opener = asyncio.ensure_future(open_it())
        assert [y async for y in executor.map(gate.pass_through, range(3))] == [0, 1, 2]
        await opener

    async def test_aclose_ends_it(self, executor: Any) -> None:
        results = executor.map(calls.square, itertools.count(), buffersize=10)
        assert [await anext(results) for _ in range(3)] == [0, 1, 4]
        await results.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(results)

    async def test_async_iterables_are_accepted(self, executor: Any) -> None:
        assert [y async for y in executor.map(calls.square, numbers(30))] == [x * x for x in range(30)]
        assert [y async for y in executor.map(calls.add, numbers(5), range(3))] == [0, 2, 4]
        assert [y async for y in executor.map(calls.square, numbers(30), buffersize=4)] == [x * x for x in range(30)]

    async def test_async_iterable_that_fails(self, executor: Any) -> None:
        async def failing() -> AsyncIterator[int]:
            yield 1
            raise calls.CustomError(9)

        with pytest.raises(calls.CustomError):
            [y async for y in executor.map(calls.square, failing())]
        assert await executor.submit(calls.square, 3) == 9

    async def test_imap_unordered_and_starmap(self, executor: Any) -> None:
        assert sorted([y async for y in executor.imap_unordered(calls.square, range(30))]) == [x * x for x in range(30)]
        assert [y async for y in executor.starmap(calls.add, [(1, 2), (3, 4)])] == [3, 7]
        pairs = ((x, 1) async for x in numbers(3))
        assert [y async for y in executor.starmap(calls.add, pairs)] == [1, 2, 3]

    async def test_maps_run_side_by_side(self, executor: Any) -> None:
        async def collect(offset: int) -> list[int]:
            return [y async for y in executor.map(calls.add, range(30), [offset] * 30)]

        assert await asyncio.gather(*(collect(k) for k in range(5))) == [[x + k for x in range(30)] for k in range(5)]


class AsyncLifeContract:
    async def test_async_with(self, make_executor: Callable[..., Any]) -> None:
        executor = make_executor()
        async with executor as inner:
            assert inner is executor
            future = inner.submit(calls.square, 3)
        assert future.result(0) == 9
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(calls.square, 3)

    async def test_async_with_lets_an_exception_through(self, make_executor: Callable[..., Any]) -> None:
        executor, futures = make_executor(), []

        async def use() -> None:
            async with executor:
                futures.append(executor.submit(calls.square, 3))
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            await use()
        assert futures[0].result(0) == 9

    async def test_starting_at_the_first_submit_does_not_block_the_loop(
        self, make_executor: Callable[..., Any]
    ) -> None:
        executor = make_executor()
        future = executor.submit(calls.square, 3)
        assert not future.done()  # nothing can be up yet: had it waited, it would have been
        assert await future == 9
        executor.shutdown(wait=False)

    async def test_with_on_a_loop(self, make_executor: Callable[..., Any]) -> None:
        with make_executor() as executor:
            assert await executor.submit(calls.square, 3) == 9
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(calls.square, 3)
