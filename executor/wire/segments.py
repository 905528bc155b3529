"""Many byte strings in one: ``count u32 | length u32 * count | data``, little endian."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from itertools import accumulate, pairwise

#: A segment's length is a u32: larger values travel out of band (see ``stores``).
MAX_SEGMENT_BYTES = 2**32 - 1
_COUNT = struct.Struct("<I")


def join(segments: Sequence[bytes]) -> bytes:
    """Join byte strings, each under :data:`MAX_SEGMENT_BYTES`.

    Raises:
        OverflowError: A segment is too long.
    """
    lengths = array("I", map(len, segments))
    return b"".join((_COUNT.pack(len(segments)), lengths.tobytes(), *segments))


def split(data: bytes | memoryview) -> list[memoryview]:
    """The byte strings again, as views into ``data``.

    Raises:
        ValueError: The lengths do not add up: truncated or not segments at all.
    """
    view = memoryview(data)
    if len(view) < 4:
        raise ValueError("segments are shorter than their count")
    (count,) = _COUNT.unpack_from(view)
    start = 4 + 4 * count
    if len(view) < start:
        raise ValueError(f"segments: {count} announced in {len(view)} bytes")
    lengths = array("I")
    lengths.frombytes(view[4:start])
    ends = list(accumulate(lengths, initial=start))
    if ends[-1] != len(view):
        raise ValueError(f"segments: {len(view)} bytes, expected {ends[-1]}")
    return [view[a:b] for a, b in pairwise(ends)]
