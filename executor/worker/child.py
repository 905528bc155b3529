"""The child process: runs calls, and nothing else. It knows neither Celery nor Redis.

Threads: the main thread reads the parent's socket and runs calls, so that user code sees the main thread it expects;
the life thread waits for the parent's death (it then ends the whole process group at once) and for the parent's wish
to have what is finished.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import signal
import socket
import sys
import threading
from base64 import b64decode
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from executor.tasks.worker_context import WorkerContext, set_worker_context
from executor.wire import pickling
from executor.wire.main_globals import run_initializer
from executor.worker import pipe, slots
from executor.worker.outbox import Outbox
from executor.worker.runner import Functions, Interrupts, Runner

if TYPE_CHECKING:
    from executor.stores.base import BlobStore

#: Exit code of a child whose parent told it to go, or died.
GONE = 0


class Child:
    """One child.

    Args:
        sock: Messages to and from the parent.
        life: Closed when the parent is dead; otherwise carries :data:`pipe.FLUSH`.
        shared: The numbers of :mod:`slots`.
    """

    def __init__(self, sock: socket.socket, life: socket.socket, shared: memoryview) -> None:
        self._life = life
        self._inlet = pipe.Inlet(sock, wait=True)
        self._messages: list[pipe.Message] = []
        self._outbox = Outbox(sock)
        self._interrupts = Interrupts()
        self._runner = Runner(shared, self._outbox, Functions(self._fetch), self._interrupts)
        self._tasks: Any = None
        self._streams = StandardFiles()

    def serve(self) -> NoReturn:
        """Obey the parent until it says EXIT or is gone."""
        signal.signal(signal.SIGINT, self._interrupts)
        threading.Thread(target=self._watch_life, name="ke-life", daemon=True).start()
        while True:
            kind, body = self._next()
            self._streams.repair()
            if kind == pipe.BATCH:
                self._runner.run(body)
            elif kind == pipe.TASK:
                self._tasks.run(body)
            elif kind == pipe.SETUP:
                self._set_up(pickling.loads(body))
            elif kind == pipe.EXIT:
                leave()

    def _next(self) -> pipe.Message:
        while not self._messages:
            self._messages = self._inlet.read()
            if self._inlet.eof:
                leave()
        return self._messages.pop(0)

    def _fetch(self, digest: str) -> memoryview | None:
        """Ask the parent for a function; nothing else can arrive meanwhile."""
        self._outbox.say(pipe.NEED, digest.encode())
        _, body = self._next()
        return body[1:] if body[0] else None

    def _set_up(self, setup: dict[str, Any]) -> None:
        for entry in reversed(setup["sys_path"]):
            if entry not in sys.path:
                sys.path.insert(0, entry)
        self._enter_context(setup["context"])
        error = _initialized(setup)
        if not error and setup["celery_app"]:
            self._tasks, error = _celery_tasks(setup, self._outbox)
        self._outbox.say(pipe.READY, error.encode("utf-8", "backslashreplace"))

    def _enter_context(self, context: dict[str, Any]) -> None:
        """Let executors captured by calls find their broker, and results their store."""
        set_worker_context(WorkerContext(**context, lend=self._lend))
        if context["store"]:
            self._runner.use_stores(_stores(context["store"]))

    def _lend(self, lent: bool) -> None:
        self._outbox.say(pipe.LENT if lent else pipe.TAKEN)

    def _watch_life(self) -> None:
        while True:
            try:
                said = self._life.recv(16)
            except OSError:
                said = b""
            if not said:
                _die_with_group()
            self._outbox.flush()


class StandardFiles:
    """File descriptors 0 to 2, opened again after a call that closed them: else the next file opened would be them."""

    def __init__(self) -> None:
        self._copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in range(3)]

    def repair(self) -> None:
        """Open those again that are closed."""
        for fd, copy in enumerate(self._copies):
            try:
                os.fstat(fd)
            except OSError:
                try:
                    os.dup2(copy, fd)
                except OSError:
                    pass  # the call has closed the copies, too


def _stores(locator: str) -> Callable[[str], BlobStore]:
    """One store for each client."""
    from executor.broker.stores import store_for

    return lru_cache(64)(lambda client: store_for(locator, client))


def _initialized(setup: dict[str, Any]) -> str:
    """Change to the client's directory and run the pool's initializer; returns its traceback, or nothing."""
    try:
        if setup["cwd"]:
            os.chdir(setup["cwd"])
        if setup["initializer"]:
            function, args = pickling.loads(b64decode(setup["initializer"]))
            run_initializer(function, args)
    except BaseException:
        import traceback

        return traceback.format_exc()
    return ""


def _celery_tasks(setup: dict[str, Any], outbox: Outbox) -> tuple[Any, str]:
    try:
        from executor.worker.celery_tasks import CeleryTasks

        return CeleryTasks(setup["celery_app"], setup["hostname"], setup["kombu_url"], outbox), ""
    except BaseException:
        import traceback

        return None, traceback.format_exc()


def leave() -> NoReturn:
    """End in good order, without waiting for threads that user code left behind."""
    try:
        import atexit

        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(GONE)


def _die_with_group() -> NoReturn:
    """The parent is gone: end this process and whatever user code started in its process group."""
    try:
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
    finally:
        os._exit(GONE)


def main(sock_fd: int, life_fd: int, shared_fd: int) -> NoReturn:
    """Entry of the child.

    Args:
        sock_fd: Socket to the parent.
        life_fd: Socket that closes when the parent dies.
        shared_fd: Memory of :mod:`slots`.
    """
    for fd in (sock_fd, life_fd, shared_fd):
        os.set_inheritable(fd, False)
    shared = slots.mapped(shared_fd)
    os.close(shared_fd)
    faulthandler.enable()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)
    sys.argv = [""]
    Child(socket.socket(fileno=sock_fd), socket.socket(fileno=life_fd), shared).serve()
