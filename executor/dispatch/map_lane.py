"""The items of one ``map``: no future, id or ledger entry for each, only slices of the input."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from executor.dispatch.batcher import MAX_BYTES, Durations
from executor.dispatch.lanes import MAX_CALL_BYTES, Batch, Cargo, Lane, too_large
from executor.dispatch.map_result import Failed, MapState
from executor.errors import StoreError
from executor.stores.offload import blob_refs, packed
from executor.tasks.call_options import CallOptions, retry_delay_s

if TYPE_CHECKING:
    from executor.stores.base import BlobStore
    from executor.wire.functions import PickledFunction


@dataclass(slots=True)
class _Block:
    """Part of the input: items from number ``first`` on, of which ``taken`` have been sent."""

    first: int
    items: list[Any]
    taken: int = 0


class MapLane(Lane):
    """Input and output of one ``map``.

    Args:
        state: Where results go and where the user waits for them.
        star: Whether an item is a tuple of arguments (several iterables, ``starmap``).
        chunksize: Items in each batch; None lets the batcher choose.
    """

    def __init__(
        self,
        function: PickledFunction,
        options: CallOptions,
        durations: Durations,
        store: BlobStore | None,
        *,
        state: MapState,
        star: bool,
        chunksize: int | None,
        later: Callable[[float, Lane, Callable[[], None]], None],
    ) -> None:
        super().__init__(function, options, durations, store)
        self.state, self.star, self._later = state, star, later
        self.chunksize = chunksize or self.chunksize
        self._blocks: deque[_Block] = deque()
        self._backlog = 0
        self._bytes_per_item = 0.0
        self._attempts: dict[int, int] = {}

    @property
    def backlog(self) -> int:
        """See :class:`Lane`."""
        return self._backlog

    def add(self, first: int, items: list[Any]) -> None:
        """More input, from item number ``first`` on."""
        if items and not self.state.closed:
            self._blocks.append(_Block(first, items))
            self._backlog += len(items)

    def take(self, count: int) -> Cargo | None:
        """See :class:`Lane`."""
        if self._bytes_per_item:
            count = max(1, min(count, int(MAX_BYTES / self._bytes_per_item)))
        while self._blocks:
            block = self._blocks[0]
            start = block.taken
            chunk = block.items if not start and count >= len(block.items) else block.items[start : start + count]
            block.taken += len(chunk)
            if block.taken >= len(block.items):
                self._blocks.popleft()
            self._backlog -= len(chunk)
            cargo = self._packed(block.first + start, chunk)
            if cargo is not None:
                return cargo
        return None

    def _packed(self, first: int, chunk: list[Any]) -> Cargo | None:
        try:
            payload, refs = packed(chunk, self.store)
            if len(payload) > MAX_CALL_BYTES:
                raise too_large(len(payload))
        except BaseException as error:  # code of the user's runs here, which must not end the loop thread
            if len(chunk) == 1 or isinstance(error, StoreError):  # smaller pieces fare no better with that store
                for index in range(len(chunk)):
                    self._fill_failure(first + index, error)
            else:  # find the item that cannot travel; the others shall
                half = len(chunk) // 2
                self._blocks.appendleft(_Block(first + half, chunk[half:]))
                self._blocks.appendleft(_Block(first, chunk[:half]))
                self._backlog += len(chunk)
            return None
        self._bytes_per_item = len(payload) / len(chunk)
        members = (first, chunk)
        return Cargo("map", len(chunk), payload, refs or None, members, self.star)

    def put_back(self, batch: Batch, index: int) -> None:
        """See :class:`Lane`."""
        first, chunk = batch.cargo.members
        self._blocks.appendleft(_Block(first + index, [chunk[index]]))
        self._backlog += 1

    def on_values(self, batch: Batch, first: int, values: list[Any]) -> None:
        """See :class:`Lane`."""
        self.state.fill(batch.cargo.members[0] + first, values)

    def on_outcome(self, batch: Batch, index: int, error: BaseException | None, value: Any) -> None:
        """See :class:`Lane`."""
        item = batch.cargo.members[0] + index
        if error is not None:
            if self._retried(item, batch.cargo.members[1][index], error):
                return
            self._fill_failure(item, error)
        else:
            self.state.fill(item, [value])

    def _fill_failure(self, item: int, error: BaseException) -> None:
        self.state.fill(item, [Failed(error)], failed=1)

    def _retried(self, item: int, argument: Any, error: BaseException) -> bool:
        if not self.options.retries or not self.retriable(error) or self.state.closed:
            return False
        attempt = self._attempts[item] = self._attempts.get(item, 0) + 1
        if attempt > self.options.retries:
            del self._attempts[item]
            return False
        self._later(
            retry_delay_s(self.options, attempt, random.random()),
            self,
            lambda: self.add(item, [argument]),
        )
        return True

    def forget(self, batch: Batch) -> None:
        """See :class:`Lane`."""
        if batch.cargo.buffers and self.store is not None:
            self.store.delete(blob_refs(batch.cargo.buffers))

    def fail(self, error: BaseException) -> None:
        """See :class:`Lane`."""
        while self._blocks:
            block = self._blocks.popleft()
            left = len(block.items) - block.taken
            self.state.fill(block.first + block.taken, [Failed(error)] * left, failed=left)
        self._backlog = 0

    def fail_batch(self, batch: Batch, error: BaseException) -> None:
        """See :class:`Lane`."""
        for index in range(batch.cargo.count):
            if not batch.settled[index]:
                self._fill_failure(batch.cargo.members[0] + index, error)

    def cancel_index(self, batch: Batch, index: int, error: BaseException | None) -> None:
        """See :class:`Lane`."""
        if error is not None:  # else its user has closed the run, and reads no more
            self._fill_failure(batch.cargo.members[0] + index, error)

    def expire(self, end: int, error: BaseException) -> None:
        """Input before item number ``end`` that has not been sent fails."""
        kept: deque[_Block] = deque()
        for block in self._blocks:
            start = block.first + block.taken
            stop = block.first + len(block.items)
            late = max(0, min(stop, end) - start)
            if late:
                self.state.fill(start, [Failed(error)] * late, failed=late)
                self._backlog -= late
                block.taken += late
            if block.taken < len(block.items):
                kept.append(block)
        self._blocks = kept

    def drop(self) -> None:
        """Forget the input that has not been sent."""
        self._blocks.clear()
        self._backlog = 0
