"""The same executor, on pods."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from executor import Resources
from executor.errors import ClusterRefused, ClusterUnavailable, OOMKilled, PoolBroken, PoolStartError
from tests.support import until

if TYPE_CHECKING:
    from executor import KubeExecutor
    from tests.cluster.conftest import Admin

Maker = Callable[..., "KubeExecutor"]


def test_calls_run_in_pods_and_nothing_stays_behind(on_pods: Maker, admin: Admin) -> None:
    with on_pods(2) as ex:
        assert ex.submit(pow, 2, 10).result(60) == 1024
        assert list(ex.map(abs, range(-50, 0))) == list(range(50, 0, -1))
        host = ex.submit(socket.gethostname).result(60)
        assert host in [pod["metadata"]["name"] for pod in admin.pods()]
    until(lambda: not admin.left(), what="everything is deleted", timeout=30)


def test_a_pod_has_no_rights_and_no_secrets_in_sight(on_pods: Maker, admin: Admin) -> None:
    def me() -> tuple[int, bool, str, dict[str, str]]:
        import getpass

        return os.getuid(), os.path.exists("/var/run/secrets/kubernetes.io"), getpass.getuser(), dict(os.environ)

    with on_pods() as ex:
        uid, token, user, environment = ex.submit(me).result(60)
        (pod,) = admin.pods()
        password = ex.broker_url.split("@")[0].rpartition(":")[2]
    assert uid == 10001
    assert not token
    assert user == "worker"
    assert password
    assert password not in repr(environment)
    assert password not in repr(pod)


def test_large_values_travel(on_pods: Maker) -> None:
    data = os.urandom(8 << 20)
    with on_pods() as ex:
        assert ex.submit(bytes, data).result(60) == data


def test_a_killed_pod_is_replaced_and_its_call_runs_again(on_pods: Maker, admin: Admin) -> None:
    def slow() -> str:
        time.sleep(5)
        return socket.gethostname()

    with on_pods() as ex:
        assert ex.submit(abs, -1).result(60) == 1
        (first,) = [pod["metadata"]["name"] for pod in admin.pods()]
        call = ex.submit(slow)
        time.sleep(1)
        admin.call("DELETE", f"/api/v1/namespaces/{{ns}}/pods/{first}", query="?gracePeriodSeconds=0")
        assert call.result(60) != first


def test_a_worker_killed_inside_its_pod_is_replaced(on_pods: Maker, admin: Admin) -> None:
    def die() -> None:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)

    with on_pods() as ex:
        with pytest.raises(Exception, match="killed"):
            ex.options(max_deliveries=1).submit(die).result(60)
        assert ex.submit(abs, -1).result(60) == 1


def test_an_image_that_is_not_there_fails_the_futures_with_its_name(on_pods: Maker, admin: Admin) -> None:
    with on_pods(image="no-such-image:1") as ex, pytest.raises(PoolBroken, match="no-such-image:1"):
        ex.submit(abs, -1).result(90)
    until(lambda: not admin.left(), what="everything is deleted", timeout=30)


def test_a_namespace_that_is_not_there_is_said_at_start(on_pods: Maker) -> None:
    with pytest.raises(ClusterRefused, match="no-such-namespace"), on_pods(namespace="no-such-namespace"):
        pass


def test_a_name_that_is_taken_is_said_at_start(on_pods: Maker) -> None:
    with on_pods(name="mine") as ex:
        with pytest.raises(PoolStartError, match="mine"), on_pods(name="mine"):
            pass
        assert ex.submit(abs, -1).result(60) == 1


def test_two_executors_share_a_namespace(on_pods: Maker, admin: Admin) -> None:
    with on_pods() as one, on_pods() as other:
        hosts = [ex.submit(socket.gethostname).result(60) for ex in (one, other)]
        assert len(set(hosts)) == 2
    until(lambda: not admin.left(), what="everything is deleted", timeout=30)


def test_no_cluster_is_said_with_the_place_that_was_looked_at(tmp_path) -> None:
    from executor import KubeExecutor

    with (
        pytest.raises(ClusterUnavailable, match=r"nowhere\.yaml"),
        KubeExecutor(image="worker:1", kubeconfig=str(tmp_path / "nowhere.yaml")),
    ):
        pass


def test_memory_beyond_the_limit_is_told_as_such(on_pods: Maker) -> None:
    def greedy() -> int:
        return len(bytearray(1 << 30))

    with on_pods(resources=Resources(memory="256Mi")) as ex:
        with pytest.raises(OOMKilled, match="the limit is 256 MiB") as caught:
            ex.options(max_deliveries=2).submit(greedy).result(90)
        assert [death["reason"] for death in caught.value.deaths] == ["OOMKilled", "OOMKilled"]
        assert caught.value.details["limit_bytes"] == 256 << 20
        assert 100 << 20 < caught.value.details["peak_bytes"] <= 256 << 20
        assert ex.submit(abs, -1).result(60) == 1


def test_min_workers_are_ready_when_the_block_begins(on_pods: Maker) -> None:
    with on_pods(2, min_workers=2) as ex:
        (status,) = ex.status()
        assert len(status.workers) == 2


@pytest.mark.slow
def test_an_image_is_checked_from_the_command_line(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    from executor.cli.main import main
    from tests.cluster.conftest import IMAGE

    assert main(["image", "check", IMAGE, "--namespace", admin.namespace]) == 0
    said = capsys.readouterr().out
    assert "cloudpickle" in said
    assert "differs" not in said
    assert main(["image", "check", "no-such-image:1", "--namespace", admin.namespace]) == 1
    assert "no-such-image:1" in capsys.readouterr().err
