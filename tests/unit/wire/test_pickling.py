"""Pickling: what C pickle cannot do, what it would do wrongly, and what never leaves the process."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import PickleBuffer
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.errors import RemoteTraceback, SerializationError
from executor.wire import outcome, pickling
from executor.wire.pickling import OUT_OF_BAND_BYTES
from tests.unit.wire import by_value_module

ROOT = Path(__file__).resolve().parents[3]
_ELSEWHERE = """
import pickle, sys
value = pickle.loads(sys.stdin.buffer.read())
sys.stdout.write(repr(value() if callable(value) else value))
"""


def elsewhere(data: bytes) -> str:
    """What another interpreter, without this repository, makes of a pickle: its repr, or that of what it returns."""
    done = subprocess.run([sys.executable, "-c", _ELSEWHERE], input=data, capture_output=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.fixture
def main_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A ``__main__`` like that of a user's script."""
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    return module


@pytest.fixture
def by_value() -> Iterator[types.ModuleType]:
    """A module registered to be pickled by value."""
    cloudpickle.register_pickle_by_value(by_value_module)
    yield by_value_module
    cloudpickle.unregister_pickle_by_value(by_value_module)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(plain)
def test_plain_values_come_back(value: Any) -> None:
    assert pickling.loads(pickling.dumps(value)) == value


def test_plain_values_never_reach_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickling, "_value_pickler", lambda: pytest.fail("cloudpickle was asked"))
    pickling.dumps({"a": [1, 2.0, "three", b"4", (None, True)], "f": subprocess.run})


def test_lambda_and_closure_run_elsewhere() -> None:
    captured = [1, 2]

    def closure() -> int:
        return sum(captured) + 39

    assert elsewhere(pickling.dumps(lambda: 42)) == "42"
    assert elsewhere(pickling.dumps(closure)) == "42"
    assert elsewhere(pickling.dumps(functools.partial(lambda x: x + 1, 41))) == "42"


def test_class_of_main_travels_by_value(main_module: types.ModuleType) -> None:
    source = (
        "class Thing:\n    def __repr__(self): return 'a thing of main'\nTHING = Thing()\ndef make(): return Thing()"
    )
    exec(source, main_module.__dict__)
    assert elsewhere(pickling.dumps(main_module.THING)) == "a thing of main"
    assert elsewhere(pickling.dumps(main_module.make)) == "a thing of main"
    assert elsewhere(pickling.dumps([{"deep": main_module.THING}])) == "[{'deep': a thing of main}]"


def test_module_registered_by_value_travels_whole(by_value: types.ModuleType) -> None:
    assert elsewhere(pickling.dumps(functools.partial(by_value.scaled, 21))) == "42"
    point = pickling.dumps(by_value.Point(7))
    assert b"__init__" in point  # the class itself, not only its name


def test_module_not_registered_travels_by_name() -> None:
    assert b"__init__" not in pickling.dumps(by_value_module.Point(7))
    assert pickling.loads(pickling.dumps(by_value_module.scaled)) is by_value_module.scaled


@pytest.mark.parametrize(
    "value", [(x for x in ()), sys.stdout, types.SimpleNamespace(lock=__import__("threading").Lock())]
)
def test_what_cannot_be_pickled_raises_what_pickling_raised(value: Any) -> None:
    with pytest.raises((TypeError, pickle.PicklingError)):
        pickling.dumps(value)


def test_error_of_the_objects_own_reduce_is_passed_on() -> None:
    class Odd:
        def __reduce__(self) -> Any:
            raise ZeroDivisionError("odd")

    with pytest.raises(ZeroDivisionError, match="odd"):
        pickling.dumps(Odd())


def test_deep_recursion_is_an_error_and_no_crash() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(RecursionError):
        pickling.dumps(nested)


# ── out of band ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_large_array_travels_beside_its_pickle_uncopied() -> None:
    array = np.arange(OUT_OF_BAND_BYTES, dtype=np.uint8)
    buffers: list[PickleBuffer] = []
    data = pickling.dumps({"array": array}, buffers)
    assert len(data) < 1000
    assert [buffer.raw().nbytes for buffer in buffers] == [array.nbytes]
    again = pickling.loads(data, buffers)["array"]
    assert np.array_equal(again, array)
    assert np.shares_memory(again, array)


def test_small_array_stays_in_its_pickle() -> None:
    array = np.arange(OUT_OF_BAND_BYTES - 1, dtype=np.uint8)
    buffers: list[PickleBuffer] = []
    assert np.array_equal(pickling.loads(pickling.dumps(array, buffers)), array)
    assert buffers == []


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((512, 512))[::2, ::3],
        np.zeros((512, 512)).T,
        np.asfortranarray(np.arange(512 * 512).reshape(512, 512)),
        np.broadcast_to(np.arange(3), (100_000, 3)),
        np.zeros((512, 512))[::-1],
    ],
    ids=["strided", "transposed", "fortran", "broadcast", "reversed"],
)
def test_array_of_any_layout_comes_back(array: Any) -> None:
    buffers: list[PickleBuffer] = []
    data = pickling.dumps(array, buffers)
    assert np.array_equal(pickling.loads(data, buffers), array)


def test_pickle_buffer_that_is_not_contiguous_stays_in_the_pickle_or_is_refused() -> None:
    buffers: list[PickleBuffer] = []
    with pytest.raises((pickle.PicklingError, BufferError)):
        pickling.dumps(PickleBuffer(memoryview(bytearray(200_000))[::2]), buffers)
    assert buffers == []


def test_buffers_keep_their_order_among_small_ones() -> None:
    arrays = [np.full(size, size % 251, dtype=np.uint8) for size in (100_000, 10, 200_000, 20, 70_000)]
    buffers: list[PickleBuffer] = []
    data = pickling.dumps(arrays, buffers)
    assert [buffer.raw().nbytes for buffer in buffers] == [100_000, 200_000, 70_000]
    assert all(map(np.array_equal, pickling.loads(data, buffers), arrays))


def test_buffers_are_not_given_twice_where_cloudpickle_takes_over() -> None:
    array = np.zeros(100_000)
    buffers: list[PickleBuffer] = []
    data = pickling.dumps((array, lambda: 42), buffers)
    assert len(buffers) == 1
    assert pickling.loads(data, buffers)[1]() == 42


def test_buffers_of_earlier_values_stay() -> None:
    buffers: list[PickleBuffer] = [PickleBuffer(b"earlier")]
    pickling.dumps((np.zeros(100_000), lambda: 42), buffers)
    assert bytes(buffers[0].raw()) == b"earlier"
    assert len(buffers) == 2


# ── exceptions ──────────────────────────────────────────────────────────────────────────────────────────────────────


class OddConstructorError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one}{two}")


class KeywordOnlyError(Exception):
    def __init__(self, *, code: int = 0) -> None:
        super().__init__(code)
        self.code = code


class BrokenTextError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class NotAnErrorAgain(Exception):  # what its pickle gives is the point
    def __reduce__(self) -> Any:
        return (str, ("a string",))


class HoldsAGeneratorError(Exception):
    def __init__(self) -> None:
        super().__init__("unpicklable")
        self.generator = (x for x in ())


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


def travelled(error: BaseException) -> BaseException:
    """The exception at the client: as itself, or as the error of ours that stands for it."""
    sent = pickling.exception_outcome(error)
    status, body = sent[:1], memoryview(sent)[1:]
    return pickling.exception_from(body) if status == outcome.EXCEPTION else outcome.error_from(body)


def test_exception_comes_back_with_the_workers_traceback_as_its_cause() -> None:
    error = travelled(raised(KeyError("key")))
    assert type(error) is KeyError
    assert error.args == ("key",)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in raised" in str(error.__cause__)
    assert 'raise error from cause\nKeyError: \'key\'\n"""' in str(error.__cause__)


def test_exception_with_a_cause_tells_both_in_its_traceback() -> None:
    error = travelled(raised(KeyError("second"), raised(ValueError("first"))))
    text = str(error.__cause__)
    assert text.index("ValueError: first") < text.index("direct cause") < text.index("KeyError: 'second'")


def test_exception_group_and_notes_come_back() -> None:
    group = ExceptionGroup("several", [raised(ValueError(1)), KeyError(2)])
    group.add_note("a note")
    error = travelled(raised(group))
    assert isinstance(error, ExceptionGroup)
    assert [type(inner) for inner in error.exceptions] == [ValueError, KeyError]
    assert error.__notes__ == ["a note"]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit, TimeoutError])
def test_exception_of_any_kind_comes_back(kind: type[BaseException]) -> None:
    error = travelled(raised(kind(3)))
    assert type(error) is kind
    assert error.args == (3,)


def test_exception_class_of_main_comes_back(main_module: types.ModuleType) -> None:
    exec("class Own(Exception): pass", main_module.__dict__)
    error = travelled(raised(main_module.Own("mine")))
    assert type(error).__name__ == "Own"
    assert error.args == ("mine",)


def test_exception_with_keyword_only_arguments_comes_back() -> None:
    error = travelled(raised(KeywordOnlyError(code=5)))
    assert isinstance(error, (KeywordOnlyError, SerializationError))
    assert "5" in str(error)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: OddConstructorError(1, 2), "OddConstructorError: 12"),
        (lambda: BrokenTextError(1, 2), "BrokenTextError"),
        (HoldsAGeneratorError, "HoldsAGeneratorError: unpicklable"),
    ],
    ids=["constructor", "text", "generator"],
)
def test_exception_that_cannot_travel_is_told_with_its_traceback(make: Callable[[], Exception], said: str) -> None:
    error = travelled(raised(make()))
    assert isinstance(error, SerializationError)
    assert said in str(error)
    assert "in raised" in error.details["traceback"]
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "in raised" in str(error.__cause__)


def test_exception_whose_pickle_gives_something_else_is_an_error() -> None:
    sent = pickling.exception_outcome(raised(NotAnErrorAgain()))
    with pytest.raises(Exception, match="__cause__"):
        pickling.exception_from(memoryview(sent)[1:])


def test_exception_keeps_its_own_traceback_and_cause_here() -> None:
    cause = ValueError("cause")
    error = raised(KeyError("key"), cause)
    before = error.__traceback__
    pickling.exception_outcome(error)
    assert error.__traceback__ is before
    assert error.__cause__ is cause


def test_load_error_names_what_and_why() -> None:
    failure = ModuleNotFoundError("No module named 'theirs'")
    error = pickling.load_error("The result", failure)
    assert str(error).startswith("The result cannot be unpickled here: ModuleNotFoundError: No module named 'theirs'.")
    assert error.__cause__ is failure
    assert "BrokenTextError" in str(pickling.load_error("It", BrokenTextError(1, 2)))
