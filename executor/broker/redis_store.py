"""Large values in Redis itself: raw keys beside the queues, for workers that share nothing else with the client.

A value lies under ``ke:buf:<client>:<name>``, beyond :data:`PART_BYTES` in parts (``<name>.1``, ...), and goes with
its call, or at the end of its time to live. It is verified when it is fetched; hashing runs in a thread beside the
transfer: of the 43 ms it takes for 64 MiB, ``put`` shows 2 and ``get`` 19.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NoReturn, TypeVar

from executor.broker import keys
from executor.broker.bulk import BulkConnection, ServerSaidNo
from executor.broker.connection import explain
from executor.errors import BrokerRefused
from executor.stores.base import (
    BlobRef,
    Data,
    SideHash,
    check_digest,
    check_ref,
    flat,
    missing,
    new_buffer,
    unique_name,
)

if TYPE_CHECKING:
    from executor.broker.address import BrokerAddress

T = TypeVar("T")

log = logging.getLogger("executor")

#: Redis takes no value over 512 MiB, and holds up everybody else while it moves one. Its allocator (jemalloc) returns
#: blocks of 8 MiB and more to the kernel at once and gets them page by page again: 64 MiB there and back cost it 280 ms
#: of system time in one part, 147 in parts of 4 MiB, 125 in parts of 1 MiB.
PART_BYTES = 4 * 1024 * 1024
#: How long a value stays if nobody deletes or keeps it, in seconds. Clients keep those of their open calls each hour.
TTL_S = 24 * 3600
#: How long a server that has gone away is waited for.
PATIENCE_S = 60.0
#: After a delete that failed, how long no other is tried, in seconds.
_AWAY_S = 10.0
_IDLE_CONNECTIONS = 4
_NOT_NOW = ("LOADING", "BUSY", "TRYAGAIN", "MASTERDOWN")
_GONE = "It was deleted when its call ended, its time to live ran out, or the server lost its data (a restart)."


class RedisStore:
    """Blobs of one client, in the broker.

    Args:
        address: The server.
        client: Id of the client that the values belong to.
        ttl_s: Seconds until a value goes by itself; :meth:`keep` starts them anew.
        patience_s: Seconds to keep trying while the server cannot be reached.
    """

    def __init__(
        self, address: BrokerAddress, client: str, *, ttl_s: int = TTL_S, patience_s: float = PATIENCE_S
    ) -> None:
        self.locator = address.url
        self._address, self._client = address, client
        self._ttl_s, self._patience_s = ttl_s, patience_s
        self._idle: list[BulkConnection] = []
        self._pid = os.getpid()
        self._away_until = 0.0

    def put(self, data: Data, *, hashed: bool = True) -> BlobRef:
        """SET; the reference always has the digest. See :meth:`BlobStore.put`."""
        view = flat(data)
        digest = SideHash()
        digest.add(view)
        ref = BlobRef("redis", unique_name(), view.nbytes)
        try:
            self._exchange(lambda connection: self._put_parts(connection, ref, view), ref.size)
        except BrokerRefused:  # it may have taken the first parts
            self.delete([ref])
            raise
        return ref._replace(digest=digest.hexdigest())

    def get(self, ref: BlobRef, *, last: bool = False) -> memoryview:
        """GET; see :meth:`BlobStore.get`. With ``last`` it is deleted once all of it is here."""
        check_ref(ref, "redis")
        buffer, digest = self._exchange(lambda connection: self._get_parts(connection, ref), ref.size)
        check_digest(ref, digest.hexdigest(), str(self._address))
        if last:
            self.delete([ref])
        return buffer

    def delete(self, refs: Iterable[BlobRef]) -> None:
        """UNLINK, tried once: without an answer the values go at the end of their time. See :meth:`BlobStore.delete`.

        Who deletes is about to settle futures, of which none may wait for a server that is away.
        """
        names = [key for ref in refs for key, _, _ in self._parts(ref)]
        if not names or time.monotonic() < self._away_until:
            return
        try:
            self._once(lambda connection: connection.command("UNLINK", *names))
        except (OSError, ServerSaidNo) as error:
            self._away_until = time.monotonic() + _AWAY_S
            log.debug("%d values were not deleted from %s: %s", len(names), self._address, error)

    def keep(self, refs: Iterable[BlobRef]) -> None:
        """EXPIRE; see :meth:`ExpiringStore.keep`."""
        names = [key for ref in refs for key, _, _ in self._parts(ref)]
        self._exchange(lambda connection: connection.commands(("EXPIRE", key, self._ttl_s) for key in names))

    def close(self) -> None:
        """Close idle connections; blobs stay."""
        while self._idle:
            self._idle.pop().close()

    def _put_parts(self, connection: BulkConnection, ref: BlobRef, view: memoryview) -> None:
        connection.commands(("SET", key, view[start:end], "EX", self._ttl_s) for key, start, end in self._parts(ref))

    def _get_parts(self, connection: BulkConnection, ref: BlobRef) -> tuple[memoryview, SideHash]:
        buffer, digest = new_buffer(ref.size), SideHash()
        parts = ((key, buffer[start:end]) for key, start, end in self._parts(ref))
        if not connection.get_all_into(parts, digest.add):
            raise missing(ref, str(self._address), _GONE)
        return buffer, digest

    def _parts(self, ref: BlobRef) -> Iterator[tuple[str, int, int]]:
        """Key, start and end of each part; an empty value is one empty part."""
        name = check_ref(ref, "redis")
        for number, start in enumerate(range(0, max(ref.size, 1), PART_BYTES)):
            part = f"{name}.{number}" if number else name
            yield keys.buffer(self._client, part), start, min(start + PART_BYTES, ref.size)

    def _exchange(self, operation: Callable[[BulkConnection], T], size: int = 0) -> T:
        """Run something that may be repeated, over a connection that works.

        Raises:
            BrokerUnavailable: None was to be had for ``patience_s``.
            BrokerRefused: The server said no.
        """
        deadline = time.monotonic() + self._patience_s
        pause_s = 0.05
        while True:
            try:
                return self._once(operation)
            except (OSError, ServerSaidNo) as error:
                if not _passes(error) or time.monotonic() + pause_s > deadline:
                    self._raise(error, size)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)

    def _once(self, operation: Callable[[BulkConnection], T]) -> T:
        connection = self._connection()
        try:
            answer = operation(connection)
        except ServerSaidNo:
            self._give_back(connection)
            raise
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError):
                self.close()  # the others are of the same age
            raise
        self._give_back(connection)
        return answer

    def _connection(self) -> BulkConnection:
        if self._pid != os.getpid():  # a fork: those belong to the parent
            self._idle, self._pid = [], os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return BulkConnection(self._address)

    def _give_back(self, connection: BulkConnection) -> None:
        if len(self._idle) < _IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            connection.close()

    def _raise(self, error: OSError | ServerSaidNo, size: int) -> NoReturn:
        text = str(error)
        if text.startswith("OOM"):
            raise BrokerRefused(
                f"The server at {self._address} has no memory left for a value of {size} bytes (maxmemory). "
                "Give it more, send less at once, or use a blob store on a shared disk."
            ) from error
        if isinstance(error, ServerSaidNo):
            from redis.exceptions import ResponseError

            raise explain(self._address, ResponseError(text)) from error
        raise explain(self._address, error) from error

    def __repr__(self) -> str:
        return f"<RedisStore {self._address} of client {self._client}>"


def _passes(error: OSError | ServerSaidNo) -> bool:
    """Whether it may go well a moment later."""
    if isinstance(error, ServerSaidNo):
        return str(error).startswith(_NOT_NOW)
    return not isinstance(error, ssl.SSLCertVerificationError)
