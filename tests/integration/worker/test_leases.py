"""Who has what when workers die, freeze, or lose their broker. Leases here are 2 s."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
import redis

from executor.broker import keys
from executor.errors import WorkerLost
from executor.wire import envelope as wire
from tests.faults import Journal, Server, alive, children
from tests.integration.worker import calls
from tests.integration.worker.conftest import RawClient, WorkerProcess
from tests.support import Gate, until

pytestmark = pytest.mark.timeout(120)
Starter = Callable[..., WorkerProcess]


def test_calls_of_a_killed_worker_are_back_within_a_lease_and_a_look(
    start: Starter, client: RawClient, journal: Journal, gate: Gate
) -> None:
    first = start(lease_s=5.0, slots=2)
    roots = [client.send(calls.waits, (journal.path, gate, i)) for i in range(2)]
    journal.wait("started", count=2)
    start(lease_s=5.0, slots=2)
    time.sleep(1.5)  # the other one has seen the first one's beats
    first.kill()
    killed = time.time()
    journal.wait("started", count=4)
    assert max(entry.at for entry in journal.entries("started")) - killed <= 7.5  # 7 and the start of an import
    gate.open()
    assert [client.results(root, 1) for root in roots] == [[0], [1]]
    assert journal.starts() == 4


def test_an_obituary_needs_no_lease_to_run_out(
    start: Starter, client: RawClient, connection: redis.Redis, journal: Journal, gate: Gate
) -> None:
    first = start(lease_s=60.0)
    root = client.send(calls.waits, (journal.path, gate, "x"))
    journal.wait("started")
    start(lease_s=60.0)
    first.kill()
    connection.hset(keys.OBITUARIES, first.id, json.dumps({"reason": "Evicted", "host": "node-7", "charged": False}))
    journal.wait("started", count=2)
    gate.open()
    assert client.results(root, 1) == ["x"]
    until(lambda: not connection.hexists(keys.OBITUARIES, first.id), what="the obituary is gone")
    assert not connection.hexists(keys.LEASES, first.id)
    assert not connection.hexists(keys.WORKERS, first.id)
    assert connection.exists(keys.tomb(first.id))


def test_a_single_call_is_charged_and_buried_at_last(
    start: Starter, client: RawClient, connection: redis.Redis, journal: Journal, gate: Gate
) -> None:
    root = client.send(calls.waits, (journal.path, gate, "x"), max_deliveries=2)
    for count in (1, 2):
        worker = start()
        journal.wait("started", count=count)
        worker.kill()
    start()
    (error,) = client.results(root, 1)
    assert isinstance(error, WorkerLost)
    assert [death["reason"] for death in error.deaths] == ["lease expired"] * 2
    assert connection.llen(keys.dead_letters("default")) == 1
    assert journal.starts() == 2


def test_a_batch_of_which_nobody_knows_what_ran_goes_on_call_by_call_uncharged(
    start: Starter, client: RawClient, connection: redis.Redis, journal: Journal, gate: Gate
) -> None:
    first = start()
    message = client.message(calls.waits, [(journal.path, gate, i) for i in range(3)])
    client.publish(message)
    journal.wait("started", 0)
    until(lambda: (client.read(), client.splits())[1], what="the rest is split off")
    first.kill()
    gate.open()
    start()
    assert client.results(message.root, 3) == [0, 1, 2]
    assert connection.llen(keys.dead_letters("default")) == 0


def test_a_redelivered_batch_runs_each_call_alone(start: Starter, client: RawClient) -> None:
    message = client.message(calls.pid, [()] * 5)
    client.publish(message._replace(deaths=[{"reason": "lease expired", "charged": False}]))
    start(slots=1)
    assert len(client.results(message.root, 5)) == 5
    assert [split["at"] for split in client.splits()] == [1, 2, 3, 4]


def test_a_worker_frozen_past_its_lease_publishes_nothing_twice(
    start: Starter, client: RawClient, connection: redis.Redis, journal: Journal, gate: Gate
) -> None:
    frozen = start()
    root = client.send(calls.waits, (journal.path, gate, "x"))
    journal.wait("started")
    frozen.freeze()  # its child runs on
    start()
    journal.wait("started", count=2)
    gate.open()
    assert client.results(root, 1) == ["x"]
    frozen.thaw()
    until(lambda: connection.hexists(keys.LEASES, f"{frozen.id}~1"), what="it has a new id")
    others = [client.send(calls.add, (i, i)) for i in range(20)]
    assert [client.results(other, 1) for other in others] == [[2 * i] for i in range(20)]
    assert client.results(root, 1) == ["x"]  # and no second outcome: that is an error in itself


def test_living_workers_keep_what_they_run_while_the_server_stands_still(
    start: Starter, client: RawClient, server: Server, journal: Journal, gate: Gate
) -> None:
    workers = [start(slots=2) for _ in range(2)]
    roots = [client.send(calls.waits, (journal.path, gate, i)) for i in range(4)]
    journal.wait("started", count=4)
    server.pause()
    time.sleep(5)
    server.resume()
    time.sleep(3)
    gate.open()
    assert sorted(client.results(root, 1) for root in roots) == [[0], [1], [2], [3]]
    assert journal.starts() == 4
    assert all(worker.process.poll() is None for worker in workers)


def test_outcomes_wait_for_a_server_that_is_away(
    start: Starter, client: RawClient, server: Server, journal: Journal, gate: Gate
) -> None:
    start(slots=2)
    roots = [client.send(calls.waits, (journal.path, gate, i)) for i in range(2)]
    journal.wait("started", count=2)
    server.pause()
    gate.open()
    journal.wait("finished", count=2)
    time.sleep(4)
    server.resume()
    assert sorted(client.results(root, 1) for root in roots) == [[0], [1]]
    assert journal.starts() == 2


def test_what_runs_is_stated_anew_to_a_server_that_lost_its_data(
    start: Starter, client: RawClient, server: Server, journal: Journal, gate: Gate
) -> None:
    worker = start()
    root = client.send(calls.waits, (journal.path, gate, "x"))
    journal.wait("started")
    server.kill()
    server.start()
    client.redis.set(keys.client(client.id), "1")
    until(lambda: client.redis.hget(keys.batches(client.id), root) == worker.id.encode(), what="it is stated anew")
    gate.open()
    assert client.results(root, 1) == ["x"]
    assert journal.starts() == 1
    assert client.results(client.send(calls.add, (1, 1)), 1) == [2]


def test_cut_connections_rerun_nothing(
    start: Starter, client: RawClient, connection: redis.Redis, journal: Journal, gate: Gate
) -> None:
    start(slots=2)
    roots = [client.send(calls.waits, (journal.path, gate, i)) for i in range(2)]
    journal.wait("started", count=2)
    for _ in range(3):
        connection.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        time.sleep(0.3)
    gate.open()
    assert sorted(client.results(root, 1) for root in roots) == [[0], [1]]
    assert journal.starts() == 2
    assert client.results(client.send(calls.add, (1, 1)), 1) == [2]


def test_messages_claimed_unseen_come_back(start: Starter, client: RawClient, connection: redis.Redis) -> None:
    worker = start()
    assert client.results(client.send(calls.add, (0, 0)), 1) == [0]
    message = client.message(calls.add, [(20, 1)])
    connection.hset(keys.batches(client.id), message.id, worker.id)
    # As a claim leaves it whose answer was lost with its connection: in flight under an old tag, held by nobody.
    connection.hset(keys.inflight(worker.id), "0", f"ke.default\n{wire.encoded(message)}")
    assert client.results(message.root, 1) == [21]


def test_what_lies_in_an_inbox_is_claimed_or_swept(start: Starter, client: RawClient, connection: redis.Redis) -> None:
    message = client.message(calls.add, [(20, 2)])
    connection.hset(keys.batches(client.id), message.id, "")
    connection.lpush(keys.inbox("gone", "ke.default"), wire.encoded(message))
    connection.hset(keys.LEASES, "gone", "7")
    connection.hset(keys.WORKERS, "gone", json.dumps({"queues": ["ke.default"], "pool": "default"}))
    start()
    assert client.results(message.root, 1) == [22]
    until(lambda: not connection.hexists(keys.LEASES, "gone"), what="it is forgotten")


def test_on_a_full_server_leases_and_running_calls_go_on(
    start: Starter, client: RawClient, connection: redis.Redis, journal: Journal, gate: Gate
) -> None:
    start(slots=2)
    root = client.send(calls.waits, (journal.path, gate, "x"))
    journal.wait("started")
    start()
    connection.config_set("maxmemory", "1")
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        connection.set("anything", "x")
    time.sleep(4)  # twice a lease
    gate.open()
    assert client.results(root, 1) == ["x"]
    assert journal.starts() == 1
    connection.config_set("maxmemory", "0")


def test_children_end_with_a_killed_parent(start: Starter, client: RawClient, journal: Journal, gate: Gate) -> None:
    worker = start(slots=2)
    client.send(calls.waits, (journal.path, gate, "x"))
    journal.wait("started")
    family = children(worker.pid)
    assert family
    worker.kill()
    until(lambda: not any(alive(pid) for pid in family), what="the children are gone")
