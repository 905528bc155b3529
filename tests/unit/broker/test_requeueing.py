"""What goes back, what is told, what is kept: no server."""

from __future__ import annotations

import json

import pytest

from executor.broker.requeueing import (
    OWN,
    Entry,
    Replies,
    charged,
    dead_letter,
    given_up,
    redelivered,
    take_away,
    worker_lost,
)
from executor.errors import Evicted, NodeLost, OOMKilled, WorkerLost
from executor.wire import frame, outcome
from executor.wire.envelope import Envelope, decoded

KEY = b"k" * 32
ENVELOPE = Envelope("client", "root", 2, 10, "ke.default", 3, (), b"frame")
ENTRY = Entry("w", "7", "ke.default\x06\x163", OWN, "default")
ANSWERS = Replies(KEY, ENVELOPE, "w", 1)


def test_taking_away_names_the_entry_and_its_message() -> None:
    script = take_away(ENTRY, ENVELOPE, ANSWERS, [ENVELOPE], [])
    assert script.name == "requeue"
    assert script.keys == ["ke:inflight:w", "ke.default\x06\x163", "ke:dead:default"]
    assert script.args[:6] == ["7", "*", "*", "client", "root.2", ""]


def test_parts_are_pushed_last_first_so_that_the_first_is_popped_first() -> None:
    parts = [ENVELOPE._replace(first=2, end=4), ENVELOPE._replace(first=4, end=10)]
    args = take_away(ENTRY, ENVELOPE, ANSWERS, parts, []).args
    replies = args[7]
    pushed = args[8 + replies :]
    assert pushed[::2] == ["root.4", "root.2"]
    assert [decoded(json.loads(text))[2:4] for text in pushed[1::2]] == [(4, 10), (2, 4)]


def test_the_client_is_told_of_parts_under_new_ids_only() -> None:
    parts = [ENVELOPE._replace(first=2, end=4), ENVELOPE._replace(first=4, end=10)]
    args = take_away(ENTRY, ENVELOPE, ANSWERS, parts, []).args
    assert args[7] == 1
    header, _ = frame.opened(KEY, frame.REPLY, args[8])
    assert (header["kind"], header["root"], header["at"], header["part"], header["end"]) == (
        "split",
        "root",
        4,
        "root.4",
        10,
    )


@pytest.mark.parametrize(
    ("deaths", "count"), [([], 0), ([{"reason": "x"}], 1), ([{"reason": "x", "charged": False}, {"reason": "y"}], 1)]
)
def test_deaths_count_where_the_call_is_known_to_have_run(deaths: list[dict[str, object]], count: int) -> None:
    assert charged(deaths) == count


def test_the_error_of_a_lost_call_tells_each_death() -> None:
    deaths = [
        {"reason": "OOMKilled", "host": "a", "output": ""},
        {"reason": "SIGKILL", "host": "b", "output": "last words"},
    ]
    error = outcome.error_from(worker_lost(deaths)[1:])
    assert isinstance(error, WorkerLost)
    assert "2 time(s)" in str(error)
    assert "OOMKilled on a, SIGKILL on b" in str(error)
    assert "last words" in str(error)
    assert error.deaths == deaths


@pytest.mark.parametrize(
    ("deaths", "most", "over"),
    [
        ([{"reason": "SIGKILL"}], 1, True),
        ([{"reason": "Evicted", "charged": False}], 1, True),
        ([{"reason": "SIGKILL", "charged": False, "unbegun": True}], 1, False),
        ([{"reason": "Evicted", "charged": False}] * 5, 2, False),
        ([{"reason": "SIGKILL"}] * 2, 2, True),
        ([], 1, False),
    ],
)
def test_at_most_once_counts_whatever_took_a_call_away(deaths: list[dict[str, object]], most: int, over: bool) -> None:
    assert given_up(deaths, most) is over


@pytest.mark.parametrize(
    ("reason", "kind"),
    [("OOMKilled", OOMKilled), ("Evicted", Evicted), ("Preempted", Evicted), ("NodeLost", NodeLost), ("x", WorkerLost)],
)
def test_the_error_of_a_lost_call_is_of_the_kind_of_its_last_death(reason: str, kind: type[WorkerLost]) -> None:
    error = outcome.error_from(worker_lost([{"reason": "SIGKILL"}, {"reason": reason, "host": "b"}])[1:])
    assert type(error) is kind


def test_the_error_of_a_call_without_memory_has_figures() -> None:
    death = {"reason": "OOMKilled", "host": "a", "limit_bytes": 256 << 20, "peak_bytes": 300 << 20}
    error = outcome.error_from(worker_lost([death])[1:])
    assert (error.details["limit_bytes"], error.details["peak_bytes"]) == (256 << 20, 300 << 20)
    assert "its process had 300 MiB, the limit is 256 MiB" in str(error)
    assert "Resources(memory=...)" in str(error)


def test_a_dead_letter_holds_a_message_that_may_be_queued_again() -> None:
    letter = json.loads(dead_letter(ENVELOPE, 5, [{"reason": "x"}], "default"))
    assert letter["id"] == "root.5"
    again = decoded(json.loads(letter["raw"]))
    assert (again.first, again.end, list(again.deaths), again.frame) == (5, 6, [], b"frame")


def test_a_plain_task_goes_back_with_its_deaths_and_all_it_had() -> None:
    message = {"body": "x", "headers": {"task": "t", "id": "1"}, "properties": {"delivery_info": {"exchange": "e"}}}
    again = json.loads(redelivered(message, [{"reason": "SIGKILL"}]))
    assert again["headers"]["ke_deaths"] == [{"reason": "SIGKILL"}]
    assert again["properties"]["delivery_info"] == {"exchange": "e", "redelivered": True}
    assert again["body"] == "x"
    assert "ke_deaths" not in message["headers"]
