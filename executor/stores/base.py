"""Where large values lie while a call travels: the protocol of every blob store.

::

    put(bytes) ──► BlobRef ══ in the signed header of a frame ══► get(BlobRef) ──► memoryview

=============  ======================================  ==========================  ==================================
locator        class                                   name of a blob              lives
=============  ======================================  ==========================  ==================================
``memory:``    :class:`.memory.MemoryStore`            random                      with the object
``file://``    :class:`.filesystem.SharedDiskStore`    its SHA-256                 a week after its last use
``shm://``     :class:`.scratch.ScratchStore`          random                      until deleted
``az://``      :class:`.azure_store.AzureStore`        its SHA-256                 some days after its last use
(Redis)        ``executor.broker.redis_store``         random                      until deleted; TTL of a day
=============  ======================================  ==========================  ==================================

A reference comes from outside: stores check its shape and never let its name leave their directory or prefix.
All methods block, and may be called from any thread.
"""

from __future__ import annotations

import hashlib
import hmac
import mmap
import re
import secrets
import threading
from collections.abc import Iterable
from pickle import PickleBuffer
from typing import Any, NamedTuple, Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

from executor.errors import BadSignature, BlobMissing

#: Anything contiguous: bytes-like objects and protocol-5 buffers.
Data = bytes | bytearray | memoryview | PickleBuffer

_UNIQUE_NAME = re.compile(r"[0-9a-f]{32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
#: Memory is asked for in huge pages from this size on: 64 MiB are filled in 68 ms instead of 98.
_HUGE_BYTES = 4 * 1024 * 1024


class BlobRef(NamedTuple):
    """Says where a blob lies; small, and made of JSON values.

    Attributes:
        store: Kind of the store, e.g. ``"shm"``.
        name: Name within the store.
        size: Length in bytes.
        digest: SHA-256 in hex if the bytes are to be verified before they are handed out, else None.
    """

    store: str
    name: str
    size: int
    digest: str | None = None

    def to_json(self) -> list[Any]:
        """The list ``[store, name, size, digest]``."""
        return list(self)

    @classmethod
    def from_json(cls, value: Any) -> BlobRef:
        """Take a list from :meth:`to_json` apart, and check it.

        Raises:
            ValueError: It is no reference.
        """
        if not isinstance(value, list) or len(value) != 4:
            raise ValueError(f"A blob reference is a list of four, not {value!r}.")
        store, name, size, digest = value
        well_typed = isinstance(store, str) and isinstance(name, str) and type(size) is int and size >= 0
        if not well_typed or not (digest is None or (isinstance(digest, str) and _DIGEST.fullmatch(digest))):
            raise ValueError(f"A blob reference is [store, name, size, SHA-256 or null], not {value!r}.")
        return cls(store, name, size, digest)


@runtime_checkable
class BlobStore(Protocol):
    """Keeps byte strings under names. Thread-safe.

    Attributes:
        locator: What :func:`open_store` opens the same store from, in another process.
    """

    locator: str

    def put(self, data: Data, *, hashed: bool = False) -> BlobRef:
        """Store bytes; they are there for every other process when this returns.

        Args:
            data: The bytes; copied, so they may change afterwards.
            hashed: Have the digest in the reference even if this store would do without.

        Raises:
            OSError: No space (``errno.ENOSPC``) or no access.
            BrokerError: The server is full, or cannot be reached.
            StoreError: The store cannot be reached, or refuses.
        """
        ...

    def get(self, ref: BlobRef, *, last: bool = False) -> memoryview:
        """The bytes as a writable view that belongs to the caller alone.

        Args:
            ref: From :meth:`put`, here or in another process.
            last: Nobody will ask again: the blob may go at once.

        Raises:
            BlobMissing: It is not there (any more), or lies in a store of another kind.
            BadSignature: Its bytes are not those that were stored.
            ValueError: The reference is malformed.
        """
        ...

    def delete(self, refs: Iterable[BlobRef]) -> None:
        """Free blobs; those that are missing are passed over."""
        ...

    def close(self) -> None:
        """Let go of files and connections; blobs stay."""
        ...


@runtime_checkable
class ExpiringStore(BlobStore, Protocol):
    """A store from which blobs go by themselves, some time after they were last used."""

    def keep(self, refs: Iterable[BlobRef]) -> None:
        """Begin the time of these blobs anew, and clear away what is past its own, where the store does not itself.

        Clients do this each hour for the values of calls that have no outcome yet; those that are missing are
        passed over.

        Raises:
            OSError: The directory is not accessible.
            BrokerError: The server cannot be reached, or refuses.
        """
        ...


def open_store(locator: str, *, create: bool = True) -> BlobStore:
    """Open a store by its locator.

    Args:
        locator: ``memory:``, ``file:///directory`` (shared disk), ``shm:///dev/shm/directory`` (this machine) or
            ``az://account/container/prefix`` (Azure Blob Storage; credentials from the environment).
        create: Make the directory if there is none. Workers leave that to the client.

    Raises:
        ValueError: Unknown kind of store, or no absolute directory.
        OSError: The directory cannot be made or used; see the classes.
        StoreRefused: A package or credentials are missing.
    """
    from executor.stores import filesystem, memory, scratch  # they stand upon this module

    scheme, path = _split(locator)
    if scheme == "memory":
        return memory.MemoryStore()
    if scheme == "az":
        return _azure_store(locator)
    if scheme == "shm":
        return scratch.ScratchStore(path, create=create)
    return filesystem.SharedDiskStore(path, create=create)


def check_locator(locator: str) -> None:
    """Find out whether :func:`open_store` could open this, without touching disk or network.

    Raises:
        ValueError: Unknown kind of store, or malformed.
        StoreRefused: A package or credentials are missing.
    """
    if _split(locator)[0] == "az":
        _azure_store(locator)


def _split(locator: str) -> tuple[str, str]:
    """Scheme, and the directory where there is one."""
    url = urlsplit(locator)
    if url.scheme in ("memory", "az"):
        return url.scheme, ""
    if url.scheme not in ("file", "shm"):
        raise ValueError(
            f"No blob store is called {locator!r}; there are memory:, file:///dir, shm:///dev/shm/dir and "
            "az://account/container/prefix."
        )
    if url.netloc or not url.path.startswith("/"):
        raise ValueError(f"{locator!r} needs an absolute directory after three slashes: {url.scheme}:///dir.")
    return url.scheme, unquote(url.path)


def _azure_store(locator: str) -> BlobStore:
    from executor.stores.azure_locator import AzureLocator
    from executor.stores.azure_store import AzureStore

    return AzureStore(AzureLocator.parse(locator))


def flat(data: Data) -> memoryview:
    """A one-dimensional view of bytes.

    Raises:
        BufferError: The buffer is not contiguous.
    """
    return PickleBuffer(data).raw()


def unique_name() -> str:
    """A fresh name that cannot be guessed."""
    return secrets.token_hex(16)


def check_ref(ref: BlobRef, store: str, *, by_digest: bool = False) -> str:
    """The name of a reference, if it belongs to this kind of store and is harmless.

    Raises:
        BlobMissing: It belongs to another kind of store.
        ValueError: The name is not one that the store makes.
    """
    if ref.store != store:
        raise BlobMissing(
            f"A value of {ref.size} bytes lies in the {ref.store!r} store, and this side reads {store!r}. "
            "Give client and workers the same store.",
            {"ref": ref.to_json()},
        )
    if not (_DIGEST if by_digest else _UNIQUE_NAME).fullmatch(ref.name):
        raise ValueError(f"{ref.name!r} is not the name of a blob.")
    return ref.name


def missing(ref: BlobRef, where: str, cause: str) -> BlobMissing:
    """What :meth:`BlobStore.get` raises for a blob that is gone.

    Args:
        ref: The blob.
        where: Directory or server.
        cause: A sentence: why that happens and what helps.
    """
    return BlobMissing(f"A value of {ref.size} bytes is no longer in {where} ({ref.name}). {cause}", {"ref": [*ref]})


def damaged(ref: BlobRef, where: str) -> BadSignature:
    """What :meth:`BlobStore.get` raises for bytes that are not those stored."""
    return BadSignature(
        f"The {ref.size} bytes of {ref.name} in {where} are not those that were stored; they were not used. "
        "The storage is damaged, or somebody else writes to it.",
        {"ref": ref.to_json()},
    )


def check_digest(ref: BlobRef, computed: str, where: str) -> None:
    """Compare a digest with the one in the (signed) reference, if it has one.

    Raises:
        BadSignature: They differ.
    """
    if ref.digest is not None and not hmac.compare_digest(ref.digest, computed):
        raise damaged(ref, where)


def sha256(data: memoryview) -> str:
    """SHA-256 in hex; 64 MiB take 43 ms, without holding the GIL."""
    return hashlib.sha256(data).hexdigest()


class SideHash:
    """SHA-256 of pieces in order, each hashed in a thread while the next one is moved."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._running: threading.Thread | None = None

    def add(self, piece: memoryview) -> None:
        """Take the next piece; it must not change before :meth:`hexdigest`."""
        self._wait()
        if piece.nbytes < _HUGE_BYTES:
            self._hash.update(piece)
            return
        self._running = threading.Thread(target=self._hash.update, args=(piece,), daemon=True)
        self._running.start()

    def hexdigest(self) -> str:
        """The digest of all pieces."""
        self._wait()
        return self._hash.hexdigest()

    def _wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.join()


def new_buffer(size: int) -> memoryview:
    """Private, writable memory of ``size`` bytes that is about to be filled."""
    if size < _HUGE_BYTES:
        return memoryview(bytearray(size))
    area = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            area.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without them: slower, nothing else
            pass
    return memoryview(area)
