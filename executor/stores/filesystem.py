"""Large values on a disk that client and workers share: each stored once, under the hash of its content.

::

    directory/9f/9f86d081884c…   a blob, never changed once it is there
    directory/tmp-…              being written, or being swept
    directory/swept              its time says when the last sweep began

A blob that is there already is not written again, only touched. So blobs belong to nobody: ``delete`` leaves them,
and :meth:`SharedDiskStore.sweep` removes what has not been used for some time. Clients see to it (``keep``): each
touches what its open calls need, and one of them sweeps.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from urllib.parse import quote

from executor.stores import files
from executor.stores.base import (
    BlobRef,
    Data,
    SideHash,
    check_digest,
    check_ref,
    damaged,
    flat,
    missing,
    new_buffer,
    sha256,
    unique_name,
)

_GONE = "It was swept after not being used for some time, or this machine does not see the same disk."
_TEMPORARY, _SWEPT = "tmp-", "swept"
_TEMPORARY_NAME = re.compile(r"tmp-[0-9a-f]{32}")
_BLOB_NAME = re.compile(r"[0-9a-f]{64}")
#: What nobody has written, read or kept for so long goes, in seconds: a week.
UNUSED_S = 7 * 24 * 3600.0
#: At most so often one of all clients looks for it, in seconds.
SWEEP_EVERY_S = 3600.0
#: Pauses before looking again for a blob that is not there, in seconds: a sweep may just have taken it aside to look at
#: it. That takes microseconds, but the sweeping process may be kept from running in the middle.
_LOOK_AGAIN_S = (0.01, 0.05, 0.25, 0.75)


class SharedDiskStore:
    """Blobs by content on a file system, verified whenever they are read.

    Safe under concurrent writers, readers and sweeps, also from several machines: files appear by ``rename``.

    Args:
        path: Directory; made with mode 0700 if there is none.
        create: Make it if there is none.

    Raises:
        OSError: It cannot be made or opened.
    """

    def __init__(self, path: str, *, create: bool = True) -> None:
        self.path = os.path.abspath(path)
        self.locator = f"file://{quote(self.path)}"
        self._directory = files.open_directory(self.path, create=create)

    def put(self, data: Data, *, hashed: bool = True) -> BlobRef:
        """Write a file unless it is there; the reference always has the digest. See :meth:`BlobStore.put`."""
        view = flat(data)
        digest = sha256(view)
        try:
            if not self._touched(digest, view.nbytes):
                self._write(digest, view)
        except OSError as error:
            files.raise_clearly(error, self.path, view.nbytes)
        return BlobRef("file", digest, view.nbytes, digest)

    def get(self, ref: BlobRef, *, last: bool = False) -> memoryview:
        """Read a file and verify it; see :meth:`BlobStore.get`. ``last`` is ignored: others may hold the same."""
        name = check_ref(ref, "file", by_digest=True)
        descriptor = self._open(ref, _place(name))
        try:
            if os.fstat(descriptor).st_size != ref.size:
                raise damaged(ref, self.path)
            view, digest = new_buffer(ref.size), SideHash()
            files.read_into(descriptor, view, digest.add)
            self._touch_open(descriptor)
        finally:
            os.close(descriptor)
        check_digest(ref._replace(digest=name), digest.hexdigest(), self.path)
        return view

    def delete(self, refs: Iterable[BlobRef]) -> None:
        """Nothing: a blob may be another call's as well. Lifetime is the matter of :meth:`sweep`."""

    def keep(self, refs: Iterable[BlobRef]) -> None:
        """Touch blobs, and sweep what has not been used for :data:`UNUSED_S`; see :meth:`ExpiringStore.keep`."""
        for ref in refs:
            self._touched(check_ref(ref, "file", by_digest=True), ref.size)
        if self._sweep_is_due():
            self.sweep(UNUSED_S)

    def sweep(self, older_than_s: float) -> int:
        """Remove what has not been written or read for ``older_than_s`` seconds; returns how many blobs went.

        A blob is taken aside first and looked at again, so that one which a writer has just found there stays.
        """
        deadline = time.time() - older_than_s
        return sum(self._swept(place, deadline) for place in self._places())

    def close(self) -> None:
        """Close the directory; blobs stay."""
        descriptor, self._directory = self._directory, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _write(self, digest: str, view: memoryview) -> None:
        temporary = _TEMPORARY + unique_name()
        files.write_new(temporary, view, self._directory)
        try:
            try:
                os.mkdir(digest[:2], files.DIRECTORY_MODE, dir_fd=self._directory)
            except FileExistsError:
                pass
            self._rename(temporary, _place(digest))
        except BaseException:
            files.unlink(temporary, self._directory)
            raise

    def _touched(self, digest: str, size: int) -> bool:
        """Whether the blob is there, with a fresh time of use."""
        try:
            os.utime(_place(digest), dir_fd=self._directory)
            return os.stat(_place(digest), dir_fd=self._directory).st_size == size
        except FileNotFoundError:
            return False

    def _touch_open(self, descriptor: int) -> None:
        try:
            os.utime(descriptor)
        except OSError:  # a disk mounted read-only: the writers keep the blob alive
            pass

    def _open(self, ref: BlobRef, place: str) -> int:
        for pause_s in (*_LOOK_AGAIN_S, 0.0):
            try:
                return os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
            except FileNotFoundError:
                time.sleep(pause_s)
        raise missing(ref, self.path, _GONE)

    def _sweep_is_due(self) -> bool:
        """Whether nobody has begun a sweep of late; from now on, somebody has."""
        try:
            if time.time() - os.stat(_SWEPT, dir_fd=self._directory).st_mtime < SWEEP_EVERY_S:
                return False
            os.utime(_SWEPT, dir_fd=self._directory)
        except FileNotFoundError:
            try:
                files.write_new(_SWEPT, memoryview(b""), self._directory)
            except FileExistsError:  # another client begins just now
                return False
        return True

    def _places(self) -> Iterator[str]:
        """What may be swept: nothing that only looks as if it were ours, as the directory may be the user's own."""
        for entry in os.listdir(self._directory):
            if _TEMPORARY_NAME.fullmatch(entry):
                yield entry
            elif len(entry) == 2:
                yield from (_place(name) for name in self._blobs(entry))

    def _blobs(self, entry: str) -> list[str]:
        try:
            names = os.listdir(os.path.join(self.path, entry))
        except NotADirectoryError:
            return []
        return [name for name in names if name.startswith(entry) and _BLOB_NAME.fullmatch(name)]

    def _swept(self, place: str, deadline: float) -> bool:
        try:
            if os.stat(place, dir_fd=self._directory).st_mtime >= deadline:
                return False
            aside = _TEMPORARY + unique_name()
            self._rename(place, aside)
            if os.stat(aside, dir_fd=self._directory).st_mtime >= deadline:
                self._rename(aside, place)
                return False
        except FileNotFoundError:  # another sweep was quicker
            return False
        files.unlink(aside, self._directory)
        return not place.startswith(_TEMPORARY)

    def _rename(self, source: str, target: str) -> None:
        os.rename(source, target, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def __repr__(self) -> str:
        return f"<SharedDiskStore {self.path}>"


def _place(digest: str) -> str:
    return f"{digest[:2]}/{digest}"
