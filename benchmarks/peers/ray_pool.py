"""Ray's own multiprocessing.Pool."""

from typing import Any

from benchmarks.peers.mp_pool import MultiprocessingPool
from benchmarks.peers.ray_tasks import start_ray


class RayPool(MultiprocessingPool):
    title = "Ray's Pool"
    distributions = ("ray",)
    import_statement = "from ray.util.multiprocessing import Pool"
    slow = True

    def load(self) -> None:
        import ray
        from ray.util.multiprocessing import Pool

        self._ray: Any = ray
        self._new_pool = Pool

    def start(self, workers: int) -> None:
        start_ray(self._ray, workers)
        super().start(workers)

    def stop(self) -> None:
        super().stop()
        self._ray.shutdown()
