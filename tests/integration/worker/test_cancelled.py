"""Cancelled calls that workers hold: they never run, not even when the client has left before they are handed back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import redis

from executor.broker import keys
from executor.broker.address import BrokerAddress
from executor.broker.connection import connect_async
from executor.broker.publisher import Publisher
from tests.faults import Journal, Server
from tests.integration.worker import calls
from tests.integration.worker.conftest import RawClient, WorkerProcess, initializer
from tests.support import Gate, until

pytestmark = pytest.mark.timeout(120)
Starter = Callable[..., WorkerProcess]


def leave(server: Server, client: RawClient) -> None:
    """What a client does at the end of its executor."""

    async def leaving() -> None:
        address = BrokerAddress.parse(server.url)
        publisher = Publisher(connect_async(address), client.id, address)
        await publisher.server_run()
        await publisher.leave([client.queue])
        await publisher.close()

    asyncio.run(leaving())


def claimed(start: Starter, client: RawClient, journal: Journal, gate: Gate, *cancelled: int) -> WorkerProcess:
    """A worker that has claimed a message with cancelled calls, and no child that could take it yet."""
    message = client.message(calls.noted, [(journal.path, i) for i in range(3)])
    client.redis.hset(keys.cancels(client.id), message.id, ",".join(map(str, cancelled)))
    worker = start(initializer=initializer(calls.waits, journal.path, gate, "setup"))
    client.publish(message)
    until(lambda: client.redis.hget(keys.batches(client.id), message.id) == worker.id.encode(), what="it is claimed")
    return worker


def test_what_was_cancelled_stays_so_when_its_client_has_left(
    start: Starter, server: Server, client: RawClient, connection: redis.Redis, journal: Journal, gate: Gate
) -> None:
    worker = claimed(start, client, journal, gate, 0, 1, 2)
    leave(server, client)
    worker.terminate()
    start()
    until(lambda: not connection.exists(keys.inflight(worker.id)))
    assert _leftovers(connection) == []
    assert [entry.call for entry in journal.entries("started")] == ["setup"]


def test_what_was_not_cancelled_goes_on_without_the_rest(
    start: Starter, client: RawClient, journal: Journal, gate: Gate
) -> None:
    worker = claimed(start, client, journal, gate, 0, 2)
    worker.terminate()
    start()
    journal.wait("started", count=2)
    assert client.results(f"{client.id}-1", 3) == ["cancelled", 1, "cancelled"]
    assert [entry.call for entry in journal.entries("started")] == ["setup", "1"]


def test_a_client_that_leaves_while_nothing_is_held_leaves_nothing(
    server: Server, client: RawClient, connection: redis.Redis, journal: Journal
) -> None:
    message = client.message(calls.noted, [(journal.path, 0)])
    client.publish(message)
    connection.hset(keys.cancels(client.id), message.id, "0")
    leave(server, client)
    assert _leftovers(connection) == []


def _leftovers(connection: redis.Redis) -> list[bytes]:
    """Queues, and what belongs to a client."""
    kinds = ("ke.*", *(f"ke:{kind}:client*" for kind in ("client", "replies", "batches", "cancels")))
    return [key for kind in kinds for key in connection.keys(kind)]
