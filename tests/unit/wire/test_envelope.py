"""Envelopes: JSON that kombu reads, and ``"ke"`` where the claim script looks for it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.json import loads

from executor.wire import envelope
from executor.wire.envelope import Envelope

identifiers = st.text("0123456789abcdef-", min_size=1, max_size=32)
stories = st.lists(st.fixed_dictionaries({"reason": st.text(max_size=20), "exit_code": st.none() | st.integers()}))
envelopes = st.builds(
    Envelope,
    client=identifiers,
    root=identifiers,
    first=st.integers(0, 10**6),
    end=st.integers(0, 10**6),
    queue=st.text(min_size=1, max_size=40),
    priority=st.integers(0, 9),
    deaths=stories,
    frame=st.binary(max_size=200),
)


def an_envelope(**changes: Any) -> Envelope:
    fields = {
        "client": "c1",
        "root": "r1",
        "first": 0,
        "end": 4,
        "queue": "ke.x.default",
        "priority": 3,
        "deaths": (),
        "frame": b"\0\xffKE",
    }
    return Envelope(**{**fields, **changes})


@given(envelopes)
def test_envelope_decodes_to_what_was_encoded(one: Envelope) -> None:
    assert envelope.decoded(loads(envelope.encoded(one))) == one


@given(envelopes)
def test_envelope_has_its_mark_where_the_claim_script_looks(one: Envelope) -> None:
    head = envelope.encoded(one)[:200]
    assert f'"ke": "{one.client}:{one.id}"' in head
    assert ":" not in one.client


def test_envelope_is_a_celery_message_of_protocol_2() -> None:
    message = loads(envelope.encoded(an_envelope()))
    assert message["content-type"] == envelope.CALL_CONTENT_TYPE
    assert message["content-encoding"] == "binary"
    assert message["headers"]["task"] == envelope.CALL_TASK
    assert message["headers"]["id"] == "r1"
    assert message["headers"]["lang"] == "py"
    assert message["headers"]["retries"] == 0
    assert message["headers"]["timelimit"] == [None, None]
    assert message["headers"]["ignore_result"] is True
    properties = message["properties"]
    assert properties["correlation_id"] == properties["delivery_tag"] == "r1"
    assert properties["body_encoding"] == "base64"
    assert properties["delivery_info"] == {"exchange": "", "routing_key": "ke.x.default"}
    assert properties["priority"] == 3


def test_envelope_body_is_what_kombus_virtual_transport_decodes() -> None:
    from kombu.transport.virtual.base import Base64

    message = loads(envelope.encoded(an_envelope()))
    assert Base64().decode(message["body"]) == b"\0\xffKE"


@pytest.mark.parametrize(("first", "expected"), [(0, "r1"), (1, "r1.1"), (250_000, "r1.250000")])
def test_envelope_of_a_part_is_named_after_its_first_call(first: int, expected: str) -> None:
    assert an_envelope(first=first).id == envelope.message_id("r1", first) == expected


@pytest.mark.parametrize("queue", ['a"b', "a\\b", "größe", "a\nb", "\x06\x16", "%s %(id)s"])
def test_envelope_with_an_odd_queue_is_still_json(queue: str) -> None:
    assert json.loads(envelope.encoded(an_envelope(queue=queue)))["properties"]["delivery_info"]["routing_key"] == queue


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"headers": {}, "properties": {}},
        {"headers": {"ke": "c:r", "range": [1]}, "properties": {}},
        {"headers": {"ke": 5}, "properties": {}, "body": ""},
        {"headers": None, "properties": None},
    ],
)
def test_envelope_of_somebody_else_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        envelope.decoded(message)


def test_envelope_rewritten_by_a_script_with_an_empty_list_of_deaths_is_read() -> None:
    message = loads(envelope.encoded(an_envelope()))
    message["headers"]["deaths"] = {}  # how a Lua script spells an empty list
    assert list(envelope.decoded(message).deaths) == []
