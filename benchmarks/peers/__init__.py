"""The peers: one adapter each, found by its key."""

from importlib import import_module

from benchmarks.peers.base import Peer

#: Key on the command line → (module, class). The order is that of the tables.
PEERS = {
    "ours": ("ours", "Ours"),
    "ours-redis": ("ours", "OursOverRedis"),
    "process-pool": ("process_pool", "ProcessPool"),
    "mp-pool": ("mp_pool", "MultiprocessingPool"),
    "loky": ("loky_pool", "Loky"),
    "dask": ("dask_cluster", "Dask"),
    "ray": ("ray_tasks", "RayTasks"),
    "ray-pool": ("ray_pool", "RayPool"),
    "parsl": ("parsl_htex", "Parsl"),
    "celery": ("stock_celery", "StockCelery"),
    "redis-loop": ("redis_loop", "RedisLoop"),
}


def peer(key: str) -> Peer:
    """Return a new adapter; the peer itself is imported by its `load`, not here."""
    module, name = PEERS[key]
    return getattr(import_module(f"benchmarks.peers.{module}"), name)()  # type: ignore[no-any-return]
