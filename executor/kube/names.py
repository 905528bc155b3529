"""Names and labels of everything that an executor has on a cluster. Pure."""

from __future__ import annotations

import re
import secrets
from typing import Final

APP: Final = "kube-executor"
NAME, INSTANCE, COMPONENT = "app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component"
PART_OF, MANAGED_BY = "app.kubernetes.io/part-of", "app.kubernetes.io/managed-by"
#: Of worker pods: which pool they belong to.
POOL: Final = "kube-executor/pool"
#: Put on a pod with the executor's name, it may reach that executor's broker.
ACCESS: Final = "kube-executor/broker-access"
BROKER, WORKER = "broker", "worker"

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_PREFIX = "ke-"
_SUFFIX_LENGTH = 6
#: Longest name of a pod that is also its host name (RFC 1123).
LONGEST = 63
#: Room for the names of executor and pool together, in a pod's name.
ROOM: Final = LONGEST - len(_PREFIX) - 2 - _SUFFIX_LENGTH


def check_names(executor: str, pools: list[str]) -> None:
    """Refuse names that Kubernetes would not take.

    Raises:
        ValueError: Says which, and why.
    """
    if not _LABEL.fullmatch(executor):
        raise ValueError(
            f"name={executor!r}: on a cluster an executor's name has lower-case letters, digits and dashes, none at "
            "its ends: Kubernetes objects are named after it."
        )
    for pool in pools:
        if len(executor) + len(pool) > ROOM:
            raise ValueError(
                f"name={executor!r} and the pool's name {pool!r} have {len(executor) + len(pool)} characters together; "
                f"pods are named after both, and Kubernetes leaves room for {ROOM}."
            )


def owner(executor: str) -> str:
    """Name of the Job that everything hangs on, and of the Service, the Secret and the policy beside it."""
    return _PREFIX + executor


def pool_secret(executor: str, pool: str) -> str:
    """Name of the Secret that holds a pool's settings; the dot keeps it apart from any executor's :func:`owner`."""
    return f"{_PREFIX}{executor}.{pool}"


def worker_pod(executor: str, pool: str) -> str:
    """A new name for a worker pod."""
    return f"{_PREFIX}{executor}-{pool}-{secrets.token_hex(_SUFFIX_LENGTH // 2)}"


def labels(executor: str, component: str, pool: str | None = None) -> dict[str, str]:
    """Labels of one object: the recommended ones, and the pool of a worker."""
    given = {NAME: APP, INSTANCE: executor, COMPONENT: component, PART_OF: APP, MANAGED_BY: APP}
    return given if pool is None else {**given, POOL: pool}


def selector_of_all(component: str) -> str:
    """Label selector of one component of all executors."""
    return f"{NAME}={APP},{COMPONENT}={component}"


def selector(executor: str, component: str | None = None) -> str:
    """Label selector of what belongs to an executor."""
    wanted = {NAME: APP, INSTANCE: executor, **({COMPONENT: component} if component else {})}
    return ",".join(f"{label}={value}" for label, value in wanted.items())
