"""Parts of the cluster fail while work is going on.

``KUBE_EXECUTOR_TEST_PART`` and ``KUBE_EXECUTOR_TEST_NODE`` name programs that kill and start parts of the cluster
(``PART apiserver kill``) and freeze and thaw nodes (``NODE 2 freeze``).
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.support import until

if TYPE_CHECKING:
    from executor import KubeExecutor
    from tests.cluster.conftest import Admin

Maker = Callable[..., "KubeExecutor"]
PART, NODE = os.environ.get("KUBE_EXECUTOR_TEST_PART"), os.environ.get("KUBE_EXECUTOR_TEST_NODE")

pytestmark = pytest.mark.skipif(
    PART is None or NODE is None, reason="breaks the cluster: set KUBE_EXECUTOR_TEST_PART and KUBE_EXECUTOR_TEST_NODE"
)


def part(name: str, what: str) -> None:
    subprocess.run([str(PART), name, what], check=True, capture_output=True, timeout=120)


def node(number: str, what: str) -> None:
    subprocess.run([str(NODE), number, what], check=True, capture_output=True, timeout=120)


def test_no_call_is_lost_and_no_pod_doubled_while_the_api_server_restarts(on_pods: Maker, admin: Admin) -> None:
    def work(i: int) -> int:
        time.sleep(0.3)
        return i

    with on_pods(2, min_workers=2) as ex:
        before = {pod["metadata"]["uid"] for pod in admin.pods()}
        calls = [ex.submit(work, i) for i in range(60)]
        time.sleep(1)
        part("apiserver", "kill")
        time.sleep(5)
        part("apiserver", "start")
        assert [call.result(120) for call in calls] == list(range(60))
        assert {pod["metadata"]["uid"] for pod in admin.pods()} == before
        # ... and it is watched again: a pod that goes now is replaced
        (gone, _) = [pod["metadata"]["name"] for pod in admin.pods()]
        admin.call("DELETE", f"/api/v1/namespaces/{{ns}}/pods/{gone}", query="?gracePeriodSeconds=0")
        until(
            lambda: len(ex.status()[0].workers) == 2 and gone not in ex.status()[0].workers,
            what="another pod",
            timeout=60,
        )
    until(lambda: not admin.left(), what="everything is deleted", timeout=60)


def test_calls_of_a_frozen_node_run_elsewhere(on_pods: Maker, admin: Admin) -> None:
    def work(i: int) -> int:
        time.sleep(0.5)
        return i

    apart = {
        "spec": {
            "topologySpreadConstraints": [
                {
                    "topologyKey": "kubernetes.io/hostname",
                    "maxSkew": 1,
                    "whenUnsatisfiable": "DoNotSchedule",
                    "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "worker"}},
                }
            ]
        }
    }
    with on_pods(2, min_workers=2, pod_template=apart) as ex:
        (broker,) = admin.pods("broker")
        home = broker["spec"]["nodeName"]
        (other,) = {pod["spec"]["nodeName"] for pod in admin.pods()} - {home}
        calls = [ex.submit(work, i) for i in range(40)]
        time.sleep(1)
        node(other[-1], "freeze")
        try:
            assert [call.result(120) for call in calls] == list(range(40))
        finally:
            node(other[-1], "thaw")
    until(lambda: not admin.left(), what="everything is deleted", timeout=90)
