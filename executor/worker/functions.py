"""Functions for children: fetched from the broker once, verified, kept."""

from __future__ import annotations

import logging
from collections import OrderedDict
from time import monotonic
from typing import TYPE_CHECKING, Any

from executor.broker import keys
from executor.errors import BadSignature, VersionMismatch
from executor.wire import frame, signing
from executor.worker import pipe

if TYPE_CHECKING:
    from executor.worker.child_process import ChildProcess
    from executor.worker.settler import Settler

logger = logging.getLogger(__name__)

#: Bytes of functions kept in the parent.
KEPT_BYTES = 64 * 1024 * 1024
#: Pause before a function is asked for again while the broker is away, in seconds.
RETRY_S = 0.2


class FunctionSource:
    """Answers children's NEED. Used by the crew thread only.

    Args:
        settler: Whose connection is used.
        master: The master key.
    """

    def __init__(self, settler: Settler, master: bytes) -> None:
        self._settler = settler
        self._master = master
        self._known: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._size = 0
        self._owed: list[tuple[ChildProcess, str, Any]] = []
        self._next_try = 0.0

    def send(self, child: ChildProcess, digest: str, job: Any) -> None:
        """Send a child the function that it needs for its job; later, if the broker is away."""
        self._owed.append((child, digest, job))
        self.work()

    def work(self) -> None:
        """Answer what is still owed."""
        if not self._owed or monotonic() < self._next_try:
            return
        owed, self._owed = self._owed, []
        for child, digest, job in owed:
            if child.job is not job or job is None:
                continue  # the child has died meanwhile
            try:
                data = self._get(job.envelope.client, digest)
            except Exception as error:
                logger.warning("The broker is away (%s); a function waits.", error)
                self._next_try = monotonic() + RETRY_S
                self._owed.append((child, digest, job))
                continue
            child.send(pipe.FUNCTION, b"\1" if data is not None else b"\0", data or b"")

    def next_try_s(self) -> float | None:
        """Seconds until :meth:`work` should be called again, or None."""
        return max(0.0, self._next_try - monotonic()) if self._owed else None

    def _get(self, client: str, digest: str) -> bytes | None:
        known = self._known.get((client, digest))
        if known is not None:
            self._known.move_to_end((client, digest))
            return known
        sealed = self._settler.get(keys.function(client, digest))
        data = None if sealed is None else self._opened(client, digest, sealed)
        if data is not None:
            self._keep(client, digest, data)
        return data

    def _opened(self, client: str, digest: str, sealed: bytes) -> bytes | None:
        try:
            data = bytes(frame.opened(signing.client_key(self._master, client), frame.FUNCTION, sealed).payload)
        except (BadSignature, VersionMismatch) as error:
            logger.error("The function %s of client %s was not used: %s", digest, client, error)
            return None
        return data if signing.content_digest(data) == digest else None

    def _keep(self, client: str, digest: str, data: bytes) -> None:
        self._known[client, digest] = data
        self._size += len(data)
        while self._size > KEPT_BYTES and len(self._known) > 1:
            _, oldest = self._known.popitem(last=False)
            self._size -= len(oldest)
