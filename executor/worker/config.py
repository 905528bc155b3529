"""What a worker is told at its start: a JSON file that only its user can read."""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from executor.broker.address import BrokerAddress

#: Length of a lease when nothing else is said, in seconds.
DEFAULT_LEASE_S = 5.0


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """The settings of one worker.

    Attributes:
        broker: URL of the broker, with its password.
        key_file: Path of the file that holds the master key in hex.
        pool: Name of the pool.
        queues: Our own queues.
        service_queues: Queues of services, under their own names.
        celery_app: ``module:attribute`` of a user's Celery app, or None.
        slots: Calls that run at a time.
        owner: Id of the client that started this worker, or None; it hears when the worker cannot work at all.
        lease_s: How long a worker may be silent before its calls go to others, in seconds.
        grace_s: How long running calls may take to finish after SIGTERM, in seconds.
        sys_path: Put before the worker's own import path in children.
        cwd: Working directory of children, or None.
        store: Locator of the store for large values, or None.
        max_tasks_per_child: Jobs after which a child is replaced, or None.
        initializer: Base64 of the pickle of ``(function, args)``, run once in each child, or None.
        max_deliveries: Deliveries of a plain Celery task that may die with their worker before it fails.
        probes: Directory for the ``ready`` and ``live`` files, or None.
        worker: Id of this worker; random when not given.
    """

    broker: str
    key_file: str
    pool: str = "default"
    queues: list[str] = field(default_factory=lambda: ["ke.default"])
    service_queues: list[str] = field(default_factory=list)
    celery_app: str | None = None
    slots: int = 1
    owner: str | None = None
    lease_s: float = DEFAULT_LEASE_S
    grace_s: float = 30.0
    sys_path: list[str] = field(default_factory=list)
    cwd: str | None = None
    store: str | None = None
    initializer: str | None = None
    max_tasks_per_child: int | None = None
    max_deliveries: int = 3
    probes: str | None = None
    worker: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")

    def key(self) -> bytes:
        """The master key."""
        return bytes.fromhex(Path(self.key_file).read_text("ascii").strip())

    def setup(self) -> dict[str, Any]:
        """What each child is told (see :mod:`executor.worker.child`)."""
        context = {
            "broker_url": self.broker,
            "key_file": self.key_file,
            "pool": self.pool,
            "queue": self.queues[0] if self.queues else "",
            "slots": self.slots,
            "store": self.store,
        }
        return {
            "sys_path": self.sys_path,
            "cwd": self.cwd,
            "initializer": self.initializer,
            "max_tasks_per_child": self.max_tasks_per_child,
            "celery_app": self.celery_app,
            "hostname": f"ke@{self.worker}",
            "kombu_url": BrokerAddress.parse(self.broker).kombu_url,
            "context": context,
        }


def read(path: str, worker: str | None = None) -> WorkerConfig:
    """Read a worker's settings; fields of newer versions are passed over.

    Args:
        path: Of the file.
        worker: Id of the worker, where several share the file.

    Raises:
        OSError, ValueError, TypeError: The file cannot be read, is no JSON, or lacks a field.
    """
    given: dict[str, Any] = json.loads(Path(path).read_text("utf-8"))
    known = {each.name for each in fields(WorkerConfig)}
    if worker is not None:
        given["worker"] = worker
    return WorkerConfig(**{name: value for name, value in given.items() if name in known})
