"""A session's life before a broker that is a double: closing at any time, from anywhere, and what is left then."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from executor.dispatch.future import CallFuture
from executor.errors import CallExpired, PoolBroken, PoolStartError
from executor.session import Session
from executor.session import sessions as all_sessions
from executor.submitter import Submitter
from executor.tasks.call_options import CallOptions
from executor.tasks.pool_spec import PoolSpec
from tests.support import until
from tests.unit.dispatch.doubles import FakeBroker, FakePublisher, FakeReplies


class PoolDouble:
    """Stands for a pool of two slots."""

    slots = 2
    on_broken: Any = None
    owned = True

    def __init__(self, name: str = "default", error: Exception | None = None) -> None:
        self.spec = PoolSpec(name=name)
        self.stopped: list[float | None] = []
        self.error = error

    async def stop(self, grace_s: float | None = None) -> None:
        self.stopped.append(grace_s)
        if self.error is not None:
            raise self.error


class OfflineSession(Session):
    """A session whose broker and workers are here: workers answer ``f(x)`` with ``x``, while :attr:`open` is set."""

    def __init__(self, *pools: PoolDouble, start_error: Exception | None = None) -> None:
        super().__init__(pools or [PoolDouble()], executor="test", client="c", key=b"k" * 32)  # type: ignore[arg-type]
        self.open = threading.Event()
        self.start_error = start_error
        self.broker: FakeBroker | None = None
        self.arguments: list[Any] = []

    async def _start_pools(self) -> None:
        await asyncio.sleep(0)
        if self.start_error is not None:
            raise self.start_error
        assert self._dispatcher is not None
        self.broker = FakeBroker(self._dispatcher.frames.key)
        await self._dispatcher.start(FakePublisher(self.broker), FakeReplies(self.broker))  # type: ignore[arg-type]
        self._serving = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        assert self.broker is not None
        held: list[Any] = []
        while True:
            await asyncio.sleep(0.001)
            if len(held) < 2 and (one := self.broker.claim()) is not None:
                held.append(one)
            while held and self.open.is_set():
                one = held.pop()
                self.arguments += [args for n, args in enumerate(one.arguments) if n not in one.cancelled]
                one.reply()


@pytest.fixture
def session() -> Iterator[OfflineSession]:
    one = OfflineSession()
    one.open.set()
    yield one
    one.open.set()
    one.close(now=True).result(10)


@pytest.fixture
def submitter(session: OfflineSession) -> Submitter:
    return Submitter(session, CallOptions(max_deliveries=1))


def f(x: Any) -> Any:
    """Never called here."""
    raise AssertionError(x)


def submit(submitter: Submitter, *values: Any) -> list[CallFuture[Any]]:
    return [submitter.submit(f, (value,), {}) for value in values]


def a_map(submitter: Submitter, items: Any, **how: Any) -> Any:
    how = {"star": False, "timeout": None, "chunksize": None, "buffersize": None, "progress": False, **how}
    return submitter.map(f, (items,), **how)


# ── starting ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_session_starts_with_the_first_call_and_closes_when_all_is_done(
    session: OfflineSession, submitter: Submitter
) -> None:
    assert not session.in_use
    futures = submit(submitter, *range(30))
    session.close().result(10)
    assert [future.result(0) for future in futures] == list(range(30))
    assert session not in all_sessions


def test_session_that_cannot_start_says_why_to_everybody() -> None:
    session = OfflineSession(start_error=PoolStartError("no memory"))
    submitter = Submitter(session, CallOptions())
    for _ in range(2):
        with pytest.raises(PoolStartError, match="no memory"):
            submit(submitter, 1)
    session.close().result(10)


async def test_session_that_cannot_start_says_why_on_a_loop_too() -> None:
    session = OfflineSession(start_error=PoolStartError("no memory"))

    async def call() -> None:
        (future,) = submit(Submitter(session, CallOptions()), 1)  # raises here if the loop thread was quick
        await future

    with pytest.raises(PoolStartError, match="no memory"):
        await call()
    await asyncio.wrap_future(session.close())


def test_session_starts_once_for_many_threads(session: OfflineSession, submitter: Submitter) -> None:
    futures: list[CallFuture[Any]] = []
    threads = [threading.Thread(target=lambda n=n: futures.extend(submit(submitter, n))) for n in range(8)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(future.result(10) for future in futures) == list(range(8))


# ── closing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_close_of_a_session_never_started_is_done_at_once() -> None:
    session = OfflineSession()
    session.close().result(0)
    session.close(cancel=True).result(0)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        session.start()


@pytest.mark.parametrize("how", [{}, {"cancel": True}, {"now": True}])
def test_close_may_be_repeated_in_any_way_also_after_the_end(
    session: OfflineSession, submitter: Submitter, how: dict[str, bool]
) -> None:
    submit(submitter, 1)
    first, second = session.close(), session.close(**how)
    assert first is second
    first.result(10)
    session.close(**how).result(10)


def test_close_from_the_loop_thread_itself(session: OfflineSession, submitter: Submitter) -> None:
    session.open.clear()
    first, second = submit(submitter, 1, 2)
    first.add_done_callback(lambda _: session.close())
    session.open.set()
    until(lambda: session.closed and session.close().done())
    assert (first.result(0), second.result(0)) == (1, 2)


def test_submit_after_close_raises(session: OfflineSession, submitter: Submitter) -> None:
    submit(submitter, 1)
    session.close()
    for call in (lambda: submit(submitter, 1), lambda: a_map(submitter, [1])):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            call()


def test_call_submitted_against_close_settles_or_is_refused() -> None:
    for _ in range(15):
        _submit_against_close()


def _submit_against_close() -> None:
    session = OfflineSession()
    session.open.set()
    submitter = Submitter(session, CallOptions())
    submit(submitter, 0)
    begin = threading.Barrier(3)
    accepted: list[CallFuture[Any]] = []
    maps: list[Any] = []
    refused: list[str] = []

    def call() -> None:
        begin.wait()
        try:
            for n in itertools.count():
                accepted.extend(submit(submitter, n))
                maps.append(a_map(submitter, [n]))
        except RuntimeError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    begin.wait()
    session.close().result(10)
    for thread in threads:
        thread.join()
    assert all(future.done() and not future.exception(0) for future in accepted)
    assert all(len(list(results)) == 1 for results in maps)
    assert refused == ["cannot schedule new futures after shutdown"] * 2


def test_close_that_cancels_lets_run_what_has_started(session: OfflineSession, submitter: Submitter) -> None:
    session.open.clear()
    futures = submit(submitter, *range(50))
    until(lambda: session.broker is not None and len(session.broker.handed_out) >= 2)
    closing = session.close(cancel=True)
    until(lambda: sum(future.cancelled() for future in futures) >= 40)
    session.open.set()
    closing.result(10)
    ran = {args[0] for args in session.arguments}
    assert ran == {n for n, future in enumerate(futures) if not future.cancelled()}
    assert 0 < len(ran) <= 4


def test_close_now_fails_what_has_no_outcome(session: OfflineSession, submitter: Submitter) -> None:
    session.open.clear()
    futures = submit(submitter, *range(50))
    session.close(now=True).result(10)
    assert all(isinstance(future.exception(0), PoolBroken) for future in futures)


def test_close_stops_every_pool_even_if_one_fails(caplog: pytest.LogCaptureFixture) -> None:
    good, bad = PoolDouble("default"), PoolDouble("bad", OSError("stuck"))
    session = OfflineSession(good, bad)
    session.start().result(10)
    with pytest.raises(OSError, match="stuck"):
        session.close().result(10)
    assert good.stopped == bad.stopped == [None]
    assert "'bad' could not be stopped" in caplog.text


def test_view_waits_for_its_own_calls_only(session: OfflineSession, submitter: Submitter) -> None:
    session.open.clear()
    other, mine = submit(submitter, 1), Submitter(session, CallOptions())
    (future,) = submit(mine, 2)
    thread = threading.Thread(target=lambda: mine.finish(wait=True, cancel=False))
    thread.start()
    assert not future.done()
    session.open.set()
    thread.join(10)
    assert not thread.is_alive()
    assert future.result(0) == 2
    assert other[0].result(10) == 1
    session.close().result(10)
    mine.finish(wait=True, cancel=True)


def test_view_that_cancels_all_its_calls_does_not_hang(session: OfflineSession, submitter: Submitter) -> None:
    session.open.clear()
    futures = submit(submitter, *range(30))
    thread = threading.Thread(target=lambda: submitter.finish(wait=True, cancel=True))
    thread.start()
    until(lambda: sum(future.cancelled() for future in futures) >= 25)
    session.open.set()
    thread.join(10)
    assert not thread.is_alive()
    assert all(future.done() for future in futures)


# ── maps ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_map_closed_half_way_or_after_the_end_of_the_session(session: OfflineSession, submitter: Submitter) -> None:
    results = a_map(submitter, range(1000), chunksize=10)
    lazy = a_map(submitter, itertools.count(), buffersize=10)
    assert (next(results), next(lazy)) == (0, 0)
    results.close()
    session.close().result(10)
    lazy.close()
    assert list(lazy) == list(results) == []


def test_map_dropped_half_way_cancels_the_rest(session: OfflineSession, submitter: Submitter) -> None:
    session.open.clear()
    results = a_map(submitter, range(1000), chunksize=1)
    waiting = threading.Thread(target=lambda results=results: next(results))  # type: ignore[misc]
    waiting.start()
    session.open.set()
    waiting.join(10)
    session.open.clear()
    del results, waiting
    session.open.set()
    session.close().result(10)
    assert len(session.arguments) < 1000


def test_lazy_map_takes_no_more_than_its_buffer(session: OfflineSession, submitter: Submitter) -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for n in itertools.count():
            taken.append(n)
            yield n

    results = a_map(submitter, source(), buffersize=8)
    assert len(taken) == 8
    for n in range(100):
        assert next(results) == n
        assert len(taken) <= n + 1 + 8
    results.close()


@pytest.mark.parametrize("buffersize", [1, 2, 3, 7])
def test_lazy_map_gives_everything(session: OfflineSession, submitter: Submitter, buffersize: int) -> None:
    assert list(a_map(submitter, iter(range(50)), buffersize=buffersize)) == list(range(50))
    unordered = a_map(submitter, iter(range(50)), buffersize=buffersize, ordered=False)
    assert sorted(unordered) == list(range(50))


def test_error_of_a_lazy_source_surfaces_and_ends_the_run(session: OfflineSession, submitter: Submitter) -> None:
    def source() -> Iterator[int]:
        yield from range(10)
        raise KeyError("source")

    results = a_map(submitter, source(), buffersize=2)
    with pytest.raises(KeyError, match="source"):
        list(results)
    assert list(results) == []


class Source:
    """An async source that can fail, and knows whether somebody still waits on it."""

    def __init__(self, count: int | None = None, error: Exception | None = None) -> None:
        self.count, self.error = count, error
        self.taken = 0
        self.ended = False

    async def items(self) -> AsyncIterator[int]:
        try:
            while self.count is None or self.taken < self.count:
                self.taken += 1
                yield self.taken - 1
                await asyncio.sleep(0)
            if self.error is not None:
                raise self.error
        finally:
            self.ended = True


async def test_async_source_gives_everything(session: OfflineSession, submitter: Submitter) -> None:
    results = a_map(submitter, Source(50).items(), buffersize=4)
    assert [value async for value in results] == list(range(50))


async def test_error_of_an_async_source_comes_after_the_results_before_it(
    session: OfflineSession, submitter: Submitter
) -> None:
    results = a_map(submitter, Source(5, KeyError("source")).items(), buffersize=2)
    seen: list[int] = []

    async def take_all() -> None:
        async for value in results:
            seen.append(value)

    with pytest.raises(KeyError, match="source"):
        await take_all()
    assert seen == list(range(5))
    with pytest.raises(StopAsyncIteration):
        await anext(results)


async def test_abandoned_async_iteration_leaves_no_task(session: OfflineSession, submitter: Submitter) -> None:
    source = Source()
    async for value in a_map(submitter, source.items(), buffersize=4):
        if value == 5:
            break
    for _ in range(20):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert source.ended
    assert source.taken < 20


async def test_async_iteration_cancelled_while_it_waits_may_go_on(
    session: OfflineSession, submitter: Submitter
) -> None:
    session.open.clear()
    results = a_map(submitter, Source(3).items(), buffersize=4)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(results), 0.01)
    session.open.set()
    assert [value async for value in results] == [0, 1, 2]


def test_async_source_of_a_loop_that_has_ended_harms_nobody(session: OfflineSession, submitter: Submitter) -> None:
    async def some() -> Any:
        results = a_map(submitter, Source().items(), buffersize=4)
        assert await anext(results) == 0
        return results

    results = asyncio.run(some())
    results.close()


def test_async_source_in_a_plain_for_says_what_to_write(session: OfflineSession, submitter: Submitter) -> None:
    results = a_map(submitter, Source(3).items())
    with pytest.raises(TypeError, match="write `async for`"):
        next(results)


# ── expiry ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_calls_and_items_that_wait_too_long_expire(session: OfflineSession) -> None:
    session.open.clear()
    submitter = Submitter(session, CallOptions(expires=0.05, max_deliveries=1))
    futures = submit(submitter, *range(20))
    results = a_map(submitter, range(20), chunksize=1)
    until(lambda: sum(future.done() for future in futures) >= 16)
    session.open.set()
    errors = [future.exception(10) for future in futures]
    assert {type(error) for error in errors} <= {CallExpired, type(None)}
    with pytest.raises(CallExpired, match=r"had not started 0\.05 s after it was submitted"):
        list(results)


def test_items_taken_in_later_expire_later(session: OfflineSession) -> None:
    submitter = Submitter(session, CallOptions(expires=0.2))
    results = a_map(submitter, iter(range(400)), buffersize=2)
    assert list(results) == list(range(400))  # takes longer than `expires`, but no item waits for so long
