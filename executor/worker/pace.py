"""How many jobs may wait in the worker for a child? Pure: the caller brings durations.

While a message is fetched, a child that is free idles: about a millisecond, which short jobs would pay each time. So
while jobs are short, each slot may have one more here. One that then waits behind a long job goes back to the queue,
where other workers find it.
"""

from __future__ import annotations

#: A job is short up to this: a batch is made to last 50 ms. In seconds.
SHORT_S = 0.1
#: A job that nobody began waits here for so long at most, in seconds: longer than a short one runs.
WAIT_AT_MOST_S = 0.15
#: So many short jobs in a row, for each slot, before more are fetched.
SHORT_IN_A_ROW = 2


class Pace:
    """Counts short jobs.

    Args:
        slots: Jobs that run at a time.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._short = 0

    def ended(self, seconds: float) -> None:
        """A job has run for so long."""
        self._short = self._short + 1 if seconds < SHORT_S else 0

    def waited_too_long(self) -> None:
        """One that was fetched ahead had to go back."""
        self._short = 0

    @property
    def ahead(self) -> int:
        """Jobs to have here beyond those that can run."""
        return self._slots if self._short >= SHORT_IN_A_ROW * self._slots else 0
