"""A signed frame: what a call, a reply or a function looks like as bytes.

::

    "KE" | version u8 | 0 u8 | header length u32 | header (JSON, UTF-8) | payload | MAC (32)

The MAC is over everything before it, and verified before anything is parsed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from executor.errors import BadSignature, VersionMismatch
from executor.wire import signing

#: Version of the wire format; a worker of another version answers with VersionMismatch.
PROTOCOL = 1
_PREFIX = struct.Struct("<2sBxI")
_MAGIC = b"KE"

#: What a frame is for; part of what is signed.
CALL, REPLY, FUNCTION = "call", "reply", "function"


class Frame(NamedTuple):
    """An opened frame."""

    header: dict[str, Any]
    payload: memoryview


def sealed(key: bytes, label: str, header: Mapping[str, Any], payload: bytes | memoryview = b"") -> bytes:
    """Build and sign a frame.

    Args:
        key: The client's key (:func:`signing.client_key`).
        label: :data:`CALL`, :data:`REPLY` or :data:`FUNCTION`.
        header: JSON-able.
        payload: Any bytes; pickles stay closed until :func:`opened` has verified them.
    """
    text = json.dumps(header, separators=(",", ":")).encode()
    body = b"".join((_PREFIX.pack(_MAGIC, PROTOCOL, len(text)), text, payload))
    return body + signing.mac(key, label, body)


def opened(key: bytes, label: str, data: bytes | memoryview) -> Frame:
    """Verify a frame and take it apart.

    Raises:
        VersionMismatch: The frame is of another protocol version (its bytes were not looked at further).
        BadSignature: Truncated, altered, or signed with another key or for another purpose.
    """
    view = memoryview(data)
    if len(view) < _PREFIX.size + signing.MAC_BYTES:
        raise BadSignature(f"A message of {len(view)} bytes is too short to be one of ours.")
    magic, version, length = _PREFIX.unpack_from(view)
    if magic != _MAGIC:
        raise BadSignature("A message does not begin like one of ours; it was not unpickled.")
    if version != PROTOCOL:
        raise VersionMismatch(
            f"A message speaks wire protocol {version}, this side speaks {PROTOCOL}. "
            "Install the same kube-executor on client and workers."
        )
    body = view[: -signing.MAC_BYTES]
    if not signing.verify(key, label, body, view[-signing.MAC_BYTES :]):
        raise BadSignature(
            f"A {label} message has no valid signature under this executor's key; it was not unpickled. "
            "Either client and workers hold different keys, or somebody else writes to this broker."
        )
    start = _PREFIX.size
    if start + length > len(body):
        raise BadSignature("A message's header is longer than the message.")
    return Frame(json.loads(bytes(body[start : start + length])), body[start + length :])
