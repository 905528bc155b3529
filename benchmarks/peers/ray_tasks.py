"""Ray's tasks on a private cluster of this machine."""

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.peers.base import Handle, Peer

#: Room for a few of the 64 MiB arrays.
OBJECT_STORE_BYTES = 1 << 30


def start_ray(ray: Any, workers: int) -> None:
    """Start a cluster of `workers` CPUs, without its dashboard."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=workers,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _temp_dir=os.path.join(tempfile.gettempdir(), "ray"),
    )


class ObjectHandle:
    """An ObjectRef that can be waited for."""

    __slots__ = ("_ray", "ref")

    def __init__(self, ray: Any, ref: Any) -> None:
        self._ray = ray
        self.ref = ref

    def result(self) -> Any:
        return self._ray.get(self.ref)


class RayTasks(Peer):
    title = "Ray"
    distributions = ("ray",)
    import_statement = "import ray"
    slow = True

    def load(self) -> None:
        import ray

        self._ray: Any = ray
        self._remote: dict[Callable[..., Any], Any] = {}

    def start(self, workers: int) -> None:
        start_ray(self._ray, workers)

    def submit(self, fn: Callable[..., Any], *arguments: Any) -> Handle:
        remote = self._remote.get(fn) or self._remote.setdefault(fn, self._ray.remote(fn))
        return ObjectHandle(self._ray, remote.remote(*arguments))

    def results(self, handles: Sequence[Any]) -> list[Any]:
        return self._ray.get([handle.ref for handle in handles])  # type: ignore[no-any-return]

    def stop(self) -> None:
        self._ray.shutdown()
