"""What is done with the blobs of a container: stored once, fetched in parts, swept. Knows no package of Azure.

::

    upload      HEAD ─┬─ there, and used lately ─────────────────────────► done
                      ├─ there ── Set Blob Metadata (it is used now) ────► done
                      └─ not there ─┬─ small: Put Blob, if none is there ─► done
                                    └─ Put Block × n ── Put Block List, if none is there ─► done
    download    Get Blob (range) × n into one buffer, hashed in order as the parts arrive

The time of a blob's last use is its ``Last-Modified``, which Set Blob Metadata renews, on every kind of account; it
changes the ETag, too, so that a sweep which deletes "if the ETag is still the one I saw" never takes what somebody
has just found in use.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol

from executor.errors import StoreUnavailable
from executor.stores.base import SideHash, new_buffer

#: One request moves this much. Of 64 MiB to Azurite, on two cores: 1 MiB at a time 41 to 53 MB/s; 4 MiB, eight at a
#: time, 70 to 120 up and 70 to 108 down; 8 MiB, four at a time, 67 to 99 up and 62 to 173 down.
PART_BYTES = 8 * 1024 * 1024
#: Up to this size a value is written by one request.
SINGLE_BYTES = 1024 * 1024
#: How often an upload begins anew because another writer's commit, or a sweep, took its parts away.
_ATTEMPTS = 3
#: Requests of one sweep at a time.
_SWEEPERS = 16
_DIGEST = re.compile(r"[0-9a-f]{64}")
#: When this blob was written, somebody began to sweep.
_MARKER = "swept"


class Found(NamedTuple):
    """A blob that is there: its whole size in bytes, when it was last used (the server's clock), its ETag."""

    size: int
    used: datetime
    etag: str


class Container(Protocol):
    """The requests; each is tried again while that may help, and raises StoreRefused or StoreUnavailable."""

    async def head(self, name: str) -> Found | None:
        """The blob, if it is there."""

    async def touch(self, name: str) -> bool:
        """Say that a blob is used now; False if it is not there."""

    async def write(self, name: str, data: bytes, replaces: str | None) -> datetime | None:
        """Write a whole blob, if none is there, or one with the ETag ``replaces``; None if that is not so."""

    async def stage(self, name: str, block: str, data: memoryview) -> None:
        """Send one part of a blob to be."""

    async def commit(self, name: str, blocks: Sequence[str], replaces: str | None) -> bool:
        """Make a blob of its parts, under the condition of :meth:`write`; False if a part is gone."""

    async def read(self, name: str, start: int, buffer: memoryview) -> Found | None:
        """Fill the buffer from ``start`` on; None if there is no blob. What it lacks stays as it is."""

    def listed(self) -> AsyncIterator[tuple[str, Found]]:
        """All blobs under the prefix, by their names without it."""

    async def delete(self, name: str, etag: str) -> bool:
        """Delete a blob if it is still the one with this ETag."""


async def upload(container: Container, name: str, view: memoryview, renew: timedelta) -> None:
    """Store a value under its digest unless it is there, and have it count as used now.

    Args:
        container: Where.
        name: The digest.
        view: The value.
        renew: A blob that was used longer ago is touched.

    Raises:
        StoreRefused, StoreUnavailable: It could not be stored.
    """
    for _ in range(_ATTEMPTS):
        found = await container.head(name)
        whole = found is not None and found.size == view.nbytes
        if found is not None and whole and datetime.now(UTC) - found.used < renew:
            return
        if whole and await container.touch(name):
            return
        if not whole and await _written(container, name, view, found.etag if found else None):
            return
    raise StoreUnavailable(
        f"A value of {view.nbytes} bytes was taken away {_ATTEMPTS} times while it was being stored ({name}). "
        "Somebody deletes what is in use: look at the container's lifecycle rules, and at its sweeps."
    )


async def download(container: Container, name: str, size: int) -> tuple[memoryview, str, Found] | None:
    """Fetch a value in parts at the same time.

    Args:
        container: Where.
        name: The digest.
        size: As it was stored; of a blob of another size as much is fetched as fits.

    Returns:
        The bytes, their SHA-256 and the blob; None if it is not there.

    Raises:
        StoreRefused, StoreUnavailable: It could not be fetched.
    """
    buffer, digest = new_buffer(size), _HashInOrder()
    seen: list[Found | None] = []

    async def fetch(number: int, start: int) -> None:
        part = buffer[start : start + PART_BYTES]
        seen.append(await container.read(name, start, part) if size else await container.head(name))
        digest.add(number, part)

    await _together(fetch(number, start) for number, start in enumerate(range(0, max(size, 1), PART_BYTES)))
    found = seen[0]
    if found is None or None in seen:
        return None
    return buffer, await asyncio.to_thread(digest.hexdigest), found


async def keep(container: Container, names: Iterable[str], renew: timedelta) -> None:
    """Touch blobs that were last used longer ago than ``renew``; those that are missing are passed over.

    Raises:
        StoreRefused, StoreUnavailable: As for every request.
    """
    gate = asyncio.Semaphore(_SWEEPERS)

    async def keep_one(name: str) -> None:
        async with gate:
            found = await container.head(name)
            if found is not None and datetime.now(UTC) - found.used >= renew:
                await container.touch(name)

    await _together(keep_one(name) for name in set(names))


async def sweep(container: Container, older_than: timedelta) -> int:
    """Delete blobs that have not been used for some time, by the server's clock; returns how many went.

    Raises:
        StoreRefused, StoreUnavailable: As for every request.
    """
    now = await _mark(container, await container.head(_MARKER))
    return await _swept(container, now - older_than) if now is not None else 0


async def sweep_if_due(container: Container, older_than: timedelta, every: timedelta) -> int | None:
    """As :func:`sweep`, but one process does it for all, once in ``every``; None if it is not due."""
    marker = await container.head(_MARKER)
    if marker is not None and datetime.now(UTC) - marker.used < every:
        return None
    now = await _mark(container, marker)
    return None if now is None else await _swept(container, now - older_than)


async def _mark(container: Container, marker: Found | None) -> datetime | None:
    """Note that a sweep begins; the server's time, or None if another process was quicker."""
    return await container.write(_MARKER, b"", marker.etag if marker else None)


async def _swept(container: Container, deadline: datetime) -> int:
    gate, deleted = asyncio.Semaphore(_SWEEPERS), list[bool]()

    async def delete(name: str, etag: str) -> None:
        async with gate:
            deleted.append(await container.delete(name, etag))

    old = [(name, blob.etag) async for name, blob in container.listed() if blob.used < deadline]
    await _together(delete(name, etag) for name, etag in old if _DIGEST.fullmatch(name))
    return sum(deleted)


async def _written(container: Container, name: str, view: memoryview, replaces: str | None) -> bool:
    if view.nbytes <= SINGLE_BYTES:
        await container.write(name, bytes(view), replaces)
        return True
    # All writers of a digest make the same parts of the same names: whoever commits first, the others' still fit.
    starts = range(0, view.nbytes, PART_BYTES)
    blocks = [f"{PART_BYTES:08x}-{number:06d}" for number in range(len(starts))]
    await _together(
        container.stage(name, block, view[start : start + PART_BYTES])
        for block, start in zip(blocks, starts, strict=True)
    )
    return await container.commit(name, blocks, replaces)


async def _together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines at the same time; if one fails, the others are cancelled and its exception raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


class _HashInOrder:
    """SHA-256 of parts that arrive in any order."""

    def __init__(self) -> None:
        self._digest, self._next = SideHash(), 0
        self._waiting: dict[int, memoryview] = {}

    def add(self, number: int, part: memoryview) -> None:
        self._waiting[number] = part
        while (part_ := self._waiting.pop(self._next, None)) is not None:
            self._digest.add(part_)
            self._next += 1

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
