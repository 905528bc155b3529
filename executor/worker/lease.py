"""The lease thread: shows that this worker lives, watches the others, and takes orders.

It has a connection of its own with a short timeout, and runs no user code, so that nothing else can starve it. Each
turn: beat (once a second), look at all leases and obituaries, reap whoever is dead, look for messages astray, and wait
on the control list instead of sleeping.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from executor.broker import keys, scripts
from executor.broker.connection import connect_sync
from executor.broker.lease_watch import LeaseWatch
from executor.broker.reaping import Reaper, client_name
from executor.worker.call_job import FENCED
from executor.worker.settler import Step

if TYPE_CHECKING:
    import redis

    from executor.broker.address import BrokerAddress
    from executor.worker.config import WorkerConfig
    from executor.worker.crew import Crew
    from executor.worker.deliveries import Delivery, Held

logger = logging.getLogger(__name__)

#: Beats in one lease, and looks in one beat.
BEATS_PER_LEASE, LOOKS_PER_BEAT = 5, 2
#: Longest pause between attempts to reach a server that is away, in seconds.
LONGEST_PAUSE_S = 0.5
#: How often to look for messages astray, in seconds.
STRAYS_EVERY_S = 1.0


class Lease:
    """Keeps this worker's lease, and reaps others.

    Args:
        config: The worker's settings.
        address: The broker.
        held: What this worker holds.
        crew: Obeys orders, and kills children when the lease is lost.
        master: The master key.
        describe: This worker as the registry shows it (JSON).

    Attributes:
        fail_task: Stores the failure of a plain Celery task that is given up.
        on_drain: Called on an order to drain.
    """

    def __init__(
        self,
        config: WorkerConfig,
        address: BrokerAddress,
        held: Held,
        crew: Crew,
        master: bytes,
        describe: Callable[[], str],
    ) -> None:
        self.fail_task: Callable[[Mapping[str, Any], Sequence[Mapping[str, Any]]], None] | None = None
        self.on_drain: Callable[[], None] = lambda: None
        self._config, self._address, self._held, self._crew = config, address, held, crew
        self._master, self._describe = master, describe
        self._queues = [*config.queues, *config.service_queues]
        self._watch = LeaseWatch(config.lease_s)
        self._beat_s = config.lease_s / BEATS_PER_LEASE
        self._next_beat = self._next_strays = 0.0
        self._last_beat = 0.0
        self._strays: set[str] = set()
        self._stopped = threading.Event()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ke-lease", daemon=True)

    def start(self) -> None:
        """Start the thread; messages may be claimed once it has joined."""
        self._thread.start()

    def leave(self, timeout_s: float = 3.0) -> None:
        """Give the lease up, if nothing is held any more."""
        self._stopped.set()
        self._left.wait(timeout_s)

    def on_tomb(self, worker: str) -> None:
        """The hub was refused under this id: the lease thread will find out in a moment; put back its inboxes."""
        self._held.claimable = False
        names = keys.inboxes(worker, self._queues)
        settler = self._crew.settler
        self._crew.post(lambda: settler.add(Step("sweep", names, [], lambda _: None)))

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        pause_s = 0.05
        while not self._stopped.is_set():
            client: redis.Redis | None = None
            try:
                client = self._connect()
                session = _Session(client, self._held.worker)
                self._join(session)
                pause_s = 0.05
                while not self._stopped.is_set():
                    self._turn(session)
                self._say_goodbye(session)
            except (RedisError, OSError) as error:
                logger.warning("The lease thread has lost the broker: %s", error)
            except Exception:
                logger.exception("The lease thread stumbled; it goes on.")
            finally:
                self._held.claimable = False
                self._watch.forget()
                self._close(client)
            self._stopped.wait(pause_s)
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
        self._left.set()

    def _connect(self) -> redis.Redis:
        """One connection that is never replaced unseen: when it breaks, what was watched is void."""
        timeout_s = self._config.lease_s / 3
        pooled: Any = connect_sync(
            self._address, client_name=client_name(self._held.worker), answer_timeout_s=timeout_s
        )
        single: redis.Redis = pooled.client()
        return single

    @staticmethod
    def _close(client: redis.Redis | None) -> None:
        if client is not None:
            try:
                client.connection_pool.disconnect()
            except (RedisError, OSError):
                pass

    def _join(self, session: _Session) -> None:
        """Come, come back, or state anew what a server that lost its data has forgotten."""
        if self._held.run_id is None:
            status = self._register(session, "join")
            if status == "TOMB":
                self._take_new_id(session)
        else:
            self._beat(session)
        self._held.run_id = session.run_id
        self._held.claimable = True
        self._crew.post(self._crew.on_free)

    def _turn(self, session: _Session) -> None:
        self._beat(session)
        session.reaper(self).work()
        self._return_strays(session)
        wait_s = max(0.05, self._beat_s / LOOKS_PER_BEAT)
        reply = session.client.execute_command("BLPOP", keys.control(self._held.worker), wait_s)
        if reply:
            self._obey(reply[1])

    def _beat(self, session: _Session) -> None:
        now = monotonic()
        due = now >= self._next_beat
        worker = self._held.worker
        names = [keys.LEASES, keys.tomb(worker), keys.OBITUARIES]
        reply = session.scripts.run("beat", names, [worker, "1" if due else "0"])
        if reply == b"TOMB":
            self._take_new_id(session)
        elif reply == b"LOST":
            self._on_lost(session)
        else:
            if due:
                self._next_beat, self._last_beat = now + self._beat_s, now
            self._look(session, *map(_texts, reply))

    def _look(self, session: _Session, beats: dict[str, str], obituaries: dict[str, str]) -> None:
        own = self._held.worker
        for worker, beat in self._watch.observe(monotonic(), beats):
            if worker != own:
                session.reaper(self).reap(worker, beat)
        for worker in obituaries:
            if worker != own:
                session.reaper(self).reap(worker)

    # --- losing the lease ------------------------------------------------------------------------

    def _take_new_id(self, session: _Session) -> None:
        """Others have taken what we held: end it, and go on under another name."""
        old = self._held.worker
        self._held.claimable = False
        logger.warning("This worker was reaped as %s: what it ran is with others now. It goes on under a new id.", old)
        self._crew.kill_all(FENCED)
        for delivery in self._held.all():
            if delivery.worker == old and not delivery.in_pool:  # ETA tasks: their timers will find them gone
                self._held.remove(delivery)
        self.on_tomb(old)
        self._held.rename()
        session.forget_reaper()
        status = self._register(session, "join")
        if status != "OK":
            raise RedisError(f"could not join as {self._held.worker}: {status}")
        self._held.run_id = session.run_id
        self._held.claimable = True

    def _on_lost(self, session: _Session) -> None:
        """The server knows no lease of ours: it has lost its data, or we were reaped long ago."""
        recent = monotonic() - self._last_beat < self._config.lease_s
        if session.run_id == self._held.run_id and not recent:
            self._take_new_id(session)
            return
        held = [delivery for delivery in self._held.all() if delivery.worker == self._held.worker]
        logger.warning("The broker has lost its data; %d messages that are held here are stated anew.", len(held))
        worker = self._held.worker
        names = [keys.LEASES, keys.WORKERS, keys.tomb(worker), keys.inflight(worker)]
        args: list[Any] = [worker, self._describe(), scripts.CLIENT_TTL_S]
        for delivery in held:
            args += _statement(delivery)
        if scripts.text(session.scripts.run("restate", names, args)) == "TOMB":
            self._take_new_id(session)
        self._held.run_id = session.run_id

    def _register(self, session: _Session, what: str) -> str:
        worker = self._held.worker
        names = [
            keys.LEASES,
            keys.WORKERS,
            keys.tomb(worker),
            keys.OBITUARIES,
            keys.inflight(worker),
            keys.control(worker),
        ]
        self._last_beat = monotonic()
        return scripts.text(session.scripts.run("register", names, [what, worker, self._describe()]))

    def _say_goodbye(self, session: _Session) -> None:
        """Leave nothing behind: the hub is gone, but its last claim may be on its way still."""
        worker, reaper = self._held.worker, session.reaper(self)
        reaper.cut_off(worker)
        reaper.sweep(worker, self._queues)
        for tag in self._unheld(session):
            self._return(session, tag)
        if self._register(session, "leave") == "HELD":
            logger.warning("Messages are still in flight here at the end; others will reap them.")

    # --- messages astray -------------------------------------------------------------------------

    def _return_strays(self, session: _Session) -> None:
        """Hand back what a claim took whose answer was lost with its connection: in flight here, and not held."""
        now = monotonic()
        if now < self._next_strays:
            return
        self._next_strays = now + STRAYS_EVERY_S
        below = self._held.settled_below
        strays = {tag for tag in self._unheld(session) if int(tag) <= below}
        for tag in strays & self._strays:  # seen twice: its claim is long over
            self._return(session, tag)
        self._strays = strays

    def _unheld(self, session: _Session) -> set[str]:
        """Tags of what is in flight here, and not held."""
        worker = self._held.worker
        fields = {field.decode() for field in session.client.execute_command("HKEYS", keys.inflight(worker))}
        return {field for field in fields if ":" not in field and self._held.get(worker, field) is None}

    def _return(self, session: _Session, tag: str) -> None:
        worker = self._held.worker
        value = session.client.execute_command("HGET", keys.inflight(worker), tag)
        if value is not None and self._held.get(worker, tag) is None:
            status = session.reaper(self).return_unstarted(worker, tag, value, self._config.pool)
            logger.warning("A message that was claimed here and not begun is back in its queue (%s).", status)

    # --- orders ----------------------------------------------------------------------------------

    def _obey(self, data: bytes) -> None:
        try:
            order = json.loads(data)
            operation = order["op"]
            if operation == "cancel":
                indexes = frozenset(int(index) for index in order["indexes"])
                self._crew.cancel(str(order["id"]), indexes, order.get("signal"))
            elif operation == "drain":
                self.on_drain()
            else:
                logger.warning("An unknown order was passed over: %r", operation)
        except (ValueError, KeyError, TypeError):
            logger.warning("An order that cannot be read was passed over: %r", data[:200])

    def reaper(self, client: redis.Redis, run: scripts.Scripts) -> Reaper:
        """A reaper under our name."""
        return Reaper(client, self._held.worker, self._master, self._config.max_deliveries, self.fail_task, run)


class _Session:
    """One unbroken connection to one server run."""

    def __init__(self, client: Any, worker: str) -> None:
        self.client = client
        info = client.execute_command("INFO", "server")
        self.run_id = str(info["run_id"])
        self.scripts = scripts.Scripts(client, scripts.runs_shebang(str(info["redis_version"])))
        self._reaper: Reaper | None = None

    def reaper(self, lease: Lease) -> Reaper:
        if self._reaper is None:
            self._reaper = lease.reaper(self.client, self.scripts)
        return self._reaper

    def forget_reaper(self) -> None:
        self._reaper = None


def _statement(delivery: Delivery) -> tuple[Any, ...]:
    headers = delivery.message.get("headers") or {}
    client, _, message = str(headers.get("ke") or "").partition(":")
    return delivery.tag, delivery.queue_key.encode() + b"\n" + delivery.raw, client, message


def _texts(flat: Sequence[bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
