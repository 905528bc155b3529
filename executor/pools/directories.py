"""Private directories of a pool: sockets, keys and logs in one, large values in shared memory in another.

Each is 0700 and holds a locked file for as long as its client or supervisor lives, so that what a power cut or a
``kill -9`` of everything left behind is known as such, and swept by the next pool.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from executor.pools.processes import remove_tree

__all__ = ["Directories", "make_directories"]

_PREFIX = "ke-"
_LOCK = ".lock"
_SHARED_MEMORY = Path("/dev/shm")

#: A directory younger than this may not have its lock yet.
_YOUNG_S = 60.0


@dataclass(frozen=True)
class Directories:
    """The directories of one pool.

    Attributes:
        private: Configuration, keys, socket, logs.
        shared: In shared memory, for large values; None where the system has none.
        locks: Open files that say somebody lives here; the supervisor inherits them.
    """

    private: Path
    shared: Path | None
    locks: tuple[int, ...]

    @property
    def paths(self) -> list[str]:
        """Those that exist, as text."""
        return [str(path) for path in (self.private, self.shared) if path is not None]

    def unlock(self) -> None:
        """Leave the locks to the supervisor."""
        for fd in self.locks:
            os.close(fd)

    def remove(self) -> None:
        """Remove what is still there."""
        for path in self.paths:
            remove_tree(path)


def make_directories(runtime: Path | None = None) -> Directories:
    """Make the directories of a new pool, and sweep those of dead ones.

    Args:
        runtime: Where the private one goes, e.g. ``$XDG_RUNTIME_DIR``; default the temporary directory.

    Raises:
        OSError: The directory cannot be made.
    """
    ident = f"{_PREFIX}{secrets.token_hex(6)}"
    base = runtime if runtime is not None and os.access(runtime, os.W_OK) else Path(tempfile.gettempdir())
    private, lock = _make(base, ident)
    locks = [lock]
    shared = None
    if os.access(_SHARED_MEMORY, os.W_OK):
        shared, lock = _make(_SHARED_MEMORY, ident)
        locks.append(lock)
    return Directories(private, shared, tuple(locks))


def _make(base: Path, ident: str) -> tuple[Path, int]:
    _sweep(base)
    directory = base / ident
    directory.mkdir(mode=0o700)
    lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return directory, lock


def _sweep(base: Path) -> None:
    """Remove our own directories there whose owners are gone."""
    for directory in base.glob(f"{_PREFIX}*"):
        if _is_abandoned(directory):
            remove_tree(str(directory))


def _is_abandoned(directory: Path) -> bool:
    try:
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or time.time() - found.st_mtime < _YOUNG_S:
            return False
        return not _is_locked(directory / _LOCK)
    except OSError:
        return False


def _is_locked(path: Path) -> bool:
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
