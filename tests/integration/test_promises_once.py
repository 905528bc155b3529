"""One outcome for each call: frozen workers that come back, replies lost in flight, batches half done."""

from __future__ import annotations

import itertools
import random
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults import (
    ExtraWorker,
    Journal,
    Proxy,
    Server,
    children,
    gated,
    kill,
    noted,
    parent_of,
    registered,
    started,
)
from tests.support import until

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from tests.support import Gate

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


class Counted:
    """Counts how often futures are settled."""

    def __init__(self, futures: list[Future[Any]]) -> None:
        self.times = 0
        for future in futures:
            future.add_done_callback(self._count)

    def _count(self, future: Future[Any]) -> None:
        self.times += 1


@pytest.mark.parametrize("whole", [True, False], ids=["family", "parent"])
def test_a_worker_frozen_past_its_lease_comes_back_and_harms_nobody(
    tmp_path: Path, journal: Journal, gate: Gate, whole: bool
) -> None:
    with Server(tmp_path) as server, started(max_workers=2, broker_url=server.url, lease=2.0) as executor:
        broker = server.client()
        with ExtraWorker(parent_of(broker), tmp_path, slots=2) as extra:
            until(lambda: len(registered(broker)) == 2)
            futures = [executor.submit(gated, journal, i, gate) for i in range(4)]
            counted = Counted(futures)
            journal.wait("started", count=4)
            theirs = {e.call for e in journal.entries("started") if e.pid in extra.family()}
            assert len(theirs) == 2
            extra.freeze() if whole else kill(extra.pid, signal.SIGSTOP)
            (mine,) = [int(i) for i in {"0", "1", "2", "3"} - theirs][:1]
            until(lambda: len(registered(broker)) == 1, what="the frozen worker is reaped")
            gate.open()
            assert futures[mine].result() == mine
            assert [future.result() for future in futures] == list(range(4))
            assert {call for call, count in journal.counts().items() if count == 2} == theirs

            extra.resume()
            until(lambda: len(registered(broker)) == 2, what="it is back under another id")
            assert extra.process.poll() is None
            more = itertools.count()

            def works_again() -> bool:  # its new children may take longer to start than any number of calls lasts
                names = [f"more{next(more)}" for _ in range(4)]
                futures = [executor.submit(noted, journal, name, 0.05) for name in names]
                assert [future.result() for future in futures] == names
                return any(e.pid in extra.family() for e in journal.entries("started") if e.call.startswith("more"))

            until(works_again, what="it takes calls again")
            assert counted.times == 4
            assert max(journal.counts().values()) == 2


def test_a_reply_that_is_lost_in_flight_is_read_again(tmp_path: Path, journal: Journal) -> None:
    with (
        Server(tmp_path) as server,
        Proxy(server.port) as proxy,
        started(max_workers=2, broker_url=proxy.url) as executor,
    ):
        assert executor.submit(noted, journal, "first").result() == "first"
        for i in range(5):
            proxy.hold("ke-replies")
            futures = [executor.submit(noted, journal, f"{i}-{j}") for j in range(10)]
            until(lambda: proxy.held_bytes() > 100, what="a reply is in flight")
            assert (proxy.reset if i % 2 else proxy.cut)("ke-replies") >= 1
            assert not any(future.done() for future in futures)
            proxy.release()
            assert [future.result() for future in futures] == [f"{i}-{j}" for j in range(10)]
    assert set(journal.counts().values()) == {1}


def test_no_result_of_a_map_is_lost_or_doubled_while_connections_are_cut(tmp_path: Path, journal: Journal) -> None:
    chance = random.Random(3)
    with (
        Server(tmp_path) as server,
        Proxy(server.port) as proxy,
        started(max_workers=2, broker_url=proxy.url) as executor,
    ):
        results = executor.map(_mapped, [(journal, i) for i in range(1500)])
        seen = []
        for value in results:
            seen.append(value)
            if value % 150 == 0:
                (proxy.reset if chance.random() < 0.5 else proxy.cut)(
                    chance.choice(["ke-client", "ke-replies", "ke:", ""])
                )
    assert seen == list(range(1500))
    assert set(journal.counts().values()) == {1}


def _mapped(item: tuple[Journal, int]) -> int:
    journal, call = item
    journal.note("started", call)
    time.sleep(0.001)
    return call


def test_a_publication_whose_answer_is_lost_is_not_repeated(tmp_path: Path, journal: Journal) -> None:
    with (
        Server(tmp_path) as server,
        Proxy(server.port) as proxy,
        started(max_workers=2, broker_url=proxy.url) as executor,
    ):
        assert executor.submit(noted, journal, "first").result() == "first"
        for i in range(5):
            proxy.hold("ke-client")
            futures = [executor.submit(noted, journal, f"{i}-{j}") for j in range(10)]
            until(lambda: proxy.held_bytes() > 0, what="an answer is in flight")
            proxy.cut("ke-client")
            proxy.release()
            assert [future.result() for future in futures] == [f"{i}-{j}" for j in range(10)]
    assert set(journal.counts().values()) == {1}


def test_what_a_dead_worker_had_published_of_a_batch_is_not_run_again(
    tmp_path: Path, journal: Journal, gate: Gate
) -> None:
    """The worker parent dies with a batch half done: the part that was published counts, the rest runs again."""
    with Server(tmp_path) as server, started(max_workers=1, broker_url=server.url) as executor:
        broker = server.client()
        items = [(journal, i, gate) for i in range(10)]
        results = executor.options(timeout=60).imap_unordered(_gate_at_five, items, chunksize=10)
        first = [next(results) for _ in range(5)]
        assert sorted(first) == [0, 1, 2, 3, 4]
        journal.wait("started", 5)
        parent = parent_of(broker)
        assert len(children(parent)) >= 1
        kill(parent)
        journal.wait("started", 5, count=2)
        gate.open()
        assert sorted([*first, *results]) == list(range(10))
    assert journal.counts() == {str(i): 2 if i == 5 else 1 for i in range(10)}


def _gate_at_five(item: tuple[Journal, int, Gate]) -> int:
    journal, call, gate = item
    journal.note("started", call)
    if call == 5:
        until(gate.is_open, 60, "the gate is open")
    return call
