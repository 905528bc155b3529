"""What redis-py raises, for those above who must not know redis-py: ``except failures.LOST``.

``LOST``: the connection or the server failed; a command may or may not have been carried out.
``REFUSED``: the server said no (it is full, or loading), and did nothing. A part of ``LOST``: name it first.
"""

from __future__ import annotations

__all__ = ["LOST", "REFUSED"]

LOST: tuple[type[Exception], ...]
REFUSED: tuple[type[Exception], ...]


def __getattr__(name: str) -> tuple[type[Exception], ...]:
    """Redis-py is imported when the first error is looked at: then it has been anyway."""
    from redis.exceptions import RedisError, ResponseError

    kinds: dict[str, tuple[type[Exception], ...]] = {"LOST": (RedisError, OSError), "REFUSED": (ResponseError,)}
    if name not in kinds:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return kinds[name]
