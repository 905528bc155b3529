"""The contract of ``Pool``, bound to ``multiprocessing.Pool``: this proves the tests themselves right."""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.contract import pool_contract, pool_life_contract

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.contract.calls"])


def _make(*args: Any, **kwargs: Any) -> multiprocessing.pool.Pool:
    return multiprocessing.pool.Pool(*args, **{"context": _context, **kwargs})


@pytest.fixture(scope="module")
def pool() -> Iterator[multiprocessing.pool.Pool]:
    one = _make(2)
    yield one
    one.terminate()
    one.join()


@pytest.fixture
def make_pool() -> Callable[..., multiprocessing.pool.Pool]:
    return _make


@pytest.fixture
def pool_head() -> str:
    return "from multiprocessing import Pool"


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
