"""Declaration of one pool: workers of one shape."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from executor.tasks.resources import Resources

#: A DNS label, since pools name Kubernetes objects too.
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")
#: As the container runtimes read it: an optional registry, lower-case path, and a tag or digest.
_IMAGE = re.compile(
    r"([\w.-]+(:\d+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?", re.ASCII
)
_APP = re.compile(r"[A-Za-z_][\w.]*(:[A-Za-z_][\w.]*)?")

#: The pool that calls go to when nothing else is said.
DEFAULT_POOL = "default"


class PodFields(TypedDict, total=False):
    """Fields of :class:`PoolSpec` that are about pods, as ``KubeExecutor`` takes them for its default pool."""

    env: Mapping[str, str]
    secrets: Sequence[str]
    volumes: Mapping[str, Mapping[str, Any]]
    node_selector: Mapping[str, str]
    tolerations: Sequence[Mapping[str, Any]]
    image_pull_secrets: Sequence[str]
    service_account: str | None
    pod_template: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """Workers of one shape, and what they serve.

    Attributes:
        name: Lower-case letters, digits and dashes, at most 40; calls reach it by ``ex.options(pool=name)``.
        max_workers: Most calls at a time; None means as many as this machine has CPUs.
        celery_app: ``"package.module:app"`` of a user's own Celery app: its plain tasks run here too. Give the executor
            ``broker_url=`` then: the service must know the server, and so must the app's result backend.
        queues: Celery queues that those tasks come from, under their own names. Default: the app's default queue
            is *not* taken; say which.
        resources: Of one worker; has no effect on local processes.
        image: Of the worker pods: Python of the client's version, and this package. Without one, workers are processes
            of this machine, and what follows here has no effect.
        min_workers: Pods that must be ready before the start is over; 0 does not wait.
        slots: Calls that one pod runs at a time.
        env: Environment variables of the pods.
        secrets: Names of Secrets whose keys become environment variables.
        volumes: ``{mount path: volume source}``, e.g. ``{"/data": {"persistentVolumeClaim": {"claimName": "data"}}}``.
        node_selector: Labels that a node must have.
        tolerations: Taints that are borne, as Kubernetes writes them.
        image_pull_secrets: Names of Secrets for the image's registry.
        service_account: Of the pods; its token is not mounted.
        pod_template: Laid over the pod last; the rules are in :mod:`executor.kube.pod_template`.

    Raises:
        ValueError, TypeError: A field does not make sense; names it.
    """

    name: str = DEFAULT_POOL
    max_workers: int | None = None
    celery_app: str | None = None
    queues: Sequence[str] = ()
    resources: Resources = field(default_factory=Resources)
    image: str | None = None
    min_workers: int = 0
    slots: int = 1
    env: Mapping[str, str] = field(default_factory=dict, hash=False)
    secrets: Sequence[str] = ()
    volumes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    node_selector: Mapping[str, str] = field(default_factory=dict, hash=False)
    tolerations: Sequence[Mapping[str, Any]] = field(default=(), hash=False)
    image_pull_secrets: Sequence[str] = ()
    service_account: str | None = None
    pod_template: Mapping[str, Any] | None = field(default=None, hash=False)

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
        self._check_pods()
        if self.queues and self.celery_app is None:
            raise ValueError(
                f"queues={list(self.queues)!r} need celery_app='package.module:app', the app whose tasks they carry."
            )
        if self.celery_app is not None and not self.queues:
            raise ValueError(
                f"celery_app={self.celery_app!r} needs queues=[...]: the Celery queues its tasks come from."
            )
        for name in ("queues", "secrets", "tolerations", "image_pull_secrets"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("env", "volumes", "node_selector"):
            object.__setattr__(self, name, dict(getattr(self, name)))

    def _check_pods(self) -> None:
        if not isinstance(self.resources, Resources):
            raise TypeError(f"resources={self.resources!r} must be a Resources(cpu=..., memory=...).")
        if type(self.slots) is not int or self.slots < 1:
            raise ValueError(f"slots={self.slots!r} must be a whole number above 0.")
        if type(self.min_workers) is not int or self.min_workers < 0:
            raise ValueError(f"min_workers={self.min_workers!r} must be a whole number, 0 or more.")
        if self.max_workers is not None and self.min_workers > self.max_workers:
            raise ValueError(f"min_workers={self.min_workers} is more than max_workers={self.max_workers}.")
        if self.image is not None and not _is_image(self.image):
            raise ValueError(f"image={self.image!r} is not the name of an image; write 'registry/path/name:tag'.")
        for field_name in ("secrets", "image_pull_secrets", "tolerations"):
            if isinstance(getattr(self, field_name), (str, Mapping)):
                raise ValueError(f"{field_name}={getattr(self, field_name)!r} must be a list.")
        for name, value in self.env.items():
            if not (isinstance(name, str) and isinstance(value, str)):
                raise ValueError(f"env[{name!r}]={value!r}: names and values of environment variables are strings.")
        for path in self.volumes:
            if not str(path).startswith("/"):
                raise ValueError(f"volumes[{path!r}]: the mount path must begin with '/'.")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_image(value: object) -> bool:
    return isinstance(value, str) and _IMAGE.fullmatch(value) is not None
