"""Dask: distributed's LocalCluster with worker processes of one thread each."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.peers.base import Handle, Peer, pool_chunk


class Dask(Peer):
    title = "Dask"
    distributions = ("dask", "distributed")
    import_statement = "from dask.distributed import Client, LocalCluster"
    slow = True
    map_note = "a `dask.bag` of four partitions for each worker"

    def load(self) -> None:
        from dask import bag, distributed

        self._distributed: Any = distributed
        self._bag: Any = bag

    def start(self, workers: int) -> None:
        self._workers = workers
        self._cluster = self._distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
        )
        self._client = self._distributed.Client(self._cluster)

    def submit(self, fn: Callable[..., Any], *arguments: Any) -> Handle:
        return self._client.submit(fn, *arguments, pure=False)  # type: ignore[no-any-return]

    def results(self, handles: Sequence[Any]) -> list[Any]:
        return self._client.gather(list(handles))  # type: ignore[no-any-return]

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
        partition = pool_chunk(len(items), self._workers)
        return self._bag.from_sequence(items, partition_size=partition).map(fn).compute()  # type: ignore[no-any-return]

    def stop(self) -> None:
        self._client.close()
        self._cluster.close()
