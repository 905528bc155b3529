"""Builds the Celery worker: the stock one, with our transport, pool, task and steps."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING, Any, cast

from celery import Celery
from celery.apps.worker import Worker, install_worker_term_handler
from celery.utils.imports import symbol_by_name
from celery.worker.consumer import Consumer
from kombu.entity import Exchange, Queue

from executor.broker.address import BrokerAddress
from executor.broker.reaping import client_name
from executor.worker import transport

if TYPE_CHECKING:
    from executor.worker.child_pool import ChildPool, HubCalls
    from executor.worker.config import WorkerConfig

logger = logging.getLogger(__name__)

#: What a worker of ours needs of any app, whatever the user's settings say.
_SETTINGS: dict[str, Any] = {
    "worker_prefetch_multiplier": 1,
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "worker_enable_prefetch_count_reduction": False,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_send_task_events": False,
    "worker_eta_task_limit": None,
    "broker_connection_retry_on_startup": True,
    "broker_connection_retry": True,
    "broker_connection_max_retries": None,
    "broker_channel_error_retry": True,
    "broker_heartbeat": 0,
    "worker_detect_quorum_queues": False,
    "worker_disable_prefetch": False,
    "worker_deduplicate_successful_tasks": False,
}


class PodConsumer(Consumer):
    """Celery's consumer; acknowledgements do not wait for the hub to turn: ours are taken from any thread."""

    def call_soon_ack(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Acknowledge now."""
        return p(*args, **kwargs)


class PodWorker(Worker):
    """Celery's worker program, as it behaves in a pod: SIGTERM drains, SIGINT is not for it."""

    def install_platform_tweaks(self, worker: Any) -> None:
        """Signals: SIGTERM drains, SIGINT is not for it."""
        install_worker_term_handler(worker, verbose=False)  # what it would print, the client's terminal would show
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def set_process_status(self, info: str) -> None:
        """The title of the process stays as it is."""
        pass

    def setup_logging(self, colorize: bool | None = None) -> bool:
        """Ours is set up before anything of Celery is imported."""
        return True  # ours is set up before anything of Celery is imported


def load_app(config: WorkerConfig) -> Any:
    """The user's Celery app, or a bare one.

    Raises:
        Exception: Whatever importing the user's module raises.
    """
    if config.celery_app:
        app = symbol_by_name(config.celery_app)
        app.loader.import_default_modules()
    else:
        app = Celery("executor", set_as_current=True)
        app.conf.update(worker_enable_remote_control=False, result_backend="disabled://")
    address = BrokerAddress.parse(config.broker)
    app.conf.update(_SETTINGS, broker_url=address.kombu_url, broker_read_url=transport.read_url(address.kombu_url))
    options = dict(app.conf.broker_transport_options or {})
    app.conf.broker_transport_options = {
        **options,
        "socket_timeout": transport.SOCKET_TIMEOUT_S,
        "health_check_interval": transport.OVERDUE_S,
        "client_name": client_name(config.worker),
    }
    return app


def queues_of(config: WorkerConfig, app: Any) -> list[Any]:
    """Our queues and the services', as kombu declares them; a queue of the user's own definition is kept."""
    known, queue, exchange = app.amqp.queues, cast("Any", Queue), cast("Any", Exchange)
    return [
        known[name] if name in known else queue(name, exchange(name), routing_key=name)
        for name in [*config.queues, *config.service_queues]
    ]


def build(config: WorkerConfig, app: Any, pool: type[ChildPool], hub_calls: HubCalls) -> PodWorker:
    """The worker, ready to start.

    Args:
        config: Its settings.
        app: From :func:`load_app`, with our task registered.
        pool: The pool class.
        hub_calls: Of that class.
    """
    app.conf.task_queues = queues_of(config, app)
    app.amqp.queues = app.amqp.Queues(app.conf.task_queues)
    return PodWorker(
        app=app,
        hostname=f"ke@{config.worker}",
        pool=pool,
        concurrency=config.slots,
        without_mingle=True,
        without_gossip=True,
        without_heartbeat=True,
        task_events=False,
        quiet=True,
        consumer_cls=PodConsumer,
        loglevel=logging.WARNING,
        optimization="fair",
    )
