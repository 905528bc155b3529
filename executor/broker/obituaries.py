"""Obituaries: who sees a worker die says so in Redis, and its calls go to others at once, with no lease to wait for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from executor.broker import keys
from executor.broker.connection import connect_async

if TYPE_CHECKING:
    from collections.abc import Mapping

    from executor.broker.address import BrokerAddress

__all__ = ["bury"]

#: Seconds to try for; later the lease has run out anyway.
_TIMEOUT_S = 3.0


async def bury(address: BrokerAddress, host: str, pid: int, story: Mapping[str, Any]) -> None:
    """Write the obituary of the worker that was process ``pid`` of ``host``, if it had registered.

    Args:
        address: The broker.
        host: Name of the machine, as the worker registered it.
        pid: The worker parent's process id.
        story: What is known, JSON-able: ``reason``, ``exit_code``, ``signal``, ``host``, ``output``.
    """
    from redis.exceptions import RedisError

    client = connect_async(address, client_name="ke-obituary", answer_timeout_s=_TIMEOUT_S)
    try:
        registered = await client.hgetall(keys.WORKERS)
        dead = [worker for worker, entry in registered.items() if _is(json.loads(entry), host, pid)]
        if dead:
            await client.hset(keys.OBITUARIES, mapping={worker: json.dumps(story) for worker in dead})
    except (RedisError, OSError):
        pass  # the lease will run out
    finally:
        await client.aclose()


def _is(entry: Mapping[str, Any], host: str, pid: int) -> bool:
    return entry.get("host") == host and entry.get("pid") == pid
