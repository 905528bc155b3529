"""Segments: many byte strings in one, and nothing but ValueError where they are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.wire import segments

lists_of_bytes = st.lists(st.binary(max_size=50), max_size=30)


@given(lists_of_bytes)
def test_segments_split_to_what_was_joined(parts: list[bytes]) -> None:
    joined = segments.join(parts)
    assert [bytes(part) for part in segments.split(joined)] == parts
    assert [bytes(part) for part in segments.split(memoryview(joined))] == parts


@given(st.binary(max_size=200))
def test_segments_of_random_bytes_are_a_value_error_or_nothing_lost(data: bytes) -> None:
    try:
        parts = segments.split(data)
    except ValueError:
        return
    assert segments.join([bytes(part) for part in parts]) == data


@given(lists_of_bytes.filter(bool), st.data())
def test_segments_refuse_every_truncation(parts: list[bytes], data: st.DataObject) -> None:
    joined = segments.join(parts)
    length = data.draw(st.integers(0, len(joined) - 1))
    with pytest.raises(ValueError, match="segments"):
        segments.split(joined[:length])


@given(lists_of_bytes, st.binary(min_size=1, max_size=8))
def test_segments_refuse_bytes_behind_them(parts: list[bytes], more: bytes) -> None:
    with pytest.raises(ValueError, match="segments"):
        segments.split(segments.join(parts) + more)


def test_segments_that_announce_billions_allocate_nothing() -> None:
    with pytest.raises(ValueError, match="4294967295 announced"):
        segments.split(b"\xff\xff\xff\xff" + b"\0" * 64)


def test_segments_are_views_of_the_whole() -> None:
    joined = segments.join([b"abc", b"", b"d"])
    assert all(part.obj is joined for part in segments.split(joined))


def test_segments_without_any_have_only_a_count() -> None:
    assert segments.join([]) == b"\0\0\0\0"
    assert segments.split(b"\0\0\0\0") == []
