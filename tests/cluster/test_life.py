"""How an executor on pods comes, goes, and outlives accidents."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from executor.errors import Evicted
from executor.kube import manifests
from executor.pools import home
from tests.cluster.conftest import IMAGE, KUBECONFIG
from tests.support import Script, until

if TYPE_CHECKING:
    from pathlib import Path

    from executor import KubeExecutor
    from tests.cluster.conftest import Admin

Maker = Callable[..., "KubeExecutor"]

_SCRIPT = """
import time
from executor import KubeExecutor

if __name__ == "__main__":
    with KubeExecutor(image={image!r}, namespace={namespace!r}, kubeconfig={kubeconfig!r}, orphan_timeout=5) as ex:
        print("entered", flush=True)
        print(ex.submit(abs, -7).result(), flush=True)
        time.sleep(600)
"""


def script(directory: Path, admin: Admin) -> Script:
    return Script(directory, _SCRIPT.format(image=IMAGE, namespace=admin.namespace, kubeconfig=KUBECONFIG))


def test_all_ends_by_itself_when_the_client_is_killed(admin: Admin, tmp_path: Path) -> None:
    with script(tmp_path, admin) as running:
        running.wait_output("7", 60)
        running.kill()
    assert admin.left()
    until(lambda: not admin.left(), what="everything is gone", timeout=60)


def test_ctrl_c_ends_it_and_leaves_nothing(admin: Admin, tmp_path: Path) -> None:
    with script(tmp_path, admin) as running:
        running.wait_output("7", 60)
        running.interrupt_group()
        assert running.finish(timeout=30).returncode != 0
    until(lambda: not admin.left(), what="everything is gone", timeout=30)


def test_ctrl_c_during_the_start_leaves_nothing(admin: Admin, tmp_path: Path) -> None:
    with script(tmp_path, admin) as running:
        until(lambda: bool(admin.left()), what="the first object", timeout=60)
        running.interrupt_group()
        finished = running.finish(timeout=60)
    assert "entered" not in finished.lines()
    assert "KeyboardInterrupt" in finished.stderr
    until(lambda: not admin.left(), what="everything is gone", timeout=30)


def test_calls_go_on_when_the_broker_moves(on_pods: Maker, admin: Admin) -> None:
    def slow(i: int) -> int:
        time.sleep(0.5)
        return i

    with on_pods(2) as ex:
        assert ex.submit(abs, -1).result(60) == 1
        calls = [ex.submit(slow, i) for i in range(40)]
        time.sleep(2)
        (broker,) = [pod["metadata"]["name"] for pod in admin.pods("broker")]
        admin.call("DELETE", f"/api/v1/namespaces/{{ns}}/pods/{broker}", query="?gracePeriodSeconds=0")
        assert [call.result(120) for call in calls] == list(range(40))
        assert broker not in [pod["metadata"]["name"] for pod in admin.pods("broker")]


def test_a_worker_drains_when_its_pod_is_deleted(on_pods: Maker, admin: Admin) -> None:
    def slow() -> str:
        time.sleep(4)
        return socket.gethostname()

    with on_pods() as ex:
        first = ex.submit(socket.gethostname).result(60)
        call = ex.submit(slow)
        time.sleep(1)
        admin.call("DELETE", f"/api/v1/namespaces/{{ns}}/pods/{first}")
        assert call.result(60) == first
        assert ex.submit(socket.gethostname).result(60) != first


def test_an_evicted_call_runs_again_unless_it_may_start_but_once(on_pods: Maker, admin: Admin) -> None:
    def first_is_slow(first: str) -> str:
        if socket.gethostname() == first:
            time.sleep(100)
        return socket.gethostname()

    with on_pods() as ex:
        for most in (1, 3):
            first = ex.submit(socket.gethostname).result(60)
            call = ex.options(max_deliveries=most).submit(first_is_slow, first)
            until(call.running, what="it runs")
            body = {
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": first},
                "deleteOptions": {"gracePeriodSeconds": 1},
            }
            admin.call("POST", f"/api/v1/namespaces/{{ns}}/pods/{first}/eviction", body)
            if most == 1:
                with pytest.raises(Evicted):
                    call.result(60)
            else:
                assert call.result(60) != first


def test_an_owner_that_never_went_on_is_swept(on_pods: Maker, admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = manifests.BrokerPlan(executor="dead", image="redis:7-alpine", password="x", alive_key="x")
    admin.call("POST", "/apis/batch/v1/namespaces/{ns}/jobs", manifests.owner_job(plan))
    with on_pods() as ex:  # it is young: its client may be just about to go on
        assert ex.submit(abs, -1).result(60) == 1
        assert "jobs/ke-dead" in admin.left()
    monkeypatch.setattr(home, "LEFTOVER_AFTER_S", -60)
    with on_pods():
        until(lambda: "jobs/ke-dead" not in admin.left(), what="the leftover is deleted", timeout=30)


def test_a_quota_is_waited_for_and_told(on_pods: Maker, admin: Admin) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": {"hard": {"count/pods": "1"}},
    }
    admin.call("POST", "/api/v1/namespaces/{ns}/resourcequotas", quota)
    with on_pods() as ex:
        call = ex.submit(abs, -1)
        until(lambda: "exceeded quota" in str(ex.status()[0].reason), what="the quota is told", timeout=60)
        assert not call.done()
        admin.call("DELETE", "/api/v1/namespaces/{ns}/resourcequotas/small")
        assert call.result(60) == 1
