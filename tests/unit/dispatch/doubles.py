"""Doubles of the dispatch tests: a loop whose clock jumps, and a broker that is a few dictionaries.

``VirtualLoop`` never waits: where nothing is ready, its clock goes to the next timer. ``FakeBroker`` stands for Redis
and the workers behind it; ``FakePublisher`` and ``FakeReplies`` are the dispatcher's two connections to it.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from kombu.utils.json import loads
from redis.exceptions import ConnectionError as RedisConnectionError

from executor.dispatch.batcher import Durations
from executor.dispatch.call_frames import CallFrames
from executor.dispatch.dispatcher import Dispatcher
from executor.dispatch.future import CallFuture
from executor.dispatch.lanes import CallLane, Lane
from executor.dispatch.map_lane import MapLane
from executor.dispatch.map_result import MapState
from executor.errors import BrokerError, BrokerRefused
from executor.tasks.call_options import CallOptions
from executor.wire import envelope, frame, outcome, pickling, segments
from executor.wire.functions import PickledFunction

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    """Skips the waiting, and tells the loop how much of it."""

    skip: Callable[[float], None]

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("everybody waits, and nothing will ever happen")
        if not ready and timeout:
            self.skip(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still while something is ready, and jumps where nothing is."""

    def __init__(self) -> None:
        self._now_s = 1000.0
        selector = _Selector()
        selector.skip = self._skip
        super().__init__(selector)

    def _skip(self, seconds: float) -> None:
        self._now_s += seconds

    def time(self) -> float:
        return self._now_s


class LoopDouble:
    """Stands for :class:`LoopThread`: work is done on the test's own loop."""

    is_current = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.tasks: set[asyncio.Task[Any]] = set()

    def call(self, callback: Callable[..., object], *args: Any) -> None:
        self.loop.call_soon(callback, *args)

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        done: Future[T] = Future()
        task = self.loop.create_task(work)
        self.tasks.add(task)

        def finish(task: asyncio.Task[T]) -> None:
            self.tasks.discard(task)
            if task.cancelled():
                done.cancel()
            elif (error := task.exception()) is not None:
                done.set_exception(error)
            else:
                done.set_result(task.result())

        task.add_done_callback(finish)
        return done


class FakeBroker:
    """Queues, replies and arbiter of one client, and the hands of its workers.

    Attributes:
        down: Every command fails while it is True.
        refusal: Raised by publishing, if set.
        after_publish: Raised after the next publishing has been done, once.
    """

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.down = False
        self.refusal: Exception | None = None
        self.after_publish: Exception | None = None
        self.runs = 1
        self.number = 0
        self.published: list[str] = []
        self.handed_out: list[Claimed] = []
        self._forget()

    def _forget(self) -> None:
        self.known = False
        self.batches: dict[str, str] = {}
        self.cancels: dict[str, set[int]] = {}
        self.functions: dict[str, bytes] = {}
        self.queue: list[str] = []
        self.stream: list[tuple[tuple[int, int], bytes]] = []
        self.arrived = asyncio.Event()

    def lose_data(self) -> None:
        """The server is started anew without what it held."""
        old = self.arrived
        self._forget()
        old.set()
        self.runs += 1

    def check(self) -> None:
        if self.down:
            raise RedisConnectionError("Connection refused (it is down in this test)")

    # --- the workers' part ----------------------------------------------------------------------

    def claim(self, worker: str = "w1") -> Claimed | None:
        """The next message of the queue, as a worker gets it."""
        if not self.queue:
            return None
        one = envelope.decoded(loads(self.queue.pop(0)))
        self.batches[one.id] = worker
        self.handed_out.append(Claimed(self, one))
        return self.handed_out[-1]

    def claim_all(self) -> list[Claimed]:
        """All messages of the queue."""
        return [claimed for _ in range(len(self.queue)) if (claimed := self.claim()) is not None]

    def add(self, header: dict[str, Any], payload: bytes = b"") -> None:
        """A signed reply."""
        self.add_raw(frame.sealed(self.key, frame.REPLY, header, payload))

    def add_raw(self, data: bytes) -> None:
        """Anything at all in the stream of replies."""
        self.number += 1
        self.stream.append(((self.number, 0), data))
        self.arrived.set()


class Claimed:
    """A message in the hands of a worker.

    Attributes:
        first: Index of the first call without an outcome.
        end: Index after the last call of this message.
    """

    def __init__(self, broker: FakeBroker, one: envelope.Envelope) -> None:
        self.broker, self.envelope = broker, one
        opened = frame.opened(broker.key, frame.CALL, one.frame)
        self.header = opened.header
        self.first, self.end = one.first, one.end
        if self.header["kind"] == "map":
            self.arguments = [args if self.header["star"] else (args,) for args in pickling.loads(opened.payload)]
        else:
            self.arguments = [pickling.loads(part)[0] for part in segments.split(opened.payload)]
        self.cancelled = broker.cancels.get(one.id, set())

    @property
    def done(self) -> bool:
        """Whether every call has an outcome."""
        return self.first >= self.end

    def reply(self, count: int | None = None, work: Callable[..., Any] = lambda x: x, *, ns: int = 10**6) -> None:
        """Outcomes of the next calls: those of ``work``, run here and now."""
        count = self.end - self.first if count is None else min(count, self.end - self.first)
        found = [self._outcome(index, work) for index in range(self.first, self.first + count)]
        self.outcomes(found, ns=ns)

    def _outcome(self, index: int, work: Callable[..., Any]) -> bytes:
        if index in self.cancelled:
            return outcome.CANCELLED
        try:
            return outcome.VALUE + pickling.dumps(work(*self.arguments[index]))
        except Exception as error:
            return pickling.exception_outcome(error)

    def outcomes(self, found: Sequence[bytes], *, ns: int = 10**6) -> None:
        """These outcomes of the next calls."""
        self._send("outcomes", len(found), segments.join(found), ns)

    def values(self, count: int | None = None, work: Callable[..., Any] = lambda x: x, *, ns: int = 10**6) -> None:
        """Values of the next calls in one pickle."""
        count = self.end - self.first if count is None else min(count, self.end - self.first)
        found = [work(*self.arguments[index]) for index in range(self.first, self.first + count)]
        self._send("values", count, pickling.dumps(found), ns)

    def send_values(self, payload: bytes, count: int) -> None:
        """Any bytes in place of the pickled values."""
        self._send("values", count, payload, 1)

    def _send(self, kind: str, count: int, payload: bytes, ns: int) -> None:
        header = {"root": self.envelope.root, "id": self.envelope.id, "worker": "w1", "pid": 1}
        self.broker.add({**header, "kind": kind, "first": self.first, "n": count, "ns": ns, "bufs": None}, payload)
        self.first += count
        if self.done:
            self.broker.batches.pop(self.envelope.id, None)
            self.broker.cancels.pop(self.envelope.id, None)

    def split(self, at: int) -> None:
        """Hand the calls from ``at`` on back to the queue as a part."""
        part = self.envelope._replace(first=at, end=self.end)
        self.end = at
        self.broker.queue.insert(0, envelope.encoded(part))
        self.broker.batches[part.id] = ""
        if self.cancelled:
            self.broker.cancels[part.id] = set(self.cancelled)
        self.broker.add({"root": self.envelope.root, "kind": "split", "at": at, "part": part.id})
        if self.done:
            self.broker.batches.pop(self.envelope.id, None)

    def die(self) -> None:
        """The worker is gone: what has no outcome goes back to the queue under the same id."""
        self.broker.queue.insert(0, envelope.encoded(self.envelope._replace(first=self.envelope.first)))
        self.broker.batches[self.envelope.id] = ""


class FakePublisher:
    """The dispatcher's commands to a :class:`FakeBroker`."""

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self._functions: set[str] = set()
        self.left = self.closed = False
        self.controls: list[tuple[str, str]] = []

    async def publish(self, messages: Sequence[Any], functions: Iterable[tuple[str, bytes]]) -> None:
        await asyncio.sleep(0)
        broker = self._broker
        broker.check()
        if broker.refusal is not None:
            raise broker.refusal
        for name, data in functions:
            broker.functions[name] = data
            self._functions.add(name)
        for message in messages:
            if message.id not in broker.batches:
                broker.batches[message.id] = ""
                broker.queue.append(message.raw)
                broker.published.append(message.id)
        error, broker.after_publish = broker.after_publish, None
        if error is not None:
            raise error

    def knows(self, function_digest: str) -> bool:
        return function_digest in self._functions

    def forget(self, function_digest: str | None = None) -> None:
        if function_digest is None:
            self._functions.clear()
        else:
            self._functions.discard(function_digest)

    async def cancel(self, wanted: Sequence[tuple[str, str]]) -> list[str]:
        await asyncio.sleep(0)
        self._broker.check()
        return [self._cancel(message, indexes) for message, indexes in wanted]

    def _cancel(self, message: str, indexes: str) -> str:
        state = self._broker.batches.get(message)
        if state is None:
            return "gone"
        if state:
            return state
        self._broker.cancels.setdefault(message, set()).update(map(int, indexes.split(",")))
        return "cancelled"

    async def holders(self, messages: Sequence[str]) -> list[str | None]:
        await asyncio.sleep(0)
        self._broker.check()
        return [self._broker.batches.get(message) for message in messages]

    async def last_reply(self) -> tuple[int, int] | None:
        await asyncio.sleep(0)
        self._broker.check()
        return self._broker.stream[-1][0] if self._broker.stream else None

    async def control(self, worker: str, text: str) -> None:
        self.controls.append((worker, text))

    async def is_known(self) -> bool:
        await asyncio.sleep(0)
        self._broker.check()
        return self._broker.known

    async def stay_alive(self) -> bool:
        known = await self.is_known()
        self._broker.known = True
        return known

    async def server_run(self) -> str:
        self._broker.check()
        return str(self._broker.runs)

    def explain(self, error: BaseException) -> BrokerError:
        return BrokerRefused(f"The server said: {error}.")

    async def leave(self, queues: object = (), *, others: bool = False) -> None:
        self.left = True

    async def close(self) -> None:
        self.closed = True


class FakeReplies:
    """The dispatcher's reader of a :class:`FakeBroker`."""

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self._last = (0, 0)
        self.closed = False

    @property
    def position(self) -> tuple[int, int]:
        return self._last

    async def read(self) -> list[bytes]:
        await asyncio.sleep(0)
        self._broker.check()
        found = [entry for entry in self._broker.stream if entry[0] > self._last]
        if not found:
            run, arrived = self._broker.runs, self._broker.arrived
            arrived.clear()
            try:
                await asyncio.wait_for(arrived.wait(), 5)
            except TimeoutError:
                return []
            self._broker.check()
            if run != self._broker.runs:
                raise RedisConnectionError("Connection closed by server")
            found = [entry for entry in self._broker.stream if entry[0] > self._last]
        self._last = found[-1][0] if found else self._last
        return [data for _, data in found]

    def rewind(self) -> None:
        self._last = (0, 0)

    async def close(self) -> None:
        self.closed = True


class Client:
    """A dispatcher on a virtual loop before a fake broker, and the few steps of the session that put calls in.

    Args:
        loop: Virtual.
        slots: Of its pool.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, slots: int = 2) -> None:
        self.frames = CallFrames(b"k" * 32, "client")
        self.loop = LoopDouble(loop)
        self.broker = FakeBroker(self.frames.key)
        self.publisher, self.replies = FakePublisher(self.broker), FakeReplies(self.broker)
        self.busy: list[bool] = []
        self.dispatcher = Dispatcher(
            self.loop,  # type: ignore[arg-type]
            self.frames,
            slots=lambda pool: slots,
            queue=lambda pool: f"ke.test.{pool}",
            on_busy=self.busy.append,
        )

    async def start(self) -> None:
        await self.dispatcher.start(self.publisher, self.replies)  # type: ignore[arg-type]

    def lane(self, name: str = "f", **options: Any) -> CallLane:
        """A lane of single calls."""
        durations = Durations(0.001)
        return CallLane(function(name), CallOptions(**options), durations, None, self.dispatcher.later)

    def submit(self, lane: CallLane, *args: Any) -> CallFuture[Any]:
        """As the session does."""
        future: CallFuture[Any] = CallFuture()
        future.data = pickling.dumps((args, {}))
        future.dispatcher = self.dispatcher
        with self.dispatcher.lock:
            lane.waiting.append(future)
            self.dispatcher.adopt(lane)
            self.dispatcher.wake(lane)
        return future

    def map(
        self,
        items: list[Any],
        *,
        chunksize: int | None = None,
        star: bool = False,
        ordered: bool = True,
        **options: Any,
    ) -> tuple[MapLane, MapState]:
        """As the session does, all input taken now."""
        state = MapState(ordered=ordered)
        lane = MapLane(
            function("g"),
            CallOptions(**options),
            Durations(0.001),
            None,
            state=state,
            star=star,
            chunksize=chunksize,
            later=self.dispatcher.later,
        )
        self.dispatcher.adopt(lane)
        state.added = len(items)
        state.end(len(items))
        lane.add(0, items)
        self.dispatcher.wake(lane)
        return lane, state


def function(name: str) -> PickledFunction:
    """A pickled function of that name, which nobody calls."""
    return PickledFunction(f"digest-of-{name}", name.encode())


async def queued(client: Client) -> None:
    """Until a message has come to the broker."""
    while True:
        if client.broker.queue:
            return
        await asyncio.sleep(0.01)


async def settled(times: int = 30) -> None:
    """Let everything happen that can without a clock."""
    for _ in range(times):
        await asyncio.sleep(0)


def lanes_of(client: Client) -> list[Lane]:
    """All lanes that the dispatcher knows."""
    return client.dispatcher.lanes()
