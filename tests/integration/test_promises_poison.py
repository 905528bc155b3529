"""Poison stops: how a call may end its process, what it gets for it, and that its neighbours notice nothing."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from executor import KubeExecutor
from executor.errors import CallTimeout, ChildCrashed, WorkerLost
from tests.faults import Journal, alive, broker_of, ending, kill, noted, started
from tests.support import until

if TYPE_CHECKING:
    from pathlib import Path

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


def dead_letters(executor: KubeExecutor) -> list[dict[str, Any]]:
    client = broker_of(executor)
    try:
        return [json.loads(letter) for letter in client.lrange("ke:dead:default", 0, -1)]
    finally:
        client.close()


@pytest.mark.parametrize(("how", "kind"), [("raise", ValueError), ("exit", SystemExit)])
def test_what_a_call_raises_is_on_its_future(
    executor: KubeExecutor, journal: Journal, how: str, kind: type[BaseException]
) -> None:
    error = executor.submit(ending, journal, "it", how).exception()

    assert type(error) is kind
    assert error.args == (("as planned",) if how == "raise" else (3,))
    assert journal.starts() == 1
    assert still_works(executor)


def test_a_call_that_exits_its_process_fails_with_exit_code_and_last_words(
    executor: KubeExecutor, journal: Journal
) -> None:
    error = executor.submit(ending, journal, "it", "_exit").exception()

    assert isinstance(error, ChildCrashed)
    assert error.details["exit_code"] == 7
    assert error.details["signal"] is None
    assert "the last words of it" in error.details["output"]
    assert "the last words of it" in str(error)
    assert journal.starts() == 1
    assert not dead_letters(executor)
    assert still_works(executor)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"])
def test_a_call_that_crashes_its_process_fails_with_the_signal(
    executor: KubeExecutor, journal: Journal, name: str
) -> None:
    error = executor.submit(ending, journal, "it", name).exception()

    assert isinstance(error, ChildCrashed)
    assert error.details["signal"] == name
    assert name in str(error)
    assert journal.starts() == 1
    assert still_works(executor)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_call_whose_process_is_killed_from_outside_runs_again(
    executor: KubeExecutor, journal: Journal, number: int
) -> None:
    future = executor.submit(noted, journal, "it", 0.5)
    kill(journal.wait("started").pid, number)

    assert future.result() == "it"
    assert journal.starts() == 2
    assert still_works(executor)


def test_a_call_that_is_killed_each_time_is_lost_with_its_story_and_kept_as_a_dead_letter(
    executor: KubeExecutor, journal: Journal
) -> None:
    before = len(dead_letters(executor))
    error = executor.submit(ending, journal, "it", "SIGKILL").exception()

    assert isinstance(error, WorkerLost)
    assert journal.starts() == 3
    assert [death["reason"] for death in error.deaths] == ["SIGKILL"] * 3
    assert [death["signal"] for death in error.deaths] == ["SIGKILL"] * 3
    assert {death["pid"] for death in error.deaths} == {entry.pid for entry in journal.entries()}
    assert all(death["host"] and "last words of it" in death["output"] for death in error.deaths)
    letters = dead_letters(executor)
    assert len(letters) == before + 1
    assert [death["pid"] for death in letters[0]["deaths"]] == [death["pid"] for death in error.deaths]
    assert letters[0]["pool"] == "default"
    assert still_works(executor)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_call_starts_at_most_max_deliveries_times(executor: KubeExecutor, journal: Journal, most: int) -> None:
    error = executor.options(max_deliveries=most).submit(ending, journal, "it", "SIGKILL").exception()

    assert isinstance(error, WorkerLost)
    assert journal.starts() == most
    assert len(error.deaths) == most


def test_calls_at_most_once_stay_so_when_a_neighbour_dies(executor: KubeExecutor, journal: Journal) -> None:
    once = executor.options(max_deliveries=1)
    still_works(executor)
    futures = [once.submit(ending, journal, i, "SIGKILL", 3) for i in range(12)]

    errors = [future.exception() for future in futures]

    assert isinstance(errors[3], WorkerLost)
    assert [errors[i] for i in range(12) if i != 3] == [None] * 11
    assert set(journal.counts().values()) == {1}


def test_a_call_over_its_timeout_is_killed_and_not_run_again(executor: KubeExecutor, journal: Journal) -> None:
    began = time.monotonic()
    error = executor.options(timeout=0.5).submit(ending, journal, "it", "hang").exception()

    assert isinstance(error, CallTimeout)
    assert isinstance(error, TimeoutError)
    assert time.monotonic() - began < 10
    pid = journal.entries()[0].pid
    until(lambda: not alive(pid), what="its process is gone")
    assert journal.starts() == 1
    assert still_works(executor)


def test_a_timeout_counts_from_the_start_of_each_call(executor: KubeExecutor, journal: Journal) -> None:
    limited = executor.options(timeout=1.0)
    futures = [limited.submit(noted, journal, i, 0.4) for i in range(8)]

    assert [future.result() for future in futures] == list(range(8))


@pytest.mark.parametrize("how", ["_exit", "SIGSEGV", "SIGKILL", "hang"])
def test_neighbours_in_the_batch_of_a_poisonous_call_get_their_values(
    executor: KubeExecutor, journal: Journal, how: str, tmp_path: Path
) -> None:
    view = executor.options(timeout=1.0 if how == "hang" else None)
    warm_up = Journal(tmp_path / "other")
    for i in range(3):  # now its duration is known, and the next ones travel together
        view.submit(ending, warm_up, i, how, "nobody").result()
    futures = [view.submit(ending, journal, i, how, 25) for i in range(60)]

    errors = [future.exception() for future in futures]

    assert isinstance(errors.pop(25), {"SIGKILL": WorkerLost, "hang": CallTimeout}.get(how, ChildCrashed))
    assert errors == [None] * 59
    assert [future.result() for i, future in enumerate(futures) if i != 25] == [i for i in range(60) if i != 25]
    counts = journal.counts()
    assert counts.pop("25") == (3 if how == "SIGKILL" else 1)
    # results on their way out of a process that ends at once are lost with it: these calls run again
    assert set(counts.values()) <= ({1} if how == "hang" else {1, 2, 3})
    assert all(counts[str(i)] == 1 for i in range(26, 60))
    assert still_works(executor)


def test_what_a_batch_had_finished_is_not_run_again_when_a_later_call_is_killed(
    executor: KubeExecutor, journal: Journal
) -> None:
    results = executor.options(timeout=2.0).imap_unordered(
        _slow_at_five, [(journal, i) for i in range(10)], chunksize=10
    )
    kill(journal.wait("slow").pid)

    assert sorted(results) == list(range(10))
    assert journal.counts() == {str(i): 2 if i == 5 else 1 for i in range(10)}


def _slow_at_five(item: tuple[Journal, int]) -> int:
    journal, call = item
    journal.note("started", call)
    if call == 5 and journal.starts(5) == 1:
        time.sleep(0.3)  # by then what is finished has been published
        journal.note("slow", call)
        time.sleep(30)
    return call
