"""Where a Redis or Valkey server is: a URL, parsed and checked before anyone connects.

Imports neither redis nor kombu: a bad URL must fail in the constructor, and fast.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DEFAULT_PORT", "MAX_SOCKET_PATH_BYTES", "BrokerAddress", "TlsOptions"]

#: Where Redis listens unless told otherwise.
DEFAULT_PORT = 6379

#: Linux: ``sun_path`` holds 108 bytes and ends in a zero.
MAX_SOCKET_PATH_BYTES = 107

Scheme = Literal["redis", "rediss", "unix"]
CertReqs = Literal["required", "optional", "none"]

_EXAMPLE = "redis://:password@host:6379/0"
_TLS_QUERY = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_HINTS = {
    "http": "Redis does not speak HTTP; write redis://",
    "https": "Redis does not speak HTTP; write rediss:// for TLS",
    "valkey": "Valkey speaks Redis' protocol; write redis://",
    "valkeys": "Valkey speaks Redis' protocol; write rediss://",
    "redis+socket": "write unix:///path/to/redis.sock?db=0",
    "socket": "write unix:///path/to/redis.sock?db=0",
    "redis+unix": "write unix:///path/to/redis.sock?db=0",
    "tcp": "write redis://",
    "sentinel": "Sentinel is not supported; give the address of the master",
    "amqp": "the broker must be Redis or Valkey; RabbitMQ cannot carry leases",
}


@dataclass(frozen=True, kw_only=True)
class TlsOptions:
    """How a ``rediss://`` server is believed, and how we prove who we are.

    Attributes:
        ca_certs: File of the authorities to trust; None is the system's.
        certfile: Our own certificate (PEM), where the server wants one.
        keyfile: Its private key.
        cert_reqs: ``required`` verifies the server's certificate, ``none`` believes anybody.
        check_hostname: The certificate must name the host we connect to.
    """

    ca_certs: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    cert_reqs: CertReqs = "required"
    check_hostname: bool = True

    def files(self) -> dict[str, str]:
        """The files named, by the name of their URL parameter."""
        named = {"ssl_ca_certs": self.ca_certs, "ssl_certfile": self.certfile, "ssl_keyfile": self.keyfile}
        return {name: path for name, path in named.items() if path is not None}

    def query(self) -> dict[str, str]:
        """The URL parameters that say the same; ``ssl_cert_reqs`` always, because Celery insists on it."""
        query = {**self.files(), "ssl_cert_reqs": self.cert_reqs}
        if not self.check_hostname:
            query["ssl_check_hostname"] = "false"
        return query


@dataclass(frozen=True, kw_only=True)
class BrokerAddress:
    """One Redis or Valkey server and database. Neither ``str`` nor ``repr`` shows the password.

    Attributes:
        scheme: ``redis``, ``rediss`` (TLS) or ``unix``.
        host: Name or IP address; empty for ``unix``.
        port: TCP port; 0 for ``unix``.
        path: Path of the socket; empty unless ``unix``.
        username: ACL user, or None for the default user.
        password: Its password, or None.
        db: Number of the database.
        tls: Options of ``rediss``, else None.
    """

    scheme: Scheme
    host: str = ""
    port: int = 0
    path: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    tls: TlsOptions | None = None

    @classmethod
    def parse(cls, url: str, *, tls: TlsOptions | None = None) -> BrokerAddress:
        """Read a URL such as ``redis://user:password@host:6379/0``.

        Args:
            url: ``redis://``, ``rediss://`` or ``unix:///path?db=0``; ``rediss://`` takes the parameters
                ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``, ``ssl_cert_reqs`` and ``ssl_check_hostname``.
            tls: The same as a value, instead of parameters in the URL.

        Raises:
            ValueError: With what is wrong in it; the password is not shown.
        """
        shown, parts = _split(url)
        query = _query(parts, shown)
        if tls is not None and parts.scheme != "rediss":
            raise ValueError(
                f"Broker URL {shown!r} has TLS options but no TLS: write rediss:// instead of {parts.scheme}://."
            )
        user, password = unquote(parts.username or "") or None, unquote(parts.password or "") or None
        if parts.scheme == "unix":
            path, db = _socket_path(parts, shown), _database("", query, shown)
            return cls(scheme="unix", path=path, username=user, password=password, db=db)
        return cls(
            scheme=cast("Scheme", parts.scheme),
            host=unquote(parts.hostname or "") or "localhost",
            port=_port(parts, shown),
            username=user,
            password=password,
            db=_database(parts.path, query, shown),
            tls=(tls or _tls(query, shown)) if parts.scheme == "rediss" else None,
        )

    @property
    def url(self) -> str:
        """The whole URL, password included: for redis-py, never for a log."""
        return self._format(self._userinfo())

    @property
    def kombu_url(self) -> str:
        """The URL as kombu and Celery read it, password included; a socket is ``redis+socket://`` there."""
        if self.scheme == "unix":
            return f"redis+socket://{self._userinfo()}{quote(self.path)}?virtual_host={self.db}"
        return self.url

    @property
    def place(self) -> str:
        """``host:port`` or the path of the socket."""
        return self.path if self.scheme == "unix" else f"{self._bracketed()}:{self.port}"

    def __str__(self) -> str:
        user = quote(self.username, safe="") if self.username else ""
        return self._format(f"{user}:***@" if self.password else f"{user}@" if user else "")

    def _userinfo(self) -> str:
        user, password = quote(self.username or "", safe=""), quote(self.password or "", safe="")
        if password:
            return f"{user}:{password}@"
        return f"{user}@" if user else ""

    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    def _format(self, userinfo: str) -> str:
        if self.scheme == "unix":
            return f"unix://{userinfo}{quote(self.path)}?db={self.db}"
        query = f"?{urlencode(self.tls.query())}" if self.tls else ""
        return f"{self.scheme}://{userinfo}{self._bracketed()}:{self.port}/{self.db}{query}"


def _split(url: object) -> tuple[str, SplitResult]:
    """The URL as it may be shown, and its parts; raises for what is wrong with its frame."""
    if not isinstance(url, str):
        raise ValueError(f"A broker URL is a string such as {_EXAMPLE!r}, not {type(url).__name__}.")
    shown = re.sub(r"^([^/]*//)?.*@", r"\1***@", url)
    if not url.strip():
        raise ValueError(f"The broker URL is empty. Write for example {_EXAMPLE!r}.")
    if re.search(r"\s", url):
        raise ValueError(f"Broker URL {shown!r} contains white space; write it percent-encoded (a space is %20).")
    if "://" not in url:
        raise ValueError(f"Broker URL {shown!r} has no scheme. Did you mean {'redis://' + shown!r}?")
    parts = _urlsplit(url, shown)
    if parts.scheme not in ("redis", "rediss", "unix"):
        hint = _HINTS.get(parts.scheme, "use redis://, rediss:// or unix://")
        raise ValueError(f"Broker URL {shown!r} has the scheme {parts.scheme!r}: {hint}.")
    if parts.fragment:
        raise ValueError(f"Broker URL {shown!r} contains '#'. In a password write it as %23.")
    return shown, parts


def _urlsplit(url: str, shown: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise ValueError(f"Broker URL {shown!r} cannot be read: {error}. Write for example {_EXAMPLE!r}.") from None


def _query(parts: SplitResult, shown: str) -> dict[str, str]:
    allowed = ("db", *_TLS_QUERY) if parts.scheme == "rediss" else ("db",)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in query:
        if name in _TLS_QUERY and parts.scheme != "rediss":
            raise ValueError(
                f"Broker URL {shown!r} has {name!r} but no TLS: write rediss:// instead of {parts.scheme}://."
            )
        if name not in allowed:
            raise ValueError(f"Broker URL {shown!r} has an unknown parameter {name!r}; known are {', '.join(allowed)}.")
    return query


def _port(parts: SplitResult, shown: str) -> int:
    try:
        port = parts.port
    except ValueError:  # its text may show a piece of the password
        port = 0
    if port == 0:
        raise ValueError(
            f"Broker URL {shown!r} has no valid port; it is a number from 1 to 65535. "
            "In a password write '/', '?', '#', ':' and '@' percent-encoded (urllib.parse.quote(password, safe=''))."
        )
    return DEFAULT_PORT if port is None else port


def _database(path: str, query: Mapping[str, str], shown: str) -> int:
    """The database number from the path (``/1``) or the parameter (``?db=1``)."""
    in_path, in_query = path.strip("/"), query.get("db", "")
    if in_path and in_query and in_path != in_query:
        raise ValueError(f"Broker URL {shown!r} names two databases: {in_path!r} and {in_query!r}.")
    number = in_path or in_query or "0"
    if not (number.isascii() and number.isdecimal()):
        raise ValueError(f"Broker URL {shown!r} has the database {number!r}; it is a number, e.g. {_EXAMPLE!r}.")
    return int(number)


def _socket_path(parts: SplitResult, shown: str) -> str:
    path = unquote(parts.path)
    if parts.netloc.rpartition("@")[2]:
        raise ValueError(
            f"Broker URL {shown!r}: the path of a socket is absolute, with three slashes: unix:///run/redis.sock."
        )
    if path in ("", "/"):
        raise ValueError(f"Broker URL {shown!r} has no path; write for example unix:///run/redis.sock?db=0.")
    if (size := len(path.encode())) > MAX_SOCKET_PATH_BYTES:
        raise ValueError(
            f"Broker URL {shown!r}: the path of the socket has {size} bytes, and the system allows "
            f"{MAX_SOCKET_PATH_BYTES}. Use a shorter path or a symbolic link."
        )
    return path


def _tls(query: Mapping[str, str], shown: str) -> TlsOptions:
    reqs = query.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if reqs not in ("required", "optional", "none"):
        raise ValueError(f"Broker URL {shown!r}: ssl_cert_reqs is required, optional or none, not {reqs!r}.")
    hostname = query.get("ssl_check_hostname", "true").lower()
    if hostname not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError(f"Broker URL {shown!r}: ssl_check_hostname is true or false, not {hostname!r}.")
    if "ssl_keyfile" in query and "ssl_certfile" not in query:
        raise ValueError(f"Broker URL {shown!r} has ssl_keyfile but no ssl_certfile.")
    return TlsOptions(
        ca_certs=query.get("ssl_ca_certs"),
        certfile=query.get("ssl_certfile"),
        keyfile=query.get("ssl_keyfile"),
        cert_reqs=cast("CertReqs", reqs),
        check_hostname=hostname in ("true", "1", "yes"),
    )
