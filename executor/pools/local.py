"""Worker processes on this machine, with a server of their own or the user's.

::

    LocalPool.start ─► directories, key, worker.json ─► supervisor ─► server and worker parent, at the same time
                       meanwhile: import redis         ◄─ events ─┘

Everything ends with the client, however it ends; see :mod:`executor.pools.supervisor`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import signal
import socket
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from executor.broker import connection, embedded
from executor.broker.address import BrokerAddress
from executor.broker.obituaries import bury, is_process
from executor.errors import BrokerUnavailable, PoolBroken, PoolStartError
from executor.pools import processes
from executor.pools.base import PoolState, PoolStatus, WorkerDeath, WorkerPool
from executor.pools.directories import Directories, make_directories
from executor.pools.local_options import LocalOptions
from executor.pools.supervisor_process import SupervisorProcess
from executor.pools.worker_files import write_worker

if TYPE_CHECKING:
    from executor.tasks.pool_spec import PoolSpec

__all__ = ["LocalOptions", "LocalPool"]

#: Seconds until the embedded server must answer.
START_TIMEOUT_S = 20.0

#: Longest line of an event: 8 KiB of a log, escaped.
_MAX_EVENT_BYTES = 1 << 20

#: Seconds that workers get to see for themselves that their supervisor was killed.
_NOTICE_S = 2.0


class LocalPool(WorkerPool):
    """One Celery worker on this machine with a child process for each slot.

    Args:
        spec: The pool.
        options: See :class:`LocalOptions`.

    Attributes:
        key: Master key of the signatures, 32 bytes.
        store: Locator of the store for large values, or None; known after :meth:`start`.
    """

    def __init__(self, spec: PoolSpec, options: LocalOptions) -> None:
        super().__init__(spec)
        self.options = options
        self.key = options.key or secrets.token_bytes(32)
        self.store = options.store
        self._address = options.broker
        self._slots = spec.max_workers or os.cpu_count() or 1
        self._state = PoolState.NEW
        self._reason: str | None = None
        self._server_pid = 0
        self._workers: list[int] = []
        self._restarts = 0
        self._last_death: WorkerDeath | None = None
        self._supervisor: SupervisorProcess | None = None
        self._directories: Directories | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._listener: asyncio.Task[None] | None = None
        self._server_up: asyncio.Future[None] | None = None
        self._burials: set[asyncio.Task[None]] = set()

    @property
    def slots(self) -> int:
        """Child processes, one call each."""
        return self._slots

    @property
    def address(self) -> BrokerAddress:
        """The user's server, or the embedded one once :meth:`start` has been entered."""
        if self._address is None:
            raise PoolStartError("The pool has no broker yet: it was not started. Call start() first.")
        return self._address

    def status(self) -> PoolStatus:
        """Everything about the pool at this moment."""
        return PoolStatus(
            name=self.spec.name,
            state=self._state,
            slots=self._slots,
            workers=tuple(map(str, self._workers)),
            restarts=self._restarts,
            last_death=self._last_death,
            reason=self._reason,
        )

    def join(self, other: WorkerPool) -> None:
        """Use the broker and the store of a pool that runs."""
        self._address, self.store = other.address, other.store

    async def start(self) -> None:
        """Start the server and the workers, and return when the server answers; the workers come a little later.

        Raises:
            BrokerError: The user's server cannot be used, or there is no program for an embedded one.
            PoolStartError: The processes cannot be started, or the embedded server does not come up.
        """
        if self._state is not PoolState.NEW:
            raise PoolStartError(
                f"The pool {self.spec.name!r} is {self._state} and cannot be started again; make a new one."
            )
        self._state = PoolState.STARTING
        try:
            await self._start()
        except BaseException:
            await self.stop(grace_s=0.0)
            raise
        self._state = PoolState.RUNNING

    async def stop(self, wait: bool = True, *, grace_s: float | None = None) -> None:
        """End the workers and the embedded server, and remove the directories.

        Args:
            wait: Return when everything is gone; else at once, and it goes by itself.
            grace_s: Seconds that workers get to finish what they run; None is :attr:`LocalOptions.grace_s`.
        """
        if self._state is PoolState.STOPPED:
            return
        self._state = PoolState.STOPPING
        grace_s = self.options.grace_s if grace_s is None else grace_s
        self._command("stop", grace_s=grace_s)
        if wait:
            await self._gone(grace_s)
        await self._let_go()
        if wait and self._directories is not None:
            self._directories.remove()
        self._state = PoolState.STOPPED

    def kill(self) -> None:
        """Kill the workers and the embedded server now; :meth:`stop` waits for the end."""
        if self._state is not PoolState.STOPPED:
            self._state = PoolState.STOPPING
            self._command("stop", grace_s=0.0)

    def resize(self, slots: int) -> None:
        """Workers started from now on have so many slots; one that runs is told through the broker.

        Args:
            slots: At least 1.
        """
        self._slots = slots
        self._command("resize", slots=slots)

    def kill_worker(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to one of the worker parents; its successor is started at once.

        Args:
            pid: As in :meth:`status`.
            number: The signal.
        """
        self._command("kill_worker", pid=pid, signal=int(number))

    # ── start ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _start(self) -> None:
        if self.options.broker is not None and self._address is self.options.broker:
            await connection.check(self.options.broker)
        plan = self._launch()
        connection.preload()
        if plan is not None:
            self._server_up = asyncio.get_running_loop().create_future()
        await self._listen(self._supervisor)
        if plan is not None:
            await self._server_answers(plan)

    async def _server_answers(self, plan: embedded.ServerPlan) -> None:
        assert self._server_up is not None
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await asyncio.shield(self._server_up)
        except TimeoutError:
            log = embedded.log_tail(plan.log_path) or "(empty)"
            raise BrokerUnavailable(
                f"The embedded server {plan.binary} did not answer within {START_TIMEOUT_S:g} s. Is the machine "
                f"overloaded? Last lines of its log:\n{log}"
            ) from None
        if plan.binary.endswith("redis-server"):  # one from the PATH may be too old
            await connection.check(self.address)

    def _launch(self) -> embedded.ServerPlan | None:
        """Write what the processes need, and start them; takes some milliseconds and waits for nothing."""
        try:
            directories = self._directories = make_directories(self.options.runtime_dir)
        except OSError as error:
            raise PoolStartError(
                f"The pool's private directory cannot be made: {error}. Check TMPDIR and its space."
            ) from error
        try:
            self._supervisor = SupervisorProcess(directories.locks)
            plan = self._plan_server(directories)
            self._send(
                command="start",
                client=os.getpid(),
                server=plan and plan.to_json(),
                workers=[self._worker(directories)],
                directories=directories.paths,
            )
        finally:
            directories.unlock()
        return plan

    def _plan_server(self, directories: Directories) -> embedded.ServerPlan | None:
        if self._address is not None:
            return None
        plan = embedded.plan_server(str(directories.private), maxmemory_bytes=self.options.maxmemory_bytes)
        embedded.write_config(plan)
        self._address = BrokerAddress.parse(plan.url)
        return plan

    def _worker(self, directories: Directories) -> dict[str, Any]:
        """Write a worker's files; returns what the supervisor needs to know of it."""
        if self.store is None and directories.shared is not None:
            self.store = f"shm://{directories.shared}"
        initializer = self.options.initializer
        settings = {
            "broker": self.address.url,
            "pool": self.spec.name,
            "queues": list(self.options.queues),
            "service_queues": list(self.spec.queues),
            "celery_app": self.spec.celery_app,
            "slots": self._slots,
            "owner": self.options.owner,
            "lease_s": self.options.lease_s,
            "grace_s": self.options.grace_s,
            "store": self.store,
            "max_tasks_per_child": self.options.max_tasks_per_child,
            "initializer": None if initializer is None else base64.b64encode(initializer).decode(),
        }
        return write_worker(directories.private, self.key, settings, self.options.worker_argv)

    # ── events ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _listen(self, supervisor: SupervisorProcess | None) -> None:
        assert supervisor is not None
        supervisor.channel.setblocking(False)
        reader, self._writer = await asyncio.open_unix_connection(sock=supervisor.channel, limit=_MAX_EVENT_BYTES)
        self._listener = asyncio.create_task(self._follow(reader), name=f"events of pool {self.spec.name}")

    async def _follow(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._happened(json.loads(line))
        except ConnectionError:
            pass
        if self._state not in (PoolState.STOPPING, PoolState.STOPPED):
            self._supervisor_died()

    def _happened(self, event: dict[str, Any]) -> None:
        match event:
            case {"event": "server", "pid": pid}:
                self._server_pid = pid
                self._settle(None)
            case {"event": "worker_started", "pid": pid}:
                self._workers.append(pid)
            case {"event": "worker_died", "pid": pid}:
                self._worker_died(event)
            case {"event": "broken", "reason": reason}:
                self._break(reason)

    def _worker_died(self, event: dict[str, Any]) -> None:
        self._workers.remove(event["pid"])
        if self._state in (PoolState.STOPPING, PoolState.STOPPED):
            return
        self._restarts += 1
        self._last_death = WorkerDeath(
            host=socket.gethostname(),
            pid=event["pid"],
            reason=event["signal"] or "Exited",
            exit_code=event["exit_code"],
            signal=event["signal"],
            output=event["output"],
        )
        self._bury(self._last_death)
        if self.on_worker_died is not None:
            self.on_worker_died(self._last_death)

    def _bury(self, death: WorkerDeath) -> None:
        """Have the dead worker's calls back now rather than at the end of its lease."""
        task = asyncio.create_task(bury(self.address, is_process(death.host, death.pid), asdict(death)))
        self._burials.add(task)
        task.add_done_callback(self._burials.discard)

    def _supervisor_died(self) -> None:
        """Killed from outside: what it started notices by itself; see to it that it did."""
        if self._server_pid:
            processes.kill(self._server_pid)
        asyncio.get_running_loop().call_later(_NOTICE_S, self._kill_leftovers)
        self._break("The supervisor of the worker processes was killed. Was the machine out of memory? See `dmesg`.")

    def _kill_leftovers(self) -> None:
        for pid in self._workers:
            processes.kill(pid, group=True)
        self._workers.clear()
        if self._directories is not None:
            self._directories.remove()

    def _break(self, reason: str) -> None:
        """Tell whoever waits, once, that the pool is no more."""
        if self._state in (PoolState.BROKEN, PoolState.STOPPING, PoolState.STOPPED):
            return
        self._reason = reason
        if not self._settle(PoolStartError(reason)):
            self._state = PoolState.BROKEN
            if self.on_broken is not None:
                self.on_broken(PoolBroken(f"The pool {self.spec.name!r} is broken: {reason}"))

    def _settle(self, error: BaseException | None) -> bool:
        """Let :meth:`start` go on. False when it has already."""
        waiting = self._server_up
        if waiting is None or waiting.done():
            return False
        if error is None:
            waiting.set_result(None)
        else:
            waiting.set_exception(error)
        return True

    # ── stop ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _command(self, name: str, **fields: Any) -> None:
        if self._supervisor is not None and not self._supervisor.ended():
            self._send(command=name, **fields)

    def _send(self, **message: Any) -> None:
        line = json.dumps(message).encode() + b"\n"
        if self._writer is not None:
            self._writer.write(line)
        elif self._supervisor is not None:
            self._supervisor.channel.sendall(line)

    async def _gone(self, grace_s: float) -> None:
        """Wait for the supervisor; one that does not go in time is killed, and the rest with it."""
        supervisor, deadline = self._supervisor, asyncio.get_running_loop().time() + grace_s + START_TIMEOUT_S
        if supervisor is None:
            return
        if self._listener is not None:
            await asyncio.wait([self._listener], timeout=grace_s + START_TIMEOUT_S)
        while not supervisor.ended():
            if asyncio.get_running_loop().time() > deadline:
                supervisor.kill()
            await asyncio.sleep(0.002)

    async def _let_go(self) -> None:
        tasks = {self._listener, *self._burials} - {None}
        for task in filter(None, tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(filter(None, tasks))
        if self._writer is not None:
            self._writer.close()
            with suppress(OSError):  # the supervisor may have gone first
                await self._writer.wait_closed()
            self._writer = None
        if self._supervisor is not None:
            self._supervisor.close()
            self._supervisor = None
