"""KubeExecutor: Python callables on warm workers behind ``concurrent.futures.Executor``.

::

    KubeExecutor ──(calls.py)──► Session ──► Dispatcher ══ Redis ══► workers
                                    └──────► WorkerPool (processes here; later pods)
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

from executor.calls import Calls

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self, Unpack

    from executor.dispatch.future import CallFuture
    from executor.pools.base import PoolStatus
    from executor.session import Session
    from executor.tasks.pool_spec import PodFields, PoolSpec
    from executor.tasks.resources import Resources
    from executor.tasks.worker_context import WorkerContext

__all__ = ["KubeExecutor"]

#: Of an executor's name; on a cluster Kubernetes' own rules are stricter.
_LONGEST_NAME = 100


class KubeExecutor(Calls):
    """Runs calls in pods of a Kubernetes cluster (``image=``), or else in worker processes of this machine.

    Args:
        max_workers: Processes here, each one call at a time; None means one for each CPU this process may use.
            With ``image``: pods; None means one.
        initializer: Called once in each worker process before its first call; if it raises, the executor is broken.
        initargs: Its arguments.
        max_tasks_per_child: Calls (or chunks of a ``map`` with ``chunksize=``) after which a worker process is replaced
            by a fresh one; None never replaces it. Calls then travel one by one.
        broker_url: ``redis://``, ``rediss://`` or ``unix://`` of a server of yours; None starts one of our own.
        pools: More pools, e.g. one that serves a Celery app; calls reach them by ``ex.options(pool=name)``.
        name: Shown in ``repr``, and part of the queues' names; must be unlike that of others on the same broker.
        lease: Seconds after which a silent worker's calls go to others; 5 if not given.
        store: Where large values go: ``file:///shared/directory``, ``az://account/container/prefix`` (Azure Blob
            Storage; credentials from the environment, see :mod:`executor.stores.azure_locator`), or None for shared
            memory of this machine (with ``image``: the broker).
        image: Of worker pods: Python of this version and this package. Everything below is for pods only.
        namespace: Of the cluster; None takes the context's.
        context: Of the kubeconfig; None takes its current one.
        kubeconfig: Path; None takes ``KUBECONFIG``, the service account inside a pod, or ``~/.kube/config``.
        resources: Of one pod.
        min_workers: Pods that must be ready before ``with`` goes on; 0, the default, does not wait.
        slots: Calls that one pod runs at a time; 1 if not given.
        start_timeout: Seconds that the pods may take to come up, where waiting may help; 600 if not given.
        orphan_timeout: Seconds after which everything on the cluster ends by itself when this process is gone; 600 if
            not given.
        pod: More of :class:`PoolSpec` for the default pool: ``env``, ``secrets``, ``volumes``, ``node_selector``,
            ``tolerations``, ``image_pull_secrets``, ``service_account``, ``pod_template``.

    Raises:
        ValueError: ``max_workers`` below 1, a malformed URL, two pools of one name. Nothing has been started then.
        StoreRefused: The store needs a package or credentials that are missing. Nothing has been started then.
        TypeError: ``initializer`` is not callable.

    What is not given comes from ``KUBE_EXECUTOR_*`` in the environment, or from a file: see :mod:`executor.defaults`.
    It starts when entered (``with`` or ``async with``), or at the first call. Calls, results and exceptions behave
    as in ``concurrent.futures``; a worker that dies does not break the executor.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
        broker_url: str | None = None,
        pools: Sequence[PoolSpec] = (),
        name: str | None = None,
        lease: float | None = None,
        store: str | None = None,
        image: str | None = None,
        namespace: str | None = None,
        context: str | None = None,
        kubeconfig: str | None = None,
        resources: Resources | None = None,
        min_workers: int | None = None,
        slots: int | None = None,
        start_timeout: float | None = None,
        orphan_timeout: float | None = None,
        **pod: Unpack[PodFields],
    ) -> None:
        from dataclasses import replace

        from executor import make_session
        from executor.pools.pod_options import HomeOptions
        from executor.settings import Settings
        from executor.tasks.call_options import CallOptions
        from executor.tasks.pool_spec import DEFAULT_POOL, PodFields, PoolSpec

        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        settings = Settings.from_environment()
        pick = settings.pick
        image = pick("image", image, None)
        wanted = pick("max_workers", max_workers, None)
        self._max_workers = _workers(1 if image is not None and wanted is None else wanted)
        self.name = _checked_name(pick("name", name, make_session.new_id()))
        default = PoolSpec(
            name=DEFAULT_POOL,
            max_workers=self._max_workers,
            resources=_resources(resources or settings.values.get("resources", {})),
            image=image,
            min_workers=pick("min_workers", min_workers, 0),
            slots=pick("slots", slots, 1),
            **settings.filled(pod, PodFields.__annotations__),
        )
        specs = [default, *(replace(spec, image=spec.image or image) for spec in pools)]
        self._names = [spec.name for spec in specs]
        for spec in specs:
            if self._names.count(spec.name) > 1:
                raise ValueError(f"Two pools are called {spec.name!r}; the default pool is called {DEFAULT_POOL!r}.")
        started = None if initializer is None else (initializer, _arguments(initargs))
        if image is None and (elsewhere := [spec for spec in specs if spec.image is not None]):
            raise ValueError(
                f"The pool {elsewhere[0].name!r} has an image and the default pool has none: all pools of an executor "
                "are pods, or none is. Give image= to the executor, too."
            )
        broker_url = pick("broker_url", broker_url, None)
        lease, store = pick("lease", lease, 5.0), pick("store", store, None)
        if image is not None:
            if broker_url is not None:
                raise ValueError(
                    "broker_url= does not go with image= yet: an executor on pods brings its own Redis. Leave it out."
                )
            home = HomeOptions(
                executor=self.name,
                namespace=pick("namespace", namespace, None),
                context=pick("context", context, None),
                kubeconfig=pick("kubeconfig", kubeconfig, None),
                start_timeout_s=pick("start_timeout", start_timeout, 600.0),
                orphan_timeout_s=max(1, round(pick("orphan_timeout", orphan_timeout, 600.0))),
            )
            self._session = make_session.on_cluster(
                specs, home, lease_s=lease, store=store, initializer=started, max_tasks_per_child=max_tasks_per_child
            )
        else:
            self._session = make_session.local(
                specs,
                executor=self.name,
                broker_url=broker_url,
                lease_s=lease,
                store=store,
                initializer=started,
                max_tasks_per_child=max_tasks_per_child,
            )
        self._use(self._session, CallOptions())
        self._finalizer = weakref.finalize(self, _abandon, self._session, os.getpid())
        self._finalizer.atexit = False

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start now rather than at the first call; on an event loop it does not wait.

        Raises:
            BrokerError, PoolError: It cannot be started; says why.
        """
        self._session.ensure_started()
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.terminate()  # Ctrl-C: whoever pressed it does not want to wait for the rest
        else:
            self.shutdown(wait=True)

    async def __aenter__(self) -> Self:
        import asyncio

        await asyncio.wrap_future(self._session.start())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        import asyncio

        now = kind is not None and issubclass(kind, (KeyboardInterrupt, asyncio.CancelledError))
        self._finalizer.detach()
        await asyncio.shield(asyncio.wrap_future(self._session.close(cancel=now, now=now)))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, finish those accepted, stop the workers and the embedded server.

        Args:
            wait: Return when all is done. On a running event loop it never waits: use ``async with`` there.
            cancel_futures: Cancel the calls that have not started.
        """
        self._finalizer.detach()
        stopping = self._session.close(cancel=cancel_futures)
        if wait and not _on_loop():
            stopping.result()

    def terminate(self) -> None:
        """Stop at once: running calls are killed, futures without an outcome get :class:`PoolBroken`."""
        self._finalizer.detach()
        stopping = self._session.close(now=True)
        if not _on_loop():
            stopping.result()

    def cancel(self, future: CallFuture[Any], *, running: bool = False, kill: bool = False) -> str:
        """Cancel a call and say what happened; ``future.cancel()`` is the standard library's part of it.

        Args:
            future: From this executor.
            running: Also interrupt it (KeyboardInterrupt in the call) if it runs.
            kill: Kill its process instead.

        Returns:
            ``"not sent"``, ``"cancelled"`` (it was queued), ``"interrupted"`` (its worker has been told) or
            ``"too late"``. With ``running`` on an event loop, which must not wait: ``"asked"``; the future tells.

        Raises:
            ValueError: The future is not from this executor.
        """
        from executor.dispatch.future import CallFuture, running_loop

        dispatcher = self._session.ensure_started()
        if not isinstance(future, CallFuture) or future.dispatcher is not dispatcher:
            raise ValueError(f"{future!r} is not a future of this executor: ask the one that returned it.")
        if running and running_loop() is not None:
            dispatcher.loop.start(dispatcher.arbiter.interrupt(future, kill=kill))
            return "asked"
        if running:
            return dispatcher.loop.run(dispatcher.arbiter.interrupt(future, kill=kill), 5.0)
        waiting = future.root is None
        return "too late" if not future.cancel() else "not sent" if waiting else "cancelled"

    # --- the calling half -----------------------------------------------------------------------

    def _check_open(self) -> None:
        self._session.check_open()

    def _check_pool(self, name: str) -> None:
        if name not in self._names:
            raise ValueError(f"There is no pool {name!r}; this executor has {', '.join(map(repr, self._names))}.")

    @property
    def broker_url(self) -> str:
        """The broker's URL, with its password, as ``broker_url=`` and redis-py take it; starts the executor if need be.

        That of an embedded server is ``unix://``, which Celery does not know: for a service, give a server of yours.
        """
        self._session.ensure_started()
        return next(iter(self._session.pools.values())).service_url

    def status(self) -> list[PoolStatus]:
        """Each pool at this moment: state, workers that are ready, how the last one died, why none comes."""
        return [pool.status() for pool in self._session.pools.values()]

    def __repr__(self) -> str:
        state = "closed" if self._session.closed else "open"
        return f"<KubeExecutor {self.name!r} {state}, max_workers={self._max_workers}, pools={self._names}>"

    def __reduce__(self) -> Any:
        return (_attached, (self._names,))


class _NestedExecutor(KubeExecutor):
    """What a KubeExecutor becomes inside its own workers: calls go to the same pools."""

    def __init__(self, context: WorkerContext, names: list[str]) -> None:

        from executor import make_session
        from executor.tasks.call_options import CallOptions

        self._names, self._max_workers = names, context.slots
        self._session = make_session.nested(context, names)
        self.name = self._session.executor
        self._use(self._session, CallOptions())
        self._finalizer = weakref.finalize(self, _abandon, self._session, os.getpid())
        self._finalizer.atexit = False

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Does nothing: whoever made the executor shuts it down."""

    def terminate(self) -> None:
        """Does nothing: whoever made the executor shuts it down."""


_nested: dict[int, _NestedExecutor] = {}
_nested_lock = threading.Lock()


def _attached(names: list[str]) -> KubeExecutor:
    """Open a handle that travelled inside a call; one executor for each process."""
    from executor.tasks.worker_context import worker_context

    context = worker_context()
    if context is None:
        raise RuntimeError(
            "A pickled KubeExecutor can only be opened inside one of its own workers. "
            "In another process make an executor of its own."
        )
    with _nested_lock:
        known = _nested.get(os.getpid())
        if known is None:
            known = _nested[os.getpid()] = _NestedExecutor(context, names)
        return known


def _checked_name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name={name!r} must be a string.")
    if not name or len(name) > _LONGEST_NAME or not name.isprintable() or " " in name:
        raise ValueError(
            f"name={name!r} names queues: 1 to {_LONGEST_NAME} characters, no blanks, nothing that cannot be printed."
        )
    return name


def _resources(wanted: Resources | Mapping[str, Any]) -> Resources:
    from executor.tasks.resources import Resources

    if isinstance(wanted, Resources):
        return wanted
    try:
        return Resources(**wanted)
    except TypeError:
        known = ", ".join(Resources.__annotations__)
        raise ValueError(f"resources={wanted!r} has more than {known}.") from None


def _arguments(initargs: Any) -> tuple[Any, ...]:
    try:
        return tuple(initargs)
    except TypeError:
        raise TypeError(f"initargs must be a tuple of the initializer's arguments, not {initargs!r}") from None


def _workers(wanted: int | None) -> int:
    if wanted is None:
        count = getattr(os, "process_cpu_count", None)
        return (
            count() if count else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ) or 1
    if wanted <= 0:
        raise ValueError("max_workers must be greater than 0")
    return wanted


def _on_loop() -> bool:
    from executor.dispatch.future import running_loop

    return running_loop() is not None


def _abandon(session: Session, pid: int) -> None:
    """An executor that nobody holds any more: accepted calls finish, then everything goes."""
    if os.getpid() == pid and not session.closed and session.in_use:
        session.close()  # first: the warning may be an error
        import warnings

        warnings.warn("A KubeExecutor was dropped without shutdown(); use `with`.", ResourceWarning, stacklevel=2)
