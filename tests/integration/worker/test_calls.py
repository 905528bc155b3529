"""One worker, call messages by hand: what comes back, and what is left in Redis."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from executor.broker import keys
from executor.broker.address import BrokerAddress
from executor.broker.dead_letters import DeadLetters
from executor.broker.scripts import source
from executor.errors import BadSignature, CallTimeout, ChildCrashed, FunctionMissing, VersionMismatch, WorkerLost
from executor.wire import envelope as wire
from tests.faults import Journal, Server
from tests.integration.worker import calls
from tests.integration.worker.conftest import RawClient, WorkerProcess
from tests.support import Gate, until

Starter = Callable[..., WorkerProcess]


def test_single_calls_return_values_and_leave_nothing(
    start: Starter, client: RawClient, connection: redis.Redis
) -> None:
    worker = start()
    root = client.send(calls.add, (1, 2))
    assert client.results(root, 1) == [3]
    until(lambda: not connection.exists(keys.inflight(worker.id)), what="nothing is in flight")
    assert connection.hlen(keys.batches(client.id)) == 0
    assert connection.hlen(keys.cancels(client.id)) == 0


def test_batches_of_calls_and_maps_return_all_values(start: Starter, client: RawClient) -> None:
    start(slots=2)
    several = client.send(calls.add, *[(i, 1) for i in range(500)])
    mapped = client.send(calls.add, *[(i, 2) for i in range(5000)], kind="map")
    found = client.outcomes(5500)
    assert [found[several, i] for i in range(500)] == [i + 1 for i in range(500)]
    assert [found[mapped, i] for i in range(5000)] == [i + 2 for i in range(5000)]


def test_an_item_that_raises_leaves_the_others_of_its_map(start: Starter, client: RawClient) -> None:
    start()
    root = client.send(calls.add, (1, 1), (1, "x"), (2, 2), kind="map")
    first, second, third = client.results(root, 3)
    assert (first, third) == (2, 4)
    assert isinstance(second, TypeError)


def test_exceptions_exits_and_coroutines(start: Starter, client: RawClient) -> None:
    start()
    failed, left, async_ = (
        client.send(calls.fails, ("no",)),
        client.send(calls.exits, ()),
        client.send(calls.awaited, (7,)),
    )
    found = client.outcomes(3)
    assert repr(found[failed, 0]) == "ValueError('no')"
    assert "in fails" in str(found[failed, 0].__cause__)
    assert isinstance(found[left, 0], SystemExit)
    assert found[async_, 0] == 7


def test_a_slow_call_in_a_batch_hands_back_what_waits_behind_it(
    start: Starter, client: RawClient, tmp_path: Path, gate: Gate
) -> None:
    start(slots=2)
    journal = Journal(tmp_path / "journal")
    client.send(calls.noted, (journal.path, "warm"))  # the module is imported now
    client.outcomes(1)
    slow = client.message(calls.waits, [(journal.path, gate, i) for i in range(3)])
    client.publish(slow)
    journal.wait("started", 0)
    until(lambda: (client.read(), len(client.splits()))[1] >= 1, what="a split")
    assert client.splits()[0]["part"] == wire.message_id(slow.root, client.splits()[0]["at"])
    journal.wait("started", 1)  # on the other slot, while the first still waits
    gate.open()
    assert client.results(slow.root, 3) == [0, 1, 2]
    assert journal.starts() == 4


def test_results_before_a_slow_call_do_not_wait_for_it(
    start: Starter, client: RawClient, tmp_path: Path, gate: Gate
) -> None:
    start()
    journal = Journal(tmp_path / "journal")
    root = client.send(_wait_at_two, *[(journal.path, gate, i) for i in range(3)], kind="map")
    found = client.outcomes(2)
    assert found == {(root, 0): 0, (root, 1): 1}
    gate.open()
    client.outcomes(3)


def _wait_at_two(path: str, gate: Gate, call: int) -> int:
    return calls.waits(path, gate, call) if call == 2 else call  # type: ignore[return-value]


def test_a_killed_child_costs_its_call_a_delivery(
    start: Starter, client: RawClient, connection: redis.Redis, tmp_path: Path
) -> None:
    start()
    journal = Journal(tmp_path / "journal")
    root = client.send(calls.dies_once, *[(journal.path, i) for i in range(4)])
    assert client.results(root, 4) == [0, 1, 2, 3]
    assert connection.llen(keys.dead_letters("default")) == 0


def test_a_call_that_is_killed_each_time_is_buried_with_its_story(
    start: Starter, client: RawClient, connection: redis.Redis
) -> None:
    start()
    root = client.send(calls.dies, ())
    (error,) = client.results(root, 1)
    assert isinstance(error, WorkerLost)
    assert [death["reason"] for death in error.deaths] == ["SIGKILL"] * 3
    assert "last words" in error.deaths[-1]["output"]
    (letter,) = connection.lrange(keys.dead_letters("default"), 0, -1)
    stored = json.loads(letter)
    assert stored["id"] == root
    assert len(stored["deaths"]) == 3
    again = wire.decoded(json.loads(stored["raw"]))
    assert (again.root, again.first, again.end, list(again.deaths)) == (root, 0, 1, [])


def test_a_buried_call_runs_when_it_is_queued_again(
    start: Starter, server: Server, client: RawClient, connection: redis.Redis, tmp_path: Path
) -> None:
    start()
    root = client.send(calls.dies_once, (tmp_path / "notes", "done"), max_deliveries=1)
    assert isinstance(client.results(root, 1)[0], WorkerLost)
    letters = DeadLetters(BrokerAddress.parse(server.url))
    (letter,) = letters.all()
    assert letter["id"] == root
    client.replies.clear()
    assert letters.resubmit(letter)
    assert client.results(root, 1) == ["done"]
    assert not letters.resubmit(letter)
    assert letters.all() == []


@pytest.mark.parametrize(("number", "name"), [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGABRT, "SIGABRT")])
def test_a_child_that_crashes_fails_its_call_at_once(start: Starter, client: RawClient, number: int, name: str) -> None:
    start()
    crashed = client.send(calls.dies, (number,))
    fine = client.send(calls.add, (1, 1))
    found = client.outcomes(2)
    assert isinstance(found[crashed, 0], ChildCrashed)
    assert found[crashed, 0].details["signal"] == name
    assert found[fine, 0] == 2


def test_a_timeout_kills_one_call_of_a_batch(start: Starter, client: RawClient) -> None:
    start()
    root = client.send(calls.sleeps, (0, "a"), (60, "b"), (0, "c"), timeout=0.5)
    first, second, third = client.results(root, 3)
    assert (first, third) == ("a", "c")
    assert isinstance(second, CallTimeout)


def test_cancelled_indexes_do_not_run(
    start: Starter, client: RawClient, connection: redis.Redis, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "journal")
    root = client.send(calls.noted, *[(journal.path, i) for i in range(4)])
    names = [keys.batches(client.id), keys.cancels(client.id)]
    cancel = source("cancel", shebang=False)
    assert connection.eval(cancel, 2, *names, root, "1", 600) == b"cancelled"
    assert connection.eval(cancel, 2, *names, root, "3", 600) == b"cancelled"
    assert connection.eval(cancel, 2, *names, "other", "1", 600) == b"gone"
    start()
    assert client.results(root, 4) == [0, "cancelled", 2, "cancelled"]
    assert sorted(journal.counts()) == ["0", "2"]


@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_a_running_call_is_cancelled_by_order(
    start: Starter, client: RawClient, connection: redis.Redis, tmp_path: Path, gate: Gate, how: str
) -> None:
    worker = start()
    journal = Journal(tmp_path / "journal")
    root = client.send(calls.waits, (journal.path, gate, "x"))
    journal.wait("started", "x")
    order = {"op": "cancel", "id": root, "indexes": [0], "signal": how}
    connection.lpush(keys.control(worker.id), "not json", json.dumps(order))
    assert client.results(root, 1) == ["cancelled"]
    assert client.results(client.send(calls.add, (1, 1)), 1) == [2]


def test_unsigned_foreign_and_old_messages_are_refused(start: Starter, client: RawClient) -> None:
    start()
    good = client.message(calls.add, [(1, 1)])
    spoilt = good._replace(frame=good.frame[:-1] + bytes([good.frame[-1] ^ 1]))
    other = client.message(calls.add, [(1, 1)], py="2.7")
    stretched = client.message(calls.add, [(1, 1)])._replace(end=2)
    missing = client.message("0" * 64, [(1, 1)])
    for message in (spoilt, other, stretched, missing):
        client.publish(message)
    found = client.outcomes(5)
    assert isinstance(found[spoilt.root, 0], BadSignature)
    assert isinstance(found[other.root, 0], VersionMismatch)
    assert "2.7" in str(found[other.root, 0])
    assert isinstance(found[stretched.root, 0], BadSignature)
    assert isinstance(found[missing.root, 0], FunctionMissing)


def test_outcomes_of_a_client_that_has_gone_are_dropped(
    start: Starter, client: RawClient, connection: redis.Redis
) -> None:
    worker = start()
    connection.delete(keys.client(client.id))
    client.send(calls.add, (1, 2))
    until(lambda: connection.llen("ke.default") == 0 and not connection.exists(keys.inflight(worker.id)))
    assert not connection.exists(keys.replies(client.id))


def test_user_code_may_use_multiprocessing_and_print(start: Starter, client: RawClient) -> None:
    worker = start()
    root = client.send(calls.with_children, ())
    assert client.results(root, 1) == [[1, 2, 3]]
    client.results(client.send(calls.prints, ("hello from a call",)), 1)
    until(lambda: "hello from a call" in worker.output(), what="the print arrives")


def test_priorities_are_all_consumed_by_an_idle_worker(start: Starter, client: RawClient) -> None:
    start()
    client.results(client.send(calls.add, (0, 0)), 1)
    for priority in (3, 6, 9):
        message = client.message(calls.add, [(priority, 0)])._replace(priority=priority)
        began = time.monotonic()
        client.publish(message)
        assert client.results(message.root, 1) == [priority]
        assert time.monotonic() - began < 5
