"""The Role of ``deploy/rbac`` grants what a client does, and nothing more."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from executor.errors import ClusterRefused
from tests.cluster.conftest import KUBECONFIG
from tests.support import until

if TYPE_CHECKING:
    from executor import KubeExecutor
    from tests.cluster.conftest import Admin

Maker = Callable[..., "KubeExecutor"]
RBAC = Path(__file__).parent.parent.parent / "deploy" / "rbac"
AUDIT_LOG = os.environ.get("KUBE_EXECUTOR_TEST_AUDIT_LOG")
#: Asked for by Kubernetes 1.35 and later.
NOT_YET_ASKED = {("pods/portforward", "create")}


def kubectl(*args: str) -> str:
    return subprocess.run(["kubectl", *args], check=True, capture_output=True, text=True, timeout=60).stdout


def applied(admin: Admin) -> None:
    kubectl("apply", "-n", admin.namespace, "-k", str(RBAC))


def kubeconfig_of(admin: Admin, account: str, directory: Path) -> str:
    """A kubeconfig that knows a token of a service account."""
    given = yaml.safe_load(Path(str(KUBECONFIG)).read_text())
    token = kubectl("-n", admin.namespace, "create", "token", account).strip()
    context = next(each for each in given["contexts"] if each["name"] == given["current-context"])
    context["context"] = {**context["context"], "user": "limited", "namespace": admin.namespace}
    given["users"] = [{"name": "limited", "user": {"token": token}}]
    path = directory / "kubeconfig"
    path.write_text(yaml.safe_dump(given))
    return str(path)


def granted() -> set[tuple[str, str]]:
    rules = yaml.safe_load((RBAC / "role.yaml").read_text())["rules"]
    return {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


def used(user: str) -> set[tuple[str, str]]:
    """What the audit log says that somebody did, or tried."""
    found = set()
    for line in Path(str(AUDIT_LOG)).read_text().splitlines():
        event: dict[str, Any] = json.loads(line)
        if event.get("user", {}).get("username") == user and "objectRef" in event:
            place = event["objectRef"]
            below = f"/{place['subresource']}" if place.get("subresource") else ""
            found.add((place["resource"] + below, event["verb"]))
    return found


def work(ex: KubeExecutor, admin: Admin) -> None:
    """Everything that makes a client talk to the API server."""
    assert list(ex.map(abs, range(-20, 0))) == list(range(20, 0, -1))
    (pod,) = [pod["metadata"]["name"] for pod in admin.pods()]
    admin.call("DELETE", f"/api/v1/namespaces/{{ns}}/pods/{pod}", query="?gracePeriodSeconds=0")
    until(
        lambda: [each["metadata"]["name"] for each in admin.pods()] not in ([], [pod]), what="another pod", timeout=60
    )
    assert ex.submit(abs, -1).result(60) == 1


def test_the_role_is_enough_and_not_more(on_pods: Maker, admin: Admin, tmp_path: Path) -> None:
    applied(admin)
    with on_pods(kubeconfig=kubeconfig_of(admin, "kube-executor-client", tmp_path), namespace=None) as ex:
        work(ex, admin)
    until(lambda: not admin.left(), what="everything is deleted", timeout=30)
    if AUDIT_LOG is None:
        pytest.skip("what was used is in the API server's audit log: set KUBE_EXECUTOR_TEST_AUDIT_LOG")
    time.sleep(1)  # the log is written behind
    seen = used(f"system:serviceaccount:{admin.namespace}:kube-executor-client")
    assert seen == granted() - NOT_YET_ASKED


def test_without_rights_the_error_names_verb_object_and_role(on_pods: Maker, admin: Admin, tmp_path: Path) -> None:
    kubectl("-n", admin.namespace, "create", "serviceaccount", "nobody")
    path = kubeconfig_of(admin, "nobody", tmp_path)
    with pytest.raises(ClusterRefused, match=r"list jobs .*deploy/rbac"), on_pods(kubeconfig=path, namespace=None):
        pass
