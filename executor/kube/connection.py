"""Finding the API server and one's rights there: a kubeconfig, or the service account of the pod we run in."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executor.errors import ClusterUnavailable
from executor.kube.cluster import Cluster

if TYPE_CHECKING:
    from executor.settings import ClusterSettings

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


async def connect(
    settings: ClusterSettings,
    *,
    kubeconfig: str | None = None,
    context: str | None = None,
    namespace: str | None = None,
) -> Cluster:
    """A client for one namespace; sends no request yet.

    Args:
        settings: What the environment says.
        kubeconfig: Path of a kubeconfig; None takes ``$KUBECONFIG``, the service account inside a pod, or
            ``~/.kube/config``, whichever is there first.
        context: In the kubeconfig; None takes its current one.
        namespace: None takes the context's (or the pod's own), else ``default``.

    Raises:
        ClusterUnavailable: Nothing says where a cluster is, or what says so cannot be read.
    """
    api = await asyncio.to_thread(_library)  # half a second of imports: not on the loop
    configuration = api.client.Configuration()
    inside = kubeconfig is None and context is None and settings.kubeconfig is None and settings.in_cluster
    try:
        if inside:
            api.config.load_incluster_config(client_configuration=configuration)
            default = (_SERVICE_ACCOUNT / "namespace").read_text("ascii").strip()
        else:
            default = await _load_kubeconfig(api, configuration, kubeconfig or settings.kubeconfig, context)
    except (api.config.ConfigException, OSError, ValueError, KeyError, AssertionError, TypeError) as error:
        raise ClusterUnavailable(_not_found(kubeconfig or settings.kubeconfig, context, error)) from error
    configuration.connection_pool_maxsize = 32
    return Cluster(api.client.ApiClient(configuration), namespace or default or "default", inside=inside)


async def _load_kubeconfig(api: Any, configuration: Any, path: str | None, context: str | None) -> str:
    """Returns the context's namespace, or nothing."""
    file = path or _default()
    loader = await api.config.load_kube_config(
        config_file=file, context=context, client_configuration=configuration, persist_config=False
    )
    if loader._user is not None and "exec" in loader._user:
        configuration.refresh_api_key_hook = _exec_refresh(loader)
    return str(dict(loader.current_context["context"]).get("namespace") or "")


def _default() -> str:
    return os.path.expanduser("~/.kube/config")


def _exec_refresh(loader: Any) -> Any:
    """kubernetes_asyncio runs an exec plugin once, and its tokens last minutes; this asks again in time."""

    async def refresh(configuration: Any) -> None:
        await loader.load_from_exec_plugin()
        token = getattr(loader, "token", None)
        if token is not None:
            configuration.api_key["BearerToken"] = token

    return refresh


def _not_found(path: str | None, context: str | None, error: Exception) -> str:
    where = path or "~/.kube/config"
    chosen = f" (context {context!r})" if context else ""
    return (
        f"No cluster: {where}{chosen} cannot be used: {type(error).__name__}: {error}. "
        "Name a kubeconfig with kubeconfig=... or KUBECONFIG, and see: kubectl config get-contexts"
    )


def _library() -> Any:
    try:
        import kubernetes_asyncio
        import kubernetes_asyncio.client
        import kubernetes_asyncio.config
    except ImportError as error:
        raise ClusterUnavailable(
            "Pods need the extra [k8s], which is not installed: pip install 'kube-executor[k8s]'"
        ) from error
    return kubernetes_asyncio
