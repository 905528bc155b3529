"""The contracts, bound to ``KubeExecutor`` with worker processes on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from executor import KubeExecutor
from tests.contract import (
    awaitable_contract,
    client_contract,
    executor_contract,
    future_contract,
    hostile_contract,
    nested_contract,
    script_contract,
    size_contract,
)


@pytest.fixture(scope="module")
def executor() -> Iterator[KubeExecutor]:
    with KubeExecutor(max_workers=2) as one:
        yield one


@pytest.fixture
def make_executor() -> Callable[..., KubeExecutor]:
    def make(max_workers: int = 2, **kwargs: Any) -> KubeExecutor:
        return KubeExecutor(max_workers, **kwargs)

    return make


@pytest.fixture
def script_head() -> str:
    return "from executor import KubeExecutor as Executor"


class TestSubmit(executor_contract.SubmitContract):
    pass


class TestMap(executor_contract.MapContract):
    pass


class TestShutdown(executor_contract.ShutdownContract):
    pass


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


class TestScripts(script_contract.ScriptContract):
    pass


class TestAwait(awaitable_contract.AwaitContract):
    pass


class TestAsyncFunctions(awaitable_contract.AsyncFunctionContract):
    pass


class TestAsyncMap(awaitable_contract.AsyncMapContract):
    pass


class TestAsyncLife(awaitable_contract.AsyncLifeContract):
    pass


class TestCrash(hostile_contract.CrashContract):
    pass


class TestLeftovers(hostile_contract.LeftoverContract):
    pass


class TestUnpickle(hostile_contract.UnpickleContract):
    pass


class TestSizes(size_contract.SizeContract):
    pass


class TestOutput(client_contract.OutputContract):
    pass


class TestProcesses(client_contract.ProcessContract):
    pass


class TestInner(nested_contract.InnerContract):
    pass


class TestNested(nested_contract.NestedContract):
    pass
