"""The items of a map: taken in slices, put back, failed and expired, each accounted for once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from executor.dispatch import map_lane as map_lane_module
from executor.dispatch.batcher import Durations
from executor.dispatch.lanes import Batch, Lane
from executor.dispatch.map_lane import MapLane
from executor.dispatch.map_result import Failed, MapState
from executor.errors import BlobMissing
from executor.stores.memory import MemoryStore
from executor.stores.offload import unpacked
from executor.tasks.call_options import CallOptions
from executor.wire import pickling
from tests.unit.dispatch.doubles import function


def a_lane(store: Any = None, later: Callable[..., None] | None = None, **options: Any) -> MapLane:
    return MapLane(
        function("f"),
        CallOptions(**options),
        Durations(),
        store,
        state=MapState(ordered=True),
        star=False,
        chunksize=None,
        later=later or (lambda delay, lane, callback: callback()),
    )


def taken(lane: MapLane, count: int, root: str = "r") -> Batch | None:
    cargo = lane.take(count)
    return None if cargo is None else Batch(root, lane, cargo, bytearray(cargo.count), cargo.count)


def items_in(batch: Batch) -> list[Any]:
    return pickling.loads(batch.cargo.payload)  # type: ignore[no-any-return]


def results(lane: MapLane) -> list[Any]:
    found: list[Any] = []
    while (values := lane.state.next_slice()) is not None:
        found += values
    return found


@given(st.lists(st.integers(0, 20), max_size=8), st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_items_are_taken_once_and_in_order(blocks: list[int], counts: list[int]) -> None:
    lane = a_lane()
    total = 0
    for size in blocks:
        lane.add(total, list(range(total, total + size)))
        total += size
    assert lane.backlog == total
    seen: list[int] = []
    while lane.backlog:
        batch = taken(lane, counts[len(seen) % len(counts)])
        assert batch is not None
        assert batch.cargo.members[0] == items_in(batch)[0]
        seen += items_in(batch)
        assert lane.backlog == total - len(seen)
    assert seen == list(range(total))
    assert lane.take(1) is None


@settings(max_examples=40)
@given(st.data())
def test_items_put_back_are_taken_again_and_every_item_is_filled_once(data: st.DataObject) -> None:
    lane = a_lane()
    lane.add(0, list(range(30)))
    lane.state.end(30)
    while lane.backlog:
        batch = taken(lane, data.draw(st.integers(1, 12)))
        assert batch is not None
        for index in reversed(range(batch.cargo.count)):
            if data.draw(st.booleans()):
                assert batch.settle(index, 1)
                lane.put_back(batch, index)
        for index, item in enumerate(items_in(batch)):
            if batch.settle(index, 1):
                lane.on_values(batch, index, [item])
    assert lane.state.filled == 30
    assert results(lane) == list(range(30))


@given(st.sets(st.integers(0, 63)), st.integers(1, 64))
def test_items_that_cannot_be_pickled_fail_alone(bad: set[int], count: int) -> None:
    lane = a_lane()
    lane.add(0, [(x for x in ()) if n in bad else n for n in range(64)])
    lane.state.end(64)
    messages = 0
    while lane.backlog:
        batch = taken(lane, count)
        if batch is not None:
            messages += 1
            lane.on_values(batch, 0, items_in(batch))
    found = results(lane)
    assert [n for n, value in enumerate(found) if type(value) is Failed] == sorted(bad)
    assert [value for value in found if type(value) is not Failed] == [n for n in range(64) if n not in bad]
    assert lane.state.failed == len(bad)
    assert messages <= 64 // count + 1 + 12 * len(bad)  # one bad item does not scatter the others into single messages


def test_item_whose_pickling_raises_system_exit_fails_alone() -> None:
    class Rude:
        def __reduce__(self) -> Any:
            raise SystemExit(3)

    lane = a_lane()
    lane.add(0, [1, Rude()])
    batch = taken(lane, 2) or taken(lane, 2)
    assert batch is not None
    assert items_in(batch) == [1]
    assert taken(lane, 2) is None
    lane.on_values(batch, 0, [1])
    lane.state.end(2)
    first, second = results(lane)
    assert first == 1
    assert isinstance(second.error, SystemExit)


def test_batch_holds_no_more_bytes_than_its_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_lane_module, "MAX_BYTES", 1000)
    lane = a_lane()
    lane.add(0, [b"x" * 100] * 50)
    assert taken(lane, 1) is not None  # the size of an item is known from now on
    batch = taken(lane, 49)
    assert batch is not None
    assert 5 <= batch.cargo.count <= 10


def test_failing_fills_what_waits_and_fail_batch_what_is_out() -> None:
    lane = a_lane()
    lane.add(0, list(range(10)))
    lane.state.end(10)
    batch = taken(lane, 4)
    assert batch is not None
    assert batch.settle(1, 1)
    lane.on_values(batch, 1, [1])
    error = KeyError()
    lane.fail(error)
    lane.fail_batch(batch, error)
    assert lane.backlog == 0
    assert [type(value) is Failed for value in results(lane)] == [n != 1 for n in range(10)]
    assert lane.state.filled == 10


@given(st.integers(0, 25), st.integers(0, 20), st.lists(st.integers(0, 19), unique=True, max_size=5))
def test_expiring_fails_only_what_came_before(end: int, sent: int, back: list[int]) -> None:
    lane = a_lane()
    lane.add(0, list(range(20)))
    lane.state.end(20)
    batch = taken(lane, sent) if sent else None
    returned = [n for n in back if n < sent]
    for index in returned:
        assert batch is not None
        lane.put_back(batch, index)
    lane.expire(end, KeyError())
    left: list[int] = []
    while lane.backlog:
        more = taken(lane, 100)
        assert more is not None
        left += items_in(more)
    waiting = set(returned) | set(range(sent, 20))
    assert set(left) == {n for n in waiting if n >= end}
    assert lane.state.failed == len({n for n in waiting if n < end})


def test_retries_count_each_item_by_itself() -> None:
    pauses: list[float] = []

    def later(delay: float, lane: Lane, callback: Callable[[], None]) -> None:
        pauses.append(delay)
        callback()

    lane = a_lane(retries=2, backoff=1.0, later=later)
    lane.add(0, ["a", "b"])
    lane.state.end(2)
    while lane.backlog:
        batch = taken(lane, 1)
        assert batch is not None
        assert batch.settle(0, 1)
        failing = items_in(batch) == ["a"]
        lane.on_outcome(batch, 0, KeyError() if failing else None, items_in(batch)[0])
    first, second = results(lane)
    assert isinstance(first.error, KeyError)
    assert second == "b"
    assert len(pauses) == 2
    assert lane._attempts == {}


def test_closed_map_takes_nothing_in_and_retries_nothing() -> None:
    lane = a_lane(retries=5)
    lane.add(0, [1, 2])
    batch = taken(lane, 1)
    assert batch is not None
    lane.state.close()
    lane.drop()
    lane.on_outcome(batch, 0, KeyError(), None)
    lane.add(2, [3])
    assert lane.backlog == 0


def test_large_arguments_leave_the_store_when_their_batch_is_settled() -> None:
    store = MemoryStore()
    lane = a_lane(store, retries=1, backoff=0.0)
    lane.add(0, [b"x" * 100_000, b"y" * 100_000])
    batch = taken(lane, 2)
    assert batch is not None
    assert batch.cargo.buffers
    lane.forget(batch)
    with pytest.raises(BlobMissing):
        unpacked(batch.cargo.payload, batch.cargo.buffers or [], store)
