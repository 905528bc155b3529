"""KubeExecutor: Python callables on warm workers behind ``concurrent.futures.Executor``.

::

    submit ─► Call ─► Batch ─► LPUSH ═ Redis list (a Celery queue) ═► claim ─► child process ─► Outcome ═► Future

``KubeExecutor`` is the executor, ``Pool`` the face of ``multiprocessing.Pool``, ``PoolSpec`` and ``Resources`` declare
pools; exceptions are in :mod:`executor.errors`. Names are loaded when they are used: a worker imports this package
too, and needs none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from executor.kube_executor import KubeExecutor
    from executor.pool import Pool
    from executor.tasks.pool_spec import PoolSpec
    from executor.tasks.resources import Resources

__all__ = ["KubeExecutor", "Pool", "PoolSpec", "Resources"]

_HOMES = {
    "KubeExecutor": "executor.kube_executor",
    "Pool": "executor.pool",
    "PoolSpec": "executor.tasks.pool_spec",
    "Resources": "executor.tasks.resources",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
