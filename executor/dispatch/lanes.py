"""Lanes: calls that may travel together, because function, pool and options are the same.

A lane is where calls wait in the client. The dispatcher asks how many are waiting and takes some of them as a
:class:`Cargo`; outcomes come back to the lane by index. There are two kinds: single calls with a future each
(here), and the items of a ``map``, which have none (``map_lane.py``).
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from executor.dispatch.batcher import MAX_BYTES, Durations
from executor.errors import (
    BadSignature,
    CallExpired,
    KubeExecutorError,
    SerializationError,
    VersionMismatch,
    WorkerLost,
)
from executor.stores.offload import blob_refs, unpacked
from executor.tasks.call_options import CallOptions, retry_delay_s
from executor.wire import outcome, pickling, segments

if TYPE_CHECKING:
    from executor.dispatch.future import CallFuture
    from executor.stores.base import BlobStore
    from executor.wire.functions import PickledFunction

#: A server takes strings up to 512 MiB; in base64 these are as many, and the envelope.
MAX_CALL_BYTES = 380 * 1024 * 1024

#: Never worth another attempt of ``retries``: deaths are counted by ``max_deliveries``, and the others will not mend.
_FINAL = (WorkerLost, CallExpired, VersionMismatch, BadSignature)


@dataclass(slots=True)
class Cargo:
    """What one batch carries, ready for the wire.

    Attributes:
        kind: ``"calls"`` or ``"map"``.
        count: Calls in it.
        payload: Pickles; see docs/architecture.md.
        buffers: References of large values, one list for each call (one in all for ``map``), or None.
        members: Futures (``calls``) or the index of the first item (``map``).
        star: Whether an item of a map is a tuple of arguments.
    """

    kind: str
    count: int
    payload: bytes
    buffers: list[Any] | None
    members: Any
    star: bool = False

    def all_buffers(self) -> list[Any]:
        """References of the large values of all its calls."""
        buffers = self.buffers or []
        return [ref for several in buffers for ref in several] if self.kind == "calls" else buffers


@dataclass(slots=True)
class Batch:
    """A batch that is out.

    Attributes:
        root: Its id.
        lane: Where its outcomes go.
        cargo: What it carries.
        settled: One byte for each call: 1 when its outcome is here.
        remaining: Calls without an outcome.
        parts: First index and message id of each part split off, in the order of their coming.
        published: Whether it is known to have come to the broker.
        offered: Whether it may have come there: it is being published, or the answer was lost.
        restored: Whether it was made after its function had been missing at the broker, and was stored again.
    """

    root: str
    lane: Lane
    cargo: Cargo
    settled: bytearray
    remaining: int
    parts: list[tuple[int, str]] = field(default_factory=list)
    published: bool = False
    offered: bool = False
    restored: bool = False

    def settle(self, first: int, count: int) -> bool:
        """Note outcomes as arrived; False where one of them had arrived before (then nothing changes)."""
        if self.settled.find(1, first, first + count) != -1:
            return False
        self.settled[first : first + count] = b"\1" * count
        self.remaining -= count
        return True

    @property
    def held(self) -> bool:
        """Whether it has certainly never come to the broker."""
        return not (self.published or self.offered)

    def messages(self) -> list[str]:
        """Ids of all messages that may carry calls of it."""
        return [self.root, *(part for _, part in self.parts)]

    def message_of(self, index: int) -> str:
        """Id of the message that carries a call now, as far as the client has been told."""
        carrying = [known for known in self.parts if known[0] <= index]
        return max(carrying)[1] if carrying else self.root


class Lane(ABC):
    """Calls of one function that wait in the client.

    Args:
        function: Pickled.
        options: Of all calls in the lane.
        durations: Shared by all lanes of the same function.
        store: For large values.
    """

    def __init__(
        self, function: PickledFunction, options: CallOptions, durations: Durations, store: BlobStore | None
    ) -> None:
        self.function, self.options, self.durations, self.store = function, options, durations, store
        #: Batches that are out.
        self.out = 0
        #: Calls in a pause before they are run again.
        self.paused = 0
        #: Whether the dispatcher has been told that calls wait here.
        self.listed = False
        #: Whether the function has been missing at the broker, and no call has run since.
        self.missed_function = False
        self.chunksize: int | None = 1 if options.max_deliveries == 1 else None

    @property
    @abstractmethod
    def backlog(self) -> int:
        """Calls that wait here."""

    @property
    def idle(self) -> bool:
        """Whether no call is outstanding."""
        return not (self.out or self.backlog or self.listed or self.paused)

    @abstractmethod
    def take(self, count: int) -> Cargo | None:
        """Take up to ``count`` calls out; None where none is left (all were cancelled)."""

    @abstractmethod
    def put_back(self, batch: Batch, index: int) -> None:
        """A call of a batch waits here again, before the others."""

    @abstractmethod
    def on_values(self, batch: Batch, first: int, values: list[Any]) -> None:
        """Calls from index ``first`` on have returned these."""

    @abstractmethod
    def on_outcome(self, batch: Batch, index: int, error: BaseException | None, value: Any) -> None:
        """One call has returned, or raised."""

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """All that waits here fails."""

    @abstractmethod
    def fail_batch(self, batch: Batch, error: BaseException) -> None:
        """All that is unsettled in a batch fails."""

    @abstractmethod
    def cancel_index(self, batch: Batch, index: int, error: BaseException | None) -> None:
        """A call that is out will not run: cancelled, or failed with ``error``."""

    def forget(self, batch: Batch) -> None:  # noqa: B027 - single calls own their large values themselves
        """All calls of a batch are settled: what it holds may go."""

    def waiting_buffers(self) -> list[Any]:
        """References of the large values of calls that wait here; items of a map are not stored before they go."""
        return []

    def retriable(self, error: BaseException) -> bool:
        """Whether the options ask for another attempt after this error: ``retries`` are for what a call raises."""
        return isinstance(error, self.options.retry_on) and not isinstance(error, _FINAL)

    def opened(self, segment: memoryview, refs: Any) -> tuple[BaseException | None, Any]:
        """Open one outcome: ``(error, value)``."""
        status, body = bytes(segment[:1]), segment[1:]
        try:
            if status == outcome.VALUE:
                return None, unpacked(body, refs, self.store, last=True)
            if status == outcome.EXCEPTION:
                return pickling.exception_from(body), None
            return outcome.error_from(body), None
        except KubeExecutorError as failure:  # a blob that is missing, or was altered, says so itself
            return failure, None
        except BaseException as failure:  # code of the user's runs here, which must not end the loop thread
            what = "The result" if status == outcome.VALUE else "The exception of the call"
            return pickling.load_error(what, failure), None


class CallLane(Lane):
    """Single calls, each with its future."""

    def __init__(
        self,
        function: PickledFunction,
        options: CallOptions,
        durations: Durations,
        store: BlobStore | None,
        later: Callable[[float, Lane, Callable[[], None]], None],
    ) -> None:
        super().__init__(function, options, durations, store)
        self.waiting: deque[CallFuture[Any]] = deque()
        self.adopted = False
        self._later = later

    @property
    def backlog(self) -> int:
        """See :class:`Lane`."""
        return len(self.waiting)

    def waiting_buffers(self) -> list[Any]:
        """See :class:`Lane`."""
        return [ref for future in self.waiting for ref in future.buffers or ()]

    def take(self, count: int) -> Cargo | None:
        """See :class:`Lane`."""
        taken: list[CallFuture[Any]] = []
        size = 0
        waiting = self.waiting
        while waiting and len(taken) < count and size < MAX_BYTES:
            future = waiting.popleft()
            if future.done():
                self._release(future)
            elif len(future.data) > MAX_CALL_BYTES:
                self._later(0.0, self, partial(self._refuse, future))  # not now: the dispatcher's lock is held
            else:
                taken.append(future)
                size += len(future.data)
        if not taken:
            return None
        buffers = [future.buffers or [] for future in taken] if any(future.buffers for future in taken) else None
        return Cargo("calls", len(taken), segments.join([future.data for future in taken]), buffers, taken)

    def _refuse(self, future: CallFuture[Any]) -> None:
        error = too_large(len(future.data))
        self._release(future)
        future.settle(None, error)

    def put_back(self, batch: Batch, index: int) -> None:
        """See :class:`Lane`."""
        future = batch.cargo.members[index]
        future.root = None
        self.waiting.appendleft(future)

    def on_values(self, batch: Batch, first: int, values: list[Any]) -> None:
        """See :class:`Lane`."""
        for future, value in zip(batch.cargo.members[first:], values, strict=False):
            self._settle(future, None, value)

    def on_outcome(self, batch: Batch, index: int, error: BaseException | None, value: Any) -> None:
        """See :class:`Lane`."""
        self._settle(batch.cargo.members[index], error, value)

    def _settle(self, future: CallFuture[Any], error: BaseException | None, value: Any) -> None:
        if error is not None and self._retried(future, error):
            return
        future.settle(value, error)
        self._release(future)  # who waits need not wait for this: to free 64 MiB takes 10 ms

    def _retried(self, future: CallFuture[Any], error: BaseException) -> bool:
        if future.attempts >= self.options.retries or not self.retriable(error) or future.done():
            return False
        future.attempts += 1
        future.root = None
        pause = retry_delay_s(self.options, future.attempts, random.random())
        self._later(pause, self, lambda: self.waiting.append(future))
        return True

    def _release(self, future: CallFuture[Any]) -> None:
        future.data = b""
        if future.buffers and self.store is not None:
            self.store.delete(blob_refs(future.buffers))
        future.buffers = None

    def fail(self, error: BaseException) -> None:
        """See :class:`Lane`."""
        for _ in range(len(self.waiting)):  # but not what a callback submits meanwhile
            future = self.waiting.popleft()
            self._release(future)
            future.settle(None, error)

    def fail_batch(self, batch: Batch, error: BaseException) -> None:
        """See :class:`Lane`."""
        for index, future in enumerate(batch.cargo.members):
            if not batch.settled[index]:
                self._release(future)
                future.settle(None, error)

    def cancel_index(self, batch: Batch, index: int, error: BaseException | None) -> None:
        """See :class:`Lane`."""
        future = batch.cargo.members[index]
        self._release(future)
        if error is None:
            future.mark_cancelled()
        else:
            future.settle(None, error)


def too_large(size: int) -> SerializationError:
    """What a call gets that no server would take."""
    return SerializationError(
        f"The arguments of the call are {size:,} bytes, and a message to the broker holds {MAX_CALL_BYTES:,} at most. "
        "Give the executor a store (store='file:///shared/directory') for large values, or send them in parts."
    )


def expired(seconds: float) -> CallExpired:
    """What a call gets that waited too long and will not run."""
    return CallExpired(
        f"The call had not started {seconds:g} s after it was submitted (expires=). "
        "All workers were busy, or none was there: allow more workers or more time."
    )


def outcome_segments(payload: memoryview, count: int) -> Sequence[memoryview]:
    """The outcomes of a reply.

    Raises:
        ValueError: Their number is not what the header says.
    """
    parts = segments.split(payload)
    if len(parts) != count:
        raise ValueError(f"a reply announces {count} outcomes and holds {len(parts)}")
    return parts
