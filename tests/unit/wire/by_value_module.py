"""A module that tests register with ``cloudpickle.register_pickle_by_value``, or patch."""

from __future__ import annotations

FACTOR = 2


def scaled(x: int) -> int:
    return x * FACTOR


class Point:
    def __init__(self, x: int) -> None:
        self.x = x
