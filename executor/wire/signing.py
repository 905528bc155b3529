"""Keys and message authentication codes: HMAC-SHA256, one key for each client.

A client's key is derived from the executor's master key and the client's id, so that bytes signed for
one client are worth nothing to another.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

#: Bytes of a key and of a MAC (SHA-256).
KEY_BYTES = 32
MAC_BYTES = 32


def new_key() -> bytes:
    """A fresh random master key of :data:`KEY_BYTES` bytes."""
    return secrets.token_bytes(KEY_BYTES)


def client_key(master: bytes, client: str) -> bytes:
    """The signing key of one client, derived from the executor's master key."""
    return hmac.digest(master, b"client:" + client.encode(), "sha256")


def mac(key: bytes, label: str, data: bytes) -> bytes:
    """MAC of ``data`` for one purpose: the label keeps a reply from passing as a call.

    The label is folded into the key rather than the message, so that large messages are not copied.
    """
    return hmac.digest(_purpose_key(key, label), data, "sha256")


def verify(key: bytes, label: str, data: bytes | memoryview, claimed: bytes | memoryview) -> bool:
    """Whether ``claimed`` is the MAC of ``data``; takes constant time."""
    return hmac.compare_digest(hmac.digest(_purpose_key(key, label), data, "sha256"), claimed)


def content_digest(data: bytes | memoryview) -> str:
    """SHA-256 in hex: the name of a function or blob by its content."""
    return hashlib.sha256(data).hexdigest()


_purpose_keys: dict[tuple[bytes, str], bytes] = {}


def _purpose_key(key: bytes, label: str) -> bytes:
    known = _purpose_keys.get((key, label))
    if known is None:
        if len(_purpose_keys) > 1024:
            _purpose_keys.clear()
        known = _purpose_keys[key, label] = hmac.digest(key, b"label:" + label.encode(), "sha256")
    return known
