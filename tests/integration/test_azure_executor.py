"""``KubeExecutor(store="az://...")`` from end to end: client, workers, and an Azurite between them."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor import KubeExecutor
from executor.errors import StoreRefused, StoreUnavailable
from executor.stores import azure_store
from tests.azurite import ACCOUNT, Azurite, Box
from tests.faults import Journal, environment, gated, parent_of, started
from tests.support import Gate, unique_name

pytestmark = [pytest.mark.azurite, pytest.mark.timeout(180)]
MIB = 1024 * 1024


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Azurite]:
    with Azurite(tmp_path) as one:
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", one.connection_string())
        yield one


@pytest.fixture
def box(server: Azurite) -> Iterator[Box]:
    one = Box(server)
    with one.client:
        yield one


def reverse(data: bytearray) -> bytearray:
    """As large a result as its argument."""
    return data[::-1]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def large(size: int) -> bytes:
    return b"x" * size


def gated_digest(journal: Journal, gate: Gate, data: bytes) -> tuple[str, bytes]:
    gated(journal, digest(data), gate)
    return digest(data), data[::-1]


def test_large_values_there_and_back(box: Box) -> None:
    values = [bytearray(os.urandom(3 * MIB)) for _ in range(12)]
    with started(max_workers=2, store=box.locator) as executor:
        assert list(executor.map(reverse, values)) == [value[::-1] for value in values]
        assert executor.submit(digest, bytes(values[0])).result() == digest(values[0])
        assert executor.submit(abs, -1).result() == 1
    assert len(box.digests()) >= 2


def test_arrays_there_and_back(box: Box) -> None:
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.random.default_rng(seed).random(400_000) for seed in range(6)]
    with started(max_workers=2, store=box.locator) as executor:
        for array, doubled in zip(arrays, executor.map(lambda a: a * 2, arrays), strict=True):
            assert (doubled == array * 2).all()


def test_the_same_argument_is_stored_once(box: Box) -> None:
    data = os.urandom(2 * MIB)
    with started(max_workers=2, store=box.locator) as executor:
        futures = [executor.submit(digest, data) for _ in range(8)]
        assert {future.result() for future in futures} == {digest(data)}
    assert len(box.digests()) == 1


async def test_in_asyncio(box: Box) -> None:
    data = os.urandom(2 * MIB)
    async with KubeExecutor(2, store=box.locator) as executor:
        assert await executor.submit(digest, data) == digest(data)


def test_no_credential_is_in_what_travels(box: Box) -> None:
    with started(max_workers=1, store=box.locator) as executor:
        from tests.faults import broker_of

        assert executor.submit(digest, large(MIB)).result() == digest(large(MIB))
        client = broker_of(executor)
        worker = parent_of(client)
        config = Path(environment(worker)["KUBE_EXECUTOR_WORKER_CONFIG"]).read_text()
        command = Path(f"/proc/{worker}/cmdline").read_text()
        client.close()
    assert box.locator in config
    assert box.server.key not in config + command + repr(executor)


def test_an_outage_loses_nothing(box: Box, tmp_path: Path, gate: Gate) -> None:
    journal = Journal(tmp_path / "journal")
    values = [os.urandom(2 * MIB) for _ in range(6)]
    with started(max_workers=2, store=box.locator) as executor:
        futures = [executor.submit(gated_digest, journal, gate, value) for value in values]
        journal.wait("started", count=2)
        box.server.stop()
        gate.open()  # arguments to fetch and results to store, and nobody there
        journal.wait("finished", count=2)
        back = threading.Timer(2.0, box.server.start)
        back.start()
        late = [executor.submit(digest, value * 2) for value in values[:2]]
        assert [future.result(100) for future in futures] == [(digest(value), value[::-1]) for value in values]
        assert [future.result(100) for future in late] == [digest(value * 2) for value in values[:2]]
        back.join()
    assert journal.counts("finished") == {digest(value): 1 for value in values}


def test_a_store_that_stays_away_fails_the_calls_that_need_it(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azure_store, "PATIENCE_S", 0.5)
    with started(max_workers=1, store=box.locator) as executor:
        assert executor.submit(len, large(MIB)).result() == MIB
        monkeypatch.setattr(executor._session.store, "_patience_s", 0.5)
        executor._session.store.close()
        box.server.stop()
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            executor.submit(len, large(2 * MIB)).result()
        results = executor.map(len, [large(MIB + number) for number in range(8)])
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            list(results)
        assert executor.submit(abs, -1).result() == 1


def test_a_missing_container_fails_arguments_and_results(server: Azurite) -> None:
    with started(max_workers=1, store=f"az://{ACCOUNT}/{unique_name('none')}") as executor:
        with pytest.raises(StoreRefused, match="There is no container"):
            executor.submit(len, large(MIB)).result()
        with pytest.raises(StoreRefused, match="There is no container"):
            executor.submit(large, MIB).result()
        with pytest.raises(StoreRefused, match="There is no container"):
            list(executor.map(large, [MIB, MIB]))
        assert list(executor.map(abs, [-1, -2])) == [1, 2]
