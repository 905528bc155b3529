"""Reading and writing blob files by directory descriptor: what both directory stores share."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import NoReturn

#: Only the owner reads and writes blobs.
FILE_MODE, DIRECTORY_MODE = 0o600, 0o700
_READ_BYTES = 8 * 1024 * 1024


def open_directory(path: str, *, create: bool) -> int:
    """Descriptor of a directory, made with mode 0700 if there is none; its last part may not be a symlink.

    Raises:
        OSError: It is not there (and not to be made), not a directory, or not accessible.
    """
    if create:
        try:
            os.mkdir(path, DIRECTORY_MODE)
        except FileExistsError:
            pass
        except FileNotFoundError as error:
            parent = os.path.dirname(path)
            said = (
                f"{parent} is not there, in which a directory for large values is to be made. Mount it, or mkdir -p it"
            )
            raise FileNotFoundError(error.errno, said, path) from error
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def write_new(name: str, data: memoryview, directory: int) -> None:
    """Write a file that does not exist yet; nothing of it stays behind on failure.

    One ``write`` per 2 GiB: 64 MiB to tmpfs take 29 ms, by ``mmap`` 76 (a page fault for each 4 KiB), with
    ``posix_fallocate`` first 39, in pieces of 1 MiB 30.

    Raises:
        OSError: No space, or no access.
    """
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE, dir_fd=directory)
    try:
        written = 0
        while written < data.nbytes:
            written += os.write(descriptor, data[written:])
    except BaseException:
        os.unlink(name, dir_fd=directory)
        raise
    finally:
        os.close(descriptor)


def read_into(descriptor: int, buffer: memoryview, received: Callable[[memoryview], object] | None = None) -> None:
    """Fill a buffer from the start of a file.

    Args:
        descriptor: Of the file.
        buffer: As long as the file; what a file that has just been cut short lacks stays zero.
        received: Called with each piece of the buffer that has been filled.
    """
    filled = 0
    while filled < buffer.nbytes:
        piece = buffer[filled : filled + _READ_BYTES]
        count = os.preadv(descriptor, [piece], filled)
        if count == 0:
            break
        filled += count
        if received is not None:
            received(piece[:count])


def unlink(name: str, directory: int) -> None:
    """Remove a file that may be gone already."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass


def raise_clearly(error: OSError, path: str, size: int) -> NoReturn:
    """Raise a failed write again, with what was tried and what helps.

    Raises:
        OSError: Of the same kind and ``errno``.
    """
    free = _free_bytes(path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        said = f"no space for a value of {size} bytes ({free} bytes free); free some, or name a larger directory"
    else:
        said = f"a value of {size} bytes cannot be stored: {error.strerror}"
    raise OSError(error.errno, said, path) from error


def _free_bytes(path: str) -> int | str:
    try:
        status = os.statvfs(path)
    except OSError:
        return "unknown"
    return status.f_bavail * status.f_frsize
