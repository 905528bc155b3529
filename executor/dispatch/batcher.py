"""How many calls travel together next. Pure: no clock, no I/O.

A batch saves the fixed cost of a message (about half a millisecond), and costs fairness: its calls run one
after the other in one process. So a batch holds about :data:`BATCH_S` of work, and when little is left it
holds less, so that all slots finish together.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

#: Work in one batch, in seconds. A worker hands back what has not started after this time (split).
BATCH_S = 0.05
#: Below this, halving a batch to level the tail costs more in messages than it saves.
MIN_BATCH_S = 0.002
#: Messages out for each slot: one that runs and one that waits at the broker, so that no slot idles for a round trip.
MESSAGES_PER_SLOT = 2
#: Calls in one batch at most, whatever their duration says; bounds what one message holds.
MAX_CALLS = 250_000
#: Bytes of pickles in one batch, about: through base64 and JSON they cost more than a few messages do.
MAX_BYTES = 512 * 1024


@dataclass(slots=True)
class Durations:
    """Measured run time of one function, in seconds a call; an exponential average weighted by calls.

    Attributes:
        seconds: None until the first outcome.
    """

    seconds: float | None = None

    def add(self, total_s: float, calls: int) -> None:
        """Take in a batch: ``calls`` of them ran for ``total_s`` in all."""
        if calls <= 0:
            return
        measured = max(total_s / calls, 1e-7)
        if self.seconds is None:
            self.seconds = measured
        else:
            weight = 0.5 if calls > 1 or measured > self.seconds else 0.2
            self.seconds += weight * (measured - self.seconds)


def messages_allowed(out: int, slots: int) -> int:
    """How many more messages of one lane may be published now.

    Args:
        out: Messages of the lane published and not yet settled.
        slots: Calls that the pool runs at a time; 0 before any worker is there.
    """
    return max(0, MESSAGES_PER_SLOT * max(1, slots) - out)


def batch_size(backlog: int, slots: int, seconds: float | None, out: int, chunksize: int | None = None) -> int:
    """How many calls the next message takes.

    Args:
        backlog: Calls waiting in the client, at least 1.
        slots: Calls that the pool runs at a time.
        seconds: Measured duration of one call, None if unknown: then a call starts alone.
        out: Messages of the lane that are out; with none, and few waiting, a call goes at once and alone.
        chunksize: The user's own choice.
    """
    if chunksize is not None:
        return min(chunksize, backlog)
    if seconds is None:
        return 1
    share = ceil(backlog / (MESSAGES_PER_SLOT * max(1, slots)))
    floor = int(MIN_BATCH_S / seconds)
    return max(1, min(round(BATCH_S / seconds), max(share, floor), backlog, MAX_CALLS))
