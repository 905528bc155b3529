"""The client's reply stream: read without popping, trimmed after settling.

A reply that is popped is lost when the connection drops with it in flight; a stream entry is read again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from executor.broker import keys
from executor.broker.lean import LeanConnection

if TYPE_CHECKING:
    import redis.asyncio

#: How long one read waits at the server, in milliseconds; the connection's answer timeout is longer.
BLOCK_MS = 5000
#: Entries in one read.
COUNT = 256


#: Read replies are dropped from the server when they come to this many, or bytes, or when nothing arrives.
TRIM_COUNT, TRIM_BYTES = 256, 1024 * 1024
_IDLE_BLOCK_MS = 200

#: Milliseconds and number of a stream entry.
EntryId = tuple[int, int]


class Replies:
    """Reads one client's stream.

    Args:
        redis: Connection of its own (a read blocks it).
        client: Id of the client.
    """

    def __init__(self, redis: redis.asyncio.Redis, client: str) -> None:
        self._lean = LeanConnection(redis)
        self._key = keys.replies(client)
        self._last = b"0-0"
        self._untrimmed = 0
        self._untrimmed_bytes = 0

    @property
    def position(self) -> EntryId:
        """Id of the last entry read."""
        return entry_id(self._last)

    async def read(self) -> list[bytes]:
        """The next signed replies, as they are.

        Empty when none came in time. What one call returned may be dropped by the next: deal with it first.
        """
        if self._untrimmed >= TRIM_COUNT or self._untrimmed_bytes >= TRIM_BYTES:
            await self._trim()
        block_ms = _IDLE_BLOCK_MS if self._untrimmed else BLOCK_MS
        found = await self._command("XREAD", "COUNT", COUNT, "BLOCK", block_ms, "STREAMS", self._key, self._last)
        if not found:
            if self._untrimmed:
                await self._trim()
            return []
        entries: list[Any] = next(iter(found.values()))[0] if isinstance(found, dict) else found[0][1]
        replies = [_value(fields) for _, fields in entries]
        self._last = _bytes(entries[-1][0])
        self._untrimmed += len(replies)
        self._untrimmed_bytes += sum(map(len, replies))
        return replies

    async def _trim(self) -> None:
        milliseconds, number = self.position
        await self._command("XTRIM", self._key, "MINID", f"{milliseconds}-{number + 1}")
        self._untrimmed = self._untrimmed_bytes = 0

    def rewind(self) -> None:
        """Read from the beginning again: the server is a new one, with ids of its own."""
        self._last = b"0-0"

    async def close(self) -> None:
        """Close the connection."""
        await self._lean.close()

    async def _command(self, *args: Any) -> Any:
        return await self._lean.execute(*args)


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _value(fields: Any) -> bytes:
    return _bytes(next(iter(fields.values())) if isinstance(fields, dict) else fields[1])


def entry_id(text: bytes | str) -> EntryId:
    """The id of a stream entry, fit for comparing."""
    milliseconds, _, number = _bytes(text).partition(b"-")
    return int(milliseconds), int(number)
