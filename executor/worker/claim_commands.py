"""The commands that claim messages, as bytes made once: only credit and tag change from one to the next."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from executor.broker import keys, scripts


class ClaimCommands:
    """What one worker sends for its lists.

    Args:
        worker: Its id.
        queues: Names of the queues, in the order in which they are looked into.
        lists: All their priority lists, most urgent first.
        digest: Of ``claim.lua``.
        block_s: How long an idle worker blocks on one list.
    """

    def __init__(self, worker: str, queues: Sequence[str], lists: Sequence[str], digest: str, block_s: float) -> None:
        names = [keys.inflight(worker), keys.tomb(worker), *lists]
        fixed = ["EVALSHA", digest, str(len(names)), *names, worker]
        self._head = b"*%d\r\n" % (len(fixed) + 3) + b"".join(map(_bulk, fixed))
        self._tail = _bulk(str(scripts.CLIENT_TTL_S))
        self._waits = [
            b"*6\r\n" + b"".join(map(_bulk, ["BLMOVE", q, keys.inbox(worker, q), "RIGHT", "LEFT", str(block_s)]))
            for q in queues
        ]

    def claim(self, credit: int, base: int) -> bytes:
        """Take what is there.

        Args:
            credit: How many messages at most.
            base: Number below the first tag.
        """
        return self._head + _number(credit) + _number(base) + self._tail

    def wait(self, turn: int) -> bytes:
        """Block on one of the queues, another one each turn."""
        return self._waits[turn % len(self._waits)]


@lru_cache(256)
def claim_commands(
    worker: str, queues: tuple[str, ...], lists: tuple[str, ...], digest: str, block_s: float
) -> ClaimCommands:
    """The same commands for the same worker and order of queues."""
    return ClaimCommands(worker, queues, lists, digest, block_s)


def _bulk(text: str) -> bytes:
    data = text.encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)


def _number(value: int) -> bytes:
    data = b"%d" % value
    return b"$%d\r\n%b\r\n" % (len(data), data)
