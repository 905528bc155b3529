"""How a worker comes and goes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from executor.broker import keys
from executor.errors import Evicted, WorkerLost
from executor.worker.program import EX_BROKEN
from tests.faults import Journal, alive, children
from tests.integration.worker import calls
from tests.integration.worker.conftest import RawClient, WorkerProcess, initializer
from tests.support import Gate, until

pytestmark = pytest.mark.timeout(90)
Starter = Callable[..., WorkerProcess]


def test_it_registers_and_leaves(start: Starter, connection: redis.Redis, tmp_path: Path) -> None:
    worker = start(slots=3, probes=str(tmp_path / "probes"))
    entry = json.loads(connection.hget(keys.WORKERS, worker.id) or "{}")
    assert (entry["pid"], entry["pool"], entry["slots"], entry["queues"]) == (worker.pid, "default", 3, ["ke.default"])
    until((tmp_path / "probes" / "ready").exists, what="it is ready")
    assert (tmp_path / "probes" / "live").exists()
    worker.terminate()
    assert worker.process.wait(20) == 0
    assert not connection.hlen(keys.LEASES)
    assert not connection.hlen(keys.WORKERS)
    assert not (tmp_path / "probes" / "ready").exists()


def test_sigterm_lets_calls_finish_and_claims_no_more(
    start: Starter, client: RawClient, connection: redis.Redis, journal: Journal, gate: Gate, tmp_path: Path
) -> None:
    probes = tmp_path / "probes"
    worker = start(grace_s=30.0, probes=str(probes))
    until((probes / "ready").exists, what="it is ready")
    running = client.send(calls.waits, (journal.path, gate, "x"))
    journal.wait("started")
    worker.terminate()
    until(lambda: not children(worker.pid) or not (probes / "ready").exists(), what="it has heard")
    client.send(calls.add, (1, 1))
    time.sleep(0.5)
    assert connection.llen("ke.default") == 1
    gate.open()
    assert client.results(running, 1) == ["x"]
    assert worker.process.wait(20) == 0
    assert connection.llen("ke.default") == 1


def test_what_does_not_finish_in_the_grace_period_is_handed_back_uncharged(
    start: Starter, client: RawClient, connection: redis.Redis, journal: Journal, gate: Gate
) -> None:
    roots = [client.send(calls.waits, (journal.path, gate, i), max_deliveries=2) for i in range(2)]
    for times in range(1, 4):  # more often than they may start
        worker = start(grace_s=0.5, slots=2)
        journal.wait("started", count=2 * times)
        worker.terminate()
        assert worker.process.wait(20) == 0
        assert connection.llen("ke.default") == 2
        assert not connection.exists(keys.inflight(worker.id))
    gate.open()
    start(slots=2)
    assert [client.results(root, 1) for root in roots] == [[0], [1]]


def test_a_call_that_may_start_but_once_fails_when_the_grace_period_ends_it(
    start: Starter, client: RawClient, connection: redis.Redis, journal: Journal, gate: Gate
) -> None:
    worker = start(grace_s=0.5)
    roots = [client.send(calls.waits, (journal.path, gate, i), max_deliveries=1) for i in range(2)]
    journal.wait("started")
    worker.terminate()
    (error,) = client.results(roots[0], 1)
    assert isinstance(error, WorkerLost)
    assert "drained" in str(error)
    assert worker.process.wait(20) == 0
    gate.open()
    start()
    assert client.results(roots[1], 1) == [1]  # it had not started
    assert journal.starts(0) == 1


def test_an_eviction_fails_a_call_that_may_start_but_once(
    start: Starter, client: RawClient, connection: redis.Redis, journal: Journal, gate: Gate
) -> None:
    worker = start(lease_s=60.0)
    once = client.send(calls.waits, (journal.path, gate, "once"), max_deliveries=1)
    journal.wait("started")
    start(lease_s=60.0)
    worker.kill()
    story = {"reason": "Evicted", "host": "node-7", "charged": False}
    connection.hset(keys.OBITUARIES, worker.id, json.dumps(story))
    (error,) = client.results(once, 1)
    assert isinstance(error, Evicted)
    assert error.deaths[-1]["host"] == "node-7"
    assert journal.starts() == 1


def test_an_order_to_drain_is_a_sigterm(start: Starter, connection: redis.Redis) -> None:
    worker = start()
    connection.lpush(keys.control(worker.id), json.dumps({"op": "drain"}))
    assert worker.process.wait(20) == 0


def test_sigint_is_not_for_workers(start: Starter, client: RawClient) -> None:
    worker = start()
    client.results(client.send(calls.add, (1, 1)), 1)
    worker.process.send_signal(signal.SIGINT)
    assert client.results(client.send(calls.add, (1, 2)), 1) == [3]


def test_it_dies_with_its_supervisor(start: Starter, client: RawClient, journal: Journal, gate: Gate) -> None:
    worker = start(slots=2)
    client.send(calls.waits, (journal.path, gate, "x"))
    journal.wait("started")
    family = children(worker.pid)
    worker.end_life()
    assert worker.process.wait(10) == 1
    until(lambda: not any(alive(pid) for pid in family), what="its children are gone")


def test_an_initializer_runs_once_in_each_child(start: Starter, client: RawClient, journal: Journal) -> None:
    start(slots=2, initializer=initializer(calls.noted, journal.path, "begun"))
    roots = [client.send(calls.sleeps, (0.3, i)) for i in range(4)]
    assert [client.results(root, 1) for root in roots] == [[0], [1], [2], [3]]
    assert journal.starts("begun") == 2
    assert len({entry.pid for entry in journal.entries()}) == 2


@pytest.mark.parametrize(
    ("function", "told"), [(calls.fails, "no such licence"), (os._exit, "exit code 7"), (calls.exits, "SystemExit")]
)
def test_a_worker_whose_children_cannot_be_set_up_says_so_and_goes(
    start: Starter, client: RawClient, connection: redis.Redis, function: Callable[..., object], told: str
) -> None:
    args = {"no such licence": ("no such licence",), "exit code 7": (7,)}.get(told, ())
    root = client.send(calls.add, (1, 1))
    worker = start(owner=client.id, initializer=initializer(function, *args))
    until(lambda: (client.read(), client.replies)[1], what="the owner is told")
    assert client.replies[0].header["kind"] == "broken"
    assert told in client.replies[0].header["message"]
    assert worker.process.wait(20) == EX_BROKEN
    assert connection.llen("ke.default") == 1, root
    assert not connection.keys("ke:inflight:*")
    assert not connection.exists("ke:leases")


def test_children_are_replaced(start: Starter, client: RawClient) -> None:
    worker = start(slots=2)
    pids = {client.results(client.send(calls.pid, ()), 1)[0]}
    for pid in children(worker.pid):
        os.kill(pid, signal.SIGKILL)
    until(lambda: len([pid for pid in children(worker.pid) if alive(pid) and pid not in pids]) == 2, what="new ones")
    assert client.results(client.send(calls.pid, ()), 1)[0] not in pids
