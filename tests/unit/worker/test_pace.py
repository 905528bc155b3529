"""How many jobs are fetched ahead."""

from __future__ import annotations

from executor.worker.pace import SHORT_IN_A_ROW, SHORT_S, Pace


def short_jobs(pace: Pace, count: int) -> None:
    for _ in range(count):
        pace.ended(SHORT_S / 10)


def test_nothing_is_fetched_ahead_before_jobs_are_known_to_be_short() -> None:
    pace = Pace(slots=3)
    assert pace.ahead == 0
    short_jobs(pace, 3 * SHORT_IN_A_ROW - 1)
    assert pace.ahead == 0
    short_jobs(pace, 1)
    assert pace.ahead == 3


def test_one_long_job_ends_it() -> None:
    pace = Pace(slots=1)
    short_jobs(pace, 100)
    pace.ended(SHORT_S)
    assert pace.ahead == 0


def test_one_that_had_to_wait_ends_it() -> None:
    pace = Pace(slots=1)
    short_jobs(pace, 100)
    pace.waited_too_long()
    assert pace.ahead == 0
