"""Settings from the environment; the only place that reads it.

Arguments that ``KubeExecutor`` is not given come from ``KUBE_EXECUTOR_*`` or a file: see :mod:`executor.defaults`.
A worker process is told by whoever starts it:

======================================  ===============================================================
``KUBE_EXECUTOR_WORKER_CONFIG``         its settings: path of a JSON file that only its user can read
``KUBE_EXECUTOR_WORKER_LOG``            file for its own log; without it, standard error
``KUBE_EXECUTOR_LIFE_FD``               file descriptor that ends when the worker shall die
``KUBE_EXECUTOR_WORKER_ID``             its id, where the settings are those of several workers (the pod's name)
======================================  ===============================================================

Client and workers find the credentials for ``store="az://..."`` under the names that Azure's own tools use:

======================================  ===============================================================
``AZURE_STORAGE_CONNECTION_STRING``     endpoint, and key or SAS
``AZURE_STORAGE_SAS_TOKEN``             of the account or the container
``AZURE_STORAGE_KEY``                   of the account
======================================  ===============================================================
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from executor import defaults

T = TypeVar("T")

_PREFIX = defaults.PREFIX


@dataclass(frozen=True, slots=True)
class Settings:
    """Arguments for which ``KubeExecutor`` has something to fall back on.

    Attributes:
        values: By name of the argument.
    """

    values: Mapping[str, Any]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the variables, and the file that they or the user's directory of configurations have.

        Raises:
            ValueError: Something does not parse; says where it stands.
            FileNotFoundError: The file that ``KUBE_EXECUTOR_CONFIG`` names is not there.
        """
        return cls({**_from_file(environment), **defaults.from_variables(environment)})

    def pick(self, name: str, given: T | None, otherwise: T) -> T:
        """The argument as it was given, else as it is here, else ``otherwise``."""
        found: T = self.values.get(name, otherwise) if given is None else given
        return found

    def filled(self, given: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
        """Arguments as they were given, and those of ``names`` that were not as they are here."""
        return {**{name: self.values[name] for name in names if name in self.values}, **given}


def _from_file(environment: Mapping[str, str]) -> Mapping[str, Any]:
    if named := environment.get(defaults.CONFIG):
        return defaults.from_file(Path(named).expanduser().read_text("utf-8"), named)
    home = environment.get("XDG_CONFIG_HOME") or os.path.join(environment.get("HOME") or "/nonexistent", ".config")
    path = Path(home, defaults.FILE_NAME)
    try:
        return defaults.from_file(path.read_text("utf-8"), str(path))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker process is told by its environment.

    Attributes:
        config: Path of its settings.
        log: Path of its log, or None.
        life_fd: File descriptor that ends when the worker shall die, or None.
        worker: Its id, or None where its settings say it.
        home: Home directory of its user, or None.
    """

    config: str
    log: str | None = None
    life_fd: int | None = None
    worker: str | None = None
    home: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the variables.

        Raises:
            ValueError: The path of the settings is missing.
        """
        config = environment.get(_PREFIX + "WORKER_CONFIG")
        if config is None:
            raise ValueError(
                f"{_PREFIX}WORKER_CONFIG is not set: a worker is started by an executor, not by hand. "
                "Look whether everything is in place with: kube-executor check"
            )
        life_fd = environment.get(_PREFIX + "LIFE_FD")
        return cls(
            config,
            environment.get(_PREFIX + "WORKER_LOG"),
            int(life_fd) if life_fd else None,
            environment.get(_PREFIX + "WORKER_ID"),
            environment.get("HOME") or None,
        )


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """What the environment says of clusters.

    Attributes:
        kubeconfig: Path of a kubeconfig (``KUBECONFIG``), or None.
        in_cluster: Whether this process runs in a pod (``KUBERNETES_SERVICE_HOST``).
        address: This pod's own address (``POD_IP``), or None.
    """

    kubeconfig: str | None = None
    in_cluster: bool = False
    address: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the variables."""
        return cls(
            kubeconfig=environment.get("KUBECONFIG") or None,
            in_cluster=bool(environment.get("KUBERNETES_SERVICE_HOST")),
            address=environment.get("POD_IP") or None,
        )


@dataclass(frozen=True, slots=True)
class AzureSettings:
    """Credentials for a blob store on Azure; never shown by ``repr``.

    Attributes:
        connection_string: Endpoint, and key or SAS, or None.
        sas_token: Shared access signature, or None.
        account_key: Key of the storage account in base64, or None.
    """

    connection_string: str | None = field(default=None, repr=False)
    sas_token: str | None = field(default=None, repr=False)
    account_key: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the variables; empty ones count as missing."""
        names = ("CONNECTION_STRING", "SAS_TOKEN", "KEY")
        return cls(*((environment.get("AZURE_STORAGE_" + name) or "").strip() or None for name in names))
