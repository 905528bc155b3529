"""The contracts, bound to a view of a ``KubeExecutor``: ``ex.options(...)`` is an executor itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from executor import KubeExecutor
from tests.contract import awaitable_contract, calls, executor_contract, future_contract
from tests.support import DEADLINE_S

if TYPE_CHECKING:
    from tests.support import Gate


@pytest.fixture(scope="module")
def parent() -> Iterator[KubeExecutor]:
    with KubeExecutor(max_workers=2) as one:
        yield one


@pytest.fixture(scope="module")
def executor(parent: KubeExecutor) -> Any:
    return parent.options(timeout=300, name="a view").options(max_deliveries=2, priority=3)


class TestSubmit(executor_contract.SubmitContract):
    pass


class TestMap(executor_contract.MapContract):
    pass


class TestFutureState(future_contract.StateContract):
    pass


class TestWait(future_contract.WaitContract):
    pass


class TestAwait(awaitable_contract.AwaitContract):
    pass


class TestView:
    def test_shutdown_of_a_view_ends_the_view_only(self, parent: KubeExecutor, gate: Gate) -> None:
        with parent.options(timeout=300) as view:
            assert isinstance(view, executor_contract.Executor)
            future = view.submit(calls.wait_at, gate, 5)
            gate.wait_arrivals()
            gate.open()
        assert future.result(0) == 5
        with pytest.raises(RuntimeError, match="after shutdown"):
            view.submit(calls.square, 3)
        with pytest.raises(RuntimeError, match="after shutdown"):
            view.map(calls.square, [3])
        assert parent.submit(calls.square, 3).result(DEADLINE_S) == 9

    def test_shutdown_of_a_view_can_cancel_its_calls(self, parent: KubeExecutor, gate: Gate) -> None:
        view = parent.options(timeout=300)
        executor_contract.hold(view, gate)
        theirs = [view.submit(calls.square, x) for x in range(10)]
        other = parent.submit(calls.add, 1, 2)
        view.shutdown(wait=False, cancel_futures=True)
        executor_contract.until(lambda: all(future.cancelled() for future in theirs))
        gate.open()
        assert other.result(DEADLINE_S) == 3
