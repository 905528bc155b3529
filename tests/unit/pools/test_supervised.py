"""The pure parts of the supervisor: when to start again, and what it imports."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from executor.pools.directories import make_directories
from executor.pools.processes import Exit, remove_tree
from executor.pools.supervised import Restarts, Worker
from executor.pools.supervisor import Channel

EXITED, KILLED, CRASHED = Exit(1 << 8), Exit(9), Exit(11)


def test_restarts_at_once_the_first_time() -> None:
    assert Restarts().after(EXITED, lived_s=1.0, ready=True) == 0.0


def test_restarts_wait_longer_each_time_up_to_a_limit() -> None:
    restarts = Restarts()
    delays = [restarts.after(EXITED, lived_s=1.0, ready=True) for _ in range(3000)]
    assert delays[:5] == [0.0, 0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == Restarts.LONGEST_DELAY_S


def test_restarts_begin_anew_after_a_long_life() -> None:
    restarts = Restarts()
    for _ in range(5):
        restarts.after(EXITED, lived_s=1.0, ready=True)
    assert restarts.after(EXITED, lived_s=1000.0, ready=True) == 0.0


@pytest.mark.parametrize(
    ("end", "most"), [(EXITED, Restarts.MOST_FAILED), (CRASHED, Restarts.MOST_FAILED), (KILLED, Restarts.MOST_EARLY)]
)
def test_restarts_give_up_after_early_deaths_in_a_row(end: Exit, most: int) -> None:
    restarts = Restarts()
    delays = [restarts.after(end, lived_s=0.1, ready=False) for _ in range(most)]
    assert None not in delays[:-1]
    assert delays[-1] is None
    assert sum(filter(None, delays)) < 30.0, "open futures must not wait longer than this"


def test_restarts_never_give_up_on_a_worker_that_was_ready() -> None:
    restarts = Restarts()
    for _ in range(50):
        restarts.after(EXITED, lived_s=0.1, ready=False)
        assert restarts.after(EXITED, lived_s=0.1, ready=True) is not None


@pytest.mark.parametrize(
    ("status", "text"), [(0, "exit code 0"), (78 << 8, "exit code 78"), (9, "signal SIGKILL"), (60, "signal signal 60")]
)
def test_exit_names_how(status: int, text: str) -> None:
    assert str(Exit(status)) == text


def test_resize_keeps_the_file_private_and_the_rest_of_it(tmp_path: Path) -> None:
    config = tmp_path / "worker.json"
    config.write_text(json.dumps({"slots": 2, "broker": "x"}))
    Worker(["x"], str(config), "log", "ready").resize(7)
    assert json.loads(config.read_text()) == {"slots": 7, "broker": "x"}
    assert config.stat().st_mode & 0o777 == 0o600


def test_channel_keeps_what_the_other_side_does_not_read_yet() -> None:
    read, write = os.pipe()
    channel = Channel(write)
    for number in range(5000):
        channel.send("event", number=number, text="x" * 50)
    os.set_blocking(read, False)
    received = b""
    while received.count(b"\n") < 5000:
        received += os.read(read, 1 << 16)
        channel.flush()
    assert [json.loads(line)["number"] for line in received.splitlines()] == list(range(5000))
    os.close(read)
    channel.send("event")
    assert channel.closed, "a client that is gone ends nothing but the channel"
    os.close(write)


def test_channel_joins_pieces_of_a_message() -> None:
    read, write = os.pipe()
    channel = Channel(read)
    os.write(write, b'{"command": "st')
    assert channel.read() == []
    os.write(write, b'op"}\n{"a": 1}\n{')
    assert channel.read() == [{"command": "stop"}, {"a": 1}]
    assert channel.read() == []
    os.close(write)
    assert channel.read() == []
    assert channel.closed
    os.close(read)


def test_supervisor_imports_only_light_modules() -> None:
    code = "import sys; sys.path.append(sys.argv[1]); import executor.pools.supervisor; print(*sys.modules)"
    root = str(Path(__file__).parents[3])
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", code, root], capture_output=True, text=True, check=True)
    heavy = {"asyncio", "subprocess", "logging", "dataclasses", "socket", "pathlib", "threading", "redis"}
    assert heavy.isdisjoint(ran.stdout.split())


def test_directories_are_private_and_locked(tmp_path: Path) -> None:
    directories = make_directories(tmp_path)
    try:
        assert directories.private.parent == tmp_path
        for path in directories.paths:
            assert os.stat(path).st_mode & 0o777 == 0o700
            with open(f"{path}/.lock", "rb") as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        directories.unlock()
        directories.remove()
    assert not any(map(os.path.exists, directories.paths))


def test_directories_of_the_dead_are_swept_and_no_others(tmp_path: Path) -> None:
    living, dead, young = (make_directories(tmp_path) for _ in range(3))
    (tmp_path / "ke-stranger").mkdir()
    for path in (living.private, dead.private, tmp_path / "ke-stranger"):
        os.utime(path, (1, 1))
    dead.unlock()
    young.unlock()
    newcomer = make_directories(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {living.private.name, young.private.name, newcomer.private.name, "ke-stranger"}
    for one in (living, newcomer):
        one.unlock()
    for one in (living, dead, young, newcomer):
        one.remove()


def test_remove_tree_follows_no_links(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "link").symlink_to(kept)
    remove_tree(str(tree))
    assert not tree.exists()
    assert (kept / "file").exists()
    remove_tree(str(tree))  # no matter that it is gone
