"""Puts the session behind an executor together: on this machine, or inside a worker."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executor.broker import keys
from executor.broker.address import BrokerAddress
from executor.broker.stores import check_store
from executor.pools.attached import AttachedPool
from executor.pools.local import LocalOptions, LocalPool
from executor.pools.pod_options import HomeOptions, PodOptions
from executor.session import Session
from executor.tasks.pool_spec import DEFAULT_POOL, PoolSpec
from executor.wire import pickling, signing

if TYPE_CHECKING:
    from executor.tasks.worker_context import WorkerContext


def new_id() -> str:
    """Id of a client or executor: unique, and fit for keys and messages."""
    return secrets.token_hex(6)


def local(
    specs: Sequence[PoolSpec],
    *,
    executor: str,
    broker_url: str | None,
    lease_s: float,
    store: str | None,
    initializer: tuple[Callable[..., object], tuple[Any, ...]] | None,
    max_tasks_per_child: int | None,
) -> Session:
    """Worker processes on this machine.

    Args:
        specs: The pools; the first brings the broker.
        executor: Name of the executor.
        broker_url: A server of the user's, or None for one of our own.
        lease_s: Of the workers, in seconds.
        store: Locator for large values, or None.
        initializer: Function and arguments, for the default pool.
        max_tasks_per_child: Calls (or chunks of a map) after which a process of the default pool is replaced.

    Raises:
        ValueError: The URL or the locator is malformed.
        StoreRefused: The store needs a package or credentials that are missing.
        Exception: What pickling the initializer raised.
    """
    address = None if broker_url is None else BrokerAddress.parse(broker_url)
    if store is not None:
        check_store(store)
    pickled = None if initializer is None else pickling.dumps(initializer)
    client, key = new_id(), signing.new_key()
    pools = [
        LocalPool(
            spec,
            LocalOptions(
                owner=client,
                broker=address,
                key=key,
                store=store,
                queues=[keys.pool_queue(executor, spec.name)],
                initializer=pickled if spec.name == DEFAULT_POOL else None,
                max_tasks_per_child=max_tasks_per_child if spec.name == DEFAULT_POOL else None,
                lease_s=lease_s,
            ),
        )
        for spec in specs
    ]
    return Session(pools, executor=executor, client=client, key=key, alone=max_tasks_per_child is not None)


def on_cluster(
    specs: Sequence[PoolSpec],
    home: HomeOptions,
    *,
    lease_s: float,
    store: str | None,
    initializer: tuple[Callable[..., object], tuple[Any, ...]] | None,
    max_tasks_per_child: int | None,
) -> Session:
    """Worker pods on a cluster.

    Args:
        specs: The pools, each with an image; the first brings the broker.
        home: Where.
        lease_s: Of the workers, in seconds.
        store: Locator for large values, the same for client and pods; None is the broker.
        initializer: Function and arguments, for the default pool.
        max_tasks_per_child: Calls (or chunks of a map) after which a process of the default pool is replaced.

    Raises:
        ValueError: A name or a template that Kubernetes would not take.
        TypeError: A template that is no mapping.
        Exception: What pickling the initializer raised.
    """
    from executor.kube import names
    from executor.kube.pod_template import check_template
    from executor.pools.home import Home
    from executor.pools.kubernetes import KubernetesPool

    names.check_names(home.executor, [spec.name for spec in specs])
    for spec in specs:
        if spec.pod_template is not None:
            check_template(spec.pod_template, names.labels(home.executor, names.WORKER, spec.name))
    pickled = None if initializer is None else pickling.dumps(initializer)
    client, key, place = new_id(), signing.new_key(), Home(home)
    pools = [
        KubernetesPool(
            spec,
            PodOptions(
                owner=client,
                key=key,
                queue=keys.pool_queue(home.executor, spec.name),
                initializer=pickled if spec.name == DEFAULT_POOL else None,
                max_tasks_per_child=max_tasks_per_child if spec.name == DEFAULT_POOL else None,
                lease_s=lease_s,
                store=store,
                start_timeout_s=home.start_timeout_s,
            ),
            place,
        )
        for spec in specs
    ]
    return Session(pools, executor=home.executor, client=client, key=key, alone=max_tasks_per_child is not None)


def nested(context: WorkerContext, names: Sequence[str]) -> Session:
    """Inside a worker: the same pools, seen by a call.

    Args:
        context: Of this process.
        names: Of the pools.
    """
    return Session(
        [AttachedPool(context, name) for name in names],
        executor=keys.executor_of(context.queue),
        client=new_id(),
        key=bytes.fromhex(Path(context.key_file).read_text("ascii").strip()),
        on_busy=context.lend,
    )
