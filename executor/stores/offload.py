"""Values to bytes and references: large parts go to a store, the rest stays in the message.

::

    value ──► pickle (protocol 5) ─┬─ at most INLINE_BYTES ──► data          in the message
                                   └─ larger ────────────────► refs[0], marked "pickle"; data is empty
              buffers of OUT_OF_BAND_BYTES and more ─────────► refs[…]       in their order

References travel in the signed header. One to a pickle always has a digest, so that nothing is unpickled that
was not signed for; buffers are data, and need none where the store is private (:mod:`.scratch`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from executor.errors import BlobMissing
from executor.stores.base import BlobRef, BlobStore
from executor.wire import pickling

if TYPE_CHECKING:
    from pickle import PickleBuffer

#: A pickle up to this size stays in the message. Base64, JSON and the queue against storing and fetching a blob, best
#: of thirty: 16 KiB 0.45 ms, 0.44 in Redis, 0.09 in shared memory; 64 KiB 1.4, 0.53, 0.16; 256 KiB 3.3, 1.0, 0.53.
#: Below, a message that needs nothing else is worth more than half a millisecond.
INLINE_BYTES = 64 * 1024
_PICKLE = "pickle"


class Packed(NamedTuple):
    """A value ready to travel.

    Attributes:
        data: The pickle, or empty if it is in the store.
        refs: JSON-able; in the order that :func:`unpacked` needs.
    """

    data: bytes
    refs: list[list[Any]]


def packed(value: object, store: BlobStore | None, threshold: int = INLINE_BYTES) -> Packed:
    """Pickle a value, its large parts into a store.

    Args:
        value: The object.
        store: Where large parts go; None keeps all in the bytes.
        threshold: The largest pickle in bytes that stays in the message.

    Raises:
        Exception: Whatever pickling or the store raised; nothing stays in the store then.
    """
    if store is None:
        return Packed(pickling.dumps(value), [])
    buffers: list[PickleBuffer] = []
    data = pickling.dumps(value, buffers)
    if not buffers and len(data) <= threshold:
        return Packed(data, [])
    return _stored(data, buffers, store, threshold)


def unpacked(data: bytes | memoryview, refs: Sequence[Any], store: BlobStore | None, *, last: bool = False) -> Any:
    """The value again; only after the signature over ``data`` and ``refs`` has been verified.

    Args:
        data: From :func:`packed`.
        refs: From :func:`packed`.
        store: The same store, opened on this side.
        last: Nobody will unpack these references again: they may go at once.

    Raises:
        BlobMissing, BadSignature: From the store.
        ValueError: A reference is malformed.
        Exception: From unpickling.
    """
    if not refs:
        return pickling.loads(data)
    if store is None:
        raise BlobMissing("A large value lies in a blob store, and this side has none. Give both sides the same store.")
    pickle_ref, buffer_refs = _split(refs)
    if pickle_ref is not None:
        data = store.get(pickle_ref, last=last)
    return pickling.loads(data, [store.get(ref, last=last) for ref in buffer_refs])


def blob_refs(refs: Iterable[Any]) -> list[BlobRef]:
    """The references of :class:`Packed`, as :meth:`BlobStore.delete` takes them.

    Raises:
        ValueError: One is malformed.
    """
    return [BlobRef.from_json(ref[:4] if isinstance(ref, list) else ref) for ref in refs]


def _stored(data: bytes, buffers: list[PickleBuffer], store: BlobStore, threshold: int) -> Packed:
    refs: list[BlobRef] = []
    large = len(data) > threshold
    try:
        if large:
            refs.append(store.put(data, hashed=True))
        for buffer in buffers:
            refs.append(store.put(buffer))  # a comprehension would lose those before a failure
    except BaseException:
        store.delete(refs)
        raise
    listed = [ref.to_json() for ref in refs]
    if large:
        listed[0].append(_PICKLE)
    return Packed(b"" if large else data, listed)


def _split(refs: Sequence[Any]) -> tuple[BlobRef | None, list[BlobRef]]:
    first = refs[0]
    if not isinstance(first, list) or first[4:] != [_PICKLE]:
        return None, [BlobRef.from_json(ref) for ref in refs]
    pickle_ref = BlobRef.from_json(first[:4])
    if pickle_ref.digest is None:
        raise ValueError("A reference to a pickle has no digest; it was not unpickled.")
    return pickle_ref, [BlobRef.from_json(ref) for ref in refs[1:]]
