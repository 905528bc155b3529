"""Connecting to a user's server: what works, and the one sentence for each thing that does not."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import RedisError

from executor.broker.address import BrokerAddress
from executor.broker.connection import check, connect_async, connect_sync
from executor.errors import BrokerError, BrokerRefused, BrokerUnavailable
from tests.integration.servers import Certificates, PretendedServer, RedisServer, certificates, needs_redis
from tests.support import free_port, run_script

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["certificates"]

pytestmark = [pytest.mark.redis, needs_redis]

PASSWORD = "p@ss/w:rd#?"
QUOTED = "p%40ss%2Fw%3Ard%23%3F"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    acl = tmp_path / "users.acl"
    acl.write_text(f"user default on >{PASSWORD} ~* &* +@all\nuser weak on >weak ~* +@connection\n")
    with RedisServer(tmp_path, "--aclfile", str(acl), "--unixsocket", str(tmp_path / "r.sock")) as server:
        yield server


async def refusal(url: str, kind: type[BrokerError], timeout_s: float = 5.0) -> str:
    """The sentence that checking this URL raises, having seen that it is one, without secrets and with its cause."""
    with pytest.raises(kind) as caught:
        await check(BrokerAddress.parse(url), timeout_s=timeout_s)
    sentence = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in sentence
    assert PASSWORD not in sentence
    assert QUOTED not in sentence
    return sentence


async def test_check_accepts_redis_and_tells_its_version(server: RedisServer) -> None:
    info = await check(BrokerAddress.parse(f"redis://:{QUOTED}@localhost:{server.port}/3"))
    assert info.server == "redis"
    assert re.match(r"\d+\.\d+", info.version)


async def test_check_accepts_a_socket(server: RedisServer, tmp_path: Path) -> None:
    await check(BrokerAddress.parse(f"unix://:{QUOTED}@{tmp_path}/r.sock?db=1"))


async def test_connections_say_who_they_are_and_use_the_database(server: RedisServer) -> None:
    address = BrokerAddress.parse(f"redis://:{QUOTED}@localhost:{server.port}/5")
    with connect_sync(address, client_name="ke-test") as client:
        client.set("key", "value")
        assert [entry["db"] for entry in client.client_list() if entry["name"] == "ke-test"] == ["5"]
    async with connect_async(address) as again:
        assert await again.get("key") == b"value"


async def test_a_command_is_sent_once() -> None:
    with PretendedServer({b"CLIENT": b"+OK\r\n", b"LPUSH": b""}) as server:
        client = connect_async(BrokerAddress.parse(f"redis://localhost:{server.port}"))
        with pytest.raises(RedisError):
            await client.lpush("queue", "call")
        await client.aclose()
    assert server.heard.count(b"LPUSH") == 1, "it may have been done: only its sender knows whether to repeat it"


@pytest.mark.parametrize(
    ("userinfo", "says"),
    [
        (":wrong@", "refused the password of the default user"),
        ("nobody:x@", "refused the password of user 'nobody'"),
        ("", "wants a password"),
        ("weak:weak@", "lacks rights"),
    ],
)
async def test_check_refused_by_password_or_rights(server: RedisServer, userinfo: str, says: str) -> None:
    assert says in await refusal(f"redis://{userinfo}localhost:{server.port}", BrokerRefused)


async def test_check_database_out_of_range(server: RedisServer) -> None:
    assert "no database 99" in await refusal(f"redis://:{QUOTED}@localhost:{server.port}/99", BrokerRefused)


async def test_check_password_for_a_server_without_one(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        assert "has no password" in await refusal(f"redis://:{QUOTED}@localhost:{server.port}", BrokerRefused)


async def test_check_nothing_listens() -> None:
    port = free_port()
    sentence = await refusal(f"redis://localhost:{port}", BrokerUnavailable)
    assert f"Nothing listens at localhost:{port}" in sentence
    assert f"redis-cli -h localhost -p {port} ping" in sentence


async def test_check_keeps_the_cause() -> None:
    with pytest.raises(BrokerUnavailable) as caught:
        await check(BrokerAddress.parse(f"redis://localhost:{free_port()}"))
    assert caught.value.__cause__ is not None
    assert isinstance(caught.value, ConnectionError), "as the standard library would call it"


async def test_check_no_such_socket(tmp_path: Path) -> None:
    assert "There is no socket" in await refusal(f"unix://{tmp_path}/none.sock", BrokerUnavailable)


async def test_check_unknown_host() -> None:
    assert "(DNS)" in await refusal("redis://no-such-host.invalid", BrokerUnavailable)


async def test_check_a_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sentence = await refusal(f"redis://127.0.0.1:{silent.getsockname()[1]}", BrokerUnavailable)
    assert "No answer" in sentence


async def test_check_a_server_that_hangs_up() -> None:
    with PretendedServer({}, default=b"") as server:
        assert "closed the connection" in await refusal(f"redis://localhost:{server.port}", BrokerUnavailable)


async def test_check_a_server_of_another_kind() -> None:
    with PretendedServer({}, default=b"HTTP/1.1 400 Bad Request\r\n") as server:
        assert "does not speak Redis" in await refusal(f"redis://localhost:{server.port}", BrokerUnavailable)


def info(version: str) -> bytes:
    text = f"# Server\r\nredis_version:{version}\r\nredis_mode:standalone\r\n"
    return f"${len(text)}\r\n{text}\r\n".encode()


def hello(**fields: str) -> bytes:
    words = [word for pair in fields.items() for word in pair]
    return f"*{len(words)}\r\n".encode() + b"".join(f"${len(word)}\r\n{word}\r\n".encode() for word in words)


@pytest.mark.parametrize(
    ("replies", "says"),
    [
        ({b"INFO": info("5.0.14")}, "Redis 5.0.14; Redis 6.2 or later"),
        ({b"HELLO": hello(server="redis", version="6.0.20")}, "Redis 6.0.20; Redis 6.2 or later"),
        ({b"HELLO": hello(server="redis", version="7.0.0", mode="cluster")}, "is a cluster"),
        ({b"HELLO": hello(server="redis", version="7.0.0", mode="sentinel")}, "is a sentinel"),
        ({b"HELLO": hello(server="redis", version="7.0.0", role="replica")}, "read-only replica"),
    ],
)
async def test_check_refuses_servers_that_will_not_do(replies: dict[bytes, bytes], says: str) -> None:
    with PretendedServer({b"CLIENT": b"+OK\r\n", **replies}) as server:
        assert says in await refusal(f"redis://localhost:{server.port}", BrokerRefused)


async def test_check_accepts_a_proxy_without_hello() -> None:
    with PretendedServer({b"CLIENT": b"+OK\r\n", b"INFO": info("7.2.0"), b"EVAL": b":1\r\n"}) as server:
        assert (await check(BrokerAddress.parse(f"redis://localhost:{server.port}"))).version == "7.2.0"


async def test_tls(tmp_path: Path, certificates: Certificates) -> None:
    with RedisServer(tmp_path, *certificates.server_options(), tls=True) as server:
        address = BrokerAddress.parse(f"rediss://localhost:{server.port}?ssl_ca_certs={certificates.ca}")
        assert (await check(address)).server == "redis"
        with connect_sync(address) as client:
            assert client.ping()


async def test_tls_refusals(tmp_path: Path, certificates: Certificates) -> None:
    with RedisServer(tmp_path, *certificates.server_options(), tls=True) as server:
        trusted = f"?ssl_ca_certs={certificates.ca}"
        sentence = await refusal(f"rediss://localhost:{server.port}", BrokerUnavailable)
        assert "is not trusted" in sentence
        sentence = await refusal(f"rediss://127.0.0.1:{server.port}{trusted}", BrokerUnavailable)
        assert "is not valid for '127.0.0.1'" in sentence
        sentence = await refusal(f"redis://localhost:{server.port}", BrokerUnavailable)
        assert "write rediss://" in sentence
        await check(BrokerAddress.parse(f"rediss://127.0.0.1:{server.port}{trusted}&ssl_check_hostname=false"))
        await check(BrokerAddress.parse(f"rediss://localhost:{server.port}?ssl_cert_reqs=none"))


async def test_tls_client_certificate(tmp_path: Path, certificates: Certificates) -> None:
    options = certificates.server_options(client_certificates=True)
    with RedisServer(tmp_path, *options, tls=True) as server:
        url = f"rediss://localhost:{server.port}?ssl_ca_certs={certificates.ca}"
        assert "client certificate" in await refusal(url, BrokerUnavailable)
        own = f"&ssl_certfile={certificates.directory}/client.crt&ssl_keyfile={certificates.directory}/client.key"
        await check(BrokerAddress.parse(url + own))


async def test_tls_at_a_port_without_it(server: RedisServer, certificates: Certificates) -> None:
    url = f"rediss://localhost:{server.port}?ssl_ca_certs={certificates.ca}"
    assert "If not, write redis://" in await refusal(url, BrokerUnavailable)


@pytest.mark.parametrize("kind", ["redis", "unix", "rediss"])
def test_stock_celery_understands_kombu_url(tmp_path: Path, certificates: Certificates, kind: str) -> None:
    tls = certificates.server_options() if kind == "rediss" else []
    options = ["--requirepass", "s3cr3t", "--unixsocket", str(tmp_path / "r.sock"), *tls]
    with RedisServer(tmp_path, *options, tls=kind == "rediss") as server:
        address = BrokerAddress.parse(
            {
                "redis": f"redis://:s3cr3t@localhost:{server.port}/2",
                "unix": f"unix://:s3cr3t@{tmp_path}/r.sock?db=2",
                "rediss": f"rediss://:s3cr3t@localhost:{server.port}/2?ssl_ca_certs={certificates.ca}",
            }[kind]
        )
        service = f"""
            from celery import Celery
            app = Celery(broker={address.kombu_url!r}, backend={address.kombu_url!r})
            sent = app.send_task("some.task", queue="thumbs")
            app.backend.store_result(sent.id, 42, "SUCCESS")
            print(sent.id, sent.get(timeout=10))
        """
        ran = run_script(tmp_path, service)
        assert ran.returncode == 0, ran.stderr
        ident, result = ran.stdout.split()
        with connect_sync(address) as client:
            assert client.llen("thumbs") == 1
            assert client.exists(f"celery-task-meta-{ident}")
    assert result == "42"
