"""kombu's Redis transport, consumer side only, claiming in one step.

Used by workers as ``broker_read_url``; publishers stay stock ``redis://``. What differs from the parent classes:

- **Claim.** ``claim.lua`` pops from all priority lists of all queues and registers each message in the worker's
  in-flight hash, in one step. While messages come (busy) it is sent alone; else (idle) behind a ``BLMOVE`` into the
  worker's inbox, both in one write: the server runs the claim the moment the ``BLMOVE`` ends, so that a message costs
  no second round trip. A worker with several queues or priorities blocks on one list, the next one each time, and sees
  what arrives in the others when the ``BLMOVE`` ends: after :data:`BLOCK_S` at most.
- **Credit.** What is held counts, whichever connection claimed it; the limit is the pool's.
- **Acknowledgement.** Under a tag of our own and through the pool thread, so that it is fenced, outlives the
  connection, and never shares it.
- **Connection loss.** Nothing that the pool has is requeued. ETA tasks, which Celery forgets, are handed back.
- **No restore by age.** Leases and reaping (``lease.py``) do that.

The private methods overridden are pinned by ``tests/contract/test_kombu_private.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from queue import Empty
from time import monotonic
from typing import Any, ClassVar

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from kombu.transport.virtual import QoS as VirtualQoS
from kombu.utils import json as kombu_json
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError

from executor.broker import scripts
from executor.worker.claim_commands import ClaimCommands, claim_commands
from executor.worker.deliveries import Delivery, Held, is_call

logger = logging.getLogger(__name__)
# Half typed, and overridden on purpose: to the type checker anything.
_base: Any = kombu_redis
_virtual_qos: Any = VirtualQoS
_loads: Any = kombu_json.loads

ALIAS = "kubeexecutor"
#: How long an idle worker blocks on one list, in seconds: so late may it see another queue or priority.
BLOCK_S = 0.25
#: Longer than any block: a server that says nothing for so long is gone, in seconds.
SOCKET_TIMEOUT_S = 10.0
#: A claim is answered within its block time; a connection that owes its answer for so much longer is dropped (a
#: half-open one never becomes readable), in seconds.
OVERDUE_S = 5
#: At most so many messages in one claim.
CLAIM_AT_MOST = 16


class Consuming:
    """What the transport needs of the process around it; one for the process, set by :func:`install`.

    Args:
        held: What this worker holds.
        capacity: How many deliveries may occupy the worker now.
        acknowledge: Drop a plain message; any thread.
        give_back: Return a message to its queue, uncharged; any thread.
        on_tomb: The worker's id was reaped.
        receive_call: Takes call messages; the way through Celery's consumer would cost more than most calls.
    """

    def __init__(
        self,
        held: Held,
        capacity: Callable[[], int],
        acknowledge: Callable[[Delivery], None],
        give_back: Callable[[Delivery], None],
        on_tomb: Callable[[str], None],
        receive_call: Callable[[Delivery], None],
    ) -> None:
        self.held, self.capacity = held, capacity
        self.acknowledge, self.give_back, self.on_tomb = acknowledge, give_back, on_tomb
        self.receive_call = receive_call
        self.draining = False
        self.last_read = monotonic()


_consuming: Consuming | None = None


def install(consuming: Consuming) -> None:
    """Make the transport known to kombu, working for this worker."""
    global _consuming
    _consuming = consuming
    TRANSPORT_ALIASES[ALIAS] = TRANSPORT_ALIASES[ALIAS + "s"] = "executor.worker.transport:Transport"


def read_url(kombu_url: str) -> str:
    """The URL for ``broker_read_url``: the stock one under our alias.

    Args:
        kombu_url: ``redis://``, ``rediss://`` or ``redis+socket://``.
    """
    return ALIAS + kombu_url.removeprefix("redis")


def current() -> Consuming:
    """What :func:`install` was given."""
    assert _consuming is not None
    return _consuming


class QoS(_base.QoS):
    """Credit by what the process holds; acknowledgements by the pool thread."""

    def can_consume(self) -> bool:
        """Whether there is credit."""
        return self.can_consume_max_estimate() > 0

    def can_consume_max_estimate(self) -> int:
        """How many more messages may be claimed."""
        consuming = current()
        if consuming.draining or not consuming.held.claimable:
            return 0
        waiting_for_eta: int = max(0, self.prefetch_count - self.channel.initial_prefetch)
        return max(0, consuming.capacity() + waiting_for_eta - consuming.held.occupying)

    def append(self, message: Any, delivery_tag: str) -> None:
        """Remember a message; Redis knows: it was claimed."""
        _virtual_qos.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Drop the in-flight entry."""
        self._quick_ack(delivery_tag)
        delivery = self._held(delivery_tag)
        if delivery is not None:
            current().acknowledge(delivery)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Back to the queue, or dropped."""
        self._quick_ack(delivery_tag)
        delivery = self._held(delivery_tag)
        if delivery is not None:
            (current().give_back if requeue else current().acknowledge)(delivery)

    def restore_unacked(self, client: Any = None) -> list[Any]:
        """The channel closes: hand back what only Celery had, and forgets now (ETA and rate-limited tasks)."""
        self._flush()
        for delivery_tag in list(self._delivered):
            delivery = self._held(delivery_tag)
            if delivery is not None and not delivery.in_pool:
                current().give_back(delivery)
        self._delivered.clear()
        return []

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: leases do it."""
        pass

    @staticmethod
    def _held(delivery_tag: str) -> Delivery | None:
        worker, _, tag = delivery_tag.rpartition("#")
        return current().held.get(worker, tag)


class Channel(_base.Channel):
    """Claims instead of popping."""

    QoS = QoS
    socket_timeout = SOCKET_TIMEOUT_S
    socket_connect_timeout = 5.0
    health_check_interval = OVERDUE_S
    #: Prefetch count as first set; what is above it is Celery's room for ETA tasks.
    initial_prefetch = 0
    _busy = False
    _expected = 0
    _asked: tuple[str, int] = ("", 0)
    _turn = 0
    _shebang: bool | None = None

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:
        """Note the first prefetch count that Celery asks for."""
        if not self.initial_prefetch:
            self.initial_prefetch = prefetch_count
        super().basic_qos(prefetch_size, prefetch_count, apply_global)

    def _brpop_start(self, timeout: float | None = None) -> None:
        queues = self._queue_cycle.consume(len(self.active_queues))
        credit = self.qos.can_consume_max_estimate()
        if not queues or not credit:
            return
        connection, held = self.client.connection, current().held
        worker, base, credit = held.worker, held.next_tag, min(credit, CLAIM_AT_MOST)
        held.next_tag = base + credit
        commands = self._commands(worker, tuple(queues))
        self._in_poll, self._brpop_sent_at = connection, monotonic()
        self._asked = (worker, base + credit)
        if self._busy:
            self._expected = 1
            connection.send_packed_command([commands.claim(credit, base)])
        else:
            self._expected = 2
            self._turn += 1
            connection.send_packed_command([commands.wait(self._turn) + commands.claim(credit, base)])

    def _commands(self, worker: str, queues: tuple[str, ...]) -> ClaimCommands:
        lists = tuple(self._q_for_pri(queue, step) for step in self.priority_steps for queue in queues)
        return claim_commands(worker, queues, lists, self._claim_digest(), BLOCK_S)

    def _claim_digest(self) -> str:
        if self._shebang is None:
            self._shebang = scripts.knows_shebang(self._create_client())
        return scripts.digest("claim", self._shebang)

    def _brpop_read(self, **options: Any) -> bool:
        connection, expected = self.client.connection, self._expected
        try:
            replies = [self._reply(connection) for _ in range(expected)]
        except self.connection_errors:
            connection.disconnect()  # the next turn of the loop reconnects; what was claimed unseen is swept up
            raise
        finally:
            self._in_poll, self._expected = None, 0
        consuming = current()
        consuming.last_read = monotonic()
        claimed = replies[-1]
        if isinstance(claimed, Exception):
            return self._refused(claimed)
        if claimed == b"TOMB":
            consuming.on_tomb(self._asked[0])
            raise Empty()
        self._busy = claimed[0] > 0
        deliveries = self._register(claimed[1:])
        consuming.held.settled_below = self._asked[1]
        if not deliveries:
            raise Empty()
        self._queue_cycle.rotate(deliveries[-1].queue)
        for delivery in deliveries:
            self._hand_on(delivery)
        return True

    @staticmethod
    def _reply(connection: Any) -> Any:
        try:
            return connection.read_response(disable_decoding=True)
        except ResponseError as error:  # this command's own; the next one has a reply, too
            return error

    def _refused(self, error: Exception) -> bool:
        if isinstance(error, NoScriptError):
            self._create_client().script_load(scripts.source("claim", bool(self._shebang)))
            raise Empty()
        # Full beyond allow-oom, a replica, ...: to Celery a lost connection, which it waits for and takes up again.
        raise RedisConnectionError(f"the broker refused a claim: {error}") from error

    def _register(self, claimed: list[bytes]) -> list[Delivery]:
        held, worker = current().held, self._asked[0]
        found = zip(claimed[::4], claimed[1::4], claimed[2::4], claimed[3::4], strict=True)
        deliveries = [
            Delivery(worker, tag.decode(), queue_key.decode(), raw, cancelled.decode())
            for tag, queue_key, raw, cancelled in found
        ]
        for delivery in deliveries:
            held.add(delivery)
        return deliveries

    def _hand_on(self, delivery: Delivery) -> None:
        """Give a message to Celery's consumer, or back to its queue if nobody consumes any more."""
        if current().draining or delivery.queue not in self.connection._callbacks:
            current().give_back(delivery)
            return
        try:
            if is_call(delivery.message):
                current().receive_call(delivery)
            else:
                self.connection._deliver(self._opened(delivery), delivery.queue)
        except (RedisError, OSError):
            raise
        except Exception:  # whoever wrote it: no message may end the worker, and the next one that claims it
            logger.exception("A message on %s cannot be opened; it was dropped.", delivery.queue)
            if not delivery.in_pool:
                current().acknowledge(delivery)

    @staticmethod
    def _opened(delivery: Delivery) -> dict[str, Any]:
        message: dict[str, Any] = _loads(delivery.raw.decode())  # kombu's own reader knows dates and the like
        message["properties"] = {**message["properties"], "delivery_tag": f"{delivery.worker}#{delivery.tag}"}
        return message


class Transport(_base.Transport):
    """The transport behind :func:`read_url`."""

    Channel = Channel
    brpop_timeout = BLOCK_S
    driver_name: ClassVar[str] = "kubeexecutor"
