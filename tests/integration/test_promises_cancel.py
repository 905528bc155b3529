"""Cancelling: a call of which ``cancel()`` says True never runs; a running one is interrupted, or killed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING

import pytest

from executor import KubeExecutor
from tests.faults import Journal, Server, alive, broker_of, gated, interruptible, noted, started, stubborn
from tests.support import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Gate

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def executor() -> Iterator[KubeExecutor]:
    with started(max_workers=2) as one:
        yield one


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def still_works(executor: KubeExecutor) -> bool:
    return list(executor.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]


def test_a_queued_call_that_was_cancelled_never_runs(executor: KubeExecutor, journal: Journal, gate: Gate) -> None:
    blockers = [executor.submit(gated, journal, f"blocker{i}", gate) for i in range(2)]
    journal.wait("started", count=2)
    futures = [executor.submit(noted, journal, i) for i in range(50)]

    cancelled = {i for i, future in enumerate(futures) if i % 2 and future.cancel()}
    gate.open()

    assert cancelled == set(range(1, 50, 2))
    assert [futures[i].result() for i in range(0, 50, 2)] == list(range(0, 50, 2))
    assert all(futures[i].cancelled() for i in cancelled)
    with pytest.raises(CancelledError):
        futures[1].result()
    assert [blocker.result() for blocker in blockers] == ["blocker0", "blocker1"]
    assert still_works(executor)
    assert set(journal.counts()) == {"blocker0", "blocker1", *map(str, range(0, 50, 2))}


def test_what_cancel_says_is_what_happens_while_calls_are_being_claimed(
    executor: KubeExecutor, journal: Journal
) -> None:
    futures = [executor.submit(noted, journal, i, 0.005) for i in range(600)]
    order = list(range(600))
    random.Random(2).shuffle(order)

    said = {i: futures[i].cancel() for i in order}
    done = {i: None if futures[i].cancelled() else futures[i].result() for i in order}

    assert done == {i: None if said[i] else i for i in order}
    assert still_works(executor)
    assert journal.counts() == {str(i): 1 for i in order if not said[i]}
    assert 0 < sum(said.values()) < 600


def test_a_running_call_is_not_cancelled_but_can_be_interrupted(executor: KubeExecutor, journal: Journal) -> None:
    future = executor.submit(interruptible, journal, "it")
    pid = journal.wait("started").pid

    assert not future.cancel()
    assert executor.cancel(future, running=True) == "interrupted"
    error = future.exception(20) if not _was_cancelled(future) else None

    assert error is None or isinstance(error, KeyboardInterrupt)
    assert journal.wait("interrupted").pid == pid
    assert journal.starts() == 1
    assert alive(pid)  # only the call was ended
    assert still_works(executor)


def test_a_call_that_ignores_signals_is_killed_on_demand(executor: KubeExecutor, journal: Journal) -> None:
    future = executor.submit(stubborn, journal, "it")
    pid = journal.wait("started").pid

    assert executor.cancel(future, running=True) == "interrupted"
    assert executor.cancel(future, running=True, kill=True) == "interrupted"

    until(future.done, what="the future is settled")
    assert future.cancelled()
    until(lambda: not alive(pid), what="its process is gone")
    assert journal.starts() == 1
    assert still_works(executor)


async def test_on_an_event_loop_a_running_call_is_interrupted_without_waiting(
    executor: KubeExecutor, journal: Journal
) -> None:
    future = executor.submit(interruptible, journal, "it")
    await asyncio.to_thread(journal.wait, "started")

    assert executor.cancel(future, running=True) == "asked"
    with pytest.raises((CancelledError, KeyboardInterrupt)):
        await future


def test_a_callback_that_waits_for_its_own_executor_is_told_so(executor: KubeExecutor, gate: Gate) -> None:
    errors: Future[BaseException] = Future()

    def waits(_: Future[int]) -> None:
        for wait in (executor.submit(abs, -2).result, executor.submit(abs, -3).exception):
            try:
                wait()
            except RuntimeError as error:
                if "wait forever" in str(error):
                    continue
            errors.set_result(AssertionError("it did not refuse to wait"))
            return
        errors.set_result(RuntimeError("refused"))

    future = executor.submit(gate.pass_through)
    future.add_done_callback(waits)
    gate.open()
    assert str(errors.result(30)) == "refused"
    assert still_works(executor)


def test_interrupting_one_call_leaves_those_behind_it_alone(executor: KubeExecutor, journal: Journal) -> None:
    futures = [executor.submit(interruptible, journal, f"it{i}") for i in range(2)]
    journal.wait("started", count=2)
    others = [executor.submit(noted, journal, i) for i in range(20)]

    for future in futures:
        assert executor.cancel(future, running=True) == "interrupted"

    assert [other.result() for other in others] == list(range(20))
    assert all(journal.starts(i) == 1 for i in range(20))
    for future in futures:
        until(future.done, what="the interrupted call is settled")


def test_cancelling_says_what_it_met(executor: KubeExecutor, journal: Journal, gate: Gate) -> None:
    executor.submit(time.sleep, 0.2).result()  # after a long call none is fetched ahead: "queued" is at the broker
    blockers = [executor.submit(gated, journal, f"blocker{i}", gate) for i in range(2)]
    journal.wait("started", count=2)
    queued = executor.submit(noted, journal, "queued")
    until(lambda: queued.root is not None, what="it has been sent")

    assert executor.cancel(queued, running=True) == "cancelled"
    gate.open()
    assert [blocker.result() for blocker in blockers] == ["blocker0", "blocker1"]
    assert executor.cancel(blockers[0], running=True) == "too late"
    assert executor.cancel(blockers[0]) == "too late"
    assert journal.starts("queued") == 0


def test_shutdown_cancels_ten_thousand_queued_calls_at_once(tmp_path: Path, journal: Journal, gate: Gate) -> None:
    with Server(tmp_path) as server:
        executor = KubeExecutor(max_workers=2, broker_url=server.url)
        with executor:
            blockers = [executor.submit(gated, journal, f"blocker{i}", gate) for i in range(2)]
            journal.wait("started", count=2)
            futures = [executor.submit(noted, journal, i) for i in range(10_000)]
            began = time.monotonic()
            executor.shutdown(wait=False, cancel_futures=True)
            until(lambda: all(future.cancelled() for future in futures), what="all are cancelled")
            took_s = time.monotonic() - began
            gate.open()
            assert [blocker.result() for blocker in blockers] == ["blocker0", "blocker1"]
        print(f"10,000 queued calls cancelled in {took_s:.2f} s")
        assert set(journal.counts()) == {"blocker0", "blocker1"}
        assert not server.command("KEYS", "ke:batches:*")


def test_a_map_that_is_closed_runs_no_further(executor: KubeExecutor, journal: Journal) -> None:
    results = executor.map(_noted, [(journal, i) for i in range(2000)], chunksize=5)
    assert next(results) == 0
    results.close()

    broker = broker_of(executor)
    until(lambda: not broker.keys("ke:inflight:*") and not broker.keys("ke.*"), what="nothing is queued or runs")
    broker.close()
    first = journal.starts()
    assert still_works(executor)
    assert journal.starts() == first < 2000


def _noted(item: tuple[Journal, int]) -> object:
    journal, call = item
    return noted(journal, call, 0.005)


def _was_cancelled(future: object) -> bool:
    until(future.done, what="the future is settled")  # type: ignore[attr-defined]
    return bool(future.cancelled())  # type: ignore[attr-defined]


def test_a_future_of_another_executor_is_not_cancelled() -> None:
    with started(max_workers=1) as executor, pytest.raises(ValueError, match="not a future of this executor"):
        executor.cancel(Future(), running=True)  # type: ignore[arg-type]
