"""Our steps in Celery's worker: probes, and no new claims once it stops."""

from __future__ import annotations

import logging
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.worker import state

if TYPE_CHECKING:
    from executor.worker.config import WorkerConfig
    from executor.worker.lease import Lease
    from executor.worker.transport import Consuming

logger = logging.getLogger(__name__)

#: How often the hub shows that it turns, in seconds.
LIVE_EVERY_S = 5.0


class Steps:
    """Makes the steps and adds them to an app.

    Args:
        config: The worker's settings.
        consuming: Set to drain at the stop.
        lease: Hears that the worker is ready.
    """

    def __init__(self, config: WorkerConfig, consuming: Consuming, lease: Lease) -> None:
        self._config, self._consuming, self._lease = config, consuming, lease

    def add_to(self, app: Any) -> None:
        """Register with the app's blueprints."""
        app.steps["worker"].add(self._drain_step())
        if self._config.probes:
            app.steps["consumer"].add(self._probe_step(Path(self._config.probes)))

    def _drain_step(self) -> type[bootsteps.StartStopStep]:
        consuming = self._consuming

        class Drain(bootsteps.StartStopStep):
            """From the first moment of a stop nothing is claimed."""

            requires = ("celery.worker.components:Pool",)

            def close(self, worker: Any) -> None:
                consuming.draining = True

        return Drain

    def _probe_step(self, directory: Path) -> type[bootsteps.StartStopStep]:
        consuming = self._consuming

        class Probes(bootsteps.StartStopStep):
            """``ready`` while the worker takes calls, ``live`` touched as long as the hub turns."""

            requires = ("celery.worker.consumer.tasks:Tasks",)

            def register_with_event_loop(self, consumer: Any, hub: Any) -> None:
                directory.mkdir(parents=True, exist_ok=True)
                hub.call_repeatedly(LIVE_EVERY_S, self._touch)
                self._touch()  # before it is ready: from then on it is asked whether it lives
                (directory / "ready").touch()

            def stop(self, consumer: Any) -> None:
                (directory / "ready").unlink(missing_ok=True)

            def _touch(self) -> None:
                waiting_s = monotonic() - consuming.last_read
                if state.should_stop is None or waiting_s < LIVE_EVERY_S:
                    (directory / "live").touch()

        return Probes
