"""What worker pods need beside the declaration of their pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from executor.broker.address import BrokerAddress

__all__ = ["HomeOptions", "PodOptions"]

#: The image of the broker's pod, where the user names no other: Redis' own, small, with a shell.
BROKER_IMAGE = "redis:7-alpine"


@dataclass(frozen=True, kw_only=True)
class HomeOptions:
    """Where an executor lives on a cluster.

    Attributes:
        executor: Its name.
        namespace: None takes the context's.
        context: Of the kubeconfig; None takes its current one.
        kubeconfig: Path; None takes the usual places.
        broker: A server of the user's that pods reach, too; None runs Redis in a pod.
        broker_image: Image of that pod.
        broker_memory: Its memory, as a quantity.
        start_timeout_s: How long the broker's pod may take, in seconds.
        orphan_timeout_s: How long everything outlives the last sign of a client, in seconds.
    """

    executor: str
    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None
    broker: BrokerAddress | None = None
    broker_image: str = BROKER_IMAGE
    broker_memory: str = "1Gi"
    start_timeout_s: float = 600.0
    orphan_timeout_s: int = 600


@dataclass(frozen=True, kw_only=True)
class PodOptions:
    """What the worker pods of one pool need.

    Attributes:
        owner: Id of the client.
        queue: Our own queue that the pods serve.
        key: Master key of the signatures.
        initializer: What each child unpickles and runs once, or None.
        max_tasks_per_child: Messages after which a child process is replaced, or None.
        lease_s: How long a worker may be silent before its calls go to others, in seconds.
        grace_s: How long running calls may take to finish after SIGTERM, in seconds.
        store: Locator of the store for large values, the same for client and pods; None is the broker.
        start_timeout_s: How long a pool may be without any worker that runs, in seconds.
    """

    owner: str
    queue: str
    key: bytes
    initializer: bytes | None = None
    max_tasks_per_child: int | None = None
    lease_s: float = 5.0
    grace_s: float = 25.0
    store: str | None = None
    start_timeout_s: float = 600.0
