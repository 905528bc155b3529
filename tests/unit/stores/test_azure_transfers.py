"""Moving and sweeping blobs, over a container in memory with a clock of its own."""

from __future__ import annotations

import asyncio
import hashlib
import os
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest

from executor.errors import StoreUnavailable
from executor.stores import azure_transfers as transfers
from executor.stores.azure_transfers import PART_BYTES, Found

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
MIB = 1024 * 1024
_etags = map(str, count())


class MemoryContainer:
    """What Azure does, as far as the transfers see it.

    Attributes:
        blobs: Data, time of last use and ETag by name.
        heard: The requests, by their names.
        ahead: How far the server's clock is ahead of ours.
    """

    def __init__(self):
        self.blobs, self.staged, self.heard, self.ahead = {}, {}, [], timedelta()

    def now(self):
        return datetime.now(UTC) + self.ahead

    def age(self, name, by):
        data, used, etag = self.blobs[name]
        self.blobs[name] = (data, used - by, etag)

    async def head(self, name):
        await self._hear("head")
        return self._found(name)

    async def touch(self, name):
        await self._hear("touch")
        if name not in self.blobs:
            return False
        self._store(name, self.blobs[name][0])
        return True

    async def write(self, name, data, replaces):
        await self._hear("write")
        if not self._may(name, replaces):
            return None
        return self._store(name, data)

    async def stage(self, name, block, data):
        await self._hear("stage")
        self.staged.setdefault(name, {})[block] = bytes(data)

    async def commit(self, name, blocks, replaces):
        await self._hear("commit")
        staged = self.staged.pop(name, {})
        if not self._may(name, replaces):
            return True
        if not all(block in staged for block in blocks):
            return False
        self._store(name, b"".join(staged[block] for block in blocks))
        return True

    async def read(self, name, start, buffer):
        await self._hear("read")
        found = self._found(name)
        if found is not None:
            piece = self.blobs[name][0][start : start + len(buffer)]
            buffer[: len(piece)] = piece
        return found

    async def listed(self):
        for name in list(self.blobs):
            yield name, self._found(name)
            await asyncio.sleep(0)

    async def delete(self, name, etag):
        await self._hear("delete")
        if name not in self.blobs or self.blobs[name][2] != etag:
            return False
        del self.blobs[name]
        return True

    async def _hear(self, word):
        self.heard.append(word)
        await asyncio.sleep(0)

    def _found(self, name):
        data, used, etag = self.blobs.get(name, (b"", None, ""))
        return None if used is None else Found(len(data), used, etag)

    def _may(self, name, replaces):
        return (self.blobs[name][2] if name in self.blobs else None) == replaces

    def _store(self, name, data):
        self.blobs[name] = (data, self.now(), next(_etags))
        return self.blobs[name][1]


@pytest.fixture
def container():
    return MemoryContainer()


async def put(container, data, renew=HOUR):
    name = hashlib.sha256(data).hexdigest()
    await transfers.upload(container, name, memoryview(data), renew)
    return name


async def test_a_small_value_is_one_write(container):
    assert container.blobs[await put(container, b"abc")][0] == b"abc"
    assert container.heard == ["head", "write"]


@pytest.mark.parametrize("size", [MIB + 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES])
async def test_a_large_value_goes_in_parts_and_comes_back(container, size):
    data = os.urandom(size)
    name = await put(container, data)
    parts = -(-size // PART_BYTES)
    assert container.heard == ["head", *["stage"] * parts, "commit"]
    buffer, digest, found = await transfers.download(container, name, size)
    assert buffer == data
    assert (digest, found.size) == (name, size)
    assert container.heard[parts + 2 :] == ["read"] * parts


async def test_what_is_there_and_used_is_left_alone(container):
    name = await put(container, b"abc")
    before = container.blobs[name]
    await put(container, b"abc")
    assert container.blobs[name] == before
    assert container.heard == ["head", "write", "head"]


async def test_what_was_used_long_ago_is_touched(container):
    name = await put(container, b"abc")
    container.age(name, 2 * HOUR)
    await put(container, b"abc")
    assert container.heard == ["head", "write", "head", "touch"]
    assert container.now() - container.blobs[name][1] < HOUR


async def test_what_goes_before_it_is_touched_is_written_anew(container):
    name = await put(container, b"abc")
    container.age(name, 2 * HOUR)
    touch = container.touch

    async def swept_before(name):
        container.blobs.pop(name, None)
        return await touch(name)

    container.touch = swept_before
    await put(container, b"abc")
    assert container.blobs[name][0] == b"abc"


async def test_another_size_is_written_again(container):
    name = await put(container, b"abc")
    container.blobs[name] = (b"ab", container.now(), "cut")
    await put(container, b"abc")
    assert container.blobs[name][0] == b"abc"


async def test_parts_that_another_writer_took_away_are_sent_again(container):
    data = os.urandom(2 * PART_BYTES)
    commit, taken = container.commit, []

    async def robbed_once(name, blocks, replaces):
        if not taken:
            taken.append(container.staged.pop(name))
        return await commit(name, blocks, replaces)

    container.commit = robbed_once
    assert container.blobs[await put(container, data)][0] == data


async def test_parts_that_always_vanish_are_an_error(container):
    async def robbed(name, blocks, replaces):
        return False

    container.commit = robbed
    with pytest.raises(StoreUnavailable, match="taken away 3 times"):
        await put(container, bytes(2 * PART_BYTES))


async def test_writers_of_the_same_value_meet(container):
    data = os.urandom(3 * PART_BYTES)
    names = await asyncio.gather(*(put(container, data) for _ in range(8)))
    assert list(container.blobs) == [names[0]]
    assert container.blobs[names[0]][0] == data


async def test_a_part_that_fails_ends_the_others(container):
    async def fails(name, start, buffer):
        if start == PART_BYTES:
            raise StoreUnavailable("gone")
        await asyncio.Event().wait()

    container.read = fails
    with pytest.raises(StoreUnavailable, match="gone"):
        await transfers.download(container, "x", 4 * PART_BYTES)


@pytest.mark.parametrize("size", [0, 5, 3 * PART_BYTES])
async def test_what_is_missing_is_none(container, size):
    assert await transfers.download(container, "0" * 64, size) is None


async def test_what_goes_between_two_parts_is_none(container):
    name = await put(container, bytes(3 * PART_BYTES))
    read = container.read

    async def gone_later(name, start, buffer):
        return None if start else await read(name, start, buffer)

    container.read = gone_later
    assert await transfers.download(container, name, 3 * PART_BYTES) is None


@pytest.mark.parametrize("ahead", [timedelta(), -30 * DAY, 30 * DAY])
async def test_sweep_goes_by_the_servers_clock(container, ahead):
    container.ahead = ahead
    old, used = await put(container, b"old"), await put(container, b"used")
    container.age(old, 2 * DAY)
    container.blobs["notes.txt"] = (b"", container.now() - 9 * DAY, "other")
    assert await transfers.sweep(container, DAY) == 1
    assert set(container.blobs) == {used, "notes.txt", "swept"}


async def test_sweep_leaves_what_is_used_meanwhile(container):
    name = await put(container, b"old")
    container.age(name, 2 * DAY)
    delete = container.delete

    async def touched_before(name, etag):
        await container.touch(name)
        return await delete(name, etag)

    container.delete = touched_before
    assert await transfers.sweep(container, DAY) == 0
    assert name in container.blobs


async def test_keep_touches_what_is_due(container):
    old, fresh = await put(container, b"old"), await put(container, b"fresh")
    container.age(old, 2 * DAY)
    before = container.blobs[fresh]
    await transfers.keep(container, [old, fresh, old, "0" * 64], DAY)
    assert container.now() - container.blobs[old][1] < DAY
    assert container.blobs[fresh] == before
    assert container.heard.count("touch") == 1


async def test_one_of_many_sweeps_and_only_when_it_is_due(container):
    name = await put(container, b"old")
    container.age(name, 9 * DAY)
    swept = await asyncio.gather(*(transfers.sweep_if_due(container, 7 * DAY, DAY) for _ in range(5)))
    assert sorted(swept, key=str) == [1, None, None, None, None]
    assert await transfers.sweep_if_due(container, 7 * DAY, DAY) is None
    container.age("swept", 2 * DAY)
    assert await transfers.sweep_if_due(container, 7 * DAY, DAY) == 0
