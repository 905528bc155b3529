"""The standard library's multiprocessing.Pool, with its default start method."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.peers.base import Handle, Peer


class PoolHandle:
    """An `AsyncResult`, of the standard library or of Ray, under our verb."""

    __slots__ = ("_async_result",)

    def __init__(self, async_result: Any) -> None:
        self._async_result = async_result

    def result(self) -> Any:
        return self._async_result.get()


class MultiprocessingPool(Peer):
    title = "multiprocessing.Pool"
    import_statement = "from multiprocessing import Pool"

    def load(self) -> None:
        from multiprocessing import Pool

        self._new_pool: Any = Pool

    def start(self, workers: int) -> None:
        self._pool = self._new_pool(workers)

    def submit(self, fn: Callable[..., Any], *arguments: Any) -> Handle:
        return PoolHandle(self._pool.apply_async(fn, arguments))

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
        return self._pool.map(fn, items)  # type: ignore[no-any-return]

    def stop(self) -> None:
        self._pool.close()
        self._pool.join()
