"""Scratch space in shared memory: how large values pass between processes of one machine.

A blob is a file of its own on tmpfs. The writer copies into it once; the reader maps it privately, so that it costs
nothing until it is touched, and writing to it copies only the pages written to. Who maps a file keeps it alive:
it may be deleted at once.

Measured on 64 MiB: ``put`` 29 ms, ``get`` and reading all of it 9 ms, ``get`` and writing all of it 70 ms (shared
mappings would take 11, but then a forked child's writes would show in its parent).
"""

from __future__ import annotations

import mmap
import os
import stat
import sys
from collections.abc import Iterable
from urllib.parse import quote
from weakref import WeakSet

from executor.stores import files
from executor.stores.base import (
    BlobRef,
    Data,
    SideHash,
    check_digest,
    check_ref,
    flat,
    missing,
    new_buffer,
    sha256,
    unique_name,
)

#: Smaller blobs are read.
_MAP_BYTES = 1024 * 1024
#: Until Python 3.13 each mapping keeps a file descriptor open, of which a process may have but 1,024; beyond this
#: many, blobs are read (64 MiB: 50 ms).
_MAX_MAPPINGS = 128
_FLAGS: dict[str, bool] = {"trackfd": False} if sys.version_info >= (3, 13) else {}

_GONE = "It was deleted when its call ended, or the executor that made it has been shut down."


class ScratchStore:
    """Blobs in a directory that only this user can enter.

    References carry no digest unless asked for: who may write there may do anything to our processes anyway.

    Args:
        path: Directory, best on tmpfs, e.g. ``/dev/shm/ke-1234``.
        create: Make it if there is none.

    Raises:
        PermissionError: It belongs to another user, or others may enter it.
        OSError: It cannot be made or opened.
    """

    def __init__(self, path: str, *, create: bool = True) -> None:
        self.path = os.path.abspath(path)
        self.locator = f"shm://{quote(self.path)}"
        self._mappings: WeakSet[mmap.mmap] = WeakSet()
        self._directory = files.open_directory(self.path, create=create)
        try:
            self._check_private()
        except BaseException:
            self.close()
            raise

    def put(self, data: Data, *, hashed: bool = False) -> BlobRef:
        """Write a file; see :meth:`BlobStore.put`."""
        view = flat(data)
        ref = BlobRef("shm", unique_name(), view.nbytes, sha256(view) if hashed else None)
        try:
            files.write_new(ref.name, view, self._directory)
        except OSError as error:
            files.raise_clearly(error, self.path, view.nbytes)
        return ref

    def get(self, ref: BlobRef, *, last: bool = False) -> memoryview:
        """Map a file privately, or read it if it is to be verified; see :meth:`BlobStore.get`.

        What is verified is read, not mapped: a mapped page that nobody has written to follows the file.
        """
        name = check_ref(ref, "shm")
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        except FileNotFoundError:
            raise missing(ref, self.path, _GONE) from None
        try:
            if os.fstat(descriptor).st_size != ref.size:
                raise missing(ref, self.path, "There is a file of that name and of another size.")
            view = self._mapped(descriptor, ref) if ref.digest is None else self._read(descriptor, ref)
        finally:
            os.close(descriptor)
        if last:
            files.unlink(name, self._directory)
        return view

    def delete(self, refs: Iterable[BlobRef]) -> None:
        """Unlink files; views that exist stay valid. See :meth:`BlobStore.delete`."""
        for ref in refs:
            files.unlink(check_ref(ref, "shm"), self._directory)

    def close(self) -> None:
        """Close the directory; files and views stay."""
        descriptor, self._directory = self._directory, -1
        if descriptor >= 0:
            os.close(descriptor)

    def remove(self) -> None:
        """Delete all blobs and the directory; for the one who made it. Views that exist stay valid."""
        for name in os.listdir(self._directory):
            files.unlink(name, self._directory)
        self.close()
        os.rmdir(self.path)

    def _check_private(self) -> None:
        status = os.fstat(self._directory)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise PermissionError(
                f"{self.path} belongs to user {status.st_uid} with mode {stat.S_IMODE(status.st_mode):o}; values are "
                f"passed only through a directory of user {os.geteuid()} with mode 700. Name another, or chmod 700 it."
            )

    def _mapped(self, descriptor: int, ref: BlobRef) -> memoryview:
        if ref.size < _MAP_BYTES or (not _FLAGS and len(self._mappings) >= _MAX_MAPPINGS):
            return self._read(descriptor, ref)
        mapping = mmap.mmap(descriptor, ref.size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE, **_FLAGS)
        self._mappings.add(mapping)
        return memoryview(mapping)

    def _read(self, descriptor: int, ref: BlobRef) -> memoryview:
        view = new_buffer(ref.size)
        if ref.digest is None:
            files.read_into(descriptor, view)
        else:
            digest = SideHash()
            files.read_into(descriptor, view, digest.add)
            check_digest(ref, digest.hexdigest(), self.path)
        return view

    def __repr__(self) -> str:
        return f"<ScratchStore {self.path}>"
