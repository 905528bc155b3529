"""Nothing unsigned is unpickled: forged, replayed, truncated and senseless messages, on both sides."""

from __future__ import annotations

import json
import os
import signal
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from executor import KubeExecutor
from executor.errors import BadSignature
from executor.wire import envelope, frame, outcome, segments, signing
from tests.faults import ExtraWorker, Journal, broker_of, noted, parent_of, registered, started
from tests.support import until

if TYPE_CHECKING:
    from pathlib import Path

    import redis

pytestmark = pytest.mark.timeout(15)


class Bomb:
    """A pickle that leaves a file behind when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))


@pytest.fixture(scope="module")
def executor() -> Iterator[KubeExecutor]:
    with started(max_workers=1) as one:
        assert still_works(one)  # the worker is there, and registered
        yield one


@pytest.fixture(scope="module")
def broker(executor: KubeExecutor) -> Iterator[redis.Redis]:
    client = broker_of(executor)
    yield client
    client.close()


@pytest.fixture
def crater(tmp_path: Path) -> Path:
    """Exists if a bomb went off."""
    return tmp_path / "crater"


@pytest.fixture
def bomb(crater: Path) -> bytes:
    import pickle

    return pickle.dumps(Bomb(crater))


def still_works(executor: KubeExecutor) -> bool:
    return list(executor.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]


def client_of(broker: redis.Redis) -> str:
    """Id of the (one) client, as anybody with access to the broker can see it."""
    (name,) = broker.keys("ke:client:*")
    return str(name.decode().removeprefix("ke:client:"))


def roots(broker: redis.Redis, client: str) -> list[str]:
    """Ids of the messages that are out."""
    return [name.decode() for name in broker.hkeys(f"ke:batches:{client}")]


def queue_of(broker: redis.Redis) -> str:
    (entry,) = [json.loads(each) for each in broker.hvals("ke:workers")]
    return str(entry["queues"][0])


def forged_call(broker: redis.Redis, key: bytes, payload: bytes, **changes: Any) -> str:
    """A call message as we would make it, signed with the wrong key."""
    client = client_of(broker)
    header = {
        "client": client, "root": f"{client}-f00", "n": 1, "kind": "calls", "star": False, "fn": "0" * 64,
        "timeout": None,
        "max_deliveries": 3, "py": "3.11", "protocol": frame.PROTOCOL, "name": None, "bufs": None, **changes,
    }  # fmt: skip
    sealed = frame.sealed(key, frame.CALL, header, segments.join([payload]))
    return envelope.encoded(envelope.Envelope(client, header["root"], 0, 1, queue_of(broker), 0, (), sealed))


def consumed(broker: redis.Redis, queue: str) -> None:
    """Wait until the worker has taken everything, and holds nothing."""
    until(lambda: not broker.exists(queue) and not broker.keys("ke:inflight:*"), what="the queue is empty")


class Captured:
    """A message on its way: the worker is stopped while it is taken from the queue."""

    def __init__(self, executor: KubeExecutor, broker: redis.Redis, journal: Journal) -> None:
        parent, queue = parent_of(broker), queue_of(broker)
        still_works(executor)
        os.kill(parent, signal.SIGSTOP)
        try:
            self.future = executor.submit(noted, journal, "captured")
            self.raw: bytes = until(lambda: self._found(broker, queue), what="the message is at the broker")
        finally:
            os.kill(parent, signal.SIGCONT)

    @staticmethod
    def _found(broker: redis.Redis, queue: str) -> bytes:
        """Wherever it is: queued, or taken by what the worker had asked for before it was stopped."""
        seen = list(broker.lrange(queue, 0, 0))
        for name in broker.keys("ke:inbox:*"):
            seen += broker.lrange(name, 0, 0)
        for name in broker.keys("ke:inflight:*"):
            seen += [value.partition(b"\n")[2] for tag, value in broker.hgetall(name).items() if b":" not in tag]
        return seen[0] if seen else b""


@pytest.fixture
def captured(executor: KubeExecutor, broker: redis.Redis, tmp_path: Path) -> Captured:
    return Captured(executor, broker, Journal(tmp_path / "journal"))


# --- the queue ------------------------------------------------------------------------------------------------------


def test_a_call_signed_with_another_key_is_not_unpickled(
    executor: KubeExecutor, broker: redis.Redis, bomb: bytes, crater: Path
) -> None:
    key = signing.client_key(signing.new_key(), client_of(broker))
    broker.lpush(queue_of(broker), forged_call(broker, key, bomb))

    consumed(broker, queue_of(broker))
    assert still_works(executor)
    assert not crater.exists()


SENSELESS: list[Callable[[dict[str, Any], bytes], dict[str, Any]]] = [
    lambda message, bomb: {**message, "body": b64encode(bomb).decode()},
    lambda message, bomb: {**message, "body": ""},
    lambda message, bomb: {**message, "body": "%%%"},
    lambda message, bomb: {**message, "body": message["body"][: len(message["body"]) // 2]},
    lambda message, bomb: {**message, "body": b64encode(b64decode(message["body"])[:-1]).decode()},
    lambda message, bomb: {**message, "body": b64encode(b"KE\x01\x00\xff\xff\xff\x7f" + bomb).decode()},
    lambda message, bomb: {**message, "body": b64encode(b"KE\x09\x00\x00\x00\x00\x00" + bomb + bytes(32)).decode()},
    lambda message, bomb: {**message, "headers": {**message["headers"], "range": [0, 10**9]}},
    lambda message, bomb: {**message, "headers": {**message["headers"], "range": "all"}},
    lambda message, bomb: {**message, "headers": {**message["headers"], "ke": 7}},
    lambda message, bomb: {**message, "headers": {**message["headers"], "deaths": 5}},
    lambda message, bomb: {**message, "headers": []},
    lambda message, bomb: {**message, "properties": None},
    lambda message, bomb: {},
]


@pytest.mark.parametrize("number", range(len(SENSELESS)))
def test_a_message_that_was_tampered_with_is_not_unpickled_and_the_worker_goes_on(
    executor: KubeExecutor, broker: redis.Redis, bomb: bytes, crater: Path, number: int
) -> None:
    parent = parent_of(broker)
    message = json.loads(forged_call(broker, signing.new_key(), b"nothing"))
    broker.lpush(queue_of(broker), json.dumps(SENSELESS[number](message, bomb)))

    consumed(broker, queue_of(broker))
    assert still_works(executor)
    assert not crater.exists()
    assert parent_of(broker) == parent


@pytest.mark.parametrize("raw", [b"", b"not json", b"\xff\xfe\x00", b"[]", b"null", b'"text"', b"{" * 5000])
def test_bytes_that_are_no_message_do_not_stop_the_worker(
    executor: KubeExecutor, broker: redis.Redis, raw: bytes
) -> None:
    parent = parent_of(broker)
    broker.lpush(queue_of(broker), raw)

    consumed(broker, queue_of(broker))
    assert still_works(executor)
    assert parent_of(broker) == parent


@pytest.mark.parametrize("serializer", ["pickle", "application/x-python-serialize"])
def test_a_celery_task_with_a_pickled_body_is_not_unpickled(
    executor: KubeExecutor, broker: redis.Redis, bomb: bytes, crater: Path, serializer: str
) -> None:
    parent = parent_of(broker)
    message = json.loads(forged_call(broker, signing.new_key(), b""))
    message |= {"content-type": serializer, "body": b64encode(bomb).decode()}
    for task in ("executor.call", "celery.ping", "no.such.task"):
        headers = {"task": task, "id": "1-2-3", "lang": "py", "root_id": "1-2-3"}
        broker.lpush(queue_of(broker), json.dumps({**message, "headers": headers}))

    consumed(broker, queue_of(broker))
    assert still_works(executor)
    assert not crater.exists()
    assert parent_of(broker) == parent


def test_a_message_of_one_client_is_worth_nothing_under_the_name_of_another(
    executor: KubeExecutor, broker: redis.Redis, captured: Captured, tmp_path: Path
) -> None:
    assert captured.future.result() == "captured"
    journal = Journal(tmp_path / "journal")
    before = journal.starts("captured")
    client = client_of(broker)
    broker.set("ke:client:intruder", "1", ex=60)
    try:
        broker.lpush(queue_of(broker), captured.raw.replace(client.encode(), b"intruder"))
        consumed(broker, queue_of(broker))
        (answer,) = broker.xrange("ke:replies:intruder") or [(b"", {b"m": b""})]
        assert b"captured" not in answer[1][b"m"]
    finally:
        broker.delete("ke:client:intruder", "ke:replies:intruder")
    assert journal.starts("captured") == before
    assert still_works(executor)


def test_a_message_with_another_range_or_root_is_refused(
    executor: KubeExecutor, broker: redis.Redis, captured: Captured, tmp_path: Path
) -> None:
    assert captured.future.result() == "captured"
    message = json.loads(captured.raw)
    for changes in ({"range": [0, 2]}, {"range": [-1, 1]}, {"range": [1, 1]}, {"root_id": "another"}):
        broker.lpush(queue_of(broker), json.dumps({**message, "headers": {**message["headers"], **changes}}))

    consumed(broker, queue_of(broker))
    assert Journal(tmp_path / "journal").starts() == 1
    assert still_works(executor)


def test_a_call_whose_message_is_spoilt_on_the_way_fails_with_bad_signature(
    executor: KubeExecutor, broker: redis.Redis, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "journal")
    still_works(executor)
    parent, queue = parent_of(broker), queue_of(broker)
    until(lambda: not broker.keys("ke:inflight:*"))
    blocker = executor.submit(noted, journal, "blocker", 0.5)
    journal.wait("started", "blocker")
    future = executor.submit(noted, journal, "spoilt")
    until(lambda: broker.llen(queue) == 1, what="the call is queued")
    message = json.loads(broker.lpop(queue))
    frame_bytes = bytearray(b64decode(message["body"]))
    frame_bytes[-40] ^= 1
    broker.lpush(queue, json.dumps({**message, "body": b64encode(frame_bytes).decode()}))

    assert isinstance(future.exception(), BadSignature)
    assert blocker.result() == "blocker"
    assert journal.starts("spoilt") == 0
    assert parent_of(broker) == parent
    assert still_works(executor)


def test_what_cannot_be_read_does_not_keep_the_rest_of_a_dead_worker(
    executor: KubeExecutor, broker: redis.Redis, tmp_path: Path
) -> None:
    queue = queue_of(broker)
    with ExtraWorker(parent_of(broker), tmp_path, slots=1, lease_s=1.0) as extra:
        (theirs,) = [worker for worker, entry in registered(broker).items() if entry["pid"] == extra.pid]
        extra.freeze()
        for tag, raw in enumerate([b"[]", b"\xff", b"{" * 5000, b'{"headers": 3}', b""], 9000):
            broker.hset(f"ke:inflight:{theirs}", str(tag), queue.encode() + b"\n" + raw)
        extra.kill()
        until(lambda: theirs not in registered(broker), what="the dead worker is reaped")
    assert not broker.exists(f"ke:inflight:{theirs}")
    assert still_works(executor)


# --- functions ------------------------------------------------------------------------------------------------------


def test_a_function_put_in_the_place_of_another_is_not_unpickled(
    executor: KubeExecutor, broker: redis.Redis, bomb: bytes, crater: Path, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "journal")
    client = client_of(broker)
    blocker = executor.submit(noted, journal, "blocker", 0.5)
    journal.wait("started", "blocker")
    known = set(broker.keys(f"ke:fn:{client}:*"))
    future = executor.submit(lambda x: x + 1, 1)  # a function the worker has not seen
    (name,) = until(lambda: set(broker.keys(f"ke:fn:{client}:*")) - known, what="the function is stored")
    digest = name.decode().rpartition(":")[2]
    forged = frame.sealed(signing.new_key(), frame.FUNCTION, {"digest": digest, "client": client}, bomb)
    broker.set(name, forged)

    assert future.result() == 2  # the worker asks the client for it once
    assert blocker.result() == "blocker"
    assert not crater.exists()


# --- the reply stream -----------------------------------------------------------------------------------------------


def test_forged_replies_are_not_unpickled_and_settle_nothing(
    executor: KubeExecutor, broker: redis.Redis, bomb: bytes, crater: Path, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "journal")
    client = client_of(broker)
    before = set(roots(broker, client))
    future = executor.submit(noted, journal, "it", 1.0)
    journal.wait("started")
    (root,) = set(roots(broker, client)) - before
    header = {
        "root": root,
        "id": root,
        "worker": "w",
        "pid": 1,
        "kind": "outcomes",
        "first": 0,
        "n": 1,
        "ns": 1,
        "bufs": None,
    }
    outcomes = segments.join([outcome.VALUE + bomb])
    key = signing.client_key(signing.new_key(), client)
    good = frame.sealed(key, frame.REPLY, header, outcomes)
    broken = frame.sealed(key, frame.REPLY, {"kind": "broken", "root": "", "message": "forged"})
    for forged in (
        good,
        good[:-5],
        good[:10],
        bomb,
        b"",
        b"KE",
        broken,
        good[:2] + b"\x09" + good[3:],  # of a version to come
        frame.sealed(key, frame.CALL, header, outcomes),
    ):
        broker.xadd(f"ke:replies:{client}", {"m": forged})
    for senseless in (b"", b"x", b"-1", b"\xff"):
        broker.xadd(f"ke:replies:{client}", {"s": senseless})
    broker.xadd(f"ke:replies:{client}", {"other": b"field"})

    assert future.result() == "it"
    assert not crater.exists()
    assert still_works(executor)


def test_replies_of_one_client_are_worth_nothing_to_another(
    executor: KubeExecutor, broker: redis.Redis, tmp_path: Path
) -> None:
    """Both clients have the same master key, as a nested executor has."""
    journal = Journal(tmp_path / "journal")
    client = client_of(broker)
    broker.set("ke:client:other", "1", ex=60)
    (master,) = _master_keys(broker)
    theirs = signing.client_key(master, "other")
    before = set(roots(broker, client))
    future = executor.submit(noted, journal, "it", 0.7)
    journal.wait("started")
    (root,) = set(roots(broker, client)) - before
    header = {"root": root, "id": root, "worker": "w", "pid": 1, "kind": "broken", "message": "replayed"}
    broker.xadd(f"ke:replies:{client}", {"m": frame.sealed(theirs, frame.REPLY, header)})

    assert future.result() == "it"
    broker.delete("ke:client:other")


def _master_keys(broker: redis.Redis) -> list[bytes]:
    from pathlib import Path as _Path

    from tests.faults import environment

    config = json.loads(_Path(environment(parent_of(broker))["KUBE_EXECUTOR_WORKER_CONFIG"]).read_text())
    return [bytes.fromhex(_Path(config["key_file"]).read_text())]
