"""The contracts that worker processes pass, unchanged, on pods.

Tests and calls meet at files: so these pods see the directories of the tests (``hostPath``), as root, and run in a
namespace that allows it. Nodes must therefore share this machine's file system, as those of a local cluster may.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from executor import KubeExecutor
from tests.cluster.conftest import IMAGE, KUBECONFIG, Admin
from tests.contract import (
    awaitable_contract,
    executor_contract,
    future_contract,
    hostile_contract,
    nested_contract,
    size_contract,
)
from tests.support import unique_name

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = os.environ.get("KUBE_EXECUTOR_TEST_SHARED_FILES")

pytestmark = pytest.mark.skipif(
    SHARED is None, reason="needs nodes that see this machine's files: set KUBE_EXECUTOR_TEST_SHARED_FILES=1"
)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """How executors are made that share files with the tests."""
    admin = Admin(unique_name("ke-contract").lower())
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": admin.namespace}}
    admin.call("POST", "/api/v1/namespaces", body)
    seen = [str(ROOT), str(tmp_path_factory.getbasetemp())]
    spec = {
        "securityContext": {"runAsNonRoot": False, "runAsUser": 0, "runAsGroup": 0},
        "volumes": [{"name": f"host-{i}", "hostPath": {"path": path}} for i, path in enumerate(seen)],
        "containers": [
            {
                "name": "worker",
                "volumeMounts": [{"name": f"host-{i}", "mountPath": path} for i, path in enumerate(seen)],
            }
        ],
    }
    yield {
        "image": IMAGE,
        "kubeconfig": KUBECONFIG,
        "namespace": admin.namespace,
        "env": {"PYTHONPATH": str(ROOT)},
        "pod_template": {"spec": spec},
    }
    admin.call("DELETE", f"/api/v1/namespaces/{admin.namespace}")


@pytest.fixture(scope="module")
def executor(arguments: dict[str, Any]) -> Iterator[KubeExecutor]:
    with KubeExecutor(max_workers=2, **arguments) as one:
        yield one


@pytest.fixture
def make_executor(arguments: dict[str, Any]) -> Callable[..., KubeExecutor]:
    def make(max_workers: int = 2, **kwargs: Any) -> KubeExecutor:
        return KubeExecutor(max_workers, **arguments, **kwargs)

    return make


class TestSubmit(executor_contract.SubmitContract):
    pass


class TestMap(executor_contract.MapContract):
    pass


@pytest.mark.slow  # each test has pods of its own, or many calls
class TestShutdown(executor_contract.ShutdownContract):
    pass


@pytest.mark.slow  # each test has pods of its own, or many calls
class TestInitializer(executor_contract.InitializerContract):
    pass


class TestFutureState(future_contract.StateContract):
    pass


class TestCallbacks(future_contract.CallbackContract):
    pass


class TestWait(future_contract.WaitContract):
    pass


class TestThreads(future_contract.ThreadContract):
    pass


class TestPickling(future_contract.PicklingContract):
    pass


class TestAwait(awaitable_contract.AwaitContract):
    pass


class TestAsyncFunctions(awaitable_contract.AsyncFunctionContract):
    pass


class TestAsyncMap(awaitable_contract.AsyncMapContract):
    pass


@pytest.mark.slow  # each test has pods of its own, or many calls
class TestAsyncLife(awaitable_contract.AsyncLifeContract):
    pass


class TestCrash(hostile_contract.CrashContract):
    pass


class TestUnpickle(hostile_contract.UnpickleContract):
    pass


@pytest.mark.slow  # each test has pods of its own, or many calls
class TestSizes(size_contract.SizeContract):
    pass


@pytest.mark.slow  # each test has pods of its own, or many calls
class TestNested(nested_contract.NestedContract):
    pass
