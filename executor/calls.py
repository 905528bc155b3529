"""The calling half of an executor: ``submit``, ``map`` and their kin, shared by ``KubeExecutor`` and its views.

Thin on purpose: what does the work (:mod:`executor.submitter`) is imported when an executor is made, so that
importing the class costs next to nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterable, Iterable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from executor.dispatch.future import CallFuture
    from executor.dispatch.map_result import MapResult
    from executor.session import Session
    from executor.submitter import Submitter
    from executor.tasks.call_options import CallOptions

P = ParamSpec("P")
T = TypeVar("T")


class Calls(Executor):
    """Sends calls with one set of options."""

    _options: CallOptions
    _submitter: Submitter

    def _use(self, session: Session, options: CallOptions) -> None:
        from executor.submitter import Submitter

        self._options = options
        self._submitter = Submitter(session, options)

    @abstractmethod
    def _check_open(self) -> None:
        """Raise RuntimeError after shutdown."""

    @abstractmethod
    def _check_pool(self, name: str) -> None:
        """Raise ValueError for a pool that there is not."""

    @overload
    def submit(
        self, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> CallFuture[T]: ...
    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> CallFuture[T]: ...
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> CallFuture[Any]:
        """Run ``fn(*args, **kwargs)`` on a worker; a coroutine function is run to its end there.

        Arguments are pickled now: changing them afterwards does not change the call.

        Returns:
            A ``concurrent.futures.Future`` that can also be awaited. What cannot be pickled fails on it.

        Raises:
            RuntimeError: After ``shutdown()``, or in a forked child.
            PoolBroken, BrokerError: The executor cannot be started, or is broken for good.
        """
        self._check_open()
        return self._submitter.submit(fn, args, kwargs)

    @overload
    def map(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> MapResult[T]: ...
    @overload
    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> MapResult[T]: ...
    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> MapResult[Any]:
        """Results of ``fn`` over the items, in order; iterate with ``for`` or ``async for``.

        Args:
            fn: Called with one item of each iterable.
            iterables: All taken in now, unless ``buffersize`` is given; the shortest ends it. Async iterables make
                the result an async one, and are taken in as it is iterated.
            timeout: Seconds from now within which each next result must come; then TimeoutError.
            chunksize: Items in one message; None adapts to the measured duration.
            buffersize: At most so many items taken in and not yet given out; needed for infinite input.
            progress: Show done, failed, rate and time left on stderr.

        Raises:
            ValueError: ``chunksize`` or ``buffersize`` below 1.
            RuntimeError: After ``shutdown()``.
            Exception: What pickling ``fn`` raised, or the input while it was taken in.
        """
        self._check_open()
        return self._submitter.map(
            fn,
            iterables,
            star=len(iterables) != 1,
            timeout=timeout,
            chunksize=chunksize,
            buffersize=buffersize,
            progress=progress,
        )

    def starmap(
        self,
        fn: Callable[..., T],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        *,
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> MapResult[T]:
        """As :meth:`map`, with ``fn(*item)`` for each item."""
        self._check_open()
        return self._submitter.map(
            fn,
            (_tuples(iterable),),
            star=True,
            timeout=timeout,
            chunksize=chunksize,
            buffersize=buffersize,
            progress=progress,
        )

    def imap_unordered(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> MapResult[T]:
        """As :meth:`map`, results as they come."""
        self._check_open()
        return self._submitter.map(
            fn,
            iterables,
            star=len(iterables) != 1,
            ordered=False,
            timeout=timeout,
            chunksize=chunksize,
            buffersize=buffersize,
            progress=progress,
        )

    def options(self, **changes: Any) -> ExecutorView:
        """A view of this executor with other options for its calls: itself an ``Executor``.

        Args:
            changes: Fields of :class:`executor.tasks.call_options.CallOptions`: ``timeout``, ``expires``, ``retries``,
                ``retry_on``, ``backoff``, ``max_deliveries``, ``priority``, ``pool``, ``name``, ``result_ttl``.

        Raises:
            TypeError: No such option.
            ValueError: A value that makes no sense, or no such pool.
        """
        from dataclasses import fields, replace

        known = {field.name for field in fields(self._options)}
        for name in sorted(changes.keys() - known):
            raise TypeError(f"options() has no {name!r}; there are {', '.join(sorted(known))}.")
        options = replace(self._options, **changes)
        self._check_pool(options.pool)
        return ExecutorView(self, options)


def _tuples(iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]]) -> Iterable[Any] | AsyncIterable[Any]:
    """The arguments of each call, taken in as the input is."""
    if isinstance(iterable, AsyncIterable):
        return (tuple(item) async for item in iterable)
    return (tuple(item) for item in iterable)


class ExecutorView(Calls):
    """An executor with other options, made by :meth:`Calls.options`; ``shutdown`` ends the view, not the executor."""

    def __init__(self, parent: Calls, options: CallOptions) -> None:
        self._parent = parent
        self._closed = False
        self._use(parent._submitter.session, options)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        self._parent._check_open()

    def _check_pool(self, name: str) -> None:
        self._parent._check_pool(name)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls through this view; the executor goes on, and so do calls submitted here.

        Args:
            wait: Wait for the single calls submitted through this view.
            cancel_futures: Cancel those that have not started.
        """
        self._closed = True
        self._submitter.finish(wait=wait, cancel=cancel_futures)

    def __repr__(self) -> str:
        return f"<view of {self._parent!r} with {self._options}>"

    def __reduce__(self) -> Any:
        return (ExecutorView, (self._parent, self._options))
