"""Connections to the broker, and one clear sentence where there is none.

redis-py is imported in the functions that need it: it takes 0.2 s and more, and a pool starts its processes first.
"""

from __future__ import annotations

import inspect
import re
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from executor.broker.address import BrokerAddress, TlsOptions
from executor.broker.failures import said
from executor.errors import BrokerError, BrokerRefused, BrokerUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import redis
    import redis.asyncio

__all__ = [
    "MINIMUM_VERSION",
    "BrokerAddress",
    "ServerInfo",
    "TlsOptions",
    "check",
    "connect_async",
    "connect_sync",
    "explain",
    "preload",
]

#: Redis 6.2 brought ``BLMOVE`` and ``ZRANGE … BYSCORE``; every Valkey has them.
MINIMUM_VERSION = (6, 2)

#: Seconds to wait for a TCP connection and the TLS handshake.
CONNECT_TIMEOUT_S = 5.0

#: Seconds to wait for an answer, after which a connection counts as dead; longer than any blocking read of ours.
ANSWER_TIMEOUT_S = 10.0

CLIENT_NAME = "kube-executor"


class ServerInfo(NamedTuple):
    """What a server said about itself.

    Attributes:
        server: ``redis`` or ``valkey``.
        version: As the server writes it, e.g. ``7.2.4``.
    """

    server: str
    version: str


def preload() -> None:
    """Import redis-py now, while something else starts."""
    import redis.asyncio  # noqa: F401 - the import is the purpose


def connect_async(
    address: BrokerAddress, *, client_name: str = CLIENT_NAME, answer_timeout_s: float = ANSWER_TIMEOUT_S
) -> redis.asyncio.Redis:
    """A client for asyncio. It connects at its first command and repeats none by itself.

    Args:
        address: Where the server is.
        client_name: As ``CLIENT LIST`` shall show it; no spaces.
        answer_timeout_s: Seconds to wait for each answer; must exceed the block time of blocking commands.

    Returns:
        A client whose commands are sent once: whether one with a lost answer may be repeated, only its sender knows.
    """
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    options = _options(address, client_name, answer_timeout_s) | _anonymous(Redis)
    return Redis(retry=Retry(NoBackoff(), 0), **options)


def connect_sync(
    address: BrokerAddress, *, client_name: str = CLIENT_NAME, answer_timeout_s: float = ANSWER_TIMEOUT_S
) -> redis.Redis:
    """The same as :func:`connect_async`, blocking; for threads."""
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options = _options(address, client_name, answer_timeout_s) | _anonymous(Redis)
    return Redis(retry=Retry(NoBackoff(), 0), **options)


async def check(address: BrokerAddress, *, timeout_s: float = CONNECT_TIMEOUT_S) -> ServerInfo:
    """Connect once and see whether this server will do.

    Args:
        address: Where the server is.
        timeout_s: Seconds to wait for each answer.

    Raises:
        BrokerUnavailable: Not reachable: name, port, network, TLS; the sentence says which.
        BrokerRefused: Reached, but wrong password, missing rights, too old, a replica or a cluster.
    """
    _require_files(address)
    from redis.exceptions import RedisError

    client = connect_async(address, answer_timeout_s=timeout_s)
    try:
        info = await _introduce(client, address)
        await _command(client, "EVAL", "return 1", 0)
    except (RedisError, OSError, UnicodeError) as error:
        raise explain(address, error) from error
    finally:
        await client.aclose()
    return info


def explain(address: BrokerAddress, error: BaseException) -> BrokerError:
    """The one sentence for an error of redis-py; the caller raises it ``from`` the error.

    Args:
        address: The server that was meant.
        error: What redis-py or the system raised; its causes are looked at too.
    """
    from redis import exceptions

    said_no = (exceptions.ResponseError, exceptions.AuthenticationError, exceptions.AuthorizationError)
    for cause in _chain(error):  # redis-py wraps some of them in its ConnectionError
        if isinstance(cause, said_no):
            return BrokerRefused(f"{_refused(address, said(cause))} {_check(address)}")
    text = str(error)
    if isinstance(error, exceptions.BusyLoadingError):
        return BrokerUnavailable(f"The server at {address} is still loading its data. Try again in a moment.")
    if isinstance(error, exceptions.InvalidResponse) or "Protocol Error" in text:
        return BrokerUnavailable(
            f"What listens at {address.place} does not speak Redis' protocol. Is the port right? {_try(address)}"
        )
    for cause in _chain(error):
        if sentence := _network(address, cause):
            return BrokerUnavailable(sentence)
    return BrokerUnavailable(
        f"No connection to the server at {address}: {text or type(error).__name__}. {_try(address)}"
    )


def _options(address: BrokerAddress, client_name: str, answer_timeout_s: float) -> dict[str, Any]:
    options: dict[str, Any] = {
        "username": address.username,
        "password": address.password,
        "db": address.db,
        "socket_timeout": answer_timeout_s,
        "socket_connect_timeout": min(CONNECT_TIMEOUT_S, answer_timeout_s),
        "client_name": client_name,
        "protocol": 2,
    }
    if address.scheme == "unix":
        return {**options, "unix_socket_path": address.path}
    options |= {"host": address.host, "port": address.port, "socket_keepalive": True}
    options["socket_keepalive_options"] = _keepalive()
    return options | (_tls_options(address.tls) if address.tls else {})


def _anonymous(client: type) -> dict[str, None]:
    """Arguments that save the two round trips in which redis-py tells each connection its own name and version."""
    known = inspect.signature(client).parameters
    return {"driver_info": None} if "driver_info" in known else {"lib_name": None, "lib_version": None}


def _tls_options(tls: TlsOptions) -> dict[str, Any]:
    return {
        "ssl": True,
        "ssl_ca_certs": tls.ca_certs,
        "ssl_certfile": tls.certfile,
        "ssl_keyfile": tls.keyfile,
        "ssl_cert_reqs": tls.cert_reqs,
        "ssl_check_hostname": tls.check_hostname,
    }


def _keepalive() -> dict[int, int]:
    """A peer that vanished without a word is noticed after half a minute (the system's default is two hours)."""
    wanted = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
    return {getattr(socket, name): value for name, value in wanted.items() if hasattr(socket, name)}


def _require_files(address: BrokerAddress) -> None:
    for name, path in (address.tls.files() if address.tls else {}).items():
        if not Path(path).is_file():
            raise BrokerUnavailable(f"Broker URL {address}: {name} names {path!r}, and there is no such file here.")


async def _introduce(client: redis.asyncio.Redis, address: BrokerAddress) -> ServerInfo:
    """Ask who the server is: ``HELLO``, or ``INFO`` of one that does not know it (proxies, Redis 5)."""
    from redis.exceptions import ResponseError

    try:
        hello = _fields(await _command(client, "HELLO"))
    except ResponseError as error:
        if "unknown command" not in str(error).lower():
            raise
        hello = {key: str(value) for key, value in (await client.info("server")).items()}
    return _accepted(hello, address)


async def _command(client: redis.asyncio.Redis, *args: str | int) -> Any:
    return await cast("Any", client).execute_command(*args)  # redis-py has no types for it


def _fields(reply: Any) -> dict[str, str]:
    """``HELLO``'s flat list (RESP2) or map (RESP3) as text."""
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {_text(key): _text(value) for key, value in pairs}


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _accepted(hello: Mapping[str, str], address: BrokerAddress) -> ServerInfo:
    server, version = hello.get("server", "redis"), hello.get("version") or hello.get("redis_version", "")
    if server == "redis" and _version(version) < MINIMUM_VERSION:
        wanted = ".".join(map(str, MINIMUM_VERSION))
        raise BrokerRefused(
            f"The server at {address} is Redis {version or 'of unknown version'}; "
            f"Redis {wanted} or later, or Valkey, is needed. Upgrade it, or leave out broker_url to use "
            "the embedded server."
        )
    if hello.get("mode") in ("cluster", "sentinel"):
        raise BrokerRefused(
            f"The server at {address} is a {hello['mode']}; Celery needs a plain Redis. Give the address of one."
        )
    if hello.get("role") in ("replica", "slave"):
        raise BrokerRefused(f"The server at {address} is a read-only replica. Give the address of its master.")
    return ServerInfo(server, version)


def _version(text: str) -> tuple[int, ...]:
    numbers = [part for part in text.split(".")[:3] if part.isdecimal()]
    return tuple(map(int, numbers))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its causes, and the sub-errors of a failed connection to several addresses."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            yield from error.exceptions
        error = error.__cause__ or error.__context__


def _refused(address: BrokerAddress, text: str) -> str:
    """Why a server that we reached says no."""
    lower = text.lower()
    if "wrongpass" in lower or "invalid username-password" in lower or "invalid password" in lower:
        who = f"user {address.username!r}" if address.username else "the default user"
        return f"The server at {address} refused the password of {who}. Check user and password in the broker URL."
    if "without any password configured" in lower or "no password is set" in lower:
        return f"The server at {address} has no password, but the broker URL gives one. Take it out of the URL."
    if "noauth" in lower or "authentication required" in lower:
        return f"The server at {address} wants a password. Write it into the broker URL: redis://:password@host:6379/0."
    if "noperm" in lower or "no permissions" in lower or "the user executing the script can't" in lower:
        return _lacks_rights(address, text)
    if "db index" in lower or "invalid db" in lower:
        return (
            f"The server at {address} has no database {address.db}. Use a smaller number, or raise `databases` there."
        )
    for word, sentence in _REFUSALS.items():
        if word in lower:
            return f"The server at {address} {sentence} It says: {text}."
    return f"The server at {address} refused: {text}."


#: What a refusal contains, in lower case, and what it means.
_REFUSALS = {
    "used memory": "has no memory left for new calls (maxmemory). Give it more, or empty queues that nobody serves.",
    "read only replica": "is a read-only replica. Give the address of its master; after a failover, of the new one.",
    "unable to persist": "cannot save its data, and takes none. Free its disk, or see its log.",
    "disk error": "cannot save its data, and takes none. Free its disk, or see its log.",
    "not enough good replicas": "lacks the replicas it must write to (min-replicas-to-write). Bring them back.",
    "busy running a": "is kept busy by a script. Look at its `SLOWLOG GET`; `SCRIPT KILL` ends it.",
}


def _lacks_rights(address: BrokerAddress, text: str) -> str:
    user = address.username or "default"
    command = re.search(r"run the '([^']+)' command", text)
    grant = f"+{command[1]}" if command else "~ke:* ~ke.* ~_kombu.*" if " key" in text else None
    remedy = f"`ACL SETUSER {user} {grant}` there grants them" if grant else "`ACL LOG` there names the command"
    return f"User {user!r} lacks rights on the server at {address}: {text}. {remedy}; see `ACL GETUSER {user}`."


def _network(address: BrokerAddress, cause: BaseException) -> str | None:
    """The sentence for one link of the chain of causes, if it explains anything."""
    if isinstance(cause, ssl.SSLError):
        return _tls_sentence(address, cause)
    if isinstance(cause, socket.gaierror | UnicodeError):
        return f"The host {address.host!r} in {address} is not known (DNS). Check: getent hosts {address.host}"
    if isinstance(cause, ConnectionRefusedError):
        return f"Nothing listens at {address.place}. Is the server running, and the address right? {_try(address)}"
    if isinstance(cause, FileNotFoundError) and address.scheme == "unix":
        return f"There is no socket {address.path}. Is the server running, and its `unixsocket` the same path?"
    if isinstance(cause, PermissionError):
        return f"No permission to connect to {address.place}. Check the rights of the socket, or a firewall."
    return _silent(address, cause)


def _silent(address: BrokerAddress, cause: BaseException) -> str | None:
    from redis import exceptions

    if isinstance(cause, TimeoutError | exceptions.TimeoutError):
        hint = " Does the port speak TLS? If not, write redis://." if address.scheme == "rediss" else ""
        return f"No answer from {address} in time. Is the host reachable, no firewall in between?{hint} {_try(address)}"
    if isinstance(cause, ConnectionResetError | BrokenPipeError) or "closed by server" in str(cause).lower():
        return f"The server at {address} closed the connection without an answer.{_hint(address)} {_try(address)}"
    return None


def _hint(address: BrokerAddress) -> str:
    """What a closed connection often means; with TLS 1.3 a missing client certificate shows no other way."""
    if address.scheme == "redis":
        return " If it speaks TLS, write rediss://."
    if address.tls is not None and address.tls.certfile is None:
        return " If it wants a client certificate, add ?ssl_certfile=…&ssl_keyfile=… to the broker URL."
    return ""


def _tls_sentence(address: BrokerAddress, cause: ssl.SSLError) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"The certificate of the server at {address} is not trusted: {cause.verify_message or cause.reason}. "
            "Name its authority with ?ssl_ca_certs=/path/ca.crt."
        )
    reason = (getattr(cause, "reason", None) or str(cause)).replace("_", " ").lower()
    if "certificate required" in reason or "handshake failure" in reason:
        return (
            f"The server at {address} wants a client certificate. Add ?ssl_certfile=…&ssl_keyfile=… to the broker URL."
        )
    if "wrong version number" in reason or "record layer failure" in reason:
        return f"The server at {address} does not speak TLS at this port. Write redis://, or the port of TLS."
    return f"TLS with the server at {address} failed: {reason}. Look: openssl s_client -connect {address.place}"


def _try(address: BrokerAddress) -> str:
    where = f"-s {address.path}" if address.scheme == "unix" else f"-h {address.host} -p {address.port}"
    return f"Try: redis-cli {where} ping"


def _check(address: BrokerAddress) -> str:
    return f"Then see whether it will do: kube-executor check --broker-url {address}"
