"""The process that holds a pool together on one machine, and takes everything with it when its client is gone.

::

    client ◄── JSON lines ──► supervisor ──► server           (dies with the supervisor: PR_SET_PDEATHSIG)
       (socketpair, and a pidfd)    └──────► worker parents   (hold a pipe from here: KUBE_EXECUTOR_LIFE_FD)
                                                └──► children (orphans become the supervisor's, and are killed)

A client that said ``stop`` may close the channel: the grace period goes on while the client lives, and ends a second
after it. The supervisor runs in a session of its own, so neither Ctrl-C nor a SIGTERM to the client's process group
reaches it or what it started; SIGINT, SIGTERM and SIGHUP are ignored. It ends when told, or when its client ends in
whatever way.

First line from the client: ``{"command": "start", "client": pid, "server": plan | null, "workers": [...],
"directories": [...]}``; then ``stop`` (``grace_s``), ``kill_worker`` (``pid``, ``signal``), ``resize`` (``slots``, of
workers started from then on). Events back: ``server`` (it answers), ``server_died``, ``worker_started``,
``worker_died``, ``broken``, ``stopped``.

Every import here delays the first result of every executor: only light modules are used.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time

from executor.broker import embedded
from executor.pools import processes
from executor.pools.supervised import Server, Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from executor.pools.processes import Exit

__all__ = ["Channel", "Supervisor", "main"]

#: Grace period of the workers when the client is gone: time to leave the broker in order, not to finish calls.
ORPHAN_GRACE_S = 1.0

#: How often a server that was just started is asked whether it answers.
SERVER_POLL_S = 0.004


class Channel:
    """JSON lines over one end of a socket pair; never waits.

    Args:
        fd: Our end.
    """

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.closed = False
        self._in = b""
        self._out = b""

    @property
    def interest(self) -> int:
        """What to poll for."""
        return select.POLLIN | (select.POLLOUT if self._out else 0)

    def read(self) -> list[dict[str, Any]]:
        """The messages that have arrived; sets :attr:`closed` at the end of the stream."""
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        self.closed = self.closed or not data
        *lines, self._in = (self._in + data).split(b"\n")
        return [json.loads(line) for line in lines if line]

    def send(self, event: str, **fields: Any) -> None:
        """Write an event, or keep it until the client reads again."""
        self._out += json.dumps({"event": event, **fields}).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Write what waits, as far as it goes."""
        try:
            while self._out and not self.closed:
                self._out = self._out[os.write(self.fd, self._out) :]
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True


class Supervisor:
    """Starts, watches and ends the server and the workers of one client.

    Args:
        fd: Our end of the socket pair with the client.
    """

    def __init__(self, fd: int) -> None:
        self.channel = Channel(fd)
        self.server: Server | None = None
        self.workers: list[Worker] = []
        self.directories: list[str] = []
        self._server_due: float | None = None
        self._stop_at: float | None = None
        self._child_died = _wakeup_pipe()
        self._client_fd: int | None = None
        self._client_gone = False

    def run(self) -> None:
        """Serve until the client says stop, or is gone."""
        while not self._finished():
            self._wait(self._pause(time.monotonic()))
            for message in self.channel.read():
                self._obey(message)
            if self._is_abandoned():
                self._stop(ORPHAN_GRACE_S)
            self.channel.flush()
            self._collect(processes.reap())
            self._start_due(time.monotonic())
        self._end()

    # ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _wait(self, seconds: float | None) -> None:
        poll = select.poll()
        if not self.channel.closed:
            poll.register(self.channel.fd, self.channel.interest)
        poll.register(self._child_died, select.POLLIN)
        if self._client_fd is not None:
            poll.register(self._client_fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(None if seconds is None else max(0.0, seconds) * 1000 + 0.5)}
        if self._child_died in ready:
            os.read(self._child_died, 512)
        if self._client_fd is not None and self._client_fd in ready:
            os.close(self._client_fd)
            self._client_fd, self._client_gone = None, True

    def _pause(self, now: float) -> float | None:
        """Seconds until something is due."""
        due = [worker.restart_at for worker in self.workers if worker.restart_at is not None and not self._stop_at]
        due += [moment for moment in (self._server_due, self._stop_at) if moment is not None]
        return min(due) - now if due else None

    # ── commands ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _obey(self, message: dict[str, Any]) -> None:
        match message:
            case {"command": "start"}:
                self._start(message)
            case {"command": "stop", "grace_s": grace_s}:
                self._stop(grace_s)
            case {"command": "kill_worker", "pid": pid, "signal": number}:
                if pid in self._running():
                    processes.kill(pid, number)
            case {"command": "resize", "slots": slots}:
                for worker in self.workers:
                    worker.resize(slots)

    def _start(self, message: dict[str, Any]) -> None:
        self.directories = message["directories"]
        self.workers = [Worker(**worker) for worker in message["workers"]]
        if message["server"] is not None:
            self.server = Server(embedded.ServerPlan.from_json(message["server"]))
            self._server_due = 0.0
        self._start_due(time.monotonic())
        processes.become_subreaper()
        self._watch_client(message["client"])

    def _watch_client(self, pid: int) -> None:
        """See the client end even where a fork of it still holds the other end of our channel."""
        self._client_fd = processes.watch_process(pid)
        self._client_gone = os.getppid() != pid

    def _is_abandoned(self) -> bool:
        """Whether the client is gone; one that said stop may close the channel and live on."""
        told = self._stop_at is not None and self._client_fd is not None
        return self._client_gone or (self.channel.closed and not told)

    # ── starting ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_due(self, now: float) -> None:
        if self._stop_at is not None:
            return
        for worker in self.workers:  # first, because they take longest
            if worker.restart_at is not None and worker.restart_at <= now:
                self._start_worker(worker, now)
        if self.server is not None and self._server_due is not None and self._server_due <= now:
            self._care_for(self.server, now)

    def _care_for(self, server: Server, now: float) -> None:
        """Start the server, or ask the started one whether it answers."""
        if not server.pid:
            self._start_server(server, now)
        elif embedded.answers(server.plan):
            server.ready, self._server_due = True, None
            self.channel.send("server", pid=server.pid)
        elif now - server.started_at > embedded.START_TIMEOUT_S:
            processes.kill(server.pid)
            self._server_due = None
        else:
            self._server_due = now + SERVER_POLL_S

    def _start_server(self, server: Server, now: float) -> None:
        try:
            server.start(now)
        except OSError as error:
            self._server_due = None
            self._broken(f"The embedded server {server.plan.binary} cannot be run: {error}.")
        else:
            self._server_due = now + SERVER_POLL_S

    def _start_worker(self, worker: Worker, now: float) -> None:
        try:
            worker.start(now)
        except OSError as error:
            worker.restart_at = None
            self._broken(f"A worker process cannot be started: {error}. Its command: {' '.join(worker.argv)}")
        else:
            self.channel.send("worker_started", pid=worker.pid)

    # ── deaths ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _collect(self, ended: list[tuple[int, Exit]]) -> None:
        """Deal with children that have ended; whoever is neither server nor worker was an orphan."""
        while ended:
            pid, end = ended.pop(0)
            if self.server is not None and pid == self.server.pid:
                self._server_died(self.server, end)
            for worker in self.workers:
                if pid == worker.pid:
                    processes.kill(pid, group=True)
                    self._worker_died(worker, end)
                    ended += processes.kill_orphans(self._running())

    def _server_died(self, server: Server, end: Exit) -> None:
        now = time.monotonic()
        report, delay = server.died(end, now)
        self._server_due = None
        if self._stop_at is not None:
            return
        self.channel.send("server_died", **report)
        if delay is None:
            log = report["output"] or "(empty)"
            self._broken(f"The embedded server ended again and again ({end}). Last lines of its log:\n{log}")
        else:
            self._server_due = now + delay

    def _worker_died(self, worker: Worker, end: Exit) -> None:
        report = worker.died(end, time.monotonic())
        self.channel.send("worker_died", **report)
        if worker.restart_at is None and self._stop_at is None:
            log = report["output"] or "(empty; look at stderr above)"
            times = f"{worker.restarts.early} times in a row" if worker.restarts.early > 1 else "for good"
            self._broken(
                f"Worker processes ended {times} before they were ready ({end}). Last lines of the log:\n{log}"
            )

    def _broken(self, reason: str) -> None:
        self.channel.send("broken", reason=reason)

    def _running(self) -> set[int]:
        pids = {worker.pid for worker in self.workers} | {self.server.pid if self.server else 0}
        return pids - {0}

    # ── ending ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _stop(self, grace_s: float) -> None:
        """Ask the workers to go; a second time only shortens the grace."""
        first, deadline = self._stop_at is None, time.monotonic() + grace_s
        self._stop_at = deadline if self._stop_at is None else min(self._stop_at, deadline)
        if first:
            for worker in self.workers:
                if worker.pid:
                    processes.kill(worker.pid, signal.SIGTERM)

    def _finished(self) -> bool:
        if self._stop_at is None:
            return False
        return time.monotonic() >= self._stop_at or not any(worker.pid for worker in self.workers)

    def _end(self) -> None:
        """End what is left: the workers with all their descendants, then the server; and its directories."""
        server = {self.server.pid} - {0} if self.server is not None else set()
        for pid in self._running() - server:
            processes.kill(pid, group=True)
        self._collect(processes.kill_orphans(server))
        for pid in server:
            processes.kill(pid)
        processes.kill_orphans(())
        for path in self.directories:
            processes.remove_tree(path)
        self.channel.send("stopped")


def _wakeup_pipe() -> int:
    """A pipe that becomes readable when a child ends; from now on only our client ends us."""
    read, write = os.pipe()
    for fd in (read, write):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return read


def main(fd: int) -> None:
    """Run a supervisor until its client is gone.

    Args:
        fd: Its end of the socket pair with the client.
    """
    supervisor = Supervisor(fd)
    try:
        supervisor.run()
    except BaseException as error:
        supervisor.channel.send("broken", reason=f"The supervisor of the pool failed: {error!r}")
        raise


if __name__ == "__main__":
    import sys

    main(int(sys.argv[1]))
