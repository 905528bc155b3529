"""Who reaches whom, where the cluster enforces NetworkPolicies."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.cluster.conftest import IMAGE
from tests.support import until

if TYPE_CHECKING:
    from executor import KubeExecutor
    from tests.cluster.conftest import Admin

Maker = Callable[..., "KubeExecutor"]

_CONNECT = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()"


def stranger(name: str, host: str, port: int, labels: dict[str, str]) -> dict[str, Any]:
    """A pod that tries to connect once; it succeeds or fails accordingly."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": True, "runAsUser": 1234, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "main",
                    "image": IMAGE,
                    "command": ["python", "-c", _CONNECT, host, str(port)],
                    "securityContext": security,
                }
            ],
        },
    }


def reaches(admin: Admin, name: str, host: str, port: int, labels: dict[str, str]) -> bool:
    admin.call("POST", "/api/v1/namespaces/{ns}/pods", stranger(name, host, port, labels))

    def phase() -> str:
        pod = admin.call("GET", f"/api/v1/namespaces/{{ns}}/pods/{name}")
        return str(pod["status"].get("phase"))

    until(lambda: phase() in ("Succeeded", "Failed"), what=f"{name} has tried", timeout=60)
    return phase() == "Succeeded"


def test_only_workers_and_the_labelled_reach_the_broker(on_pods: Maker, admin: Admin) -> None:
    with on_pods(name="mine") as ex:
        assert ex.submit(abs, -1).result(60) == 1
        host = f"ke-mine.{admin.namespace}.svc"
        assert not reaches(admin, "stranger", host, 6379, {})
        assert reaches(admin, "guest", host, 6379, {"kube-executor/broker-access": "mine"})


def test_nobody_reaches_a_worker(on_pods: Maker, admin: Admin) -> None:
    def listens() -> tuple[str, int]:
        global _listening  # kept open after the call
        _listening = socket.create_server(("0.0.0.0", 0))
        return socket.gethostbyname(socket.gethostname()), _listening.getsockname()[1]

    with on_pods(name="mine") as ex:
        host, port = ex.submit(listens).result(60)
        assert not reaches(admin, "guest", host, port, {"kube-executor/broker-access": "mine"})
