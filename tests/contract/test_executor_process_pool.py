"""The contracts, bound to the standard library's ``ProcessPoolExecutor``: this proves the tests themselves right."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import pytest

from tests.contract import executor_contract, future_contract, script_contract

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.contract.calls"])

make: Callable[..., ProcessPoolExecutor] = partial(ProcessPoolExecutor, mp_context=_context)


@pytest.fixture(scope="module")
def executor() -> Iterator[ProcessPoolExecutor]:
    with make(max_workers=2) as one:
        yield one


@pytest.fixture
def make_executor() -> Callable[..., ProcessPoolExecutor]:
    def make_one(max_workers: int = 2, **kwargs: Any) -> ProcessPoolExecutor:
        return make(max_workers, **kwargs)

    return make_one


@pytest.fixture
def script_head() -> str:
    return "from concurrent.futures import ProcessPoolExecutor as Executor"


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
