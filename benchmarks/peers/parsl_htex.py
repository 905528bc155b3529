"""Parsl's HighThroughputExecutor with one block on this machine."""

import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.peers.base import Handle, Peer


class Parsl(Peer):
    title = "Parsl"
    distributions = ("parsl",)
    import_statement = "import parsl"
    slow = True

    def load(self) -> None:
        import parsl

        self._parsl: Any = parsl
        self._apps: dict[Callable[..., Any], Any] = {}

    def start(self, workers: int) -> None:
        self._kernel = self._parsl.load(self._config(workers))

    def submit(self, fn: Callable[..., Any], *arguments: Any) -> Handle:
        app = self._apps.get(fn) or self._apps.setdefault(fn, self._parsl.python_app(fn))
        return app(*arguments)  # type: ignore[no-any-return]

    def stop(self) -> None:
        self._kernel.cleanup()
        self._parsl.clear()

    def _config(self, workers: int) -> Any:
        from parsl.executors import HighThroughputExecutor
        from parsl.providers import LocalProvider

        htex = HighThroughputExecutor(
            label="htex",
            address="127.0.0.1",
            max_workers_per_node=workers,
            provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
        )
        return self._parsl.Config(
            executors=[htex],
            strategy="none",
            run_dir=tempfile.mkdtemp(prefix="parsl-"),
            initialize_logging=False,
        )
