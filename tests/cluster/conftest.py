"""A real cluster, by ``KUBECONFIG``; a namespace for each test, which enforces Pod Security ``restricted``.

``KUBE_EXECUTOR_TEST_IMAGE`` names an image built from ``worker_image/`` that the nodes have (``ke-worker:test``).
Without ``KUBECONFIG`` these tests are skipped, by name.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import unique_name

if TYPE_CHECKING:
    from executor import KubeExecutor

KUBECONFIG = os.environ.get("KUBECONFIG")
IMAGE = os.environ.get("KUBE_EXECUTOR_TEST_IMAGE", "ke-worker:test")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/cluster/" in item.nodeid:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.timeout(240))
            if not KUBECONFIG:
                item.add_marker(pytest.mark.skip(reason="needs a cluster: set KUBECONFIG"))


class Admin:
    """Looks at the cluster, and changes it, as its administrator."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def call(self, method: str, path: str, body: Any = None, query: str = "") -> Any:
        """One request; None where there is no such object."""
        return asyncio.run(self._call(method, path, body, query))

    async def _call(self, method: str, path: str, body: Any, query: str) -> Any:
        from kubernetes_asyncio import client, config
        from kubernetes_asyncio.client.exceptions import ApiException

        configuration = client.Configuration()
        await config.load_kube_config(config_file=KUBECONFIG, client_configuration=configuration)
        async with client.ApiClient(configuration) as api:
            try:
                found = await api.call_api(
                    path.format(ns=self.namespace) + query,
                    method,
                    body=body,
                    auth_settings=["BearerToken"],
                    response_types_map={200: "object", 201: "object", 202: "object"},
                    _return_http_data_only=True,
                )
            except ApiException as error:
                if error.status == 404:
                    return None
                raise
            finally:
                await api.rest_client.pool_manager.connector.close(abort_ssl=True)  # the loop ends next
            return found

    def list(self, path: str) -> list[Any]:
        """Objects of the namespace."""
        return list(self.call("GET", path)["items"])

    def pods(self, component: str = "worker") -> list[Any]:
        """Pods of the executors in the namespace, those being deleted, too."""
        wanted = f"?labelSelector=app.kubernetes.io/component={component}"
        return list(self.call("GET", "/api/v1/namespaces/{ns}/pods", query=wanted)["items"])

    def left(self) -> list[str]:
        """What of ours is in the namespace."""
        kinds = {
            "pods": "/api/v1/namespaces/{ns}/pods",
            "secrets": "/api/v1/namespaces/{ns}/secrets",
            "services": "/api/v1/namespaces/{ns}/services",
            "jobs": "/apis/batch/v1/namespaces/{ns}/jobs",
            "networkpolicies": "/apis/networking.k8s.io/v1/namespaces/{ns}/networkpolicies",
        }
        return [
            f"{kind}/{item['metadata']['name']}"
            for kind, path in kinds.items()
            for item in self.list(path)
            if item["metadata"]["name"].startswith("ke-")
        ]


@pytest.fixture
def admin() -> Iterator[Admin]:
    """The administrator of a namespace of its own."""
    name = unique_name("ke-test").lower().replace("_", "-")
    one = Admin(name)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    one.call(
        "POST",
        "/api/v1/namespaces",
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}},
    )
    yield one
    one.call("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def on_pods(admin: Admin) -> Callable[..., KubeExecutor]:
    """Makes executors on pods of the namespace; the test enters them."""
    from executor import KubeExecutor

    def make(max_workers: int = 1, **arguments: Any) -> KubeExecutor:
        arguments = {"image": IMAGE, "namespace": admin.namespace, "kubeconfig": KUBECONFIG, **arguments}
        return KubeExecutor(max_workers, **arguments)

    return make
