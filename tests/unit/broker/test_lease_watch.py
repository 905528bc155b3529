"""Leases judged on a clock that the test turns."""

from __future__ import annotations

import pytest

from executor.broker.lease_watch import LeaseWatch


@pytest.fixture
def watch() -> LeaseWatch:
    return LeaseWatch(5.0)


def look(watch: LeaseWatch, start: float, end: float, beats: dict[str, str]) -> list[tuple[str, str]]:
    """Look every half second; what the last look found."""
    found: list[tuple[str, str]] = []
    now = start
    while now <= end:
        found = watch.observe(now, beats)
        now += 0.5
    return found


def test_a_lease_that_is_renewed_never_expires(watch: LeaseWatch) -> None:
    for second in range(60):
        assert watch.observe(float(second), {"w": str(second)}) == []


def test_a_lease_expires_after_being_watched_unrenewed_for_its_whole_length(watch: LeaseWatch) -> None:
    assert look(watch, 0, 4.5, {"w": "7"}) == []
    assert watch.observe(5.0, {"w": "7"}) == [("w", "7")]


def test_only_the_silent_one_expires(watch: LeaseWatch) -> None:
    for step in range(10):
        assert watch.observe(step / 2, {"silent": "1", "lively": str(step)}) == []
    assert watch.observe(5.0, {"silent": "1", "lively": "10"}) == [("silent", "1")]


def test_a_beat_begins_the_lease_anew(watch: LeaseWatch) -> None:
    look(watch, 0, 4.5, {"w": "1"})
    assert look(watch, 4.6, 9.1, {"w": "2"}) == []
    assert look(watch, 9.5, 10.0, {"w": "2"}) == [("w", "2")]


def test_what_was_watched_before_a_break_does_not_count(watch: LeaseWatch) -> None:
    look(watch, 0, 4.5, {"w": "1"})
    watch.forget()
    assert look(watch, 4.6, 9.1, {"w": "1"}) == []


def test_a_watcher_that_was_stopped_itself_begins_anew(watch: LeaseWatch) -> None:
    look(watch, 0, 1, {"w": "1"})
    assert watch.observe(60.0, {"w": "1"}) == []
    assert look(watch, 60.5, 65.0, {"w": "1"}) == [("w", "1")]


def test_a_worker_that_left_is_forgotten(watch: LeaseWatch) -> None:
    look(watch, 0, 4.5, {"w": "1"})
    watch.observe(4.6, {})
    assert watch.observe(5.1, {"w": "1"}) == []
