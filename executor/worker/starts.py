"""When may the next child be started, and when is it hopeless? Pure: the caller brings the clock."""

from __future__ import annotations

#: A pool whose children end by themselves so often, one after the other, before they are ready, is broken.
STARTS_BEFORE_BROKEN = 3
#: The same for those that are killed from outside: chance may do that a few times.
KILLS_BEFORE_BROKEN = 20
#: Pause after the first failed start; it doubles with each, up to the longest. In seconds.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.04, 1.0


class Starts:
    """Counts failed starts in a row."""

    def __init__(self) -> None:
        self._failed = self._killed = 0
        self._next = 0.0

    def succeeded(self) -> None:
        """A child is ready."""
        self._failed = self._killed = 0

    def failed(self, now: float, *, by_itself: bool) -> None:
        """A child has ended before it was ready.

        Args:
            now: Monotonic seconds.
            by_itself: Not killed from outside.
        """
        self._failed += by_itself
        self._killed += not by_itself
        pause_s = FIRST_PAUSE_S * 2.0 ** (self._failed + self._killed - 1)
        self._next = now + min(LONGEST_PAUSE_S, pause_s)

    @property
    def hopeless(self) -> bool:
        """Whether the next one would fail, too."""
        return self._failed >= STARTS_BEFORE_BROKEN or self._killed >= KILLS_BEFORE_BROKEN

    def wait_s(self, now: float) -> float:
        """Seconds until the next child may be started."""
        return max(0.0, self._next - now)
