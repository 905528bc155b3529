"""What redis-py raises, for those above who must not know redis-py: ``except failures.LOST``.

``LOST``: the connection or the server failed, or the server said no; :func:`refusal` tells these apart. Without a
refusal, the command may or may not have been carried out.
"""

from __future__ import annotations

import re
from enum import StrEnum

__all__ = ["LOST", "Refusal", "refusal", "said"]

LOST: tuple[type[Exception], ...]

#: First words of refusals that end when somebody frees memory or disk, when a failover or a script is over, ...
_PASSING = frozenset(
    ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "READONLY", "TRYAGAIN", "UNBLOCKED")
)
_IN_SCRIPT = re.compile(r" script: [0-9a-f]{40}, on @user_script:\d+\.?$")


class Refusal(StrEnum):
    """How the server said no.

    ``FULL`` and ``FOR_NOW``: it did nothing. ``FOR_GOOD``: it may have done a part.
    """

    #: It has no memory for anything new; claims and outcomes still pass.
    FULL = "full"
    #: It may answer otherwise later: it loads, fails over, cannot write to its disk, ...
    FOR_NOW = "for now"
    #: It will go on saying so until a person does something: rights, password, an error in a script.
    FOR_GOOD = "for good"


def refusal(error: BaseException) -> Refusal | None:
    """Whether the server has answered with an error, and of which kind; None where it is the connection that failed."""
    from redis import exceptions

    # redis-py takes the first word off the text where it has a class for it; our lean connection has none
    if isinstance(error, exceptions.OutOfMemoryError):
        return Refusal.FULL
    passing = (exceptions.ReadOnlyError, exceptions.BusyLoadingError, exceptions.MasterDownError)
    if isinstance(error, (*passing, exceptions.TryAgainError, exceptions.ClusterDownError)):
        return Refusal.FOR_NOW
    if not isinstance(error, exceptions.ResponseError | exceptions.AuthenticationError | exceptions.AuthorizationError):
        return None
    word = said(error).partition(" ")[0]
    return Refusal.FULL if word == "OOM" else Refusal.FOR_NOW if word in _PASSING else Refusal.FOR_GOOD


def said(error: BaseException) -> str:
    """What the server said, without what redis-py (a pipeline's command) and the server (a script's hash) add."""
    wrapped = re.search(r" of pipeline caused error: (?:\([\"'])?(.*?)(?:[\"'],\))?$", str(error), re.DOTALL)
    return _IN_SCRIPT.sub("", wrapped[1] if wrapped else str(error)).rstrip(".")


def __getattr__(name: str) -> tuple[type[Exception], ...]:
    """Redis-py is imported when the first error is looked at: then it has been anyway."""
    if name != "LOST":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from redis.exceptions import RedisError

    return (RedisError, OSError)
