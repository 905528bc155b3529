"""Builds what one client sends: signed frames in Celery envelopes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from executor.wire import envelope, frame, signing

if TYPE_CHECKING:
    from executor.dispatch.lanes import Batch
    from executor.wire.functions import PickledFunction

#: What a worker must run to open our pickles.
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


class CallFrames:
    """Signs for one client.

    Args:
        master: The executor's key.
        client: Id of the client.
    """

    def __init__(self, master: bytes, client: str) -> None:
        self.client = client
        self.key = signing.client_key(master, client)

    def function(self, function: PickledFunction) -> bytes:
        """A function as it is stored under its digest."""
        return frame.sealed(self.key, frame.FUNCTION, {"digest": function.digest, "client": self.client}, function.data)

    def envelope(self, batch: Batch, queue: str) -> str:
        """A batch as the text to publish."""
        options, cargo = batch.lane.options, batch.cargo
        header: dict[str, Any] = {
            "client": self.client,
            "root": batch.root,
            "n": cargo.count,
            "kind": cargo.kind,
            "star": cargo.star,
            "fn": batch.lane.function.digest,
            "timeout": options.timeout,
            "max_deliveries": options.max_deliveries,
            "py": PYTHON,
            "protocol": frame.PROTOCOL,
            "name": options.name,
            "bufs": cargo.buffers,
        }
        sealed = frame.sealed(self.key, frame.CALL, header, cargo.payload)
        return envelope.encoded(
            envelope.Envelope(self.client, batch.root, 0, cargo.count, queue, options.priority, (), sealed)
        )
