"""Failed starts of children."""

from __future__ import annotations

import pytest

from executor.worker.starts import KILLS_BEFORE_BROKEN, LONGEST_PAUSE_S, STARTS_BEFORE_BROKEN, Starts


@pytest.mark.parametrize(("by_itself", "most"), [(True, STARTS_BEFORE_BROKEN), (False, KILLS_BEFORE_BROKEN)])
def test_some_failures_in_a_row_are_hopeless(by_itself: bool, most: int) -> None:
    starts = Starts()
    for _ in range(most - 1):
        starts.failed(0.0, by_itself=by_itself)
        assert not starts.hopeless
    starts.failed(0.0, by_itself=by_itself)
    assert starts.hopeless


def test_a_child_that_comes_up_takes_all_back() -> None:
    starts = Starts()
    for _ in range(10 * STARTS_BEFORE_BROKEN):
        starts.failed(0.0, by_itself=True)
        starts.succeeded()
    assert not starts.hopeless


def test_pauses_grow_up_to_a_bound() -> None:
    starts, pauses = Starts(), []
    assert starts.wait_s(0.0) == 0
    for _ in range(10):
        starts.failed(100.0, by_itself=False)
        pauses.append(starts.wait_s(100.0))
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_S
    assert starts.wait_s(100.0 + LONGEST_PAUSE_S) == 0
