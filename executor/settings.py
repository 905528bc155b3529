"""Settings from the environment; the only place that reads it.

======================================  ===============================================================
``KUBE_EXECUTOR_BROKER_URL``            as ``broker_url=``
``KUBE_EXECUTOR_MAX_WORKERS``           as ``max_workers=``
======================================  ===============================================================

An argument wins over the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

_PREFIX = "KUBE_EXECUTOR_"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says.

    Attributes:
        broker_url: Address of the broker, or None.
        max_workers: Calls that run at a time, or None.
    """

    broker_url: str | None = None
    max_workers: int | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the variables.

        Raises:
            ValueError: A number does not parse; names the variable.
        """
        workers = environment.get(_PREFIX + "MAX_WORKERS")
        if workers is not None and not workers.strip().isdigit():
            raise ValueError(f"{_PREFIX}MAX_WORKERS={workers!r} in the environment must be a whole number above 0.")
        return cls(
            broker_url=environment.get(_PREFIX + "BROKER_URL") or None,
            max_workers=None if workers is None else int(workers),
        )
