"""KubeExecutor: Python callables on warm workers behind ``concurrent.futures.Executor``.

::

    KubeExecutor ──(calls.py)──► Session ──► Dispatcher ══ Redis ══► workers
                                    └──────► WorkerPool (processes here; later pods)
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

from executor import session as sessions
from executor.broker import keys
from executor.calls import Calls
from executor.dispatch.future import CallFuture, running_loop
from executor.session import Session, new_client_id
from executor.settings import Settings
from executor.tasks.call_options import CallOptions
from executor.tasks.pool_spec import DEFAULT_POOL, PoolSpec
from executor.tasks.worker_context import WorkerContext, worker_context

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["KubeExecutor"]


class KubeExecutor(Calls):
    """Runs calls in worker processes of this machine, through an embedded Valkey or a server of yours.

    Args:
        max_workers: Calls that run at a time; None means one for each CPU this process may use.
        initializer: Called once in each worker process before its first call; if it raises, the executor is broken.
        initargs: Its arguments.
        broker_url: ``redis://``, ``rediss://`` or ``unix://`` of a server of yours; None starts one of our own.
            Also from ``KUBE_EXECUTOR_BROKER_URL``.
        pools: More pools, e.g. one that serves a Celery app; calls reach them by ``ex.options(pool=name)``.
        name: Shown in ``repr``, and part of the queues' names; must be unlike that of others on the same broker.
        lease: Seconds after which a silent worker's calls go to others.
        store: Where large values go: ``file:///shared/directory``, or None for shared memory of this machine.

    Raises:
        ValueError: ``max_workers`` below 1, a malformed URL, two pools of one name. Nothing has been started then.
        TypeError: ``initializer`` is not callable.

    It starts when entered (``with`` or ``async with``), or at the first call. Calls, results and exceptions behave
    as in ``concurrent.futures``; a worker that dies does not break the executor.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        broker_url: str | None = None,
        pools: Sequence[PoolSpec] = (),
        name: str | None = None,
        lease: float = 5.0,
        store: str | None = None,
    ) -> None:
        super().__init__(CallOptions())
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        settings = Settings.from_environment()
        self._max_workers = _workers(max_workers if max_workers is not None else settings.max_workers)
        self.name = name or new_client_id()
        specs = [PoolSpec(name=DEFAULT_POOL, max_workers=self._max_workers), *pools]
        self._names = [spec.name for spec in specs]
        for spec in specs:
            if self._names.count(spec.name) > 1:
                raise ValueError(f"Two pools are called {spec.name!r}; the default pool is called {DEFAULT_POOL!r}.")
        self._session = _local_session(
            specs, self.name, broker_url or settings.broker_url, lease, store, _pickled_call(initializer, initargs)
        )
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
        if kind is not None and not issubclass(kind, Exception):
            self.terminate()  # Ctrl-C: whoever pressed it does not want to wait for the rest
        else:
            self.shutdown(wait=True)

    async def __aenter__(self) -> Self:
        await asyncio.wrap_future(self._session.start())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        now = kind is not None and not issubclass(kind, Exception)
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
        if wait and running_loop() is None:
            stopping.result()

    def terminate(self) -> None:
        """Stop at once: running calls are killed, futures without an outcome get :class:`PoolBroken`."""
        self._finalizer.detach()
        stopping = self._session.close(now=True)
        if running_loop() is None:
            stopping.result()

    def cancel(self, future: CallFuture[Any], *, running: bool = False, kill: bool = False) -> str:
        """Cancel a call and say what happened; ``future.cancel()`` is the standard library's part of it.

        Args:
            future: From this executor.
            running: Also interrupt it (KeyboardInterrupt in the call) if it runs.
            kill: Kill its process instead.

        Returns:
            ``"not sent"``, ``"cancelled"`` (it was queued), ``"interrupted"`` (its worker has been told) or
            ``"too late"``.
        """
        dispatcher = self._session.ensure_started()
        if running:
            return dispatcher.loop.run(dispatcher.arbiter.interrupt(future, kill=kill), 5.0)
        waiting = future.root is None
        return "too late" if not future.cancel() else "not sent" if waiting else "cancelled"

    # --- the calling half -----------------------------------------------------------------------

    def _session_for_calls(self) -> Session:
        self._session.check_open()
        return self._session

    def _check_pool(self, name: str) -> None:
        if name not in self._names:
            raise ValueError(f"There is no pool {name!r}; this executor has {', '.join(map(repr, self._names))}.")

    @property
    def broker_url(self) -> str:
        """The broker's URL, with its password, for stock Celery clients; starts the executor if need be."""
        self._session.ensure_started()
        return next(iter(self._session.pools.values())).address.url

    def __repr__(self) -> str:
        state = "closed" if self._session.closed else "open"
        return f"<KubeExecutor {self.name!r} {state}, max_workers={self._max_workers}, pools={self._names}>"

    def __reduce__(self) -> Any:
        return (_attached, (self._names,))


class _NestedExecutor(KubeExecutor):
    """What a KubeExecutor becomes inside its own workers: calls go to the same pools."""

    def __init__(self, context: WorkerContext, names: list[str]) -> None:
        Calls.__init__(self, CallOptions())
        self._names = names
        self.name = keys.executor_of(context.queue)
        self._max_workers = context.slots
        self._session = _nested_session(context, names, self.name)
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


def _nested_session(context: WorkerContext, names: list[str], executor: str) -> Session:
    from executor.pools.attached import AttachedPool

    return Session(
        [AttachedPool(context, name) for name in names],
        executor=executor,
        client=new_client_id(),
        key=sessions.read_key(context.key_file),
        on_busy=context.lend,
    )


def _local_session(
    specs: list[PoolSpec],
    executor: str,
    broker_url: str | None,
    lease: float,
    store: str | None,
    initializer: bytes | None,
) -> Session:
    from executor.broker.address import BrokerAddress
    from executor.pools.local import LocalOptions, LocalPool
    from executor.wire.signing import new_key

    address = None if broker_url is None else BrokerAddress.parse(broker_url)
    client, key = new_client_id(), new_key()
    pools = []
    for spec in specs:
        options = LocalOptions(
            owner=client,
            broker=address,
            key=key,
            store=store,
            queues=[keys.pool_queue(executor, spec.name)],
            initializer=initializer if spec.name == DEFAULT_POOL else None,
            lease_s=lease,
        )
        pools.append(LocalPool(spec, options))
    return Session(pools, executor=executor, client=client, key=key)


def _pickled_call(function: Callable[..., object] | None, args: tuple[Any, ...]) -> bytes | None:
    from executor.wire.pickling import dumps

    return None if function is None else dumps((function, args))


def _workers(wanted: int | None) -> int:
    if wanted is None:
        count = getattr(os, "process_cpu_count", None)
        return (
            count() if count else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ) or 1
    if wanted <= 0:
        raise ValueError("max_workers must be greater than 0")
    return wanted


def _abandon(session: Session, pid: int) -> None:
    """An executor that nobody holds any more: accepted calls finish, then everything goes."""
    if os.getpid() == pid and not session.closed:
        if session.in_use:
            warnings.warn("A KubeExecutor was dropped without shutdown(); use `with`.", ResourceWarning, stacklevel=2)
        session.close()


def _at_exit() -> None:
    sessions.finish_all()


try:
    threading._register_atexit(_at_exit)  # type: ignore[attr-defined]
except (AttributeError, RuntimeError):
    atexit.register(_at_exit)
