"""Frames: what is not signed, or not whole, is neither parsed nor unpickled."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.errors import BadSignature, CallError, VersionMismatch
from executor.wire import frame, signing

MASTER = b"m" * signing.KEY_BYTES
KEY = signing.client_key(MASTER, "client-a")
HEADER = {"root": "r1", "n": 3, "name": "größe", "bufs": None}
SEALED = frame.sealed(KEY, frame.CALL, HEADER, b"payload" * 5)
VERSION_AT = 2


@pytest.fixture
def nothing_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("unverified bytes were parsed")

    monkeypatch.setattr(json, "loads", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(
    st.dictionaries(st.text(max_size=8), json_values, max_size=6),
    st.binary(max_size=300),
    st.sampled_from([frame.CALL, frame.REPLY, frame.FUNCTION]),
)
def test_frame_opens_to_what_was_sealed(header: dict[str, Any], payload: bytes, label: str) -> None:
    opened = frame.opened(KEY, label, frame.sealed(KEY, label, header, payload))
    assert opened.header == header
    assert bytes(opened.payload) == payload


def test_frame_payload_is_a_view_and_not_a_copy() -> None:
    assert frame.opened(KEY, frame.CALL, SEALED).payload.obj is SEALED


def test_frame_accepts_views_as_payload_and_as_data() -> None:
    sealed = frame.sealed(KEY, frame.CALL, {}, memoryview(b"abc"))
    assert bytes(frame.opened(KEY, frame.CALL, memoryview(sealed)).payload) == b"abc"


@pytest.mark.usefixtures("nothing_parsed")
def test_frame_refuses_every_altered_bit() -> None:
    for at in range(len(SEALED)):
        for bit in range(8):
            altered = bytearray(SEALED)
            altered[at] ^= 1 << bit
            expected = VersionMismatch if at == VERSION_AT else BadSignature
            with pytest.raises(expected):
                frame.opened(KEY, frame.CALL, bytes(altered))


@pytest.mark.usefixtures("nothing_parsed")
def test_frame_refuses_every_truncation() -> None:
    for length in range(len(SEALED)):
        with pytest.raises(BadSignature):
            frame.opened(KEY, frame.CALL, SEALED[:length])


@pytest.mark.usefixtures("nothing_parsed")
def test_frame_refuses_bytes_added_at_either_end() -> None:
    for altered in (SEALED + b"\0", b"\0" + SEALED, SEALED + SEALED):
        with pytest.raises(BadSignature):
            frame.opened(KEY, frame.CALL, altered)


@pytest.mark.usefixtures("nothing_parsed")
@pytest.mark.parametrize("label", [frame.REPLY, frame.FUNCTION, "", "cal", "call "])
def test_frame_refuses_another_label(label: str) -> None:
    with pytest.raises(BadSignature):
        frame.opened(KEY, label, SEALED)


@pytest.mark.usefixtures("nothing_parsed")
@pytest.mark.parametrize("client", ["client-b", "", "client-a ", "Client-a"])
def test_frame_refuses_another_clients_key(client: str) -> None:
    with pytest.raises(BadSignature):
        frame.opened(signing.client_key(MASTER, client), frame.CALL, SEALED)


@pytest.mark.usefixtures("nothing_parsed")
def test_frame_refuses_another_master_key_and_the_master_key_itself() -> None:
    for key in (signing.client_key(b"n" * 32, "client-a"), MASTER, b""):
        with pytest.raises(BadSignature):
            frame.opened(key, frame.CALL, SEALED)


@pytest.mark.usefixtures("nothing_parsed")
def test_frame_of_another_version_is_named_with_both_sides() -> None:
    other = bytearray(SEALED)
    other[VERSION_AT] = 9
    with pytest.raises(VersionMismatch, match=rf"protocol 9, this side speaks {frame.PROTOCOL}"):
        frame.opened(KEY, frame.CALL, bytes(other))


def test_frame_whose_signed_header_is_too_long_is_refused() -> None:
    body = bytearray(SEALED[: -signing.MAC_BYTES])
    body[4:8] = (10**6).to_bytes(4, "little")
    with pytest.raises(BadSignature, match="header"):
        frame.opened(KEY, frame.CALL, bytes(body) + signing.mac(KEY, frame.CALL, bytes(body)))


@pytest.mark.usefixtures("nothing_parsed")
@given(st.binary(max_size=200))
def test_frame_of_random_bytes_is_refused(data: bytes) -> None:
    for prefix in (b"", SEALED[:8]):
        with pytest.raises(CallError):
            frame.opened(KEY, frame.CALL, prefix + data)


def test_frame_refuses_a_header_that_is_not_json() -> None:
    with pytest.raises(TypeError):
        frame.sealed(KEY, frame.CALL, {"x": object()})


def test_keys_are_apart_for_each_client_and_purpose() -> None:
    keys = {signing.client_key(MASTER, f"c{n}") for n in range(100)}
    assert len(keys) == 100
    assert all(len(key) == signing.KEY_BYTES for key in keys)
    macs = {signing.mac(KEY, label, b"data") for label in (frame.CALL, frame.REPLY, frame.FUNCTION)}
    assert len(macs) == 3
    assert len({signing.new_key() for _ in range(100)}) == 100


def test_mac_stays_right_when_many_keys_have_been_used() -> None:
    before = signing.mac(KEY, frame.CALL, b"data")
    for n in range(2000):
        signing.mac(n.to_bytes(32, "big"), frame.CALL, b"")
    assert signing.mac(KEY, frame.CALL, b"data") == before
    assert signing.verify(KEY, frame.CALL, b"data", before)


def test_content_digest_is_sha256_in_hex() -> None:
    assert signing.content_digest(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert signing.content_digest(memoryview(b"ab")) == signing.content_digest(b"ab")
