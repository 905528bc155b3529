"""Runs batches of calls in the child, one call after the other."""

from __future__ import annotations

import marshal
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from time import monotonic_ns
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NamedTuple

from executor.errors import CallError
from executor.stores.offload import unpacked as unpacked_value
from executor.wire import outcome, pickling, segments
from executor.wire.main_globals import show_in_main
from executor.worker import slots
from executor.worker.outbox import SEND_AFTER_BYTES, SEND_AFTER_NS, Failed, Outbox, Result, value_result

if TYPE_CHECKING:
    from executor.stores.base import BlobStore

#: Unpickled functions kept by a child.
FUNCTIONS_KEPT = 256
_LENGTH = struct.Struct("<I")


class Batch(NamedTuple):
    """What the parent tells its child about the calls to run; the payload follows.

    Attributes:
        number: The parent's own number of this batch.
        digest: Which function.
        kind: ``calls`` or ``map``.
        first: Index of the first call to run.
        end: Index after the last one.
        cancelled: Indexes that must not run.
        star: Whether an item of a map is a tuple of arguments.
        bufs: References of large arguments: a list for each call (``calls``), one in all (``map``), or None.
        client: Whose they are.
    """

    number: int
    digest: str
    kind: str
    first: int
    end: int
    cancelled: frozenset[int]
    star: bool = False
    bufs: list[Any] | None = None
    client: str = ""


def packed(batch: Batch) -> bytes:
    """The head of a BATCH message."""
    head = marshal.dumps(tuple(batch))
    return _LENGTH.pack(len(head)) + head


def unpacked(body: memoryview) -> tuple[Batch, memoryview]:
    """Head and payload of a BATCH message; both ends are the same interpreter."""
    (length,) = _LENGTH.unpack_from(body)
    start = _LENGTH.size + length
    return Batch(*marshal.loads(body[_LENGTH.size : start])), body[start:]


class CallInterrupted(KeyboardInterrupt):
    """Somebody cancelled the call that runs."""


class Interrupts:
    """SIGINT reaches user code only: between calls it is forgotten."""

    def __init__(self) -> None:
        self.in_call = False

    def __call__(self, signum: int, frame: object) -> None:
        """SIGINT has come."""
        if self.in_call:
            self.in_call = False
            raise CallInterrupted("the call was cancelled")


class Functions:
    """Unpickled functions by digest, the least recently used forgotten.

    Args:
        fetch: Asks the parent for a function's verified pickle; None where it is gone.
    """

    def __init__(self, fetch: Callable[[str], bytes | memoryview | None]) -> None:
        self._fetch = fetch
        self._known: OrderedDict[str, Callable[..., Any]] = OrderedDict()

    def get(self, digest: str) -> Callable[..., Any] | bytes:
        """The function, or the outcome that every call of it has instead."""
        known = self._known.get(digest)
        if known is not None:
            self._known.move_to_end(digest)
            return known
        data = self._fetch(digest)
        if data is None:
            return _missing(digest)
        try:
            function: Callable[..., Any] = pickling.loads(data)
        except BaseException as failure:
            return _unloadable("The function", failure)
        self._known[digest] = function
        if len(self._known) > FUNCTIONS_KEPT:
            self._known.popitem(last=False)
        return function


class Runner:
    """Runs what the parent sends.

    Args:
        shared: The numbers of :mod:`slots`.
        outbox: Where results go.
        functions: Where functions come from.
        interrupts: The SIGINT handler.
    """

    def __init__(self, shared: memoryview, outbox: Outbox, functions: Functions, interrupts: Interrupts) -> None:
        self._shared = shared
        self._outbox = outbox
        self._functions = functions
        self._interrupts = interrupts
        self._loop: Any = None
        #: The store for one client's large values.
        self._stores: Callable[[str], BlobStore | None] = lambda client: None
        self._last_sent_ns = 0
        self._shown: Callable[..., Any] | None = None

    def use_stores(self, stores: Callable[[str], BlobStore | None]) -> None:
        """Large values lie in these; gets the id of a client."""
        self._stores = stores

    def run(self, body: memoryview) -> None:
        """Run one BATCH message to its DONE."""
        batch, payload = unpacked(body)
        self._outbox.store = self._stores(batch.client)
        function = self._functions.get(batch.digest)
        self._last_sent_ns = monotonic_ns()
        self._outbox.begin(batch.number, batch.first, raw=batch.kind == "map")
        if isinstance(function, bytes):
            self._fail_all(batch, function)
            self._outbox.end()
            return
        if function is not self._shown:
            show_in_main(function)
            self._shown = function
        if batch.kind == "map":
            self._map(batch, function, payload)
        else:
            self._calls(batch, function, payload)
        self._interrupts.in_call = False
        self._outbox.end()

    def _fail_all(self, batch: Batch, error: bytes) -> None:
        failed = Failed(error) if batch.kind == "map" else Result(error, [])
        self._outbox.results += [failed] * (batch.end - batch.first)

    def _calls(self, batch: Batch, function: Callable[..., Any], payload: memoryview) -> None:
        arguments = segments.split(payload)
        shared, results = self._shared, self._outbox.results
        for index in range(batch.first, batch.end):
            shared[slots.RUNNING] = index
            if shared[slots.LIMIT] <= index:
                return
            if index in batch.cancelled:
                results.append(Result(outcome.CANCELLED, []))
                continue
            shared[slots.STARTED_NS] = 0  # loading
            result = self._call(function, arguments[index], batch.bufs[index] if batch.bufs else ())
            results.append(result)
            self._maybe_send(len(result.outcome))

    def _call(self, function: Callable[..., Any], arguments: memoryview, refs: Sequence[Any]) -> Result:
        try:
            args, kwargs = unpacked_value(arguments, refs, self._outbox.store)
        except BaseException as failure:
            return Result(_unloadable("The arguments", failure), [])
        self._shared[slots.STARTED_NS] = monotonic_ns()
        try:
            self._interrupts.in_call = True
            value = function(*args, **kwargs)
            if type(value) is CoroutineType:
                value = self._awaited(value)
            self._interrupts.in_call = False
        except BaseException as error:
            self._interrupts.in_call = False
            return Result(user_error(error), [])
        return value_result(value, self._outbox.store)

    def _map(self, batch: Batch, function: Callable[..., Any], payload: memoryview) -> None:
        try:
            items: Sequence[Any] = unpacked_value(payload, batch.bufs or (), self._outbox.store)
        except BaseException as failure:
            return self._fail_all(batch, _unloadable("The arguments", failure))
        first = batch.first
        while first < batch.end:
            first = self._map_until_error(batch, function, items, first)
        return None

    def _map_until_error(self, batch: Batch, function: Callable[..., Any], items: Sequence[Any], first: int) -> int:
        """Run from ``first`` on until a call raises; returns the next index (a fence is an end, too)."""
        shared, append, cancelled = self._shared, self._outbox.results.append, batch.cancelled
        now, last, index, done = monotonic_ns, self._last_sent_ns, first, False
        interrupts, star = self._interrupts, batch.star
        try:
            for index in range(first, batch.end):
                shared[1] = index  # slots.RUNNING: a global's attribute would cost as much as the store
                if shared[0] <= index:  # slots.LIMIT
                    return batch.end
                done = False
                if cancelled and index in cancelled:
                    append(Failed(outcome.CANCELLED))
                    continue
                shared[2] = started = now()
                if started - last > SEND_AFTER_NS:
                    self._outbox.flush()
                    last = self._last_sent_ns = started
                interrupts.in_call = True
                value = function(*items[index]) if star else function(items[index])
                if type(value) is CoroutineType:
                    value = self._awaited(value)
                interrupts.in_call = False
                append(value)
                done = True
        except BaseException as error:
            interrupts.in_call = False
            if not done:
                append(Failed(user_error(error)))
        return index + 1

    def _maybe_send(self, size: int) -> None:
        now = monotonic_ns()
        if now - self._last_sent_ns > SEND_AFTER_NS or size > SEND_AFTER_BYTES:
            self._last_sent_ns = now
            self._outbox.flush()

    def _awaited(self, coroutine: CoroutineType[Any, Any, Any]) -> Any:
        import asyncio  # 20 ms, and most calls are not async

        if self._loop is None:
            self._loop = asyncio.Runner()
        try:
            return self._loop.run(coroutine)
        finally:
            _cancel_leftovers(self._loop)


def _cancel_leftovers(runner: Any) -> None:
    """End the tasks that a coroutine left behind, as ``asyncio.run`` does."""
    import asyncio

    loop = runner.get_loop()
    leftovers = asyncio.all_tasks(loop)
    for task in leftovers:
        task.cancel()
    if leftovers:
        loop.run_until_complete(asyncio.gather(*leftovers, return_exceptions=True))


def user_error(error: BaseException) -> bytes:
    """The outcome of a call that raised, without our own frame in its traceback."""
    if isinstance(error, CallInterrupted):
        return outcome.CANCELLED
    if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
        error.__traceback__ = error.__traceback__.tb_next
    try:
        return pickling.exception_outcome(error)
    except Exception as failure:
        message = f"The call raised {type(error).__name__}, whose text cannot be made: {failure!r}"
        return outcome.error("SerializationError", message)


def _missing(digest: str) -> bytes:
    return outcome.error(
        "FunctionMissing",
        f"The broker no longer holds the function {digest[:12]} of this call. Its client has gone for longer than it "
        "keeps functions, or the server lost its data; submit the call again.",
        {"digest": digest},
    )


def _unloadable(what: str, failure: BaseException) -> bytes:
    if isinstance(failure, CallError):  # a blob that is gone says so itself
        return outcome.error(type(failure).__name__, str(failure), failure.details)
    error = pickling.load_error(what, failure)
    details = {"python": sys.version.split()[0], "path": sys.path[:8]}
    return outcome.error("SerializationError", str(error), details)
