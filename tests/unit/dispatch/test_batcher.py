"""The batcher: how many calls travel together; by properties, and by playing whole runs."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.dispatch.batcher import (
    BATCH_S,
    MAX_CALLS,
    MESSAGES_PER_SLOT,
    MIN_BATCH_S,
    Durations,
    batch_size,
    messages_allowed,
)

backlogs = st.integers(1, 10**7)
slots_of = st.integers(0, 1000)
seconds_of = st.floats(1e-7, 1e4)


@given(backlogs, slots_of, st.none() | seconds_of, st.integers(0, 5000), st.none() | st.integers(1, 10**6))
def test_batch_holds_at_least_one_call_and_no_more_than_there_are(
    backlog: int, slots: int, seconds: float | None, out: int, chunksize: int | None
) -> None:
    size = batch_size(backlog, slots, seconds, out, chunksize)
    assert 1 <= size <= backlog
    if chunksize is None:
        assert size <= MAX_CALLS
    else:
        assert size == min(chunksize, backlog)


@given(backlogs, slots_of, seconds_of, st.integers(0, 5000))
def test_batch_holds_no_more_work_than_its_time_to_the_nearest_call(
    backlog: int, slots: int, seconds: float, out: int
) -> None:
    size = batch_size(backlog, slots, seconds, out)
    assert size == 1 or (size - 0.5) * seconds <= BATCH_S * 1.001


@given(backlogs, st.integers(1, 1000), seconds_of)
def test_batch_leaves_calls_for_the_other_slots(backlog: int, slots: int, seconds: float) -> None:
    size = batch_size(backlog, slots, seconds, 0)
    level = -(-backlog // (MESSAGES_PER_SLOT * slots))
    assert size <= max(level, int(MIN_BATCH_S / seconds), 1)


@given(backlogs, slots_of)
def test_function_of_unknown_duration_starts_alone(backlog: int, slots: int) -> None:
    assert batch_size(backlog, slots, None, 0) == 1


@given(st.integers(0, 5000), slots_of)
def test_messages_allowed_is_two_for_each_slot(out: int, slots: int) -> None:
    allowed = messages_allowed(out, slots)
    assert allowed >= 0
    assert out + allowed == max(out, MESSAGES_PER_SLOT * max(1, slots))


# ── durations ───────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(1, 1000)), min_size=1, max_size=30))
def test_durations_stay_between_the_shortest_and_the_longest_measured(measured: list[tuple[float, int]]) -> None:
    durations = Durations()
    for total, calls in measured:
        durations.add(total, calls)
    each = [max(total / calls, 1e-7) for total, calls in measured]
    assert durations.seconds is not None
    assert min(each) * 0.999 <= durations.seconds <= max(each) * 1.001


def test_durations_of_nothing_stay_unknown() -> None:
    durations = Durations()
    durations.add(5.0, 0)
    assert durations.seconds is None


def test_durations_follow_a_function_that_has_become_slow_at_once_and_a_fast_one_slowly() -> None:
    durations = Durations(0.001)
    durations.add(1.0, 1)
    assert durations.seconds == pytest.approx(0.5005)
    durations.add(0.001, 1)
    assert durations.seconds > 0.4
    for _ in range(60):
        durations.add(0.001, 1)
    assert durations.seconds < 0.002


# ── whole runs ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Played:
    """A run of calls over slots, as the dispatcher and the workers would do it; a message costs half a millisecond.

    Attributes:
        idle_at_s: When each slot had nothing more to do.
        messages: How many were published.
    """

    MESSAGE_S = 0.0005

    def __init__(self, calls: int, slots: int, duration_s: Callable[[int], float]) -> None:
        durations = Durations()
        self.messages = self.largest = 0
        self.idle_at_s = [0.0] * slots
        self.order: list[int] = []
        self.longest_batch_s = 0.0
        backlog, out, queue, now = calls, 0, [], 0.0
        running: list[tuple[float, int, float, int]] = []
        free = list(range(slots))
        while backlog or out:
            while backlog and messages_allowed(out, slots):
                size = batch_size(backlog, slots, durations.seconds, out)
                queue.append(range(calls - backlog, calls - backlog + size))
                backlog, out, self.messages = backlog - size, out + 1, self.messages + 1
                self.largest = max(self.largest, size)
            while free and queue:
                batch, slot = queue.pop(0), free.pop()
                self.order += batch
                took = sum(map(duration_s, batch))
                self.longest_batch_s = max(self.longest_batch_s, took)
                heapq.heappush(running, (now + took + self.MESSAGE_S, slot, took, len(batch)))
            now, slot, took, size = heapq.heappop(running)
            self.idle_at_s[slot] = now
            durations.add(took, size)
            free.append(slot)
            out -= 1
        self.took_s = now


@pytest.mark.parametrize("slots", [1, 2, 7, 64])
@pytest.mark.parametrize("duration_s", [1e-6, 1e-4, 1e-3, 1e-2, 1.0])
def test_ten_thousand_calls_end_on_all_slots_within_one_batch(slots: int, duration_s: float) -> None:
    played = Played(10_000, slots, lambda _: duration_s)
    assert sorted(played.order) == list(range(10_000))
    one_batch_s = max(played.longest_batch_s, MIN_BATCH_S) + Played.MESSAGE_S
    assert max(played.idle_at_s) - min(played.idle_at_s) <= one_batch_s * 1.01


@pytest.mark.parametrize(("duration_s", "efficiency"), [(1e-3, 0.9), (1e-2, 0.94), (1.0, 0.99)])
def test_ten_thousand_calls_waste_little_on_messages(duration_s: float, efficiency: float) -> None:
    played = Played(10_000, 2, lambda _: duration_s)
    assert played.took_s * efficiency <= 10_000 * duration_s / 2


def test_tiny_calls_travel_in_few_messages() -> None:
    played = Played(1_000_000, 2, lambda _: 1e-6)
    assert played.messages < 100
    assert played.largest <= MAX_CALLS


def test_mixed_calls_end_with_a_tail_no_longer_than_one_long_call_and_a_batch() -> None:
    chance = random.Random(1)
    lengths = [1.0 if chance.random() < 0.01 else 0.001 for _ in range(10_000)]
    played = Played(10_000, 4, lengths.__getitem__)
    # Without splits, which are the worker's part, what waits behind a long call in its batch adds to the tail.
    assert max(played.idle_at_s) - min(played.idle_at_s) <= played.longest_batch_s + BATCH_S
