"""A call message on its way through a child: results come in, the rest goes back, deaths are judged.

All methods but :meth:`CallJob.begin` run on the crew thread.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Any

from executor.broker import keys, scripts
from executor.broker.requeueing import Replies, dead_letter, given_up, take_away, worker_lost
from executor.wire import outcome, segments
from executor.wire.envelope import Envelope, encoded
from executor.worker import memory, pipe, runner, slots
from executor.worker.child_process import DEAF
from executor.worker.settler import Step

if TYPE_CHECKING:
    from executor.worker.child_process import ChildProcess, Death
    from executor.worker.deliveries import Delivery, Held
    from executor.worker.settler import Settler

logger = logging.getLogger(__name__)

#: A call that has run for this long in a batch shall not keep those after it waiting, in seconds.
SPLIT_AFTER_S = 0.05
#: A whole batch that takes this long was guessed wrong: others shall share the rest, in seconds.
SHARE_AFTER_S = 0.2
#: Importing a call's modules does not count against its timeout, up to this long, in seconds.
LOADING_S = 60.0
#: Largest reply that a server accepts by default (``proto-max-bulk-len``), less some room, in bytes.
MAX_REPLY_BYTES = 500 * 1024 * 1024

DRAINED, FENCED, TIMED_OUT, CANCELLED = "drained", "fenced", "timed out", "cancelled"


class CallJob:
    """Calls ``first`` to ``end`` of one batch.

    Args:
        delivery: The claimed message.
        envelope: The same, taken apart.
        header: Header of the verified call frame.
        payload: Its payload.
        key: The client's key.
        settler: Where outcomes go.
        pool: Name of the pool, for dead letters.

    Attributes:
        begun: A child has taken it.
        settled: Every call has an outcome on its way, or is going back to the queue.
        id: Of the message.
        on_release: Called when no child has it any more.
    """

    def __init__(
        self,
        delivery: Delivery,
        envelope: Envelope,
        header: dict[str, Any],
        payload: memoryview,
        key: bytes,
        settler: Settler,
        pool: str,
    ) -> None:
        self.delivery, self.envelope, self.header = delivery, envelope, header
        self.begun = False
        self.settled = False
        self.id = envelope.id
        self.on_release: Callable[[], None] | None = None
        self._payload, self._settler, self._pool = payload, settler, pool
        self._answers = Replies(key, envelope, delivery.worker, os.getpid())
        self._next = envelope.first
        self._limit = envelope.end
        self._cancelled = set(delivery.cancelled_indexes())
        self._newly_cancelled: set[int] = set()
        self._began = 0.0
        self._loading = (-1, 0.0)
        self._asked_for = -1
        self._timeout_s: float | None = header.get("timeout")

    # --- towards the child -----------------------------------------------------------------------

    def begin(self, child: ChildProcess, number: int) -> bool:
        """Hand the calls to a child; False where it could not take them."""
        self._began = monotonic()
        first, end = self._next, self._limit
        child.begin(number, first, end)
        batch = runner.Batch(
            number,
            self.header["fn"],
            self.header["kind"],
            first,
            end,
            frozenset(self._cancelled),
            bool(self.header.get("star")),
            self.header.get("bufs"),
            self.envelope.client,
        )
        taken = child.send(pipe.BATCH, runner.packed(batch), self._payload)
        self.begun |= taken
        return taken

    @property
    def isolated(self) -> bool:
        """Whether its calls must run one by one: a worker died with them, or they may start but once."""
        deaths = self.envelope.deaths or self.header.get("max_deliveries") == 1
        return bool(deaths) and self._limit - self._next > 1

    def isolate(self) -> None:
        """Fence all but the first call off, before any runs."""
        self._split(self._next + 1)

    # --- from the child --------------------------------------------------------------------------

    def on_results(self, child: ChildProcess, kind: int, body: memoryview) -> bool:
        """Take PART or DONE; True when the child has no more to say about this job."""
        number, first, count, spent_ns, form, listed = pipe.RESULTS.unpack_from(body)
        if number != child.shared[slots.BATCH]:
            return False
        start = pipe.RESULTS.size
        refs = json.loads(bytes(body[start : start + listed])) if listed else None
        final = kind == pipe.DONE
        end = first + count
        complete = final and end >= self._limit
        if count or complete:
            self._publish(first, count, spent_ns, form, refs, body[start + listed :], complete)
        if final and not complete:
            self._hand_back()
        self.settled |= final
        return final

    def _publish(
        self, first: int, count: int, ns: int, form: int, refs: Any, payload: memoryview, complete: bool
    ) -> None:
        reply = b""
        if count:
            if len(payload) > MAX_REPLY_BYTES:
                form, refs, payload = pipe.OUTCOMES, None, _too_large(len(payload), count)
            kind = "values" if form == pipe.VALUES else "outcomes"
            reply = self._answers.sealed(kind, payload, first=first, n=count, ns=ns, bufs=refs)
        self._settle(first, first + count, reply, complete)

    def _settle(self, first: int, end: int, reply: bytes, complete: bool) -> None:
        envelope = self.envelope
        self._next = end
        span = (envelope.first, first, end)
        self._settler.outcomes(self.delivery, envelope.client, self.id, span, reply, complete)

    # --- time ------------------------------------------------------------------------------------

    def next_check_s(self, child: ChildProcess) -> float | None:
        """Seconds until :meth:`check` should look again, or None."""
        waits = []
        if self._splittable(child):
            waits.append(SPLIT_AFTER_S - self._running_s(child))
            waits.append(SHARE_AFTER_S - (monotonic() - self._began))
        if self._timeout_s is not None:
            waits.append(self._timeout_s - self._running_s(child))
        if self._withheld(child):
            waits.append(SPLIT_AFTER_S - self._running_s(child))
        if waits and not child.shared[slots.STARTED_NS]:
            waits.append(SPLIT_AFTER_S)
        return max(0.001, min(waits)) if waits else None

    def check(self, child: ChildProcess) -> None:
        """Split off what waits behind a slow call; kill a call that is over its time."""
        running_s = self._running_s(child)
        late = running_s > SPLIT_AFTER_S or monotonic() - self._began > SHARE_AFTER_S
        if late and self._splittable(child):
            self._fence_rest(child)
        if running_s > SPLIT_AFTER_S and self._withheld(child):
            self._asked_for = child.shared[slots.RUNNING]
            child.ask_to_flush()
        if self._timeout_s is not None and running_s > self._timeout_s and not child.kill_reason:
            self._fence_rest(child)
            if self._running_s(child) > self._timeout_s:
                child.kill(TIMED_OUT)

    def _running_s(self, child: ChildProcess) -> float:
        """How long the call has run; negative while its function and arguments are being loaded."""
        started_ns = child.shared[slots.STARTED_NS]
        if started_ns:
            return (monotonic_ns() - started_ns) / 1e9
        running = child.shared[slots.RUNNING]
        if self._loading[0] != running:
            self._loading = (running, monotonic())
        return monotonic() - self._loading[1] - LOADING_S

    def _splittable(self, child: ChildProcess) -> bool:
        return self._limit - child.shared[slots.RUNNING] > 1

    def _withheld(self, child: ChildProcess) -> bool:
        """Whether results of earlier calls wait in the child, and have not been asked for since this one runs."""
        running = child.shared[slots.RUNNING]
        return self._next < running != self._asked_for

    def _fence_rest(self, child: ChildProcess) -> None:
        """Have the child stop after the call that runs now; the rest goes back to the queue."""
        at = child.shared[slots.RUNNING] + 1
        while at < self._limit:
            child.shared[slots.LIMIT] = at
            time.sleep(slots.SETTLE_S)
            running = child.shared[slots.RUNNING]
            if running < at:
                self._split(at)
                break
            at = running + 1
        else:
            child.shared[slots.LIMIT] = self._limit
        self._asked_for = child.shared[slots.RUNNING]
        child.ask_to_flush()

    def _split(self, at: int) -> None:
        envelope = self.envelope
        rest = envelope._replace(first=at, end=self._limit)
        note = self._answers.split(rest)
        names = [
            self.delivery.inflight_key,
            self.delivery.queue_key,
            keys.replies(envelope.client),
            keys.client(envelope.client),
            keys.batches(envelope.client),
            keys.cancels(envelope.client),
        ]
        newly = ",".join(str(index) for index in sorted(self._newly_cancelled))
        args = [self.delivery.tag, at, encoded(rest), note, self.id, rest.id, scripts.CLIENT_TTL_S, newly]
        self._limit = at
        self._settler.add(Step("split", names, args, lambda _: None))

    # --- cancelling ------------------------------------------------------------------------------

    def cancel(self, indexes: frozenset[int], how: str | None, child: ChildProcess | None) -> None:
        """Keep calls from running; interrupt or kill the one that runs.

        Args:
            indexes: Which.
            how: ``"interrupt"`` (SIGINT), ``"kill"``, or None to leave a running call alone.
            child: Who runs the job; None while it waits for a child.
        """
        self._cancelled |= indexes
        self._newly_cancelled |= indexes
        if child is None:
            return
        self._fence_rest(child)
        running = child.shared[slots.RUNNING]
        if running in indexes and running >= self._next:
            if how == "kill":
                child.kill(CANCELLED)
            elif how == "interrupt":
                child.signal(signal.SIGINT)

    # --- the end ---------------------------------------------------------------------------------

    def on_death(self, child: ChildProcess, death: Death) -> None:
        """The child is dead; what it had sent has been taken."""
        if self.settled:
            return
        self.settled = True
        if child.kill_reason == FENCED:
            self._settler.forget(self.delivery)
        elif child.kill_reason == DRAINED and self.header.get("max_deliveries") != 1:
            self._hand_back()
        else:
            self._judge(child, death)

    def release(self, held: Held) -> None:
        """The message no longer counts against the worker's credit."""
        held.release(self.delivery)
        if self.on_release is not None:
            self.on_release()

    def hand_back(self) -> None:
        """Put all that has no outcome back to the head of the queue, uncharged."""
        if not self.settled:
            self.settled = True
            self._hand_back()

    def fail(self, error: bytes) -> None:
        """Give every call that has no outcome the same one."""
        if self.settled:
            return
        self.settled = True
        reply = self._answers.outcomes(self._next, [error] * (self._limit - self._next))
        self._settle(self._next, self._limit, reply, complete=True)

    def _judge(self, child: ChildProcess, death: Death) -> None:
        """One call was running when the child died: it is answered or charged; the others go back as they are."""
        running = max(self._next, min(child.shared[slots.RUNNING], self._limit - 1))
        story = story_of(death, self.delivery.worker)
        error = self._verdict(child, death, story)
        if error is not None:
            self._requeue(running, error, None)
            return
        if child.kill_reason == DRAINED:
            story |= {"reason": DRAINED, "charged": False}
        deaths = [*self.envelope.deaths, story]
        if not given_up(deaths, int(self.header.get("max_deliveries") or 3)):
            self._requeue(running, None, deaths)
        else:
            self._requeue(running, worker_lost(deaths), deaths, bury=True)

    def _verdict(self, child: ChildProcess, death: Death, story: Mapping[str, Any]) -> bytes | None:
        """The outcome of the call that ran, or None if it may run again."""
        name = self.header.get("name") or "The call"
        if child.kill_reason == TIMED_OUT:
            message = f"{name} ran longer than its timeout of {self._timeout_s:g} s and was killed. Raise timeout=."
            return outcome.error("CallTimeout", message, {"timeout": self._timeout_s, "output": story["output"]})
        if child.kill_reason == CANCELLED:
            return outcome.CANCELLED
        if (death.by_itself and not child.kill_reason) or child.kill_reason == DEAF:
            return _crashed(name, death, story)
        return None

    def _hand_back(self) -> None:
        if self._next < self._limit:
            messages = [self.envelope._replace(first=self._next, end=self._limit)]
            self._take_away(messages, [], "")
        else:
            self._settle(self._limit, self._limit, b"", complete=True)

    def _requeue(
        self, running: int, error: bytes | None, deaths: Sequence[Mapping[str, Any]] | None, bury: bool = False
    ) -> None:
        envelope, messages, replies = self.envelope, [], []
        if self._next < running:
            messages.append(envelope._replace(first=self._next, end=running))
        if error is None:
            messages.append(envelope._replace(first=running, end=running + 1, deaths=deaths or ()))
        else:
            replies.append(self._answers.outcomes(running, [error]))
        if running + 1 < self._limit:
            messages.append(envelope._replace(first=running + 1, end=self._limit))
        letter = dead_letter(envelope, running, deaths or (), self._pool) if bury else ""
        self._take_away(messages, replies, letter)

    def _take_away(self, parts: Sequence[Envelope], replies: Sequence[bytes], letter: str) -> None:
        script = take_away(self.delivery.entry(self._pool), self.envelope, self._answers, parts, replies, letter)
        self._settler.add(Step(*script, lambda _: self._settler.forget(self.delivery)))


def story_of(death: Death, worker: str) -> dict[str, Any]:
    """What a death looks like in headers and errors."""
    return {
        "reason": death.reason,
        "exit_code": death.exit_code,
        "signal": death.signal,
        "host": socket.gethostname(),
        "worker": worker,
        "pid": death.pid,
        "output": death.output,
        "at": round(time.time(), 3),
        **({"limit_bytes": memory.limit_bytes(), "peak_bytes": death.peak_bytes} if death.oom else {}),
    }


def _crashed(name: str, death: Death, story: Mapping[str, Any]) -> bytes:
    how = f"was ended by {death.signal}" if death.signal else f"ended with exit code {death.exit_code}"
    last = death.output.strip()
    message = f"{name} did not return: its process {how}. " + (
        f"Its last output:\n{last}" if last else "It printed nothing before that."
    )
    return outcome.error("ChildCrashed", message, story)


def _too_large(size: int, count: int) -> memoryview:
    message = (
        f"The result has {size} bytes; the broker takes at most {MAX_REPLY_BYTES}. "
        "Return less, write it to a file, or give the executor a store for large values."
    )
    return memoryview(segments.join([outcome.error("SerializationError", message, {"bytes": size})] * count))
