"""The standard library's ProcessPoolExecutor, with its default start method."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.peers.base import Handle, Peer, pool_chunk


class ProcessPool(Peer):
    title = "ProcessPoolExecutor"
    import_statement = "from concurrent.futures import ProcessPoolExecutor"
    map_note = "`chunksize` as `multiprocessing.Pool` chooses it: four chunks for each worker"

    def load(self) -> None:
        from concurrent.futures import ProcessPoolExecutor

        self._class: Any = ProcessPoolExecutor

    def start(self, workers: int) -> None:
        self._workers = workers
        self._executor = self._class(max_workers=workers)

    def submit(self, fn: Callable[..., Any], *arguments: Any) -> Handle:
        return self._executor.submit(fn, *arguments)  # type: ignore[no-any-return]

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
        chunksize = pool_chunk(len(items), self._workers)
        return self._executor.map(fn, items, chunksize=chunksize)  # type: ignore[no-any-return]

    def stop(self) -> None:
        self._executor.shutdown()
