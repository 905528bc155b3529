"""From a reply to the futures it is about: verify, open, settle each call once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from executor.dispatch.lanes import outcome_segments
from executor.errors import BadSignature, FunctionMissing, KubeExecutorError, PoolBroken, VersionMismatch
from executor.stores.offload import unpacked
from executor.wire import frame, outcome, pickling

if TYPE_CHECKING:
    from executor.dispatch.dispatcher import Dispatcher
    from executor.dispatch.lanes import Batch, Lane

log = logging.getLogger("executor")


class Settling:
    """Settles the calls of one client.

    Args:
        client: Whose ledger says which calls are out.
    """

    def __init__(self, client: Dispatcher) -> None:
        self._client = client

    def take(self, value: bytes) -> None:
        """Take one entry of the reply stream, whatever it is."""
        try:
            header, payload = frame.opened(self._client.frames.key, frame.REPLY, value)
        except (BadSignature, VersionMismatch) as error:
            log.warning("Ignored a reply: %s", error)
            return
        try:
            self._on_reply(header, payload)
        except Exception:
            log.exception("Ignored a reply that makes no sense.")

    def _on_reply(self, header: dict[str, Any], payload: memoryview) -> None:
        if header["kind"] == "broken":
            self._client.break_with(PoolBroken(header.get("message", "A worker could not start.")))
            return
        batch = self._client.ledger.get(header["root"])
        if batch is None:
            return  # settled before, or cancelled as a whole
        if header["kind"] == "split":
            batch.parts.append((header["at"], header["part"]))
            return
        self._deliver(batch, header, payload)
        self._client.after(batch)

    def _deliver(self, batch: Batch, header: dict[str, Any], payload: memoryview) -> None:
        """Settle the calls that a reply is about, each once: some may have been cancelled, or ran a second time."""
        first, number = header["first"], header["n"]
        whole = batch.settle(first, number)
        fresh = range(number) if whole else [n for n in range(number) if batch.settle(first + n, 1)]
        if ns := header.get("ns"):
            batch.lane.durations.add(ns / 1e9, number)
        try:
            opened = self._opened(batch.lane, header, payload)
        except BaseException as failure:  # code of the user's runs here, which must not end the loop thread
            log.debug("A reply could not be opened.", exc_info=failure)
            # a store that is away, or a blob that is missing, says so itself
            said = failure if isinstance(failure, KubeExecutorError) else pickling.load_error("A result", failure)
            for offset in fresh:
                batch.lane.on_outcome(batch, first + offset, said, None)
            return
        if header["kind"] == "values":
            batch.lane.missed_function = False
            for start, values in [(0, opened)] if whole else [(offset, [opened[offset]]) for offset in fresh]:
                batch.lane.on_values(batch, first + start, values)
            return
        for offset in fresh:
            self._settle_one(batch, first + offset, opened[offset], header.get("bufs"), offset)

    def _opened(self, lane: Lane, header: dict[str, Any], payload: memoryview) -> list[Any]:
        """The values of a reply, or its outcomes, still closed."""
        number = header["n"]
        if header["kind"] != "values":
            return [*outcome_segments(payload, number)]
        values: list[Any] = unpacked(payload, header.get("bufs") or [], lane.store, last=True)
        if len(values) != number:
            raise ValueError(f"a reply announces {number} values and holds {len(values)}")
        return values

    def _settle_one(self, batch: Batch, index: int, segment: memoryview, buffers: Any, offset: int) -> None:
        lane = batch.lane
        if bytes(segment[:1]) == outcome.CANCELLED:
            lane.cancel_index(batch, index, None)
            return
        error, value = lane.opened(segment, buffers[offset] if buffers else [])
        if isinstance(error, FunctionMissing) and not batch.restored:
            lane.missed_function = True  # batches made from now on have it stored again; a second time is the user's
            self._client.connected().forget(lane.function.digest)
            lane.put_back(batch, index)
            self._client.wake(lane)
            return
        lane.missed_function = False
        lane.on_outcome(batch, index, error, value)
