"""Four numbers that a parent and its child see at once: which call runs, and which may not start any more.

The child writes ``running`` and then reads ``limit`` before each call; the parent writes ``limit``, waits
:data:`SETTLE_S` and then reads ``running``. No lock: a child that is killed would leave it held, and it costs more than
a short call. Each number is one aligned word, so it is never torn; the wait is thousands of times longer than a store
takes to be seen by another core. Where the two still disagree (the child was preempted between its store and its
load) the child starts *less* than the parent believes, and its report says so.
"""

from __future__ import annotations

import mmap
import os
import tempfile

LIMIT, RUNNING, STARTED_NS, BATCH = 0, 1, 2, 3
_BYTES = 4 * 8

#: How long the parent waits between fencing calls off and looking which one runs, in seconds.
SETTLE_S = 0.0002


def new_file() -> int:
    """A file descriptor of fresh shared memory, not inheritable."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("kube-executor")
    else:
        fd, path = tempfile.mkstemp(prefix="ke-slots-")
        os.unlink(path)
    os.ftruncate(fd, _BYTES)
    return fd


def mapped(fd: int) -> memoryview:
    """The four numbers behind a file descriptor, signed 64 bits each."""
    return memoryview(mmap.mmap(fd, _BYTES)).cast("q")
