"""Whose lease has run out? Pure: the caller brings the clock.

A lease counts as expired only when it has been seen unrenewed for a whole lease, by one watcher, on its own monotonic
clock, without a gap. While the server is away nobody can renew: whoever comes back first must not judge the others.
"""

from __future__ import annotations

from collections.abc import Mapping


class LeaseWatch:
    """Watches the beats of all workers.

    Args:
        lease_s: Length of a lease in seconds.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._seen: dict[str, tuple[str, float]] = {}
        self._last: float | None = None

    def observe(self, now: float, beats: Mapping[str, str]) -> list[tuple[str, str]]:
        """Take in all beats as they stand.

        Args:
            now: Monotonic seconds.
            beats: Worker to beat.

        Returns:
            Worker and beat of each lease that has expired.
        """
        if self._last is not None and now - self._last > self._lease_s / 2:
            self.forget()  # this watcher itself was stopped: it has not watched
        self._last = now
        seen, self._seen = self._seen, {}
        expired = []
        for worker, beat in beats.items():
            before = seen.get(worker)
            since = before[1] if before is not None and before[0] == beat else now
            self._seen[worker] = (beat, since)
            if now - since >= self._lease_s:
                expired.append((worker, beat))
        return expired

    def forget(self) -> None:
        """The connection broke, or the server is another: begin anew."""
        self._seen.clear()
        self._last = None
