"""How long a broker may refuse, or not answer, before all is given up. Pure: no clock, no I/O."""

from __future__ import annotations

from collections.abc import Callable

from executor.broker import failures
from executor.broker.failures import Refusal
from executor.errors import BrokerError, BrokerRefused, BrokerUnavailable

#: Failed reconnects, and refusals that may mend, go on this long before every future fails (design: P6), in seconds.
BROKER_TIMEOUT_S = 300.0
#: What will not mend by itself is tried again for this long, in seconds: rights are changed in more than one step.
REFUSED_S = 3.0


class Patience:
    """Counts from the first failure of one thing that is tried again and again.

    Args:
        explain: Makes one sentence of an error, for :class:`BrokerRefused`.
    """

    def __init__(self, explain: Callable[[BaseException], BrokerError]) -> None:
        self._explain = explain
        self.reset()

    def reset(self) -> None:
        """It has gone well."""
        self._since: float | None = None
        self._pause_s = 0.05

    def spent(self, error: Exception, now: float) -> BrokerError | None:
        """What to give up with, or None where it shall be tried again.

        Args:
            error: One of :data:`failures.LOST`.
            now: Any clock that runs evenly, in seconds.
        """
        if self._since is None:
            self._since = now
        refusal = failures.refusal(error)
        limit_s = min(REFUSED_S, BROKER_TIMEOUT_S) if refusal is Refusal.FOR_GOOD else BROKER_TIMEOUT_S
        if now - self._since < limit_s:
            return None
        if refusal is None:
            return BrokerUnavailable(
                f"The broker has not answered for {limit_s:g} s: {error}. Calls without an outcome are given up."
            )
        return BrokerRefused(f"{self._explain(error)} After {limit_s:g} s, calls that depend on it are given up.")

    def pause_s(self) -> float:
        """How long to wait before it is tried again; longer each time."""
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, 1.5)
        return pause_s
