"""What we override or call of kombu and Celery that is private: its shape, and what we rely on.

When a new release fails here, read its source before touching ``executor/worker/transport.py``.
"""

from __future__ import annotations

import inspect
import socket
from importlib.metadata import version
from typing import Any

import pytest
from celery.apps import worker as celery_worker
from celery.concurrency.base import BasePool
from celery.worker import components, loops, state
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from kombu import Connection
from kombu.asynchronous import Hub
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from vine import promise

from executor.worker import transport


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def source(function: Any) -> str:
    return inspect.getsource(function)


@pytest.mark.parametrize("package", ["celery", "kombu"])
def test_versions_are_those_that_were_read(package: str) -> None:
    assert version(package).startswith("5.7.")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (kombu_redis.Channel._brpop_start, ["self", "timeout"]),
        (kombu_redis.Channel._brpop_read, ["self", "options"]),
        (kombu_redis.Channel._q_for_pri, ["self", "queue", "pri"]),
        (kombu_redis.Channel._create_client, ["self", "asynchronous"]),
        (kombu_redis.Channel.basic_qos, ["self", "prefetch_size", "prefetch_count", "apply_global"]),
        (kombu_redis.QoS.append, ["self", "message", "delivery_tag"]),
        (kombu_redis.QoS.ack, ["self", "delivery_tag"]),
        (kombu_redis.QoS.reject, ["self", "delivery_tag", "requeue"]),
        (kombu_redis.QoS.restore_unacked, ["self", "client"]),
        (kombu_redis.QoS.restore_visible, ["self", "start", "num", "interval"]),
        (virtual.QoS.can_consume, ["self"]),
        (virtual.QoS.can_consume_max_estimate, ["self"]),
        (virtual.Transport._deliver, ["self", "message", "queue"]),
        (Consumer.call_soon_ack, ["self", "p", "args", "kwargs"]),
        (BasePool.on_apply, ["self", "args", "kwargs"]),
        (BasePool.terminate_job, ["self", "pid", "signal"]),
        (celery_worker.Worker.install_platform_tweaks, ["self", "worker"]),
        (celery_worker.Worker.set_process_status, ["self", "info"]),
        (celery_worker.Worker.setup_logging, ["self", "colorize"]),
    ],
)
def test_signatures_are_those_that_are_overridden(function: Any, expected: list[str]) -> None:
    assert parameters(function) == expected


@pytest.mark.parametrize("name", ["_brpop_start", "_brpop_read", "basic_qos"])
def test_our_channel_overrides_what_kombu_has(name: str) -> None:
    assert name in vars(transport.Channel)
    assert callable(getattr(kombu_redis.Channel, name))


def test_a_pending_read_is_told_by_in_poll_and_its_start() -> None:
    text = source(kombu_redis.Channel._brpop_start)
    assert "self._in_poll = self.client.connection" in text
    assert "self._brpop_sent_at = monotonic()" in text
    assert "self._queue_cycle.consume(len(self.active_queues))" in text
    assert "self._in_poll = None" in source(kombu_redis.Channel._brpop_read)


def test_the_poller_starts_a_read_only_with_credit_and_without_one_pending() -> None:
    assert "channel.qos.can_consume()" in source(kombu_redis.MultiChannelPoller.on_poll_start)
    assert "if not channel._in_poll:  # send BRPOP" in source(kombu_redis.MultiChannelPoller._register_BRPOP)


def test_a_channel_that_closes_reads_what_is_pending_and_restores_unacked() -> None:
    assert "self._brpop_read()" in source(kombu_redis.Channel.close)
    assert "self._qos.restore_unacked_once()" in source(virtual.Channel.close)
    assert "self.restore_unacked()" in source(virtual.QoS.restore_unacked_once)


def test_quick_ack_may_be_called_from_other_threads() -> None:
    qos = virtual.QoS(virtual_channel := object())  # type: ignore[arg-type]
    del virtual_channel
    qos._quick_ack("tag")
    assert qos._dirty == {"tag"}
    qos._on_collect.cancel()


def test_deliver_hands_a_message_to_the_callback_of_its_queue() -> None:
    assert "self._callbacks[queue]" in source(virtual.Transport._deliver)


def test_urls_of_our_alias_keep_their_parts() -> None:
    transport.TRANSPORT_ALIASES[transport.ALIAS] = "executor.worker.transport:Transport"
    tcp = Connection(transport.read_url("redis://user:p%40ss@example.org:6400/3"))
    assert (tcp.transport_cls, tcp.hostname, tcp.port, tcp.userid, tcp.password, tcp.virtual_host) == (
        transport.ALIAS,
        "example.org",
        6400,
        "user",
        "p@ss",
        "3",
    )
    unix = Connection(transport.read_url("redis+socket://:secret@/tmp/x.sock?virtual_host=1"))
    assert unix.transport_cls == transport.ALIAS
    assert unix.hostname == "socket://:secret@/tmp/x.sock?virtual_host=1"


def test_a_promise_may_be_fired_again() -> None:
    fired: list[int] = []
    again = promise(lambda: fired.append(1))
    again()
    again()
    assert fired == [1, 1]


def test_the_hub_wakes_for_a_promise_from_another_thread() -> None:
    assert "waker.wake()" in source(Hub.call_soon)
    assert "isinstance(callback, Thenable)" in source(Hub.call_soon)


def test_the_pool_is_made_with_the_arguments_of_base_pool() -> None:
    text = source(components.Pool.create)
    assert "w.pool_cls, w.min_concurrency" in text
    assert "w.pool_cls.uses_semaphore" in text


def test_the_loop_ends_by_a_flag_in_state() -> None:
    assert "state.maybe_shutdown()" in source(loops.asynloop)
    assert hasattr(state, "should_stop")


def test_a_request_keeps_its_message_and_is_bound_to_its_callbacks() -> None:
    assert isinstance(inspect.getattr_static(Request, "message"), property)
    assert "accept_callback=self.on_accepted" in source(Request.execute_using_pool)


def test_the_strategy_is_asked_of_the_task() -> None:
    assert "task.start_strategy(self.app, self)" in source(Consumer.update_strategies)


def test_sockets_have_send_timeouts_here() -> None:
    assert hasattr(socket, "SO_SNDTIMEO")
