"""Outcomes: a status byte and what it says."""

from __future__ import annotations

import pytest

from executor import errors
from executor.wire import outcome


@pytest.mark.parametrize(
    "name",
    [
        "CallTimeout",
        "CallExpired",
        "ChildCrashed",
        "WorkerLost",
        "SerializationError",
        "FunctionMissing",
        "VersionMismatch",
        "BlobMissing",
        "BadSignature",
    ],
)
def test_error_comes_back_as_its_own_class_with_its_details(name: str) -> None:
    body = outcome.error(name, "what happened – größe", {"exit_code": -9, "deaths": [{"reason": "OOMKilled"}]})
    assert body[:1] == outcome.ERROR
    error = outcome.error_from(body[1:])
    assert type(error) is getattr(errors, name)
    assert str(error) == "what happened – größe"
    assert error.details["exit_code"] == -9
    assert error.deaths == [{"reason": "OOMKilled"}]


@pytest.mark.parametrize("name", ["Nonsense", "SystemExit", "KubeExecutorError", "__class__"])
def test_error_of_an_unknown_class_is_a_plain_call_error(name: str) -> None:
    assert type(outcome.error_from(outcome.error(name, "from a newer worker")[1:])) is errors.CallError


def test_exception_keeps_its_pickle_and_traceback() -> None:
    body = outcome.exception(b"pickle", "Traceback – größe")
    assert body[:1] == outcome.EXCEPTION
    pickled, text = outcome.exception_parts(body[1:])
    assert bytes(pickled) == b"pickle"
    assert text == "Traceback – größe"


def test_exception_with_a_lone_surrogate_in_its_traceback_travels() -> None:
    _, text = outcome.exception_parts(outcome.exception(b"", "file \udcff.py")[1:])
    assert text == "file \\udcff.py"


def test_exception_of_malformed_bytes_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="segments"):
        outcome.exception_parts(b"\1\0\0")


def test_errors_with_details_pickle_and_copy() -> None:
    import copy
    import pickle

    error = errors.ChildCrashed("it crashed", {"signal": "SIGSEGV"})
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is errors.ChildCrashed
        assert str(again) == "it crashed"
        assert again.details == {"signal": "SIGSEGV"}
