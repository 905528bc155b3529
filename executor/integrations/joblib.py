"""joblib over a KubeExecutor, and with it scikit-learn: importing this module registers the backend ``"kube"``.

::

    import executor.integrations.joblib

    with KubeExecutor(max_workers=4) as ex, joblib.parallel_config("kube", executor=ex):
        GridSearchCV(model, grid).fit(X, y)

    Parallel(n_jobs=4, backend="kube")(delayed(f)(x) for x in xs)  # an executor of its own, kept for the next time

Loops within a call run in its worker: in threads at the first level, sequentially below, as with joblib's own
backends. ``n_jobs`` bounds how much is under way, not where it runs; left out, it is all that the executor has.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

from joblib import cpu_count, register_parallel_backend
from joblib.parallel import AutoBatchingMixin, FallbackToBackend, ParallelBackendBase, SequentialBackend

from executor.calls import ExecutorView
from executor.kube_executor import KubeExecutor
from executor.tasks.worker_context import worker_context

BACKEND = "kube"


def register() -> None:
    """Make ``"kube"`` known to joblib; importing this module has done it already."""
    register_parallel_backend(BACKEND, KubeBackend)


class KubeBackend(AutoBatchingMixin, ParallelBackendBase):
    """What joblib drives. Futures are awaited by callbacks; these run in a thread of their own.

    Args:
        nesting_level: Set by joblib.
        executor: A :class:`KubeExecutor` or a view of one (``ex.options(...)``); it stays open. None uses one that is
            started when it is needed, and kept for later loops of the same kind.
        **options: Of that executor, e.g. ``broker_url``.
    """

    supports_retrieve_callback = True
    default_n_jobs = -1
    #: joblib puts short tasks together until a batch takes this long; 0.2 s by default, for heavier engines.
    MIN_IDEAL_BATCH_DURATION = 0.05
    MAX_IDEAL_BATCH_DURATION = 1.0

    def __init__(self, nesting_level: int | None = None, executor: Executor | None = None, **options: Any) -> None:
        options.pop("inner_max_num_threads", None)
        super().__init__(nesting_level=nesting_level)
        self._given, self._options = executor, options
        self._executor: Executor | None = None
        self._futures: set[Future[Any]] = set()
        self._callbacks: ThreadPoolExecutor | None = None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many calls joblib may count on.

        Raises:
            ValueError: ``n_jobs`` is 0.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if self._given is None and worker_context() is not None:
            return 1  # in a worker already: an engine within an engine helps nobody
        if n_jobs is not None and n_jobs > 0:
            return n_jobs
        if self._given is None:
            return 1 if n_jobs is None else max(cpu_count() + 1 + n_jobs, 1)
        # For joblib 1 means: here, and not on the executor. That is what n_jobs=1 says, but not what "all" does.
        return max(worker_count(self._given) + 1 + (-1 if n_jobs is None else n_jobs), 2)

    def configure(
        self,
        n_jobs: int | None = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        executor: Executor | None = None,
        **unused: Any,
    ) -> int:
        """Get ready for a loop.

        Args:
            n_jobs: As in joblib.
            parallel: joblib's ``Parallel``.
            prefer: Not used.
            require: Not used; joblib keeps ``sharedmem`` away from here.
            executor: As in the constructor.
            **unused: What joblib passes to backends that share memory maps.

        Returns:
            How many calls may run at a time.
        """
        self._given = executor or self._given
        count = self.effective_n_jobs(n_jobs)
        if count == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        self._executor = self._given or _own_executor(count, self._options)
        if self._callbacks is None:
            self._callbacks = ThreadPoolExecutor(1, thread_name_prefix="executor-joblib")
        return count

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Future[Any]:
        """Send one batch of joblib's."""
        if self._executor is None:
            raise RuntimeError("The joblib backend 'kube' is used outside of a Parallel call.")
        future: Future[Any] = self._executor.submit(run_batch, func)
        self._futures.add(future)
        future.add_done_callback(lambda done: self._finished(done, callback))
        return future

    def retrieve_result_callback(self, future: Future[Any]) -> Any:
        """The results of a batch, or what one of its tasks raised."""
        return future.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel what waits and interrupt what runs."""
        pending = list(self._futures)
        running = [future for future in pending if not future.cancel() and not future.done()]
        executor = _root(self._executor)
        if isinstance(executor, KubeExecutor):
            for future in running:
                executor.cancel(future, running=True)  # type: ignore[arg-type]  # it is one of its own
        self._futures.difference_update(pending)

    def terminate(self) -> None:
        """The end of a loop; the executor stays."""
        callbacks, self._callbacks = self._callbacks, None
        if callbacks is not None:
            callbacks.shutdown(wait=False)
        self._executor = None
        self.reset_batch_stats()

    def _finished(self, future: Future[Any], callback: Callable[[Any], Any] | None) -> None:
        """Hand a result to joblib, whose callback takes locks and pulls the user's generator: never on our loop."""
        self._futures.discard(future)
        callbacks = self._callbacks
        if callback is None or callbacks is None or future.cancelled():
            return
        try:
            callbacks.submit(callback, future)
        except RuntimeError:  # the loop has ended meanwhile: nobody asks for this one
            pass


def run_batch(batch: Callable[[], Any]) -> Any:
    """Runs in the worker. A function of this module, so that it is stored in the broker once and for all."""
    return batch()


def worker_count(executor: Executor) -> int:
    """Calls that an executor, or the one behind a view, runs at a time."""
    count: int = getattr(_root(executor), "_max_workers", 1)
    return count


def shutdown() -> None:
    """Stop the executor that the backend keeps for loops without one; it stops by itself when the program ends."""
    global _kept
    with _kept_lock:
        if _kept is not None:
            _kept[1].shutdown()
        _kept = None


_kept: tuple[tuple[Any, ...], KubeExecutor] | None = None
_kept_lock = threading.Lock()


def _own_executor(count: int, options: dict[str, Any]) -> KubeExecutor:
    """The executor for loops that bring none: the last one, if it is like the one wanted."""
    global _kept
    wanted = (count, *sorted(options.items()))
    with _kept_lock:
        if _kept is not None and _kept[0] == wanted:
            return _kept[1]
        if _kept is not None:
            _kept[1].shutdown(wait=False)  # what another loop has under way there comes to its end
        executor = KubeExecutor(count, **options)
        _kept = (wanted, executor)
    return executor


def _root(executor: Executor | None) -> Executor | None:
    while isinstance(executor, ExecutorView):
        executor = executor._parent
    return executor


register()
