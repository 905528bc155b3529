"""What a supervisor looks after: the embedded server and the worker parents, each with its successors."""

from __future__ import annotations

import json
import os

from executor.broker import embedded
from executor.pools import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from executor.pools.processes import Exit

__all__ = ["Restarts", "Server", "Worker"]

#: A process that lived this long counts as having come up, whatever it said.
SETTLED_S = 30.0

#: Exit code of a worker that need not be started again: what is wrong will not mend (``EX_CONFIG``).
EXIT_CONFIG = 78


class Restarts:
    """When to start a process again that ended: at once, then with doubling delays; not after too many early deaths.

    Attributes:
        early: Deaths in a row before the process was ready.
    """

    #: So many ends in a row before ready are enough, if the process ended by itself: about three seconds.
    MOST_FAILED = 4
    #: Likewise, if it was killed from outside (somebody's hand, or no memory): about half a minute.
    MOST_EARLY = 12
    FIRST_DELAY_S = 0.1
    LONGEST_DELAY_S = 5.0

    def __init__(self) -> None:
        self.early = 0
        self._failed = 0
        self._quick = 0

    def after(self, end: Exit, lived_s: float, ready: bool) -> float | None:
        """Seconds to wait before the next start, or None to give up.

        Args:
            end: How the process ended.
            lived_s: How long it lived.
            ready: Whether it had come up.
        """
        settled = lived_s >= SETTLED_S
        if ready or settled:
            self.early = self._failed = 0
        else:
            self.early += 1
            self._failed += not end.killed
        if self._failed >= self.MOST_FAILED or self.early >= self.MOST_EARLY:
            return None
        self._quick = 0 if settled else self._quick + 1
        return self._delay_s()

    def _delay_s(self) -> float:
        if self._quick <= 1:
            return 0.0
        return min(self.FIRST_DELAY_S * 2.0 ** min(self._quick - 2, 10), self.LONGEST_DELAY_S)


class Server:
    """The embedded server, started again under the same address when it dies.

    Args:
        plan: Where, with which password.
    """

    def __init__(self, plan: embedded.ServerPlan) -> None:
        self.plan = plan
        self.pid = 0
        self.ready = False
        self.started_at = 0.0
        self.restarts = Restarts()

    def start(self, now: float) -> None:
        """Start it. It answers a little later."""
        self.ready, self.started_at = False, now
        self.pid = processes.spawn(self.plan.argv, dict(os.environ), output=self.plan.log_path, die_with_us=True)

    def died(self, end: Exit, now: float) -> tuple[dict[str, Any], float | None]:
        """What to report, and when to start it again."""
        output = embedded.log_tail(self.plan.log_path)
        report = {"pid": self.pid, "exit_code": end.code, "signal": end.signal, "output": output}
        self.pid = 0
        return report, self.restarts.after(end, now - self.started_at, self.ready)


class Worker:
    """One worker parent, and its successors.

    Args:
        argv: Its command.
        config: Path of its configuration.
        log: Path of its log; ours to read when it dies.
        ready_file: What it touches when it has come up.
        import_path: Directory to put on its import path, if it would not find this package by itself.
    """

    def __init__(self, argv: list[str], config: str, log: str, ready_file: str, import_path: str | None = None) -> None:
        self.argv = argv
        self.config = config
        self.log = log
        self.ready_file = ready_file
        self.import_path = import_path
        self.pid = 0
        self.restart_at: float | None = 0.0
        self.started_at = 0.0
        self.restarts = Restarts()
        self._life = -1

    def start(self, now: float) -> None:
        """Start it, with a pipe whose end tells it that we are gone."""
        for path in (self.log, self.ready_file):
            if os.path.exists(path):
                os.unlink(path)
        self.started_at, self.restart_at = now, None
        life, keep = os.pipe()
        try:
            self.pid = processes.spawn(self.argv, self._environment(life), keep_fds=(life,))
        except OSError:
            os.close(keep)
            raise
        finally:
            os.close(life)
        self._life = keep

    def died(self, end: Exit, now: float) -> dict[str, Any]:
        """What to report; :attr:`restart_at` says when it starts again, None means never."""
        os.close(self._life)
        ready = os.path.exists(self.ready_file)
        delay = None if end.code == EXIT_CONFIG else self.restarts.after(end, now - self.started_at, ready)
        self.restart_at = None if delay is None else now + delay
        report = {"pid": self.pid, "exit_code": end.code, "signal": end.signal, "output": embedded.log_tail(self.log)}
        self.pid = 0
        return report

    def resize(self, slots: int) -> None:
        """Give the next worker another number of slots; the running one is told through the broker."""
        with open(self.config, encoding="utf-8") as file:
            config = {**json.load(file), "slots": slots}
        fd = os.open(f"{self.config}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(config, file)
        os.replace(f"{self.config}.new", self.config)

    def _environment(self, life: int) -> dict[str, str]:
        env = {
            **os.environ,
            "KUBE_EXECUTOR_WORKER_CONFIG": self.config,
            "KUBE_EXECUTOR_WORKER_LOG": self.log,
            "KUBE_EXECUTOR_LIFE_FD": str(life),
        }
        if self.import_path is not None:
            env["PYTHONPATH"] = os.pathsep.join(filter(None, (env.get("PYTHONPATH"), self.import_path)))
        return env
