"""Whoever leaves in whatever way leaves nothing behind: no process, no socket, no directory."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults import Journal, Server
from tests.support import Script, until

pytestmark = pytest.mark.timeout(60)

CLIENT = """
    import sys, time
    from executor import KubeExecutor
    from tests.faults import Journal, noted

    def slowly(journal, i):
        return noted(journal, i, 0.05)

    if __name__ == "__main__":
        journal = Journal({journal!r})
        with KubeExecutor(max_workers=2, broker_url={url!r}) as executor:
            blob = bytes(4 << 20)
            executor.submit(len, blob).result()
            print("started", flush=True)
            {work}
        print("ended", flush=True)
"""

MAP = "list(executor.map(slowly, [journal] * 100_000, range(100_000)))"
WAIT = "[f.result() for f in [executor.submit(noted, journal, i, 0.05) for i in range(10_000)]]"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


class Traces:
    """Finds what a client leaves in its temporary directory and in shared memory."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp = tmp_path / "tmp"
        self.tmp.mkdir()
        self.env = {"TMPDIR": str(self.tmp)}

    def names(self) -> list[str]:
        """Private directories of pools; those in shared memory have the same names."""
        return [path.name for path in self.tmp.glob("ke-*")]

    def left(self, names: list[str]) -> list[str]:
        shared = [f"/dev/shm/{name}" for name in names if os.path.exists(f"/dev/shm/{name}")]
        return [*map(str, self.tmp.iterdir()), *shared]


def script(tmp_path: Path, journal: Journal, work: str, traces: Traces, url: str | None = None) -> Script:
    return Script(tmp_path, CLIENT.format(journal=journal.path, url=url, work=work), traces.env)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_client_that_is_killed_leaves_nothing(tmp_path: Path, journal: Journal, number: int) -> None:
    traces = Traces(tmp_path)
    with script(tmp_path, journal, WAIT, traces) as client:
        client.wait_output("started")
        journal.wait("started", count=4)
        names = traces.names()
        assert names
        assert len(client.descendants()) >= 4  # supervisor, server, worker parent and children
        began = time.monotonic()
        client.process.send_signal(number)
        client.process.wait(10)

        until(lambda: not client.descendants(), 15, "no process is left")
        until(lambda: not traces.left(names), 5, f"nothing is left: {traces.left(names)}")
        print(f"{signal.Signals(number).name}: all gone after {time.monotonic() - began:.2f} s")


def test_a_client_that_is_killed_leaves_no_worker_at_the_users_broker(tmp_path: Path, journal: Journal) -> None:
    traces = Traces(tmp_path)
    with Server(tmp_path) as server, script(tmp_path, journal, WAIT, traces, server.url) as client:
        client.wait_output("started")
        journal.wait("started", count=4)
        assert server.command("HLEN", "ke:workers") == 1
        client.process.kill()
        client.process.wait()

        until(lambda: not client.descendants(), 15, "no process is left")
        until(lambda: not list(traces.tmp.iterdir()), 5, "no directory is left")
        # what it had queued ends with its time to live: nobody else serves its queues
        assert all(server.command("TTL", name) > 0 for name in server.command("KEYS", "ke:client:*"))
        ours = [
            name for name in server.command("KEYS", "ke:*") if name.startswith((b"ke:batches", b"ke:replies", b"ke:fn"))
        ]
        assert all(server.command("TTL", name) > 0 for name in ours)


@pytest.mark.parametrize("work", [MAP, WAIT], ids=["map", "results"])
@pytest.mark.parametrize("whole", [False, True], ids=["client", "group"])
def test_ctrl_c_ends_quickly_and_leaves_nothing(tmp_path: Path, journal: Journal, work: str, whole: bool) -> None:
    traces = Traces(tmp_path)
    with script(tmp_path, journal, work, traces) as client:
        client.wait_output("started")
        journal.wait("started", count=4)
        names = traces.names()
        began = time.monotonic()
        client.interrupt_group() if whole else client.interrupt()
        finished = client.finish(15)
        took_s = time.monotonic() - began

        assert finished.returncode == -signal.SIGINT
        assert finished.stderr.count("KeyboardInterrupt") == 1
        assert "ended" not in finished.stdout
        until(lambda: not client.descendants(), 10, "no process is left")
        until(lambda: not traces.left(names), 5, f"nothing is left: {traces.left(names)}")
        assert took_s < 10
        print(f"Ctrl-C: ended after {took_s:.2f} s")


def test_ctrl_c_twice_ends_all_the_same(tmp_path: Path, journal: Journal) -> None:
    traces = Traces(tmp_path)
    with script(tmp_path, journal, MAP, traces) as client:
        client.wait_output("started")
        journal.wait("started", count=4)
        names = traces.names()
        client.interrupt_group()
        time.sleep(0.02)  # while it cleans up
        client.interrupt_group()
        client.finish(15)

        until(lambda: not client.descendants(), 10, "no process is left")
        until(lambda: not traces.left(names), 5, f"nothing is left: {traces.left(names)}")
