"""Opens any store for large values: those of :mod:`executor.stores`, or the broker itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor.stores.base import check_locator, open_store

if TYPE_CHECKING:
    from executor.stores.base import BlobStore

_BROKER_SCHEMES = ("redis:", "rediss:", "unix:")


def store_for(locator: str, client: str) -> BlobStore:
    """The store behind a locator, for the values of one client.

    Args:
        locator: ``redis://``, ``rediss://`` or ``unix://`` (raw keys there), or what :func:`open_store` takes.
        client: Whose values; names the keys at a broker.

    Raises:
        ValueError: No such kind of store.
        OSError: The directory cannot be used.
        StoreRefused: A package or credentials are missing.
    """
    if not locator.startswith(_BROKER_SCHEMES):
        return open_store(locator, create=locator.startswith("file:"))
    from executor.broker.address import BrokerAddress
    from executor.broker.redis_store import RedisStore

    return RedisStore(BrokerAddress.parse(locator), client)


def check_store(locator: str) -> None:
    """Find out whether :func:`store_for` could open this, without touching disk or network.

    Raises:
        ValueError: No such kind of store, or a malformed locator.
        StoreRefused: A package or credentials are missing.
    """
    if not locator.startswith(_BROKER_SCHEMES):
        return check_locator(locator)
    from executor.broker.address import BrokerAddress

    BrokerAddress.parse(locator)
    return None
