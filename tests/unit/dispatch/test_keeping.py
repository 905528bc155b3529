"""Which large values a client keeps alive, and that nothing of it can hold up the client."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from executor.dispatch.keeping import KEEP_EVERY_S, Keeping, wanted_refs
from executor.dispatch.map_lane import MapLane
from executor.dispatch.map_result import MapState
from executor.stores.base import BlobRef, BlobStore
from executor.stores.filesystem import SharedDiskStore
from executor.stores.memory import MemoryStore
from executor.stores.offload import packed, unpacked
from executor.tasks.call_options import CallOptions
from tests.support import until
from tests.unit.dispatch.conftest import Run
from tests.unit.dispatch.doubles import Client, VirtualLoop, function, settled

LARGE = b"x" * 100_000


class Expiring(SharedDiskStore):
    """Notes what is kept, in which thread.

    Attributes:
        error: Raised by :meth:`keep`, if set.
    """

    error: Exception | None = None
    kept: list[list[BlobRef]]
    threads: set[threading.Thread]

    def keep(self, refs: Iterable[BlobRef]) -> None:
        self.kept.append([*refs])
        self.threads.add(threading.current_thread())
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """One object for all, here."""


@pytest.fixture
def store(tmp_path: Path) -> Iterable[Expiring]:
    one = Expiring(str(tmp_path / "store"))
    one.kept, one.threads = [], set()
    yield one
    SharedDiskStore.close(one)


@pytest.fixture
def client(virtual: VirtualLoop, run: Run) -> Client:
    async def started() -> Client:
        client = Client(virtual)
        await client.start()
        return client

    return run(started())  # type: ignore[no-any-return]


def submit(client: Client, store: BlobStore, count: int) -> list[BlobRef]:
    """Calls with a large argument each, in a lane of their own; a few of them are out."""
    lane = client.lane(max_deliveries=1)
    lane.store = store
    refs: list[BlobRef] = []
    for n in range(count):
        data, buffers = packed(((LARGE + bytes([n]),), {}), store)
        future = client.submit(lane, n)
        future.data, future.buffers = data, buffers
        refs += [BlobRef.from_json(ref[:4]) for ref in buffers]
    return refs


def test_values_of_open_calls_are_wanted(client: Client, run: Run, store: Expiring) -> None:
    async def scenario() -> None:
        refs = submit(client, store, 10)
        await settled()
        assert 0 < len(client.dispatcher.ledger) < 10
        assert sorted(wanted_refs(client.dispatcher)) == sorted(refs)
        client.broker.down = True

    run(scenario())


def test_values_of_a_map_are_wanted_when_they_have_been_stored(client: Client, run: Run, store: Expiring) -> None:
    async def scenario() -> None:
        lane = MapLane(
            function("g"),
            CallOptions(),
            client.lane().durations,
            store,
            state=MapState(ordered=True),
            star=False,
            chunksize=5,
            later=client.dispatcher.later,
        )
        client.dispatcher.adopt(lane)
        lane.add(0, [LARGE + bytes([n]) for n in range(10)])
        client.dispatcher.wake(lane)
        await settled()
        assert len(client.dispatcher.ledger) == 2
        for batch in client.dispatcher.ledger.values():
            assert len(unpacked(batch.cargo.payload, batch.cargo.buffers or [], store)) == 5
        wanted = [ref.to_json() for ref in wanted_refs(client.dispatcher)]
        assert wanted == [ref[:4] for batch in client.dispatcher.ledger.values() for ref in batch.cargo.buffers or []]
        assert len(wanted) == 2

    run(scenario())


def test_values_are_kept_at_the_start_and_each_hour_in_a_thread(
    client: Client, run: Run, store: Expiring, caplog: pytest.LogCaptureFixture
) -> None:
    keeping = Keeping(client.dispatcher, lambda: store)

    def kept(times: int) -> None:
        until(lambda: len(store.kept) == times and not any(thread.is_alive() for thread in store.threads))

    async def scenario() -> None:
        keeping.start(store)
        kept(1)
        refs = submit(client, store, 1)
        await settled()
        store.error = OSError("no such disk")
        await asyncio.sleep(KEEP_EVERY_S + 1)
        kept(2)
        await asyncio.sleep(KEEP_EVERY_S)
        kept(3)
        assert store.kept == [[], refs, refs]
        assert threading.current_thread() not in store.threads
        keeping.stop()
        await asyncio.sleep(2 * KEEP_EVERY_S)
        assert len(store.kept) == 3

    run(scenario())
    assert caplog.text.count("no such disk") == 2


def test_store_that_keeps_by_itself_is_left_alone(client: Client, run: Run) -> None:
    def never() -> BlobStore:
        raise AssertionError("opened")

    async def scenario() -> None:
        keeping = Keeping(client.dispatcher, never)
        keeping.start(MemoryStore())
        await asyncio.sleep(2 * KEEP_EVERY_S)
        keeping.stop()

    run(scenario())
