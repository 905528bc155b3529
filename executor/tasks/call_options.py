"""What ``ex.options(...)`` may say about calls."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from operator import index
from typing import Any

from executor.tasks.pool_spec import DEFAULT_POOL

#: Deliveries of one call that may die with their worker before it fails (design: P5).
DEFAULT_MAX_DELIVERIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """How calls are to be run. All times are in seconds.

    Attributes:
        timeout: Run time of one attempt; after it the process is killed and the call fails with CallTimeout.
        expires: Time to wait for its start; after it the call fails with CallExpired and never runs.
        retries: How often a call that raised is run again.
        retry_on: One exception type or a tuple of them that are worth another attempt.
        backoff: Pause before the first retry; doubles each time, with jitter.
        max_deliveries: How often a call may start when workers die under it; 1 is at most once.
        priority: 0 (first) to 9 (last), as kombu's Redis transport orders them: 0, 3, 6, 9.
        pool: Name of the pool to run in.
        name: Shown in place of the function's name.
        result_ttl: How long outcomes wait at the broker for a client that is away (asleep, cut off) before they are
            given up and the client runs its calls again; at least, and never below, 600. It holds for all calls of
            the client once one has asked for it.

    Raises:
        ValueError, TypeError: A field does not make sense; names it.
    """

    timeout: float | None = None
    expires: float | None = None
    retries: int = 0
    retry_on: Any = (Exception,)
    backoff: float = 0.1
    max_deliveries: int = DEFAULT_MAX_DELIVERIES
    priority: int = 0
    pool: str = DEFAULT_POOL
    name: str | None = None
    result_ttl: float | None = None

    def __post_init__(self) -> None:
        for field in ("timeout", "expires", "result_ttl"):
            value = self._seconds(field)
            if value is not None and not 0 < value < inf:
                raise ValueError(f"{field}={value!r} must be a number of seconds above 0, or None.")
        for field in ("retries", "max_deliveries", "priority"):
            self._whole(field)
        if self.retries < 0:
            raise ValueError(f"retries={self.retries!r} must not be negative.")
        backoff = self._seconds("backoff")
        if backoff is None or not 0 <= backoff < inf:
            raise ValueError(f"backoff={backoff!r} must be a number of seconds, and not negative.")
        if self.max_deliveries < 1:
            raise ValueError(f"max_deliveries={self.max_deliveries!r} must be 1 (at most once) or more.")
        if not 0 <= self.priority <= 9:
            raise ValueError(f"priority={self.priority!r} must be from 0 (first) to 9 (last).")
        for field in ("pool", "name"):
            text = getattr(self, field)
            if not isinstance(text, str) and (field == "pool" or text is not None):
                raise TypeError(f"{field}={text!r} must be a string.")
        self._exception_types()

    def _seconds(self, field: str) -> float | None:
        """A field as a plain float: it travels as JSON, which knows no NumPy."""
        value = getattr(self, field)
        if value is None:
            return None
        if isinstance(value, str | bytes):
            raise TypeError(f"{field}={value!r} must be a number of seconds.")
        try:
            seconds = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"{field}={value!r} must be a number of seconds.") from None
        object.__setattr__(self, field, seconds)
        return seconds

    def _whole(self, field: str) -> None:
        value = getattr(self, field)
        try:
            object.__setattr__(self, field, index(value))
        except TypeError:
            raise TypeError(f"{field}={value!r} must be a whole number.") from None

    def _exception_types(self) -> None:
        wanted = (self.retry_on,) if isinstance(self.retry_on, type) else self.retry_on
        try:
            kinds = tuple(wanted)
        except TypeError:
            kinds = (None,)
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
            raise TypeError(f"retry_on={self.retry_on!r} must hold exception types.")
        object.__setattr__(self, "retry_on", kinds)


def retry_delay_s(options: CallOptions, attempt: int, random: float) -> float:
    """Pause before the next attempt: exponential with full jitter in its upper half, at most a minute.

    Args:
        options: Of the call.
        attempt: Attempts that have raised, from 1.
        random: From 0 to 1.
    """
    delay: float = min(60.0, options.backoff * 2.0 ** min(attempt - 1, 1000))
    return delay * (0.5 + random / 2)
