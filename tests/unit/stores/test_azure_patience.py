"""How long a request is tried, by a clock of the test's own."""

from __future__ import annotations

import pytest

from executor.stores import azure
from executor.stores.azure import Outage


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(azure, "time", clock)
    return clock


def test_a_request_is_tried_for_a_minute(clock):
    patience = Outage(60).patience()
    assert not patience.over
    for _ in range(12):
        assert patience.failed()
        assert not patience.over
        clock.now += 5
    assert patience.over
    assert patience.tried_s == 60


def test_who_comes_late_waits_for_the_rest(clock):
    outage = Outage(60)
    outage.patience().failed()
    clock.now += 50
    late = outage.patience()
    late.failed()
    assert not late.over
    clock.now += 10
    assert late.over
    last = outage.patience()
    last.failed()
    assert last.over


def test_an_answer_ends_the_outage_but_not_the_patience_of_others(clock):
    outage = Outage(60)
    unlucky = outage.patience()
    unlucky.failed()
    clock.now += 50
    outage.ended()
    fresh = outage.patience()
    fresh.failed()
    unlucky.failed()
    clock.now += 10
    assert unlucky.over
    assert not fresh.over


def test_an_outage_that_nobody_has_seen_for_long_is_over(clock):
    outage = Outage(60)
    outage.patience().failed()
    clock.now += 3600
    late = outage.patience()
    late.failed()
    assert not late.over
