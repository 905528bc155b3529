"""Every future settles: with a value, or with an exception that names the cause, within a bounded time."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from executor import KubeExecutor, PoolSpec
from executor.dispatch import patience, recovery
from executor.errors import BrokerUnavailable, PoolBroken, PoolError
from tests.faults import Journal, Server, alive, broker_of, children, gated, kill, noted, parent_of, started
from tests.support import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support import Gate

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "BROKER_TIMEOUT_S", 2.0)


def failing_to_start() -> None:
    raise RuntimeError("no licence on this machine")


def supervisor_of(parent: int) -> int:
    """The process that looks after a worker parent."""
    with open(f"/proc/{parent}/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[1])


# --- the broker -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
def test_futures_fail_when_the_broker_is_gone_for_good(tmp_path: Path, journal: Journal, gate: Gate) -> None:
    with Server(tmp_path) as server, started(max_workers=2, broker_url=server.url) as executor:
        running = [executor.submit(gated, journal, i, gate) for i in range(2)]
        journal.wait("started", count=2)
        queued = [executor.submit(noted, journal, f"queued{i}") for i in range(100)]
        results = executor.map(abs, range(1000))
        began = time.monotonic()
        server.kill()
        waiting = executor.submit(noted, journal, "later")

        for future in [*running, *queued, waiting]:
            error = future.exception(20)
            assert isinstance(error, BrokerUnavailable)
            assert "2 s" in str(error)
        with pytest.raises(BrokerUnavailable):
            list(results)
        assert time.monotonic() - began < 15
        with pytest.raises(BrokerUnavailable):
            executor.submit(abs, 1)
        assert not waiting.cancel()


@pytest.mark.usefixtures("impatient")
def test_futures_fail_when_the_broker_says_nothing_any_more(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    from executor.broker import connection, lean

    monkeypatch.setattr(lean, "SILENCE_S", 6.0)
    monkeypatch.setitem(connection.connect_async.__kwdefaults__, "answer_timeout_s", 6.0)
    with Server(tmp_path) as server, started(max_workers=1, broker_url=server.url) as executor:
        assert executor.submit(noted, journal, "first").result() == "first"
        server.pause()
        try:
            future = executor.submit(noted, journal, "second")
            assert isinstance(future.exception(40), BrokerUnavailable)
        finally:
            server.resume()


# --- our own processes ----------------------------------------------------------------------------------------------


def test_calls_survive_the_death_of_the_embedded_server(
    journal: Journal, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps nothing; the supervisor starts it again under the same address, and the client sends its calls again."""
    monkeypatch.setattr(recovery, "RESTATE_S", 3.0)
    with started(max_workers=2) as executor:
        running = [executor.submit(gated, journal, i, gate) for i in range(2)]
        journal.wait("started", count=2)
        queued = [executor.submit(noted, journal, f"queued{i}") for i in range(50)]
        client = broker_of(executor)
        kill(int(client.info("server")["process_id"]))
        client.close()
        gate.open()

        assert [future.result(40) for future in running] == [0, 1]
        assert [future.result(40) for future in queued] == [f"queued{i}" for i in range(50)]
        assert executor.submit(noted, journal, "after").result(20) == "after"


def test_futures_fail_when_the_supervisor_is_killed(journal: Journal, gate: Gate) -> None:
    with started(max_workers=2) as executor:
        running = [executor.submit(gated, journal, i, gate) for i in range(2)]
        journal.wait("started", count=2)
        queued = [executor.submit(noted, journal, f"queued{i}") for i in range(50)]
        client = broker_of(executor)
        parent, server = parent_of(client), int(client.info("server")["process_id"])
        family = [parent, server, *children(parent)]
        kill(supervisor_of(parent))

        for future in [*running, *queued]:
            assert isinstance(future.exception(20), PoolBroken)
        with pytest.raises(PoolBroken, match="supervisor"):
            executor.submit(abs, 1)
        until(lambda: not any(map(alive, family)), what="nothing is left")


def test_futures_fail_when_the_initializer_raises(journal: Journal) -> None:
    with started(max_workers=2, initializer=failing_to_start) as executor:
        future = executor.submit(noted, journal, "it")
        error = future.exception(30)
        assert isinstance(error, PoolBroken)
        assert "no licence on this machine" in str(error)
        with pytest.raises(PoolBroken):
            list(executor.map(abs, range(10)))
    assert journal.starts() == 0


@pytest.fixture
def broken_pool() -> Iterator[KubeExecutor]:
    spec = PoolSpec(name="broken", max_workers=1, celery_app="no_such_package.tasks:app", queues=["somewhere"])
    with started(max_workers=1, pools=[spec]) as executor:
        yield executor


def test_futures_fail_when_the_workers_of_their_pool_can_never_start(broken_pool: KubeExecutor) -> None:
    future = broken_pool.options(pool="broken").submit(abs, -1)

    error = future.exception(40)
    assert isinstance(error, PoolError)
    assert "no_such_package" in str(error)


def test_futures_settle_when_the_worker_is_stopped_by_a_signal(tmp_path: Path, journal: Journal) -> None:
    """SIGTERM to the worker parent: it drains, and its successor takes the rest; nothing is charged."""
    with Server(tmp_path) as server, started(max_workers=2, broker_url=server.url) as executor:
        once = executor.options(max_deliveries=1)
        futures: list[Any] = [once.submit(noted, journal, i, 0.05) for i in range(40)]
        journal.wait("started", count=3)
        kill(parent_of(server.client()), signal.SIGTERM)

        assert [future.result(30) for future in futures] == list(range(40))
    assert set(journal.counts().values()) == {1}
