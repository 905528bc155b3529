"""Every exception of KubeExecutor.

::

    KubeExecutorError
    ├── BrokerError                 the Redis or Valkey server
    │   ├── BrokerUnavailable       cannot be reached (also a ConnectionError)
    │   └── BrokerRefused           reached, and said no: password, rights, version
    ├── ClusterError                the API server of a Kubernetes cluster
    │   ├── ClusterUnavailable      cannot be reached, or nothing says where it is (also a ConnectionError)
    │   └── ClusterRefused          reached, and said no: rights, quota, a name taken
    ├── PoolError                   the workers as a whole
    │   ├── PoolStartError          they did not come up
    │   └── PoolBroken              they are gone for good (also a BrokenExecutor)
    ├── CallError                   one call; the executor goes on
    │   ├── CallTimeout             ran longer than its ``timeout`` (also a TimeoutError)
    │   ├── CallExpired             waited longer than its ``expires`` (also a TimeoutError)
    │   ├── ChildCrashed            its process ended by itself: os._exit, a segmentation fault, ...
    │   ├── WorkerLost              its worker was killed ``max_deliveries`` times
    │   ├── SerializationError      cannot be pickled or unpickled (also a PicklingError)
    │   ├── FunctionMissing         the stored function is gone from the broker
    │   ├── VersionMismatch         client and worker do not fit: Python, protocol
    │   ├── BlobMissing             a large value is gone from its store
    │   ├── StoreError              the store for large values
    │   │   ├── StoreUnavailable    cannot be reached (also a ConnectionError)
    │   │   └── StoreRefused        reached, and said no: credentials, rights, no such container
    │   └── BadSignature            bytes that were not signed with this executor's key
    └── Backpressure                ``submit`` on an event loop would have to wait

A user's own exception arrives as itself, with the worker's traceback as its ``__cause__``
(:class:`RemoteTraceback`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor
from pickle import PicklingError
from typing import Any

__all__ = [
    "Backpressure",
    "BadSignature",
    "BlobMissing",
    "BrokerError",
    "BrokerRefused",
    "BrokerUnavailable",
    "CallError",
    "CallExpired",
    "CallTimeout",
    "ChildCrashed",
    "ClusterError",
    "ClusterRefused",
    "ClusterUnavailable",
    "FunctionMissing",
    "KubeExecutorError",
    "PoolBroken",
    "PoolError",
    "PoolStartError",
    "RemoteTraceback",
    "SerializationError",
    "StoreError",
    "StoreRefused",
    "StoreUnavailable",
    "VersionMismatch",
    "WorkerLost",
    "call_error",
]


class KubeExecutorError(Exception):
    """Base of all errors that KubeExecutor itself raises."""


class BrokerError(KubeExecutorError):
    """The Redis or Valkey server cannot serve us."""


class BrokerUnavailable(BrokerError, ConnectionError):
    """No connection to the server: wrong address, not running, or not reachable from here."""


class BrokerRefused(BrokerError):
    """The server answered and refused: wrong password, missing rights, too old, no TLS."""


class ClusterError(KubeExecutorError):
    """The API server of a Kubernetes cluster cannot serve us.

    Attributes:
        details: What is known, JSON-able: HTTP ``status``, ``reason``, ``verb``, ``kind``, ``name``.
    """

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details: dict[str, Any] = dict(details or {})


class ClusterUnavailable(ClusterError, ConnectionError):
    """No answer from the API server, or nothing says where one is."""


class ClusterRefused(ClusterError):
    """The API server answered and refused: missing rights, a quota, an object it does not accept."""


class PoolError(KubeExecutorError):
    """The workers of a pool cannot do their work."""


class PoolStartError(PoolError):
    """The workers did not come up."""


class PoolBroken(PoolError, BrokenExecutor):
    """The workers are gone and will not come back; every unresolved future gets this."""


class Backpressure(KubeExecutorError):
    """Too much is waiting already, and waiting here would block an event loop."""


class CallError(KubeExecutorError):
    """One call could not be carried out. The executor and the other calls go on.

    Attributes:
        details: What is known, JSON-able: exit code, signal, host, last output, ... as the subclass says.
    """

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details: dict[str, Any] = dict(details or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (str(self), self.details))

    @property
    def deaths(self) -> Sequence[Mapping[str, Any]]:
        """The story of each lost attempt: ``reason``, ``exit_code``, ``signal``, ``host``, ``worker``, ``output``."""
        return list(self.details.get("deaths", ()))


class CallTimeout(CallError, TimeoutError):
    """One attempt ran longer than ``timeout`` seconds and was killed."""


class CallExpired(CallError, TimeoutError):
    """The call had not started ``expires`` seconds after it was submitted, and will not."""


class ChildCrashed(CallError):
    """The process that ran the call ended by itself.

    ``details``: ``exit_code`` (int), ``signal`` (name or None), ``output`` (last lines), ``host``, ``pid``.
    """


class WorkerLost(CallError):
    """The call's worker was killed from outside, ``max_deliveries`` times; see :attr:`CallError.deaths`.

    The subclass says what happened the last time.
    """


class OOMKilled(WorkerLost):
    """There was not enough memory for the call.

    ``details``: as :class:`WorkerLost`, and ``limit_bytes`` of the container and ``peak_bytes`` of the call's process,
    each None where it is not known.
    """


class Evicted(WorkerLost):
    """Kubernetes took the call's pod away: its node was drained, or ran out of something."""


class NodeLost(WorkerLost):
    """The node of the call's pod no longer answers, or is gone."""


class SerializationError(CallError, PicklingError):
    """An argument, a result or an exception cannot be pickled, or not be unpickled where it arrived."""


class FunctionMissing(CallError):
    """The broker no longer holds the function of this call."""


class VersionMismatch(CallError):
    """Client and worker do not fit together; both sides are named."""


class BlobMissing(CallError):
    """A large value is no longer in its store."""


class StoreError(CallError):
    """The store for large values cannot serve us; ``details``: ``store``, ``status``, ``code``, where known."""


class StoreUnavailable(StoreError, ConnectionError):
    """The store could not be reached, or said "later", for as long as was tried."""


class StoreRefused(StoreError):
    """The store cannot be used as it is set up: wrong credentials or rights, no such container, no package for it."""


class BadSignature(CallError):
    """Bytes without a valid signature under this executor's key; they were not unpickled."""


class RemoteTraceback(Exception):
    """The worker's traceback as text; the ``__cause__`` of a user's exception."""

    def __init__(self, traceback: str) -> None:
        super().__init__(traceback)
        self.traceback = traceback

    def __str__(self) -> str:
        return f'\n"""\n{self.traceback}"""'


_CALL_ERRORS = {
    cls.__name__: cls
    for cls in (
        CallTimeout,
        CallExpired,
        ChildCrashed,
        WorkerLost,
        OOMKilled,
        Evicted,
        NodeLost,
        SerializationError,
        FunctionMissing,
        VersionMismatch,
        BlobMissing,
        StoreError,
        StoreUnavailable,
        StoreRefused,
        BadSignature,
    )
}


def call_error(name: str, message: str, details: Mapping[str, Any] | None = None) -> CallError:
    """Make the :class:`CallError` that a worker named.

    Args:
        name: Class name, e.g. ``"ChildCrashed"``; an unknown one (a newer worker) gives a plain :class:`CallError`.
        message: The sentence to show.
        details: See the class.
    """
    return _CALL_ERRORS.get(name, CallError)(message, details)
