"""A client that is a pod itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.cluster.conftest import IMAGE
from tests.cluster.test_network import stranger
from tests.cluster.test_rights import applied, kubectl
from tests.support import until

if TYPE_CHECKING:
    from tests.cluster.conftest import Admin

_SCRIPT = f"""
from executor import KubeExecutor

def main():
    with KubeExecutor(image={IMAGE!r}) as ex:
        print("sum", sum(ex.map(abs, range(-100, 0))), ex.broker_url.partition("@")[2], flush=True)

if __name__ == "__main__":
    main()
"""


def test_a_pod_with_the_role_makes_an_executor(admin: Admin) -> None:
    applied(admin)
    pod = stranger("client", "", 0, {})
    pod["spec"]["serviceAccountName"] = "kube-executor-client"
    pod["spec"]["containers"][0]["command"] = ["python", "-c", _SCRIPT]
    admin.call("POST", "/api/v1/namespaces/{ns}/pods", pod)

    def phase() -> str:
        return str(admin.call("GET", "/api/v1/namespaces/{ns}/pods/client")["status"].get("phase"))

    until(lambda: phase() in ("Succeeded", "Failed"), what="the client is through", timeout=120)
    said = kubectl("-n", admin.namespace, "logs", "client")
    assert phase() == "Succeeded", said
    assert "sum 5050 ke-" in said
    until(lambda: not admin.left(), what="everything is deleted", timeout=30)
