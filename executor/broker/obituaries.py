"""Obituaries: who sees a worker die says so in Redis, and its calls go to others at once, with no lease to wait for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from executor.broker import keys
from executor.broker.connection import connect_async
from executor.broker.reaping import GENERATION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from executor.broker.address import BrokerAddress

__all__ = ["bury", "is_process", "is_worker"]

#: Seconds to try for; later the lease has run out anyway.
_TIMEOUT_S = 3.0


async def bury(
    address: BrokerAddress, is_dead: Callable[[str, Mapping[str, Any]], bool], story: Mapping[str, Any]
) -> None:
    """Write the obituary of a worker, if it had registered.

    Args:
        address: The broker.
        is_dead: Whether it is this one; gets the id and the entry of each registered worker.
        story: What is known, JSON-able: ``reason``, ``exit_code``, ``signal``, ``host``, ``output``.
    """
    from redis.exceptions import RedisError

    client = connect_async(address, client_name="ke-obituary", answer_timeout_s=_TIMEOUT_S)
    try:
        registered = await client.hgetall(keys.WORKERS)
        dead = [each for worker, entry in registered.items() if is_dead(each := _text(worker), json.loads(entry))]
        if dead:
            await client.hset(keys.OBITUARIES, mapping={worker: json.dumps(story) for worker in dead})
    except (RedisError, OSError):
        pass  # the lease will run out
    finally:
        await client.aclose()


def is_process(host: str, pid: int) -> Callable[[str, Mapping[str, Any]], bool]:
    """The worker whose parent process is ``pid`` on ``host``, as it registered."""
    return lambda _, entry: entry.get("host") == host and entry.get("pid") == pid


def is_worker(name: str) -> Callable[[str, Mapping[str, Any]], bool]:
    """The worker that was started under this id, under whichever of its later ones."""
    return lambda worker, _: worker.partition(GENERATION)[0] == name


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
