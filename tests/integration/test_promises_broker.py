"""Redis full, and Redis that has lost its data: every future settles."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from executor.dispatch import recovery
from tests.faults import Journal, Server, gated, noted, parent_of, registered, started
from tests.support import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Gate

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, "--maxmemory-policy", "noeviction") as one:
        yield one


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases are short here, and so may be the time that workers get to say what they still run."""
    monkeypatch.setattr(recovery, "RESTATE_S", 3.0)


def fill(server: Server) -> None:
    """From now on every command that may need memory is refused."""
    server.command("CONFIG", "SET", "maxmemory", "1mb")
    with pytest.raises(Exception, match="maxmemory"):
        server.command("SET", "more", "x")


def make_room(server: Server) -> None:
    server.command("CONFIG", "SET", "maxmemory", "0")


# --- full -----------------------------------------------------------------------------------------------------------


def test_on_a_full_server_leases_go_on_and_running_calls_finish(server: Server, journal: Journal, gate: Gate) -> None:
    with started(max_workers=2, broker_url=server.url, lease=2.0) as executor:
        running = [executor.submit(gated, journal, i, gate) for i in range(2)]
        journal.wait("started", count=2)
        worker = list(registered(server.client()))
        fill(server)
        time.sleep(5)  # the fault itself: longer than two leases
        assert list(registered(server.client())) == worker
        gate.open()

        assert [future.result(10) for future in running] == [0, 1]
        make_room(server)
    assert journal.counts() == {"0": 1, "1": 1}


def test_on_a_full_server_queued_calls_run_and_new_ones_wait_for_room(
    server: Server, journal: Journal, gate: Gate
) -> None:
    with started(max_workers=2, broker_url=server.url, lease=2.0) as executor:
        running = [executor.submit(gated, journal, i, gate) for i in range(2)]
        journal.wait("started", count=2)
        queued = [executor.submit(noted, journal, f"queued{i}") for i in range(4)]
        until(lambda: len(server.command("HKEYS", server.command("KEYS", "ke:batches:*")[0])) == 6)
        fill(server)
        new = [executor.submit(noted, journal, f"new{i}") for i in range(20)]
        gate.open()

        assert [future.result(10) for future in running] == [0, 1]
        assert [future.result(10) for future in queued] == [f"queued{i}" for i in range(4)]
        time.sleep(1)
        assert not any(future.done() for future in new)
        make_room(server)
        assert [future.result(10) for future in new] == [f"new{i}" for i in range(20)]
    assert set(journal.counts().values()) == {1}


def test_on_a_full_server_connections_may_be_cut_and_calls_be_cancelled(
    server: Server, journal: Journal, gate: Gate
) -> None:
    with started(max_workers=2, broker_url=server.url, lease=2.0) as executor:
        running = [executor.submit(gated, journal, i, gate) for i in range(2)]
        journal.wait("started", count=2)
        queued = [executor.submit(noted, journal, f"queued{i}") for i in range(4)]
        until(lambda: len(server.command("HKEYS", server.command("KEYS", "ke:batches:*")[0])) == 6)
        fill(server)
        server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert queued[0].cancel()
        assert not running[0].cancel()
        gate.open()
        assert [future.result(20) for future in running] == [0, 1]
        assert [future.result(20) for future in queued[1:]] == [f"queued{i}" for i in range(1, 4)]
        make_room(server)
    assert set(journal.counts()) == {"0", "1", "queued1", "queued2", "queued3"}


# --- data lost ------------------------------------------------------------------------------------------------------


def flush(server: Server) -> None:
    server.command("FLUSHALL")


def restart(server: Server) -> None:
    server.kill()
    server.start()


@pytest.mark.parametrize("lose", [flush, restart])
def test_calls_of_a_server_that_lost_its_data_are_published_again(
    server: Server, journal: Journal, gate: Gate, lose
) -> None:  # type: ignore[no-untyped-def]
    with started(max_workers=2, broker_url=server.url, lease=2.0) as executor:
        assert list(executor.map(abs, range(-3, 0))) == [3, 2, 1]
        running = [executor.submit(gated, journal, i, gate) for i in range(2)]
        journal.wait("started", count=2)
        queued = [executor.submit(noted, journal, f"queued{i}") for i in range(50)]
        results = executor.map(str, range(3000))
        lose(server)
        during = [executor.submit(noted, journal, f"during{i}") for i in range(5)]
        time.sleep(1)
        gate.open()

        assert [future.result(40) for future in running] == [0, 1]
        assert [future.result(40) for future in queued] == [f"queued{i}" for i in range(50)]
        assert list(results) == [str(i) for i in range(3000)]
        assert [future.result(40) for future in during] == [f"during{i}" for i in range(5)]
        assert executor.submit(noted, journal, "after").result(20) == "after"
        assert parent_of(server.client())
    # running ones may have had to run again; what was only queued has run once
    assert all(count == 1 for call, count in journal.counts().items() if call.startswith("queued"))


@pytest.mark.parametrize("lose", [flush, restart])
def test_a_batch_of_which_only_a_part_was_lost_is_completed(
    server: Server, journal: Journal, gate: Gate, lose: Callable[[Server], None]
) -> None:
    """The first call runs on; those behind it, handed back to the queue, are lost with the data."""
    with started(max_workers=2, broker_url=server.url, lease=2.0) as executor:
        blockers = [executor.submit(gated, journal, f"blocker{i}", gate) for i in range(1)]
        journal.wait("started", count=1)
        results = executor.imap_unordered(_gate_at_first, [(journal, i, gate) for i in range(10)], chunksize=10)
        journal.wait("started", 0)
        until(lambda: server.command("KEYS", "ke.*") or journal.starts(9), what="the rest was handed back")
        lose(server)
        time.sleep(1)
        gate.open()

        assert sorted(results) == list(range(10))
        assert [future.result(30) for future in blockers] == ["blocker0"]


def _gate_at_first(item: tuple[Journal, int, Gate]) -> int:
    journal, call, gate = item
    journal.note("started", call)
    if call in (0, 1):
        until(gate.is_open, 60, "the gate is open")
    return call


def test_an_idle_executor_survives_the_loss_of_all_data(server: Server, journal: Journal) -> None:
    with started(max_workers=2, broker_url=server.url, lease=2.0) as executor:
        assert executor.submit(noted, journal, "before").result() == "before"
        flush(server)
        assert executor.submit(noted, journal, "after").result(30) == "after"


# --- the client is away ---------------------------------------------------------------------------------------------


def test_outcomes_wait_for_an_absent_client_as_long_as_it_has_asked(server: Server) -> None:
    with started(max_workers=1, broker_url=server.url) as executor:
        client = server.client()
        assert executor.submit(abs, -1).result() == 1
        (mark,) = client.keys("ke:client:*")
        assert client.ttl(mark) <= 600
        assert executor.options(result_ttl=5000).submit(abs, -2).result() == 2
        mine = [key for name in ("client", "replies", "fn") for key in client.keys(f"ke:{name}:*")]
        assert len(mine) >= 3
        assert all(4900 < client.ttl(key) <= 5000 for key in mine), [(key, client.ttl(key)) for key in mine]
        assert executor.options(result_ttl=1).submit(abs, -3).result() == 3
        assert client.ttl(mark) > 4900
