"""The contract of ``Pool``, bound to ours with worker processes on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from executor import Pool
from tests.contract import pool_beyond_contract, pool_contract, pool_life_contract


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    one = Pool(2)
    yield one
    one.terminate()
    one.join()


@pytest.fixture
def make_pool() -> Callable[..., Pool]:
    return Pool


@pytest.fixture
def pool_head() -> str:
    return "from executor import Pool"


class TestApply(pool_contract.ApplyContract):
    pass


class TestMap(pool_contract.MapContract):
    pass


class TestIMap(pool_contract.IMapContract):
    pass


class TestLife(pool_life_contract.LifeContract):
    pass


class TestScripts(pool_life_contract.PoolScriptContract):
    pass


class TestBeyond(pool_beyond_contract.BeyondContract):
    pass
