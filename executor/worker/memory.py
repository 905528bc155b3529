"""Memory of the container that this process is in, as its cgroup has it: version 2, or version 1."""

from __future__ import annotations

#: Where a cgroup counts what the kernel killed in it.
_EVENTS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
#: Version 1 writes "no limit" as a number near the largest there is.
_NO_LIMIT = 1 << 60


def oom_kills() -> int:
    """How often the kernel has killed for memory here; 0 where that cannot be read."""
    for path in _EVENTS:
        try:
            with open(path, encoding="ascii") as events:
                fields = dict(line.split() for line in events)
            return int(fields.get("oom_kill", 0))
        except (OSError, ValueError):
            pass
    return 0


def limit_bytes() -> int | None:
    """How much may be used here, in bytes; None without a limit, or where that cannot be read."""
    for path in _LIMITS:
        try:
            with open(path, encoding="ascii") as limit:
                found = limit.read().strip()
            return int(found) if found != "max" and int(found) < _NO_LIMIT else None
        except (OSError, ValueError):
            pass
    return None
