"""Large values beyond this machine's memory: they live while their call does, and hold nobody up when it ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from executor.dispatch import keeping, patience
from executor.errors import BrokerUnavailable
from executor.stores.filesystem import SharedDiskStore
from tests.faults import Server, started
from tests.support import DEADLINE_S, until

if TYPE_CHECKING:
    from tests.support import Gate

LARGE = b"x" * 100_000


def length_at(gate: Gate, value: bytes) -> int:
    """Runs in a worker."""
    gate.pass_through()
    return len(value)


def test_an_executor_keeps_its_values_on_a_shared_disk_and_sweeps_old_ones(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "KEEP_EVERY_S", 0.1)
    disk = SharedDiskStore(str(tmp_path / "store"))
    old = Path(disk.path) / "{0:.2}/{0}".format(disk.put(b"left by somebody").name)
    os.utime(old, (1, 1))
    with started(max_workers=1, store=disk.locator) as executor:
        until(lambda: not old.exists(), what="the old value is swept")
        blocker = executor.submit(length_at, gate, b"")
        gate.wait_arrivals(1)
        before = set(Path(disk.path).glob("*/*"))
        future = executor.submit(length_at, gate, LARGE)
        (blob,) = set(Path(disk.path).glob("*/*")) - before
        os.utime(blob, (1, 1))
        until(lambda: blob.stat().st_mtime > 1, what="the value of a waiting call is kept")
        gate.open()
        assert blocker.result(DEADLINE_S) == 0
        assert future.result(DEADLINE_S) == len(LARGE)
    disk.close()


@pytest.mark.redis
def test_values_in_a_server_that_is_gone_hold_up_no_future(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "BROKER_TIMEOUT_S", 2.0)
    with Server(tmp_path) as server, started(max_workers=1, broker_url=server.url, store=server.url) as executor:
        futures = [executor.submit(length_at, gate, LARGE) for _ in range(20)]
        gate.wait_arrivals(1)
        server.kill()
        for future in futures:
            assert isinstance(future.exception(DEADLINE_S), BrokerUnavailable)
        gate.open()
