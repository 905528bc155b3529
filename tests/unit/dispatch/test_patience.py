"""How long a broker may refuse, or not answer."""

from __future__ import annotations

import pytest
from redis import exceptions

from executor.broker import failures
from executor.broker.failures import Refusal
from executor.dispatch.patience import BROKER_TIMEOUT_S, REFUSED_S, Patience
from executor.errors import BrokerError, BrokerRefused, BrokerUnavailable

LOST = exceptions.ConnectionError("reset")
FULL = exceptions.ResponseError("OOM command not allowed when used memory > 'maxmemory'.")
REPLICA = exceptions.ReadOnlyError("You can't write against a read only replica.")
NO_RIGHT = exceptions.NoPermissionError("this user has no permissions to run the 'evalsha' command")


def explained(error: BaseException) -> BrokerError:
    return BrokerRefused(f"It said: {error}.")


@pytest.fixture
def patience() -> Patience:
    return Patience(explained)


@pytest.mark.parametrize(
    ("error", "limit_s", "kind"),
    [
        (LOST, BROKER_TIMEOUT_S, BrokerUnavailable),
        (FULL, BROKER_TIMEOUT_S, BrokerRefused),
        (REPLICA, BROKER_TIMEOUT_S, BrokerRefused),
        (NO_RIGHT, REFUSED_S, BrokerRefused),
    ],
)
def test_patience_is_spent_at_the_limit(
    patience: Patience, error: Exception, limit_s: float, kind: type[BrokerError]
) -> None:
    assert patience.spent(error, 1000.0) is None
    assert patience.spent(error, 1000.0 + limit_s - 0.1) is None
    given_up = patience.spent(error, 1000.0 + limit_s)
    assert type(given_up) is kind
    assert str(error) in str(given_up)
    assert f"{limit_s:g} s" in str(given_up)


def test_patience_begins_anew_after_a_success(patience: Patience) -> None:
    assert patience.spent(NO_RIGHT, 0.0) is None
    patience.reset()
    assert patience.spent(NO_RIGHT, 100.0) is None


def test_patience_pauses_longer_each_time_up_to_a_limit(patience: Patience) -> None:
    pauses = [patience.pause_s() for _ in range(8)]
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 1.5, 1.5]
    patience.reset()
    assert patience.pause_s() == 0.05


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (LOST, None),
        (OSError("unreachable"), None),
        (exceptions.TimeoutError("no answer"), None),
        (exceptions.ConnectionError("max number of clients reached"), None),
        (FULL, Refusal.FULL),
        (exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), Refusal.FULL),
        (REPLICA, Refusal.FOR_NOW),
        (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), Refusal.FOR_NOW),
        (exceptions.ResponseError("LOADING Redis is loading the dataset in memory"), Refusal.FOR_NOW),
        (exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"), Refusal.FOR_NOW),
        (exceptions.ResponseError("BUSY Redis is busy running a script"), Refusal.FOR_NOW),
        (exceptions.ResponseError("UNBLOCKED force unblock from blocking operation"), Refusal.FOR_NOW),
        (NO_RIGHT, Refusal.FOR_GOOD),
        (exceptions.ResponseError("NOPERM this user has no permissions"), Refusal.FOR_GOOD),
        (exceptions.AuthenticationError("invalid username-password pair"), Refusal.FOR_GOOD),
        (exceptions.ResponseError("WRONGTYPE Operation against a key"), Refusal.FOR_GOOD),
        (exceptions.ResponseError("ERR attempt to index a nil value"), Refusal.FOR_GOOD),
    ],
)
def test_refusals_are_told_apart(error: Exception, refusal: Refusal | None) -> None:
    assert failures.refusal(error) is refusal


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Command # 1 (SET k v EX 600) of pipeline caused error: ('MISCONF no disk.',)", "MISCONF no disk"),
        ('Command # 2 (SET a\nb c) of pipeline caused error: ("OOM can\'t",)', "OOM can't"),
        ("Command # 1 (SET k v) of pipeline caused error: NOPERM no", "NOPERM no"),
        ("WRONGTYPE no such kind script: " + "a1" * 20 + ", on @user_script:6.", "WRONGTYPE no such kind"),
        ("ERR plain", "ERR plain"),
    ],
)
def test_what_was_said_is_found_in_what_redis_py_makes_of_it(text: str, said: str) -> None:
    assert failures.said(exceptions.ResponseError(text)) == said


def test_only_lost_is_looked_up_late() -> None:
    assert exceptions.RedisError in failures.LOST
    with pytest.raises(AttributeError, match="FOUND"):
        _ = failures.FOUND  # type: ignore[attr-defined]
