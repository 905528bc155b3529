"""Pool: ``multiprocessing.Pool`` with the workers of a :class:`~executor.KubeExecutor`, here or on a cluster.

::

    with Pool(4) as pool:                                   # worker processes on this machine
        pool.map(f, xs)
    with Pool(100, image="registry/me/worker:1") as pool:   # pods
        for y in pool.imap_unordered(f, xs, chunksize=50): ...

    apply_async ─────────────────────────────► executor.submit ──► future ──► AsyncResult
    map_async, imap ─► feeder thread ─► chunk ─► executor.submit ──► future ──► MapResult, IMapIterator

Methods, arguments, defaults and errors are those of the standard library. Where its Pool would hang, this one
does not: a worker that dies takes only its call with it (:class:`~executor.errors.ChildCrashed`), ``terminate`` ends
what is unfinished with :class:`~executor.errors.PoolBroken`, a callback that raises is logged, and one endless
iterable in ``imap`` does not keep other calls from starting.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

from executor.errors import PoolBroken
from executor.kube_executor import KubeExecutor
from executor.pool_iterators import IMapIterator, IMapUnorderedIterator, Window
from executor.pool_results import ApplyResult, AsyncResult, CallResult, Deliveries, Job, MapResult, settle_by
from executor.tasks.chunk import chunks_of, even_chunksize, run_chunk, run_star_chunk

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["ApplyResult", "AsyncResult", "IMapIterator", "IMapUnorderedIterator", "MapResult", "Pool"]

T = TypeVar("T")

INIT, RUN, CLOSE, TERMINATE = "INIT", "RUN", "CLOSE", "TERMINATE"

#: Unfinished chunks of one iterable: enough for full batches, and an endless iterable stays out of memory.
_MIN_AHEAD = 256
_AHEAD_PER_PROCESS = 16


class Pool:
    """A pool of worker processes to which calls can be handed.

    Args:
        processes: Number of workers; by default one for each CPU.
        initializer: Called in each worker when it starts.
        initargs: Its arguments.
        maxtasksperchild: Calls (chunks count as one) after which a worker process is replaced.
        context: Taken for compatibility. Worker processes are always spawned, never forked.
        **options: As of :class:`~executor.KubeExecutor`: ``image``, ``broker_url``, ...

    Raises:
        ValueError, TypeError: As ``multiprocessing.Pool`` raises them.
        BrokerError, PoolError: The workers cannot be started; says why.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        **options: Any,
    ) -> None:
        self._state = INIT  # first: __del__ looks at it even if the rest of this fails
        self._pid = os.getpid()
        self._processes = _checked_processes(processes)
        _check_maxtasks(maxtasksperchild)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if maxtasksperchild is not None:
            options["max_tasks_per_child"] = maxtasksperchild
        self._changed = threading.Condition()
        self._jobs: set[Job] = set()
        self._deliveries = Deliveries()
        self._executor = KubeExecutor(self._processes, initializer=initializer, initargs=tuple(initargs), **options)
        try:
            self._executor.start()
        except BaseException:
            self._executor.terminate()
            raise
        self._state = RUN
        _pools.add(self)
        _end_with_interpreter()

    def __repr__(self) -> str:
        cls = type(self)
        return f"<{cls.__module__}.{cls.__qualname__} state={self._state} pool_size={self._processes}>"

    def __reduce__(self) -> NoReturn:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __enter__(self) -> Self:
        self._check_running()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.terminate()

    def __del__(self, _warn: Any = warnings.warn, _getpid: Any = os.getpid) -> None:
        if self._state == INIT or self._pid != _getpid():
            return
        if self._state == RUN:
            _warn(f"unclosed running pool {self!r}", ResourceWarning, source=self)
        self._executor.shutdown(wait=False)  # jobs hold their pool: none is left here
        self._deliveries.stop(wait=False)

    # --- one call -------------------------------------------------------------------------------

    def apply(self, func: Callable[..., T], args: Iterable[Any] = (), kwds: Mapping[str, Any] | None = None) -> T:
        """Call ``func(*args, **kwds)`` in a worker and wait for its value."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callable[[T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[T]:
        """Call ``func(*args, **kwds)`` in a worker.

        Args:
            func: What to call.
            args: Its positional arguments.
            kwds: Its keyword arguments.
            callback: Called with the value when it is there.
            error_callback: Called with the exception, if there is one.

        Raises:
            ValueError: The pool is not running.
        """
        self._check_running()
        if callback is None and error_callback is None:
            return CallResult(self, self._submitted(func, args, kwds or {}))
        result = AsyncResult(self, callback, error_callback)
        settle_by(self._submitted(func, args, kwds or {}), result, 0)
        return result

    # --- many, all at once ----------------------------------------------------------------------

    def map(self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int | None = None) -> list[T]:
        """``[func(item) for item in iterable]``, in workers; waits for all.

        Args:
            func: What to call.
            iterable: Its items; all are taken before the first call.
            chunksize: Items to a call; by default about four calls for each worker.
        """
        return self.map_async(func, iterable, chunksize).get()

    def map_async(
        self,
        func: Callable[[Any], T],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        """:meth:`map` without waiting; see :meth:`apply_async` for the callbacks."""
        return self._map_async(functools.partial(run_chunk, func), iterable, chunksize, callback, error_callback)

    def starmap(
        self, func: Callable[..., T], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[T]:
        """``[func(*item) for item in iterable]``, in workers; see :meth:`map`."""
        return self.starmap_async(func, iterable, chunksize).get()

    def starmap_async(
        self,
        func: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult:
        """:meth:`starmap` without waiting; see :meth:`apply_async` for the callbacks."""
        return self._map_async(functools.partial(run_star_chunk, func), iterable, chunksize, callback, error_callback)

    def _map_async(
        self,
        run: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callable[[list[Any]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> MapResult:
        self._check_running()
        _check_chunksize(chunksize)
        try:
            items = list(iterable)
        except Exception as error:
            if not hasattr(iterable, "__len__"):
                raise
            # What has a length is taken as a collection, and its failure as one of the calls.
            result = MapResult(self, 1, callback, error_callback)
            result._settle(0, False, error)
            return result
        size = chunksize or even_chunksize(len(items), self._processes)
        result = MapResult(self, -(-len(items) // size), callback, error_callback)
        self._feed(result, run, zip(chunks_of(items, size)))
        return result

    # --- many, one after the other --------------------------------------------------------------

    def imap(self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator[T]:
        """A lazier :meth:`map`: values in order, each as soon as it is there.

        The iterable is taken by a thread, whether or not anybody looks at the values, but no further ahead than
        some hundred calls beyond those that are done. An exception that it raises appears in its place.
        """
        return self._imap(IMapIterator, func, iterable, chunksize)

    def imap_unordered(self, func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator[T]:
        """:meth:`imap` with values as they arrive, in any order."""
        return self._imap(IMapUnorderedIterator, func, iterable, chunksize)

    def _imap(
        self, kind: type[IMapIterator[T]], func: Callable[[Any], T], iterable: Iterable[Any], chunksize: int
    ) -> IMapIterator[T]:
        self._check_running()
        _check_chunksize(chunksize)
        result = kind(self, chunked=chunksize > 1)
        chunks = chunks_of(iterable, chunksize)
        if chunksize == 1:
            self._feed(result, func, chunks)
        else:
            self._feed(result, functools.partial(run_chunk, func), zip(chunks))
        return result

    # --- the end --------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more calls; those taken are still carried out."""
        with self._changed:
            if self._state != RUN:
                return
            self._state = CLOSE
            idle = not self._jobs
        if idle:
            self._executor.shutdown(wait=False)

    def terminate(self) -> None:
        """End the workers now; what is unfinished ends with :class:`~executor.errors.PoolBroken`."""
        if self._pid != os.getpid():
            return  # a forked copy must not end its parent's workers
        with self._changed:
            self._state = TERMINATE
            jobs = list(self._jobs)
        try:
            self._executor.terminate()
        finally:
            for job in jobs:
                job._abort(PoolBroken("The pool was terminated before this call was done."))
            self._deliveries.stop(wait=False)

    def join(self) -> None:
        """Wait until all calls are done, their callbacks too, and the workers are gone.

        Raises:
            ValueError: Neither :meth:`close` nor :meth:`terminate` was called before.
            RuntimeError: Called from a callback, which it would wait for.
        """
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._deliveries.is_current_thread():
            raise RuntimeError("cannot join a pool from its own callback")
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs)
        self._executor.shutdown(wait=True)
        self._deliveries.stop(wait=True)
        _pools.discard(self)

    # --- inside ---------------------------------------------------------------------------------

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")

    def _enter(self, job: Job) -> None:
        with self._changed:
            self._check_running()
            self._jobs.add(job)

    def _leave(self, job: Job) -> None:
        with self._changed:
            self._jobs.discard(job)
            self._changed.notify_all()
            idle = self._state == CLOSE and not self._jobs
        if idle:
            self._executor.shutdown(wait=False)

    def _deliver(self, work: Callable[[], None]) -> None:
        self._deliveries.put(work)

    def _feed(self, job: MapResult | IMapIterator[Any], function: Callable[..., Any], calls: Iterable[Any]) -> None:
        feeder = threading.Thread(
            target=self._run_feeder, args=(job, function, calls), name="executor-pool-feeder", daemon=True
        )
        feeder.start()

    def _run_feeder(
        self, job: MapResult | IMapIterator[Any], function: Callable[..., Any], calls: Iterable[Any]
    ) -> None:
        window = Window(max(_MIN_AHEAD, _AHEAD_PER_PROCESS * self._processes))
        count = 0
        try:
            for arguments in calls:
                window.enter()
                if self._state == TERMINATE:
                    return
                settle_by(self._submitted(function, arguments, {}), job, count, window.leave)
                count += 1
        except BaseException as error:
            job._settle(count, False, error)
            count += 1
        job._set_length(count)

    def _submitted(self, function: Callable[..., T], args: Iterable[Any], kwargs: Mapping[str, Any]) -> Future[T]:
        try:
            return self._executor.submit(function, *args, **kwargs)
        except Exception as error:  # the executor is broken, or has been terminated meanwhile
            failed: Future[T] = Future()
            failed.set_exception(error)
            return failed


#: Pools that may still have to be ended when the interpreter exits.
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _terminate_all() -> None:
    """At the interpreter's exit a Pool drops what is pending, unlike an executor, as in the standard library."""
    for pool in [*_pools]:
        pool.terminate()


@functools.cache
def _end_with_interpreter() -> None:
    """Registered once, after the first executor has registered its own: the last one is called first."""
    try:
        threading._register_atexit(_terminate_all)  # type: ignore[attr-defined]  # as concurrent.futures does
    except (AttributeError, RuntimeError):
        atexit.register(_terminate_all)


def _checked_processes(processes: int | None) -> int:
    if processes is None:
        processes = getattr(os, "process_cpu_count", os.cpu_count)() or 1
    if processes < 1:
        raise ValueError("Number of processes must be at least 1")
    return processes


def _check_maxtasks(count: object) -> None:
    if count is not None and (not isinstance(count, int) or count <= 0):
        raise ValueError("maxtasksperchild must be a positive int or None")


def _check_chunksize(size: int | None) -> None:
    if size is not None and size < 1:
        raise ValueError(f"Chunksize must be 1+, not {size!r}")
