"""While calls are short, a worker has the next ones waiting; they are nobody's for long."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from executor.worker.pace import SHORT_IN_A_ROW
from tests.faults import Journal, children
from tests.faults import kill as kill_process
from tests.integration.worker import calls
from tests.support import until

if TYPE_CHECKING:
    import redis

    from tests.integration.worker.conftest import RawClient
    from tests.integration.worker.test_lifecycle import Starter
    from tests.support import Gate

pytestmark = pytest.mark.timeout(60)


def short_calls(client: RawClient) -> None:
    for _ in range(SHORT_IN_A_ROW + 1):
        client.results(client.send(calls.add, (1, 1)), 1)


def fetched(connection: redis.Redis, worker: str) -> int:
    return connection.hlen(f"ke:inflight:{worker}")


def test_one_that_waits_behind_a_long_call_goes_to_another_worker(
    start: Starter, client: RawClient, connection: redis.Redis, journal: Journal, gate: Gate
) -> None:
    worker = start(slots=1)
    short_calls(client)
    long = client.send(calls.waits, (journal.path, gate, "long"))
    journal.wait("started")
    short = client.send(calls.add, (1, 2))
    until(lambda: fetched(connection, worker.id) == 2, what="the short call is fetched")
    until(lambda: fetched(connection, worker.id) == 1, what="the short call goes back")
    assert connection.llen("ke.default") == 1
    start(slots=1)
    assert client.results(short, 1) == [3]
    gate.open()
    assert client.results(long, 1) == ["long"]
    assert journal.starts("long") == 1


def test_one_that_waits_is_not_charged_with_the_death_of_another(
    start: Starter, client: RawClient, connection: redis.Redis, journal: Journal, gate: Gate
) -> None:
    worker = start(slots=1)
    short_calls(client)
    long = client.send(calls.waits, (journal.path, gate, "long"))
    journal.wait("started")
    short = client.send(calls.pid, (), max_deliveries=1)
    until(lambda: fetched(connection, worker.id) == 2, what="the short call is fetched")
    (pid,) = children(worker.pid)
    kill_process(pid)
    gate.open()
    assert client.results(short, 1)[0] not in (pid, os.getpid())
    assert client.results(long, 1) == ["long"]
    assert journal.starts("long") == 2
