"""The objects that an executor makes."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

import pytest

from executor.kube import manifests, names

OWNER = {"metadata": {"name": "ke-mine", "uid": "u-1"}}
BROKER = manifests.BrokerPlan(executor="mine", image="redis:7", password="s3cret", alive_key="ke:alive:mine")


def worker(**fields: Any) -> dict[str, Any]:
    plan = manifests.WorkerPlan(**{"executor": "mine", "pool": "gpu", "image": "worker:1", "resources": {}, **fields})
    return manifests.worker_pod(plan, OWNER, "ke-mine-gpu-1")


def all_pods() -> list[dict[str, Any]]:
    return [worker()["spec"], manifests.owner_job(BROKER)["spec"]["template"]["spec"]]


@pytest.mark.parametrize("pod", all_pods(), ids=["worker", "broker"])
def test_pods_meet_the_restricted_standard(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["readOnlyRootFilesystem"] is True


def test_secrets_travel_as_secrets_only() -> None:
    objects = [manifests.owner_job(BROKER), manifests.broker_service("mine", OWNER), worker()]
    objects += manifests.network_policies(BROKER, OWNER)
    assert "s3cret" not in json.dumps(objects)
    data = manifests.broker_secret(BROKER, OWNER)["data"]
    assert b64decode(data["password"]) == b"s3cret"
    assert b'requirepass "s3cret"' in b64decode(data["redis.conf"])


def test_everything_hangs_on_the_owner_but_is_not_its_pod() -> None:
    owned = [
        manifests.broker_secret(BROKER, OWNER),
        manifests.broker_service("mine", OWNER),
        *manifests.network_policies(BROKER, OWNER),
        manifests.pool_secret("mine", "gpu", OWNER, {}),
        worker(),
    ]
    for each in owned:
        (reference,) = each["metadata"]["ownerReferences"]
        assert reference["uid"] == "u-1"
        assert "controller" not in reference


def test_labels_are_the_recommended_ones_and_name_executor_and_pool() -> None:
    labels = worker()["metadata"]["labels"]
    assert labels["app.kubernetes.io/name"] == "kube-executor"
    assert labels["app.kubernetes.io/instance"] == "mine"
    assert labels["app.kubernetes.io/component"] == "worker"
    assert labels["app.kubernetes.io/managed-by"] == "kube-executor"
    assert labels[names.POOL] == "gpu"


def test_redis_keeps_room_for_itself() -> None:
    config = b64decode(manifests.broker_secret(BROKER, OWNER)["data"]["redis.conf"]).decode()
    assert f"maxmemory {(1 << 30) * 3 // 4}" in config
    assert "maxmemory-policy noeviction" in config


def test_memory_is_limited_and_cpu_is_not() -> None:
    assert manifests.resources("2", "4Gi", 1, None) == {
        "requests": {"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "1"},
        "limits": {"memory": "4Gi", "nvidia.com/gpu": "1"},
    }
    assert manifests.resources(None, None, 0, None) == {}


def test_what_the_user_asks_is_in_the_pod() -> None:
    spec = worker(
        env={"A": "1"},
        secrets=["login"],
        volumes={"/data": {"emptyDir": {}}},
        node_selector={"disk": "ssd"},
        tolerations=[{"key": "gpu", "operator": "Exists"}],
        image_pull_secrets=["registry"],
        service_account="reader",
        template={"spec": {"priorityClassName": "high"}},
    )["spec"]
    (container,) = spec["containers"]
    assert {"name": "A", "value": "1"} in container["env"]
    assert container["envFrom"] == [{"secretRef": {"name": "login"}}]
    (mount,) = [each for each in container["volumeMounts"] if each["mountPath"] == "/data"]
    assert {"name": mount["name"], "emptyDir": {}} in spec["volumes"]
    assert spec["nodeSelector"] == {"disk": "ssd"}
    assert {"key": "gpu", "operator": "Exists"} in spec["tolerations"]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["serviceAccountName"] == "reader"
    assert spec["priorityClassName"] == "high"


def test_only_workers_and_the_labelled_reach_redis() -> None:
    broker, workers = manifests.network_policies(BROKER, OWNER)
    (rule,) = broker["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == [manifests.REDIS_PORT]
    assert {"podSelector": {"matchLabels": {names.ACCESS: "mine"}}} in rule["from"]
    assert workers["spec"]["ingress"] == []
