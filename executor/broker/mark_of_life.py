"""A key that somebody renews while an executor on a cluster is in use; without it, its broker ends, and all with it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from executor.broker import keys
from executor.broker.connection import connect_async

if TYPE_CHECKING:
    from executor.broker.address import BrokerAddress

log = logging.getLogger("executor")

#: Longest pause between two renewals, in seconds.
RENEW_EVERY_S = 30.0


async def stay_alive(address: BrokerAddress, executor: str, ttl_s: int) -> None:
    """Renew the mark until cancelled.

    Args:
        address: The broker.
        executor: Name of the executor.
        ttl_s: How long it outlives us, in seconds.
    """
    from redis.exceptions import RedisError

    client = connect_async(address, client_name="ke-owner", answer_timeout_s=10.0)
    try:
        while True:
            try:
                await client.set(keys.executor_alive(executor), "1", ex=ttl_s)
            except (RedisError, OSError) as error:
                log.debug("could not renew the mark of life: %s", error)
            await asyncio.sleep(min(RENEW_EVERY_S, ttl_s / 4))
    finally:
        await client.aclose()
