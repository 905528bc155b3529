"""Nothing accepted is lost, whoever is killed: children and parents, at random moments, under load."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults import (
    ExtraWorker,
    Journal,
    Server,
    alive,
    children,
    failing_first,
    gated,
    kill,
    nested,
    noted,
    parent_of,
    registered,
    started,
)
from tests.support import until

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    import redis

    from executor import KubeExecutor
    from tests.support import Gate

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as one:
        yield one


@pytest.fixture
def broker(server: Server) -> Iterator[redis.Redis]:
    client = server.client()
    yield client
    client.close()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


class Load:
    """Calls of every kind, each with the value it must have, and how often its future was settled."""

    def __init__(self, executor: KubeExecutor, journal: Journal) -> None:
        view = executor.options(max_deliveries=100, retries=5, backoff=0.01)
        self.expected: dict[Future[Any], object] = {}
        self.settled: dict[Future[Any], int] = {}
        for i in range(300):
            self._expect(view.submit(noted, journal, f"small{i}"), f"small{i}")
        for i in range(60):
            self._expect(view.submit(noted, journal, f"medium{i}", 0.02), f"medium{i}")
        for i in range(6):
            self._expect(view.submit(noted, journal, f"long{i}", 0.4), f"long{i}")
        for i in range(10):
            self._expect(view.submit(failing_first, journal, f"retried{i}", 2), f"retried{i}")
        for i in range(6):
            self._expect(view.submit(nested, view, journal, f"nested{i}"), f"nested{i}")
        self.maps = [
            (view.map(_mapped, range(2000)), list(range(2000))),
            (view.map(_mapped_slowly, range(60), chunksize=20), list(range(60))),
        ]

    def _expect(self, future: Future[Any], value: object) -> None:
        self.expected[future] = value
        self.settled[future] = 0
        future.add_done_callback(self._count)

    def _count(self, future: Future[Any]) -> None:
        self.settled[future] += 1

    def check(self) -> None:
        """Every future has its own value, and was settled once."""
        for future, value in self.expected.items():
            assert future.result(60) == value
        for results, values in self.maps:
            assert list(results) == values
        assert set(self.settled.values()) == {1}


def _mapped(x: int) -> int:
    return x


def _mapped_slowly(x: int) -> int:
    time.sleep(0.01)
    return x


@contextmanager
def killing(victim: Callable[[], int], times: int, every_s: tuple[float, float], seed: int) -> Iterator[list[int]]:
    """In the background, SIGKILL whoever ``victim`` names, at random moments; gives the list of those killed."""
    chance, killed, over = random.Random(seed), [], threading.Event()

    def work() -> None:
        while len(killed) < times and not over.wait(chance.uniform(*every_s)):
            if pid := victim():
                kill(pid)
                killed.append(pid)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def test_calls_of_every_kind_survive_the_deaths_of_children(
    server: Server, broker: redis.Redis, journal: Journal
) -> None:
    with started(max_workers=2, broker_url=server.url) as executor:
        load = Load(executor, journal)
        parent = parent_of(broker)
        chance = random.Random(1)
        with killing(lambda: chance.choice(children(parent) or [0]), 12, (0.05, 0.4), seed=1) as killed:
            load.check()
    assert killed
    assert not broker.exists("ke:dead:default")


def test_calls_of_every_kind_survive_the_deaths_of_the_worker_parent(
    server: Server, broker: redis.Redis, journal: Journal
) -> None:
    with started(max_workers=2, broker_url=server.url) as executor:
        load = Load(executor, journal)
        parent_of(broker)
        until(lambda: journal.starts() > 20, what="the load runs")
        killed: list[int] = []
        for moment in (0.0, 0.3, 0.05):
            parent = parent_of(broker, *killed)
            until(lambda parent=parent: len(children(parent)) >= 2, what="its children run")
            time.sleep(moment)  # somewhere in its life
            kill(parent)
            killed.append(parent)
        load.check()
    assert len(killed) == 3
    assert not broker.exists("ke:dead:default")


def test_the_calls_of_a_dead_worker_parent_are_back_at_once_where_somebody_saw_it_die(
    server: Server, broker: redis.Redis, journal: Journal, gate: Gate, record_property: Callable[[str, object], None]
) -> None:
    with started(max_workers=2, broker_url=server.url) as executor:
        futures = [executor.submit(gated, journal, i, gate) for i in range(2)]
        journal.wait("started", count=2)
        dead = parent_of(broker)
        orphans = children(dead)
        began = time.time()
        kill(dead)
        back = [journal.wait("started", i, count=2).at - began for i in range(2)]
        until(lambda: not any(map(alive, orphans)), what="its children are gone")
        gate.open()

        assert [future.result() for future in futures] == [0, 1]
        record_property("back_s", max(back))
        print(f"SIGKILL of the only worker parent: calls run again after {back[0]:.2f} and {back[1]:.2f} s")


def test_the_calls_of_a_worker_that_nobody_saw_die_are_back_after_its_lease(
    server: Server, broker: redis.Redis, journal: Journal, gate: Gate, tmp_path: Path
) -> None:
    with started(max_workers=2, broker_url=server.url) as executor:
        first = parent_of(broker)
        with ExtraWorker(first, tmp_path, slots=2) as extra:
            futures = [executor.submit(gated, journal, i, gate) for i in range(4)]
            journal.wait("started", count=4)
            theirs = {e.call for e in journal.entries("started") if e.pid in extra.family()}
            assert len(theirs) == 2
            until(lambda: len(registered(broker)) == 2, what="both are registered")
            began = time.time()
            extra.kill()
            gate.open()  # so that the survivor has room; the dead worker's calls are not finished
            back = [journal.wait("started", call, count=2).at - began for call in theirs]

            assert [future.result() for future in futures] == list(range(4))
            assert {call: count for call, count in journal.counts().items() if count > 1} == dict.fromkeys(theirs, 2)
            until(lambda: len(registered(broker)) == 1, what="the dead worker is forgotten")
        print(f"SIGKILL of one of two worker parents: calls run again after {back[0]:.2f} and {back[1]:.2f} s")
        assert max(back) < 15  # the promise is 7 s; a loaded machine adds to it


def test_a_load_survives_the_deaths_of_one_worker_after_the_other(
    server: Server, broker: redis.Redis, journal: Journal, tmp_path: Path
) -> None:
    with started(max_workers=1, broker_url=server.url, lease=2.0) as executor:
        first = parent_of(broker)
        load = Load(executor, journal)
        for _ in range(2):
            with ExtraWorker(first, tmp_path, slots=1) as extra:
                until(lambda extra=extra: any(e.pid in extra.family() for e in journal.entries("started")[-50:]))
        load.check()
    assert not broker.exists("ke:dead:default")
    assert not broker.keys("ke:inflight:*")


def test_an_idle_worker_that_dies_loses_nothing(server: Server, broker: redis.Redis, journal: Journal) -> None:
    """An idle worker blocks in a BLMOVE: what it pops in the moment of its death lies in its inbox."""
    with started(max_workers=1, broker_url=server.url) as executor:
        view = executor.options(max_deliveries=100)
        killed: list[int] = []
        for i in range(4):
            parent = parent_of(broker, *killed)
            assert view.submit(noted, journal, f"before{i}").result(30) == f"before{i}"
            futures = [view.submit(noted, journal, f"{i}-{j}") for j in range(3)]
            kill(parent)
            killed.append(parent)
            assert [future.result(30) for future in futures] == [f"{i}-{j}" for j in range(3)]
    assert not broker.keys("ke:inbox:*")
