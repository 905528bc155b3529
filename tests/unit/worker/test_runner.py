"""The child's loop over a socket pair, in this process."""

from __future__ import annotations

import json
import socket
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from executor.wire import outcome, pickling, segments
from executor.worker import pipe, slots
from executor.worker.outbox import Outbox
from executor.worker.runner import Batch, Functions, Interrupts, Runner, packed


class Bench:
    """A runner whose parent is the test."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.ours, self.theirs = ours, theirs
        self.shared = memoryview(array("q", [0, 0, 0, 0]))
        self.functions: dict[str, Any] = {}
        self.interrupts = Interrupts()
        outbox = Outbox(theirs)
        functions = Functions(lambda digest: self.functions.get(digest))
        self.runner = Runner(self.shared, outbox, functions, self.interrupts)
        self.outbox = outbox
        self._inlet = pipe.Inlet(ours, wait=True)

    def run(self, function: Callable[..., Any], arguments: list[Any], kind: str, **fields: Any) -> list[Any]:
        """Run a batch and give its outcomes; a missing function is named None."""
        self.functions = {} if function is None else {"f": pickling.dumps(function)}
        head = {"first": 0, "end": len(arguments), "cancelled": frozenset(), "star": True, **fields}
        payload = pickling.dumps(arguments)
        if kind == "calls":
            payload = segments.join([pickling.dumps((args, {})) for args in arguments])
        self.shared[slots.LIMIT] = fields.pop("limit", head["end"])
        head.pop("limit", None)
        batch = Batch(number=1, digest="f", kind=kind, **head)
        self.runner.run(memoryview(packed(batch) + payload))
        return self.outcomes()

    def outcomes(self) -> list[Any]:
        found: list[Any] = []
        while True:
            for kind, body in self._inlet.read():
                _, first, count, _, form, listed = pipe.RESULTS.unpack_from(body)
                assert first == len(found) + self.first
                rest = body[pipe.RESULTS.size + listed :]
                found += pickling.loads(rest) if form == pipe.VALUES else list(map(opened, segments.split(rest)))
                assert len(found) + self.first == first + count
                if kind == pipe.DONE:
                    return found

    first = 0


def opened(data: memoryview) -> Any:
    status, body = bytes(data[:1]), data[1:]
    if status == outcome.VALUE:
        return pickling.loads(body)
    if status == outcome.EXCEPTION:
        return pickling.exception_from(body)
    return "cancelled" if status == outcome.CANCELLED else json.loads(bytes(body))["type"]


@pytest.fixture
def bench() -> Iterator[Bench]:
    one = Bench()
    with one.ours, one.theirs:
        yield one
    if one.runner._loop is not None:
        one.runner._loop.close()


def double(x: int) -> int:
    return 2 * x


def raises_at_three(x: int) -> int:
    if x == 3:
        raise KeyError(x)
    return x


async def awaited(x: int) -> int:
    return x + 1


def unpicklable(x: int) -> object:
    return (i for i in range(x)) if x == 1 else x


KINDS = pytest.mark.parametrize("kind", ["calls", "map"])


@KINDS
def test_values_come_back_in_order(bench: Bench, kind: str) -> None:
    assert bench.run(double, [(i,) for i in range(100)], kind) == [2 * i for i in range(100)]


@KINDS
def test_what_raises_is_an_outcome_among_others(bench: Bench, kind: str) -> None:
    found = bench.run(raises_at_three, [(i,) for i in range(6)], kind)
    assert found[:3] + found[4:] == [0, 1, 2, 4, 5]
    assert isinstance(found[3], KeyError)
    assert "raises_at_three" in str(found[3].__cause__)
    assert "worker/runner.py" not in str(found[3].__cause__)


@KINDS
def test_coroutines_are_run(bench: Bench, kind: str) -> None:
    assert bench.run(awaited, [(i,) for i in range(3)], kind) == [1, 2, 3]


@KINDS
def test_a_result_that_cannot_be_pickled_concerns_itself_only(bench: Bench, kind: str) -> None:
    assert bench.run(unpicklable, [(i,) for i in range(3)], kind) == [0, "SerializationError", 2]


@KINDS
def test_cancelled_indexes_are_skipped(bench: Bench, kind: str) -> None:
    found = bench.run(double, [(i,) for i in range(4)], kind, cancelled=frozenset({1, 3}))
    assert found == [0, "cancelled", 4, "cancelled"]


@KINDS
def test_only_the_range_is_run_and_not_beyond_the_limit(bench: Bench, kind: str) -> None:
    bench.first = 2
    assert bench.run(double, [(i,) for i in range(10)], kind, first=2, end=9, limit=5) == [4, 6, 8]


@KINDS
def test_a_missing_function_fails_every_call(bench: Bench, kind: str) -> None:
    assert bench.run(None, [(1,), (2,)], kind) == ["FunctionMissing"] * 2  # type: ignore[arg-type]


@KINDS
def test_arguments_that_cannot_be_opened_are_an_error(bench: Bench, kind: str) -> None:
    bench.functions = {"f": pickling.dumps(double)}
    bad = b"\x80\x05cnosuchmodule\nnosuchname\n."
    payload = segments.join([bad]) if kind == "calls" else bad
    bench.shared[slots.LIMIT] = 1
    bench.runner.run(memoryview(packed(Batch(1, "f", kind, 0, 1, frozenset(), True)) + payload))
    assert bench.outcomes() == ["SerializationError"]


def test_items_are_single_arguments_without_star(bench: Bench) -> None:
    assert bench.run(double, [1, 2, 3], "map", star=False) == [2, 4, 6]


def test_running_and_started_are_told_before_each_call(bench: Bench) -> None:
    seen: list[tuple[int, bool]] = []

    def look(x: int) -> int:
        seen.append((bench.shared[slots.RUNNING], bench.shared[slots.STARTED_NS] > 0))
        return x

    bench.runner._functions._known["f"] = look
    payload = segments.join([pickling.dumps(((i,), {})) for i in range(3)])
    bench.shared[slots.LIMIT] = 3
    bench.runner.run(memoryview(packed(Batch(1, "f", "calls", 0, 3, frozenset())) + payload))
    assert bench.outcomes() == [0, 1, 2]
    assert seen == [(0, True), (1, True), (2, True)]


def test_an_interrupt_between_calls_is_forgotten_and_within_one_cancels_it(bench: Bench) -> None:
    bench.interrupts(2, None)

    def interrupted(x: int) -> int:
        if x == 1:
            bench.interrupts(2, None)
        return x

    bench.runner._functions._known["f"] = interrupted
    payload = segments.join([pickling.dumps(((i,), {})) for i in range(3)])
    bench.shared[slots.LIMIT] = 3
    bench.runner.run(memoryview(packed(Batch(1, "f", "calls", 0, 3, frozenset())) + payload))
    assert bench.outcomes() == [0, "cancelled", 2]
