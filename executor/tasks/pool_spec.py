"""Declaration of one pool: workers of one shape."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from executor.tasks.resources import Resources

#: A DNS label, since pools name Kubernetes objects too.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")
_APP = re.compile(r"[A-Za-z_][\w.]*(:[A-Za-z_][\w.]*)?")

#: The pool that calls go to when nothing else is said.
DEFAULT_POOL = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """Workers of one shape, and what they serve.

    Attributes:
        name: Lower-case letters, digits and dashes, at most 40; calls reach it by ``ex.options(pool=name)``.
        max_workers: Most calls at a time; None means as many as this machine has CPUs.
        celery_app: ``"package.module:app"`` of a user's own Celery app: its plain tasks run here too.
        queues: Celery queues that those tasks come from, under their own names. Default: the app's default queue
            is *not* taken; say which.
        resources: Of one worker; has no effect on local processes.

    Raises:
        ValueError, TypeError: A field does not make sense; names it.
    """

    name: str = DEFAULT_POOL
    max_workers: int | None = None
    celery_app: str | None = None
    queues: Sequence[str] = ()
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        name: object = self.name  # fields hold whatever was given
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise ValueError(
                f"name={self.name!r}: a pool's name has lower-case letters, digits and dashes, at most 40."
            )
        if self.max_workers is not None and not isinstance(self.max_workers, int):
            raise TypeError(f"max_workers={self.max_workers!r} must be a whole number or None.")
        if self.max_workers is not None and self.max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if isinstance(self.queues, str):
            raise ValueError(f"queues={self.queues!r} is a string; write queues=[{self.queues!r}].")
        if not all(_is_name(queue) for queue in self.queues):
            raise ValueError(f"queues={list(self.queues)!r} must hold names of Celery queues.")
        if self.celery_app is not None and not (_is_name(self.celery_app) and _APP.fullmatch(self.celery_app)):
            raise ValueError(
                f"celery_app={self.celery_app!r}: write it as 'package.module:app', as `celery -A` takes it."
            )
        if self.queues and self.celery_app is None:
            raise ValueError(
                f"queues={list(self.queues)!r} need celery_app='package.module:app', the app whose tasks they carry."
            )
        if self.celery_app is not None and not self.queues:
            raise ValueError(
                f"celery_app={self.celery_app!r} needs queues=[...]: the Celery queues its tasks come from."
            )
        object.__setattr__(self, "queues", tuple(self.queues))


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""
