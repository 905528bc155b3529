"""A broker that answers and refuses: futures fail with the cause and the remedy, and shutdown ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from executor import KubeExecutor
from executor.dispatch import patience
from executor.errors import BrokerRefused
from tests.faults import Journal, Server, gated, noted, started
from tests.support import DEADLINE_S, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Gate

pytestmark = pytest.mark.timeout(60)

#: All that we do needs no more than this; see docs/architecture.md for the keys.
ALL = ("~*", "&*", "+@all")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, "--maxmemory-policy", "noeviction") as one:
        yield one


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "BROKER_TIMEOUT_S", 3.0)
    monkeypatch.setattr(patience, "REFUSED_S", 0.5)


def user(server: Server, *rules: str, password: str = "secret") -> str:
    """A user with these rights and no others, from now on; gives the URL for it."""
    server.command("ACL", "SETUSER", "ann", "reset", "on", f">{password}", *rules)
    return f"redis://ann:{password}@127.0.0.1:{server.port}/0"


def fill(server: Server) -> None:
    server.command("CONFIG", "SET", "maxmemory", "1mb")


def make_room(server: Server) -> None:
    server.command("CONFIG", "SET", "maxmemory", "0")


def ends(executor: KubeExecutor, **how: Any) -> bool:
    """Whether shutdown returns."""
    ending = threading.Thread(target=executor.shutdown, kwargs=how, daemon=True)
    ending.start()
    ending.join(DEADLINE_S)
    return not ending.is_alive()


# --- what will not mend ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (["-evalsha", "-eval"], r"'evalsha' command.*`ACL SETUSER ann \+evalsha`"),
        (["-set"], r"'set' command.*`ACL SETUSER ann \+set`"),
        (["-xread"], r"'xread' command.*`ACL SETUSER ann \+xread`"),
        (["-expire"], r"'expire' command|the script can't run this command.*`ACL LOG`"),
    ],
    ids=["scripts", "functions", "replies", "signs of life"],
)
def test_calls_fail_when_a_right_is_taken_away(
    server: Server, journal: Journal, gate: Gate, lost: list[str], said: str
) -> None:
    executor = KubeExecutor(max_workers=1, broker_url=user(server, *ALL))
    running = executor.submit(gated, journal, "running", gate)
    journal.wait("started")
    user(server, *ALL, *lost)
    server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")  # a right is looked at when a command begins
    waiting = executor.submit(noted, journal, "waiting")
    results = executor.map(abs, range(-500, 0))

    for future in (running, waiting):
        error = future.exception(DEADLINE_S)
        assert isinstance(error, BrokerRefused)
        assert "User 'ann' lacks rights" in str(error)
        assert "kube-executor check --broker-url redis://ann:***@" in str(error)
    with pytest.raises(BrokerRefused, match=said):
        list(results)
    with pytest.raises(BrokerRefused, match=said):
        executor.submit(abs, 1)
    gate.open()
    assert ends(executor)


def test_a_queue_that_may_not_be_written_fails_its_calls(server: Server, journal: Journal) -> None:
    """The right to the keys is looked at in the middle of the script that publishes."""
    executor = KubeExecutor(max_workers=1, broker_url=user(server, "~ke:*", "~_kombu.*", "&*", "+@all"))
    future = executor.submit(noted, journal, "it")

    with pytest.raises(BrokerRefused, match=r"keys.*`ACL SETUSER ann ~ke:\* ~ke\.\* ~_kombu\.\*`"):
        future.result(DEADLINE_S)
    assert ends(executor)
    assert journal.starts() == 0


def test_calls_fail_when_the_password_is_another(server: Server, journal: Journal) -> None:
    executor = KubeExecutor(max_workers=1, broker_url=user(server, *ALL))
    assert executor.submit(noted, journal, "before").result(DEADLINE_S) == "before"
    user(server, *ALL, password="another")
    server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    error = executor.submit(noted, journal, "it").exception(DEADLINE_S)
    assert isinstance(error, BrokerRefused)
    assert "refused the password of user 'ann'" in str(error)
    assert ends(executor)


def test_only_the_executor_that_is_refused_is_broken(server: Server, journal: Journal) -> None:
    refused = KubeExecutor(max_workers=1, broker_url=user(server, *ALL))
    assert refused.submit(noted, journal, "before").result(DEADLINE_S) == "before"
    with started(max_workers=1, broker_url=server.url) as other:
        user(server, *ALL, "-evalsha", "-eval")
        assert isinstance(refused.submit(noted, journal, "it").exception(DEADLINE_S), BrokerRefused)
        assert other.submit(noted, journal, "other").result(DEADLINE_S) == "other"
        assert ends(refused)
        assert other.submit(noted, journal, "later").result(DEADLINE_S) == "later"


def test_rights_given_back_soon_fail_nothing(
    server: Server, journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "REFUSED_S", DEADLINE_S)
    monkeypatch.setattr(patience, "BROKER_TIMEOUT_S", DEADLINE_S)
    with started(max_workers=1, broker_url=user(server, *ALL), lease=20.0) as executor:
        assert executor.submit(noted, journal, "before").result(DEADLINE_S) == "before"
        user(server, *ALL, "-lpush")
        future = executor.submit(noted, journal, "it")
        until(lambda: "refuses new calls for now" in caplog.text, what="it was refused")
        user(server, *ALL)
        assert future.result(DEADLINE_S) == "it"
    assert journal.starts("it") == 1


# --- what may mend --------------------------------------------------------------------------------------------------


def demote(server: Server) -> None:
    server.command("REPLICAOF", "127.0.0.1", "1")


def promote(server: Server) -> None:
    server.command("REPLICAOF", "NO", "ONE")


def test_calls_wait_for_the_end_of_a_failover(
    server: Server, journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "BROKER_TIMEOUT_S", DEADLINE_S)
    with started(max_workers=1, broker_url=server.url, lease=20.0) as executor:
        assert executor.submit(noted, journal, "before").result(DEADLINE_S) == "before"
        demote(server)
        future = executor.submit(noted, journal, "it")
        until(lambda: "refuses new calls for now" in caplog.text, what="it was refused")
        promote(server)
        assert future.result(DEADLINE_S) == "it"


def test_calls_fail_when_the_server_stays_a_replica(server: Server, journal: Journal) -> None:
    executor = KubeExecutor(max_workers=1, broker_url=server.url)
    assert executor.submit(noted, journal, "before").result(DEADLINE_S) == "before"
    demote(server)

    error = executor.submit(noted, journal, "it").exception(DEADLINE_S)
    assert isinstance(error, BrokerRefused)
    assert "read-only replica" in str(error)
    assert "After 3 s" in str(error)
    with pytest.raises(BrokerRefused):
        executor.submit(abs, 1)
    assert ends(executor)


def test_a_server_that_stays_full_fails_what_was_not_sent_and_nothing_else(
    server: Server, journal: Journal, gate: Gate
) -> None:
    with started(max_workers=2, broker_url=server.url, lease=20.0) as executor:
        running = [executor.submit(gated, journal, i, gate) for i in range(2)]
        journal.wait("started", count=2)
        fill(server)
        new = [executor.submit(noted, journal, f"new{i}") for i in range(20)]
        results = executor.map(abs, range(1000))
        for future in new:
            with pytest.raises(BrokerRefused, match=r"no memory left.*maxmemory.*kube-executor check"):
                future.result(DEADLINE_S)
        with pytest.raises(BrokerRefused):
            list(results)
        gate.open()
        assert [future.result(DEADLINE_S) for future in running] == [0, 1]
        make_room(server)
        assert executor.submit(noted, journal, "later").result(DEADLINE_S) == "later"
    assert set(journal.counts()) == {"0", "1", "later"}


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "BROKER_TIMEOUT_S", 300.0)


@pytest.mark.usefixtures("patient")
def test_shutdown_that_cancels_does_not_wait_for_a_full_server(server: Server, journal: Journal) -> None:
    executor = KubeExecutor(max_workers=2, broker_url=server.url)
    assert executor.submit(noted, journal, "before").result(DEADLINE_S) == "before"
    fill(server)
    futures = [executor.submit(noted, journal, i) for i in range(100)]
    until(lambda: futures[0].root is not None, what="it is on its way")

    assert ends(executor, cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    assert set(journal.counts()) == {"before"}


@pytest.mark.usefixtures("patient")
def test_a_call_that_a_full_server_did_not_take_is_cancelled_and_its_neighbours_are_not(
    server: Server, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    with started(max_workers=1, broker_url=server.url, lease=20.0) as executor:
        assert [*executor.map(abs, range(-1000, 0))] == [*range(1000, 0, -1)]
        fill(server)
        futures = [executor.submit(noted, journal, i) for i in range(10)]
        until(lambda: "refuses new calls for now" in caplog.text, what="it was refused")
        assert futures[0].cancel()
        assert executor.cancel(futures[7]) == "cancelled" if futures[7].root else futures[7].cancel()
        make_room(server)
        left = [i for i in range(10) if i not in (0, 7)]
        assert [futures[i].result(DEADLINE_S) for i in left] == left
    assert set(journal.counts()) == {str(i) for i in left}
