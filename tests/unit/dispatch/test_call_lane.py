"""Single calls in their lane: taken in order, skipped when cancelled, refused when too large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.dispatch import lanes
from executor.dispatch.batcher import MAX_BYTES, Durations
from executor.dispatch.future import CallFuture
from executor.dispatch.lanes import Batch, CallLane
from executor.errors import BlobMissing, CallExpired
from executor.stores.memory import MemoryStore
from executor.stores.offload import packed, unpacked
from executor.tasks.call_options import CallOptions
from executor.wire import pickling, segments
from tests.unit.dispatch.doubles import function


def a_lane(store: Any = None, later: Callable[..., None] | None = None, **options: Any) -> CallLane:
    return CallLane(
        function("f"),
        CallOptions(**options),
        Durations(),
        store,
        later or (lambda delay, lane, callback: callback()),
    )


def waiting(lane: CallLane, *values: Any) -> list[CallFuture[Any]]:
    futures = []
    for value in values:
        future: CallFuture[Any] = CallFuture()
        future.data, future.buffers = packed(((value,), {}), lane.store)
        lane.waiting.append(future)
        futures.append(future)
    return futures


def taken(lane: CallLane, count: int) -> Batch | None:
    cargo = lane.take(count)
    return None if cargo is None else Batch("r", lane, cargo, bytearray(cargo.count), cargo.count)


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 10))
def test_calls_are_taken_once_in_order_without_the_cancelled(cancelled: list[bool], count: int) -> None:
    lane = a_lane()
    futures = waiting(lane, *range(len(cancelled)))
    for future, gone in zip(futures, cancelled, strict=True):
        if gone:
            future.mark_cancelled()
    seen: list[CallFuture[Any]] = []
    while lane.backlog:
        batch = taken(lane, count)
        if batch is not None:
            values = [pickling.loads(part)[0][0] for part in segments.split(batch.cargo.payload)]
            assert [futures.index(future) for future in batch.cargo.members] == values
            assert len(values) <= count
            seen += batch.cargo.members
    assert seen == [future for future, gone in zip(futures, cancelled, strict=True) if not gone]


def test_batch_ends_where_it_has_bytes_enough() -> None:
    lane = a_lane()
    waiting(lane, *[b"x" * (MAX_BYTES // 4)] * 10)
    batch = taken(lane, 10)
    assert batch is not None
    assert batch.cargo.count == 4


def test_call_put_back_is_taken_first() -> None:
    lane = a_lane()
    futures = waiting(lane, 0, 1, 2)
    batch = taken(lane, 2)
    assert batch is not None
    for future in batch.cargo.members:
        future.root = "r"
    lane.put_back(batch, 1)
    lane.put_back(batch, 0)
    assert list(lane.waiting) == futures
    assert [future.root for future in futures] == [None] * 3


def test_settling_lets_go_of_the_arguments() -> None:
    lane = a_lane()
    done, failed, expired, cancelled, waits = waiting(lane, *[b"x" * 1000] * 5)
    batch = taken(lane, 4)
    assert batch is not None
    lane.on_values(batch, 0, [1])
    lane.on_outcome(batch, 1, KeyError(), None)
    lane.cancel_index(batch, 2, lanes.expired(3))
    lane.cancel_index(batch, 3, None)
    lane.fail(KeyError())
    assert done.result(0) == 1
    assert isinstance(failed.exception(0), KeyError)
    assert isinstance(expired.exception(0), CallExpired)
    assert cancelled.cancelled()
    assert isinstance(waits.exception(0), KeyError)
    assert {future.data for future in (done, failed, expired, cancelled, waits)} == {b""}


@pytest.mark.parametrize("how", ["value", "error", "cancel out", "cancel here", "fail here", "fail out"])
def test_large_arguments_leave_the_store_however_their_call_ends(how: str) -> None:
    store = MemoryStore()
    lane = a_lane(store)
    (future,) = waiting(lane, b"x" * 200_000)
    data, refs = future.data, list(future.buffers or [])
    assert refs
    if how == "cancel here":
        future.mark_cancelled()
        assert taken(lane, 1) is None
    elif how == "fail here":
        lane.fail(KeyError())
    else:
        batch = taken(lane, 1)
        assert batch is not None
        ends: dict[str, Callable[[], object]] = {
            "value": lambda: lane.on_values(batch, 0, [1]),
            "error": lambda: lane.on_outcome(batch, 0, KeyError(), None),
            "cancel out": lambda: lane.cancel_index(batch, 0, None),
            "fail out": lambda: lane.fail_batch(batch, KeyError()),
        }
        ends[how]()
    assert future.done()
    with pytest.raises(BlobMissing):
        unpacked(data, refs, store)


def test_large_arguments_stay_while_their_call_is_to_run_again() -> None:
    store = MemoryStore()
    lane = a_lane(store, retries=1, backoff=0.0)
    (future,) = waiting(lane, b"x" * 200_000)
    batch = taken(lane, 1)
    assert batch is not None
    lane.on_outcome(batch, 0, KeyError(), None)
    assert list(lane.waiting) == [future]
    assert unpacked(future.data, future.buffers or [], store)[0][0] == b"x" * 200_000


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=20))
def test_batch_settles_each_call_once(spans: list[tuple[int, int]]) -> None:
    lane = a_lane()
    waiting(lane, *range(40))
    batch = taken(lane, 40)
    assert batch is not None
    settled: set[int] = set()
    for first, count in spans:
        span = set(range(first, first + count))
        assert batch.settle(first, count) == (not span & settled)
        settled |= span if not span & settled else set()
        assert batch.remaining == 40 - len(settled)


def test_batch_knows_which_message_carries_a_call() -> None:
    lane = a_lane()
    waiting(lane, *range(10))
    batch = taken(lane, 10)
    assert batch is not None
    batch.parts += [(6, "r.6"), (2, "r.2"), (4, "r.4")]
    assert [batch.message_of(index) for index in range(8)] == ["r", "r", "r.2", "r.2", "r.4", "r.4", "r.6", "r.6"]
    assert batch.messages() == ["r", "r.6", "r.2", "r.4"]
