"""Outcomes to Redis, from the pool thread: in order, again and again while Redis is away, never twice.

Each step is fenced by the in-flight entry and may be repeated: one whose answer was lost finds itself done.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from executor.broker import keys, scripts
from executor.worker.line import Line

if TYPE_CHECKING:
    import redis

    from executor.worker.deliveries import Delivery, Held

logger = logging.getLogger(__name__)

#: Pauses between attempts to reach a server that is away, in seconds.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0


_NOT_NOW = ("LOADING", "READONLY", "BUSY", "MASTERDOWN", "OOM", "TRYAGAIN", "NOREPLICAS", "MISCONF")


@dataclass(slots=True)
class Step:
    """One script to run.

    Attributes:
        script: Its name.
        keys: KEYS.
        args: ARGV.
        done: Called with its status (``FENCED``, ``OK``, ...), or with the error that the server answered.
    """

    script: str
    keys: Sequence[str]
    args: Sequence[Any]
    done: Callable[[str | ResponseError], None]


class Settler:
    """Runs steps in order on a connection of its own. Used by one thread.

    Args:
        connect: Makes a client; blocks for seconds at most.
        held: What this worker holds.
    """

    def __init__(self, connect: Callable[[], redis.Redis], held: Held) -> None:
        self._connect = connect
        self._held = held
        self._line: Line | None = None
        self._scripts: scripts.Scripts | None = None
        self._steps: deque[Step] = deque()
        self._pause_s = 0.0
        self._next_try = 0.0

    def outcomes(
        self, delivery: Delivery, client: str, message_id: str, span: tuple[int, int, int], reply: bytes, final: bool
    ) -> None:
        """Publish outcomes of a call message.

        Args:
            delivery: The claimed message.
            client: Whose it is.
            message_id: Its id.
            span: First index of the message, first and end index of these outcomes.
            reply: The signed reply frame; empty for none.
            final: Whether the message is finished by these.
        """
        start, first, end = span
        names = [
            delivery.inflight_key,
            keys.replies(client),
            keys.client(client),
            keys.batches(client),
            keys.cancels(client),
        ]
        args = [delivery.tag, first, end, "1" if final else "0", reply, message_id, scripts.CLIENT_TTL_S, start]

        def done(status: str | ResponseError) -> None:
            if isinstance(status, ResponseError):
                logger.error("The broker refused an outcome of %s: %s", message_id, status)
            if final:
                self._held.remove(delivery)

        self.add(Step("finish", names, args, done))

    def drop(self, delivery: Delivery) -> None:
        """Acknowledge a plain Celery message."""
        self.add(Step("drop", [delivery.inflight_key], [delivery.tag], lambda _: self._held.remove(delivery)))

    def forget(self, delivery: Delivery) -> None:
        """The delivery is no longer ours."""
        self._held.remove(delivery)

    def add(self, step: Step) -> None:
        """Have a step run by the next :meth:`work`, after those before it."""
        self._steps.append(step)

    def work(self) -> None:
        """Run what waits, unless the server was away a moment ago."""
        while self._steps and monotonic() >= self._next_try:
            step = self._steps[0]
            try:
                status = self._run(step)
            except (RedisConnectionError, RedisTimeoutError, OSError) as error:
                self._back_off(error)
                return
            except ResponseError as error:
                if _transient(error):
                    self._back_off(error)
                    return
                status = error
            except RedisError as error:
                self._back_off(error)
                return
            self._pause_s = 0.0
            self._steps.popleft()
            step.done(status)

    def get(self, key: str) -> bytes | None:
        """Read a string.

        Raises:
            redis.RedisError, OSError: The server is away; ask again.
        """
        try:
            value: bytes | None = self._connected().execute_command("GET", key)
        except (RedisConnectionError, RedisTimeoutError, OSError):
            self.close()
            raise
        return value

    @property
    def waiting(self) -> int:
        """Steps not yet done."""
        return len(self._steps)

    def next_try_s(self) -> float | None:
        """Seconds until :meth:`work` should be called again, or None."""
        return max(0.0, self._next_try - monotonic()) if self._steps else None

    def close(self) -> None:
        """Close the connection."""
        if self._line is not None:
            self._line.close()
            self._line = self._scripts = None

    def _run(self, step: Step) -> str | ResponseError:
        self._connected()
        assert self._scripts is not None
        return str(scripts.text(self._scripts.run(step.script, step.keys, step.args)))

    def _connected(self) -> Line:
        if self._line is None:
            line = Line(self._connect())
            if line.run_id != self._held.run_id:
                line.close()
                raise RedisConnectionError("the lease is not stated to this server run yet")
            self._scripts = scripts.Scripts(line, scripts.runs_shebang(line.version))
            self._line = line
        return self._line

    def _back_off(self, error: Exception) -> None:
        if not self._pause_s:
            logger.warning("The broker is away (%s); %d outcomes wait.", error, len(self._steps))
        self._pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, self._pause_s * 2))
        self._next_try = monotonic() + self._pause_s
        self.close()


def _transient(error: ResponseError) -> bool:
    """Whether the same step may be taken later: the server loads, is a replica, or is full."""
    return str(error).startswith(_NOT_NOW)
