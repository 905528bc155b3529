"""A worker that lives is never robbed of its calls: they run once, however long, whatever the network and Redis do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from executor.broker import lean
from tests.faults import ExtraWorker, Journal, Proxy, Server, gated, noted, parent_of, registered, started
from tests.support import until

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path
    from typing import Any

    from executor import KubeExecutor
    from tests.support import Gate

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def beats(server: Server) -> dict[bytes, int]:
    client = server.client()
    try:
        return {worker: int(beat) for worker, beat in client.hgetall("ke:leases").items()}
    finally:
        client.close()


def outlive_leases(server: Server, lease_s: float) -> None:
    """Wait until every worker has renewed its lease for longer than a lease lasts."""
    before = beats(server)
    deadline = time.monotonic() + 1.5 * lease_s
    until(
        lambda: (
            time.monotonic() > deadline and all(now > before.get(worker, 0) for worker, now in beats(server).items())
        ),
        what="leases go on",
    )


@contextmanager
def two_workers(server: Server, directory: Path, url: str = "", slots: int = 2) -> Iterator[KubeExecutor]:
    """An executor whose pool has a second worker parent, with leases of 2 s."""
    with (
        started(max_workers=slots, broker_url=url or server.url, lease=2.0) as executor,
        ExtraWorker(parent_of(server.client()), directory, slots=slots),
    ):
        yield executor


class Running:
    """Four calls that run on two workers until the gate opens."""

    def __init__(self, executor: KubeExecutor, journal: Journal, gate: Gate) -> None:
        self.journal, self.gate = journal, gate
        self.futures: list[Future[Any]] = [executor.submit(gated, journal, i, gate) for i in range(4)]
        journal.wait("started", count=4)

    def check(self) -> None:
        self.gate.open()
        assert [future.result(40) for future in self.futures] == list(range(4))
        assert self.journal.counts() == {str(i): 1 for i in range(4)}


@pytest.mark.slow
def test_a_call_longer_than_many_leases_runs_once(tmp_path: Path, journal: Journal) -> None:
    with Server(tmp_path) as server, two_workers(server, tmp_path, slots=1) as executor:
        futures = [executor.submit(noted, journal, i, 12) for i in range(2)]
        assert [future.result() for future in futures] == [0, 1]
    assert journal.counts() == {"0": 1, "1": 1}


def test_calls_run_once_when_all_connections_are_killed(tmp_path: Path, journal: Journal, gate: Gate) -> None:
    with Server(tmp_path) as server, two_workers(server, tmp_path) as executor:
        running = Running(executor, journal, gate)
        for _ in range(3):
            server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            outlive_leases(server, 0.5)
        outlive_leases(server, 2.0)
        running.check()
        assert len(registered(server.client())) == 2


@pytest.mark.parametrize("fault", ["reset", "cut", "half_open"])
def test_calls_run_once_when_the_network_drops_every_connection(
    tmp_path: Path, journal: Journal, gate: Gate, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean, "SILENCE_S", 6.0)  # the client's own patience; the worker's is as it is
    with Server(tmp_path) as server, Proxy(server.port) as proxy, two_workers(server, tmp_path, proxy.url) as executor:
        running = Running(executor, journal, gate)
        assert getattr(proxy, fault)() >= 4
        outlive_leases(server, 2.0)
        running.check()
        assert executor.submit(noted, journal, "after").result(40) == "after"


def test_calls_run_once_when_redis_stands_still_for_longer_than_a_lease(
    tmp_path: Path, journal: Journal, gate: Gate
) -> None:
    with Server(tmp_path) as server, two_workers(server, tmp_path) as executor:
        running = Running(executor, journal, gate)
        server.pause()
        time.sleep(4)  # the fault itself
        server.resume()
        outlive_leases(server, 2.0)
        running.check()
        assert len(registered(server.client())) == 2


def test_outcomes_made_while_redis_stands_still_arrive(tmp_path: Path, journal: Journal, gate: Gate) -> None:
    with Server(tmp_path) as server, two_workers(server, tmp_path) as executor:
        running = Running(executor, journal, gate)
        server.pause()
        gate.open()
        journal.wait("finished", count=4)
        time.sleep(4)
        server.resume()
        running.check()


def test_calls_run_once_when_redis_restarts_with_its_data(tmp_path: Path, journal: Journal, gate: Gate) -> None:
    with Server(tmp_path, aof=True) as server, two_workers(server, tmp_path) as executor:
        running = Running(executor, journal, gate)
        queued = [executor.submit(noted, journal, f"queued{i}") for i in range(20)]
        until(lambda: queued[0].root is not None)  # type: ignore[attr-defined]
        server.stop()
        time.sleep(4)
        server.start()
        outlive_leases(server, 2.0)
        gate.open()
        assert [future.result(40) for future in running.futures] == list(range(4))
        assert [future.result(40) for future in queued] == [f"queued{i}" for i in range(20)]
    assert set(journal.counts().values()) == {1}


def test_a_slow_network_only_slows_down(tmp_path: Path, journal: Journal, record_property: Callable[..., None]) -> None:
    with Server(tmp_path) as server, Proxy(server.port) as proxy:
        proxy.latency_s = 0.05
        with started(max_workers=2, broker_url=proxy.url, lease=2.0) as executor:
            futures = [executor.submit(noted, journal, i) for i in range(100)]
            assert [future.result() for future in futures] == list(range(100))
            assert list(executor.map(abs, range(-1000, 0))) == list(range(1000, 0, -1))
    assert set(journal.counts().values()) == {1}
