"""The Lua scripts of ``broker/lua``: each one step in Redis that must not be half done.

``allow-oom`` in their first line lets them run on a full server, so that leases, claims and outcomes go on where
only publishing is refused. Servers before 7.0 do not know that line; it is taken off for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, Protocol, cast

#: Servers from this version on read the ``#!lua`` line.
SHEBANG_VERSION = (7, 0)

#: How long what a script makes on behalf of a client may outlive it, in seconds.
CLIENT_TTL_S = 3600


class SupportsScripts(Protocol):
    """The part of ``redis.Redis`` that is used here."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command and give its answer."""


@cache
def source(name: str, shebang: bool = True) -> str:
    """The text of a script.

    Args:
        name: File name without ``.lua``.
        shebang: Whether the server understands ``#!lua``.
    """
    text = resources.files("executor.broker").joinpath("lua", f"{name}.lua").read_text("utf-8")
    return text if shebang else text.partition("\n")[2]


@cache
def digest(name: str, shebang: bool = True) -> str:
    """What EVALSHA calls the script."""
    return hashlib.sha1(source(name, shebang).encode()).hexdigest()


def knows_shebang(client: SupportsScripts) -> bool:
    """Whether the server behind ``client`` is 7.0 or later."""
    info = client.execute_command("INFO", "server")
    return runs_shebang(str(info["redis_version"]) if isinstance(info, dict) else "7.0")


def runs_shebang(version: str) -> bool:
    """Whether a server of this version understands the ``#!lua`` line."""
    return tuple(int(part) for part in version.split(".")[:2]) >= SHEBANG_VERSION


class Scripts:
    """Runs scripts on one client: EVALSHA, and EVAL where the server has not seen the script yet.

    Args:
        client: A ``redis.Redis``.
        shebang: See :func:`knows_shebang`; asked of the server when not given.
    """

    def __init__(self, client: SupportsScripts, shebang: bool | None = None) -> None:
        self._client = client
        self.shebang = knows_shebang(client) if shebang is None else shebang

    def run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run a script.

        Raises:
            redis.RedisError: As the server or the connection says.
        """
        from redis.exceptions import NoScriptError  # not above: a client asks here for texts before it needs redis-py

        try:
            return self._client.execute_command("EVALSHA", digest(name, self.shebang), len(keys), *keys, *args)
        except NoScriptError:
            return self._client.execute_command("EVAL", source(name, self.shebang), len(keys), *keys, *args)


def text(reply: object) -> str:
    """A script's status reply as text, whichever way the client decodes."""
    return reply.decode() if isinstance(reply, bytes) else cast("str", reply)
