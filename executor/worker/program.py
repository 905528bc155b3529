"""One worker from start to end: who is who, and in which order they come and go."""

from __future__ import annotations

import json
import logging
import os
import platform
import socket
import time
import traceback
import warnings
from typing import TYPE_CHECKING, Any

from celery.platforms import SecurityWarning

from executor.broker import keys, scripts
from executor.broker.address import BrokerAddress
from executor.broker.connection import connect_sync
from executor.broker.reaping import client_name
from executor.wire import frame, signing
from executor.worker import app as worker_app
from executor.worker import transport
from executor.worker.bootsteps import Steps
from executor.worker.child_pool import bind
from executor.worker.child_process import ChildProcess
from executor.worker.crew import Crew
from executor.worker.deliveries import Delivery, Held
from executor.worker.functions import FunctionSource
from executor.worker.lease import Lease
from executor.worker.request import Intake, Reception
from executor.worker.settler import Settler, Step
from executor.worker.task_failure import fail_task

if TYPE_CHECKING:
    from executor.worker.capture import Capture
    from executor.worker.config import WorkerConfig

logger = logging.getLogger(__name__)

#: Exit code of a worker that cannot work at all (its children cannot be set up).
EX_BROKEN = 78


class Program:
    """Puts the rooms of a worker together.

    Args:
        config: Its settings.
        capture: Reads what children print.
        children: Those started already.
    """

    def __init__(self, config: WorkerConfig, capture: Capture, children: list[ChildProcess]) -> None:
        self.config = config
        self._capture, self._children = capture, children
        self._address = BrokerAddress.parse(config.broker)
        self._master = config.key()
        self.held = Held(config.worker)
        self._settler = Settler(self._connect, self.held)
        functions = FunctionSource(self._settler, self._master)
        self.crew = Crew(config.slots, self._start_child, self.held, self._settler, functions)
        self.crew.on_broken = self._on_broken
        self._lease = Lease(config, self._address, self.held, self.crew, self._master, self._describe)
        self._exit_code = 0
        self._worker: worker_app.PodWorker | None = None

    def run(self) -> int:
        """Work until told to stop; returns the exit code."""
        self.crew.start(self._children)
        self._lease.start()
        try:
            self._worker = self._build()
        except BaseException:  # importing a user's app may raise anything
            self.crew.declare_broken(f"The worker could not be set up:\n{traceback.format_exc()}")
        else:
            self._worker.start()
        self.crew.stop(0)  # of a worker that Celery did not even start, too
        self._lease.leave()
        self._capture.drain(1.0)
        return self._exit_code or int(getattr(self._worker, "exitcode", 0) or 0)

    def _build(self) -> worker_app.PodWorker:
        pool = bind(self.crew, self.config)
        app = worker_app.load_app(self.config)
        self._lease.fail_task = lambda message, deaths: pool.hub_calls.add(lambda: fail_task(app, message, deaths))
        self._lease.on_drain = _drain
        intake = Intake(self.crew, self.held, self._master, self.config.pool)
        reception = Reception(app, intake, pool.hub_calls.at_next_turn)
        consuming = transport.Consuming(
            self.held,
            lambda: self.crew.capacity,
            self._acknowledge,
            self._give_back,
            self._lease.on_tomb,
            reception.receive,
        )
        transport.install(consuming)
        Steps(self.config, consuming, self._lease).add_to(app)
        warnings.simplefilter("ignore", SecurityWarning)  # root is common in containers
        return worker_app.build(self.config, app, pool, pool.hub_calls)

    def _start_child(self) -> ChildProcess:
        return ChildProcess(self.config.setup(), self._capture)

    def _connect(self) -> Any:
        return connect_sync(self._address, client_name=client_name(self.held.worker), answer_timeout_s=5.0)

    def _acknowledge(self, delivery: Delivery) -> None:
        self.crew.post(lambda: self._settler.drop(delivery))

    def _give_back(self, delivery: Delivery) -> None:
        """Return a message unchanged to the head of its queue."""
        if self.crew.stopped:  # kombu reads a last answer when it closes: what nobody holds, the lease takes back
            self.held.remove(delivery)
            return
        self.held.release(delivery)
        self.crew.post(lambda: self._settler.add(give_back_step(delivery, self.config.pool, self._settler)))

    def _describe(self) -> str:
        """This worker as the registry shows it."""
        config = self.config
        return json.dumps(
            {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "pool": config.pool,
                "queues": [*config.queues, *config.service_queues],
                "slots": config.slots,
                "python": platform.python_version(),
                "protocol": frame.PROTOCOL,
                "owner": config.owner,
                "celery_app": config.celery_app,
                "since": round(time.time(), 3),
            }
        )

    def _on_broken(self, reason: str) -> None:
        """No child can be set up: tell the owner, and go."""
        logger.error("%s", reason)
        self._exit_code = EX_BROKEN
        if self.config.owner:
            key = signing.client_key(self._master, self.config.owner)
            header = {"kind": "broken", "root": "", "worker": self.held.worker, "message": reason}
            reply = frame.sealed(key, frame.REPLY, header)
            names = [keys.replies(self.config.owner), keys.client(self.config.owner)]
            self._settler.add(Step("notify", names, [reply, scripts.CLIENT_TTL_S], lambda _: None))
        from celery.worker import state

        state.should_stop = EX_BROKEN


def _drain() -> None:
    """Stop as at SIGTERM."""
    from celery.platforms import EX_OK
    from celery.worker import state

    state.should_stop = EX_OK


def give_back_step(delivery: Delivery, pool: str, settler: Settler) -> Step:
    """Puts a message back as it was, whoever it is for."""
    headers = delivery.message.get("headers") or {}
    client, _, message = str(headers.get("ke") or "").partition(":")
    script = delivery.entry(pool).requeue(client, message, "", [], [(message, delivery.raw)])
    return Step(*script, lambda _: settler.forget(delivery))
