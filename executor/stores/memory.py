"""A store within one process, for tests and for workers that are threads."""

from __future__ import annotations

from collections.abc import Iterable

from executor.stores.base import BlobRef, Data, check_digest, check_ref, flat, missing, sha256, unique_name


class MemoryStore:
    """Blobs in a dictionary; nobody else sees them."""

    locator = "memory:"

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    def put(self, data: Data, *, hashed: bool = False) -> BlobRef:
        """Keep a copy; see :meth:`BlobStore.put`."""
        view = flat(data)
        ref = BlobRef("memory", unique_name(), view.nbytes, sha256(view) if hashed else None)
        self._blobs[ref.name] = bytes(view)
        return ref

    def get(self, ref: BlobRef, *, last: bool = False) -> memoryview:
        """A copy; see :meth:`BlobStore.get`."""
        name = check_ref(ref, "memory")
        try:
            blob = self._blobs.pop(name) if last else self._blobs[name]
        except KeyError:
            raise missing(ref, "the memory store", "It was deleted, or stored in another process.") from None
        view = memoryview(bytearray(blob))
        if ref.digest is not None:
            check_digest(ref, sha256(view), "the memory store")
        return view

    def delete(self, refs: Iterable[BlobRef]) -> None:
        """Forget blobs; see :meth:`BlobStore.delete`."""
        for ref in refs:
            self._blobs.pop(check_ref(ref, "memory"), None)

    def close(self) -> None:
        """Forget everything."""
        self._blobs.clear()

    def __len__(self) -> int:
        return len(self._blobs)

    def __repr__(self) -> str:
        return f"<MemoryStore: {len(self)} blobs>"
