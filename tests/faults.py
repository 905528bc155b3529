"""What the tests break: servers they pause and kill, a proxy that loses bytes, workers beside the pool's own.

The functions at the end run in workers. They tell in a :class:`Journal` what they have begun and finished, so that a
test knows how often a call was really executed, whatever its future says.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from tests.support import DEADLINE_S, free_port, unique_name, until

if TYPE_CHECKING:
    from types import TracebackType

    import redis

    from executor import KubeExecutor
    from tests.support import Gate


# --- what was executed ----------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """One line of a journal."""

    word: str
    call: str
    pid: int
    at: float


class Journal:
    """A file to which calls append what they do; can be pickled into any process of this machine.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        Path(path).touch()

    def note(self, word: str, call: object) -> None:
        """Append a line, whole, whoever else writes at the same time."""
        line = f"{word} {call} {os.getpid()} {time.time():.6f}\n".encode()
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, line)
        finally:
            os.close(fd)

    def entries(self, word: str = "", call: object = None) -> list[Entry]:
        """The lines with this word and of this call."""
        found = []
        for line in Path(self.path).read_text().splitlines():
            entry = line.split()
            if word in ("", entry[0]) and (call is None or entry[1] == str(call)):
                found.append(Entry(entry[0], entry[1], int(entry[2]), float(entry[3])))
        return found

    def starts(self, call: object = None) -> int:
        """How often a call was begun."""
        return len(self.entries("started", call))

    def counts(self, word: str = "started") -> dict[str, int]:
        """How often each call has such a line."""
        counted: dict[str, int] = {}
        for entry in self.entries(word):
            counted[entry.call] = counted.get(entry.call, 0) + 1
        return counted

    def wait(self, word: str, call: object = None, count: int = 1, timeout: float = DEADLINE_S) -> Entry:
        """Wait for the ``count``-th such line, and return it."""
        until(lambda: len(self.entries(word, call)) >= count, timeout, f"{count} × {word} {call or ''}")
        return self.entries(word, call)[count - 1]


# --- the server -----------------------------------------------------------------------------------------------------


class Server:
    """A redis-server on a loopback port that can be paused, stopped and started again under the same address.

    Args:
        directory: For its files.
        options: More of its options.
        aof: Whether it keeps its data over a restart.
    """

    def __init__(self, directory: Path, *options: str, aof: bool = False) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._directory = directory / unique_name("redis")
        self._directory.mkdir()
        self._argv = [
            "redis-server",
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            str(self._directory),
        ]
        self._argv += ["--logfile", str(self._directory / "redis.log")]
        self._argv += ["--appendonly", "yes", "--appendfsync", "always"] if aof else []
        self._argv += options
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.kill()

    def start(self) -> Self:
        """Start it, and wait until it answers."""
        self.process = subprocess.Popen(self._argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self._answers, what="redis-server answers")
        return self

    def stop(self) -> None:
        """End it in good order."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(DEADLINE_S)

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def pause(self) -> None:
        """It keeps its connections and says nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """After :meth:`pause`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def client(self) -> redis.Redis:
        """A connection that sees bytes."""
        import redis

        return redis.Redis(host="127.0.0.1", port=self.port, protocol=2)

    def command(self, *words: Any) -> Any:
        """Run one command on a connection of its own."""
        client = self.client()
        try:
            return client.execute_command(*words)
        finally:
            client.close()

    def _answers(self) -> bool:
        import redis

        assert self.process is not None
        assert self.process.poll() is None, "redis-server ended"
        try:
            return bool(self.command("PING"))
        except redis.RedisError:
            return False


# --- the network ----------------------------------------------------------------------------------------------------

_NAME = re.compile(rb"SETNAME\r\n\$\d+\r\n([^\r]+)\r\n")


class Link:
    """One connection through a :class:`Proxy`: ``near`` is whoever connected, ``far`` the server.

    Attributes:
        name: As it told the server with ``CLIENT SETNAME``; empty before.
        held: Bytes from the server that were not handed on.
    """

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near, self.far = near, far
        self.name = ""
        self.held = bytearray()
        self.lock = threading.Lock()
        self.silent = False
        self.pumps: list[threading.Thread] = []
        self._over, self._end = socket.socketpair()
        self._reset = False
        self._left = 2

    def read(self, end: socket.socket) -> bytes:
        """What one end says next; nothing at its end, or at the end of the link."""
        ready, _, _ = select.select([end, self._over], [], [])
        return b"" if self._over in ready else end.recv(1 << 16)

    def close(self, *, reset: bool = False) -> None:
        """Cut it, with FIN or with RST."""
        self._reset = self._reset or reset
        self._wake()
        for pump in self.pumps:
            pump.join()

    def left(self) -> None:
        """One of the two pumps ends, and so shall the other; only the last one may close what both read."""
        with self.lock:
            self._left -= 1
            last = not self._left
        if not last:
            self._wake()
            return
        for end in (self.near, self.far):
            if self._reset:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.close()
        self._over.close()
        self._end.close()

    def _wake(self) -> None:
        try:
            self._end.send(b"!")
        except OSError:
            pass  # closed by then


class Proxy:
    """Stands between a server and whoever connects, and fails as networks do.

    A ``name`` given to a method is the beginning of the names of the links it concerns; empty means all.

    Args:
        port: Of the server on the loopback device.
    """

    def __init__(self, port: int) -> None:
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._lock = threading.Lock()
        self._links: list[Link] = []
        self._holding: str | None = None
        self.latency_s = 0.0
        self.refusing = False
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self._thread.join()

    def links(self, name: str = "") -> list[Link]:
        """The connections that are open."""
        with self._lock:
            return [link for link in self._links if link.name.startswith(name)]

    def hold(self, name: str) -> None:
        """Keep back what the server says from now on, on links of today and tomorrow."""
        self._holding = name

    def held_bytes(self) -> int:
        """How much is kept back."""
        return sum(len(link.held) for link in self.links())

    def release(self) -> None:
        """Hand on what was kept back."""
        self._holding = None
        for link in self.links():
            with link.lock:
                if link.held:
                    link.near.sendall(link.held)
                    link.held.clear()

    def cut(self, name: str = "") -> int:
        """Close connections; what is kept back is lost. Returns how many there were."""
        return self._end(name, reset=False)

    def reset(self, name: str = "") -> int:
        """As :meth:`cut`, with RST: ``connection reset by peer``."""
        return self._end(name, reset=True)

    def half_open(self, name: str = "") -> int:
        """Let connections stay open and carry nothing any more; new ones work. Returns how many there were."""
        links = self.links(name)
        for link in links:
            link.silent = True
        return len(links)

    def _end(self, name: str, *, reset: bool) -> int:
        links = self.links(name)
        for link in links:
            link.close(reset=reset)
        return len(links)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = None if self.refusing else socket.create_connection(("127.0.0.1", self._server), 5)
            except OSError:
                far = None
            if far is None:
                near.close()
                continue
            self._join(near, far)

    def _join(self, near: socket.socket, far: socket.socket) -> None:
        for end in (near, far):
            end.settimeout(None)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = Link(near, far)
        link.pumps = [
            threading.Thread(target=self._pumped, args=(pump, link), daemon=True)
            for pump in (self._to_server, self._to_client)
        ]
        with self._lock:  # whoever sees the link may cut it, and waits for its pumps
            self._links.append(link)
            for pump in link.pumps:
                pump.start()

    def _pumped(self, pump: Callable[[Link], None], link: Link) -> None:
        try:
            pump(link)
        except OSError:
            pass
        finally:
            with self._lock:
                if link in self._links:
                    self._links.remove(link)
            link.left()

    def _to_server(self, link: Link) -> None:
        while data := link.read(link.near):
            if not link.name and (told := _NAME.search(data)):
                link.name = told[1].decode()
            if not link.silent:
                self._delay()
                link.far.sendall(data)

    def _to_client(self, link: Link) -> None:
        while data := link.read(link.far):
            self._delay()
            with link.lock:
                if self._holding is not None and link.name.startswith(self._holding):
                    link.held += data
                elif not link.silent:
                    link.near.sendall(data)

    def _delay(self) -> None:
        if self.latency_s:
            time.sleep(self.latency_s)  # the latency itself, not a wait for something


# --- processes ------------------------------------------------------------------------------------------------------


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal, to a process that may be gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def children(pid: int) -> list[int]:
    """Direct children of a process."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except OSError:
        pass
    return found


def environment(pid: int) -> dict[str, str]:
    """The environment a process was started with."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


@contextmanager
def started(*args: Any, **kwargs: Any) -> Iterator[KubeExecutor]:
    """A ``KubeExecutor`` for a ``with``; one that does not end in time is terminated, and that is an error."""
    from executor import KubeExecutor

    executor = KubeExecutor(*args, **kwargs).start()
    try:
        yield executor
    finally:
        ending = threading.Thread(target=executor.shutdown, daemon=True)
        ending.start()
        ending.join(DEADLINE_S)
        if ending.is_alive():
            executor.terminate()
            ending.join(DEADLINE_S)
            raise AssertionError("calls that were accepted were never settled")


def broker_of(executor: KubeExecutor) -> redis.Redis:
    """A connection to an executor's broker that sees bytes."""
    from executor.broker.address import BrokerAddress
    from executor.broker.connection import connect_sync

    return connect_sync(BrokerAddress.parse(executor.broker_url))


def registered(client: redis.Redis) -> dict[str, dict[str, Any]]:
    """The workers that a broker knows, by id."""
    entries: Any = client.hgetall("ke:workers")
    return {worker.decode(): json.loads(entry) for worker, entry in entries.items()}


def parent_of(client: redis.Redis, *not_these: int) -> int:
    """Process id of the (one) worker parent that lives and is registered, other than ``not_these``."""

    def found() -> int:
        pids = [entry["pid"] for entry in registered(client).values()]
        return next((pid for pid in pids if pid not in not_these and alive(pid)), 0)

    return until(found, what="a worker is registered")


class ExtraWorker:
    """A second worker parent for the queues of an executor's pool, started by hand as on another machine.

    Nobody looks after it: when it dies there is no obituary, only its lease that runs out.

    Args:
        model: Process id of a worker parent whose configuration is copied.
        directory: For its files.
        changes: Fields of the configuration that differ.
    """

    def __init__(self, model: int, directory: Path, **changes: Any) -> None:
        config = json.loads(Path(environment(model)["KUBE_EXECUTOR_WORKER_CONFIG"]).read_text())
        home = directory / unique_name("worker")
        home.mkdir()
        config |= {"probes": str(home / "probes"), "owner": None, **changes}
        (home / "worker.json").write_text(json.dumps(config))
        self.log = home / "worker.log"
        env = {
            **os.environ,
            "KUBE_EXECUTOR_WORKER_CONFIG": str(home / "worker.json"),
            "KUBE_EXECUTOR_WORKER_LOG": str(self.log),
        }
        with (home / "output").open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "executor.worker"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                start_new_session=True,
            )
        self._ready = home / "probes" / "ready"

    def __enter__(self) -> Self:
        until(self._is_ready, what=f"the extra worker is ready; log: {self.log}")
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.resume()
        self.kill()

    @property
    def pid(self) -> int:
        """Of the parent."""
        return self.process.pid

    def family(self) -> list[int]:
        """The parent and its children."""
        return [self.pid, *children(self.pid)]

    def kill(self) -> None:
        """SIGKILL to the parent; its children end by themselves."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP to the parent and its children: nothing of it moves any more."""
        for pid in self.family():
            kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """After :meth:`freeze`."""
        for pid in self.family():
            kill(pid, signal.SIGCONT)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, (
            f"the extra worker ended:\n{self.log.read_text() if self.log.exists() else ''}"
        )
        return self._ready.exists()


# --- calls ----------------------------------------------------------------------------------------------------------


def noted(journal: Journal, call: object, seconds: float = 0.0) -> object:
    """Take some time, and return the name of the call."""
    journal.note("started", call)
    if seconds:
        time.sleep(seconds)
    journal.note("finished", call)
    return call


def gated(journal: Journal, call: object, gate: Gate) -> object:
    """Wait at a gate, and return the name of the call."""
    journal.note("started", call)
    until(gate.is_open, 4 * DEADLINE_S, "the gate is open")
    journal.note("finished", call)
    return call


def slow_one(journal: Journal, call: int, slow: int, gate: Gate) -> int:
    """One of many: the call named ``slow`` waits at a gate."""
    journal.note("started", call)
    if call == slow:
        until(gate.is_open, 4 * DEADLINE_S, "the gate is open")
    journal.note("finished", call)
    return call


def failing_first(journal: Journal, call: object, times: int) -> object:
    """Raise the first ``times`` times."""
    journal.note("started", call)
    if journal.starts(call) <= times:
        raise ConnectionError(f"{call} fails at first")
    return call


def nested(executor: KubeExecutor, journal: Journal, call: object) -> object:
    """Call through the executor that this call runs in."""
    return executor.submit(noted, journal, call, 0.01).result()


def ending(journal: Journal, call: object, how: str, unless: object = None) -> object:
    """End in a bad way, but not if the call is named otherwise than ``unless``.

    Args:
        journal: To note the start in.
        call: Its name.
        how: ``raise``, ``exit``, ``_exit``, ``hang``, or the name of a signal to send to itself.
        unless: With a name, only the call of this name ends so; others return their name.
    """
    journal.note("started", call)
    if unless is not None and call != unless:
        return call
    print(f"the last words of {call}", flush=True)
    if how == "raise":
        raise ValueError("as planned")
    if how == "exit":
        raise SystemExit(3)
    if how == "_exit":
        os._exit(7)
    if how == "hang":
        threading.Event().wait(4 * DEADLINE_S)
    os.kill(os.getpid(), signal.Signals[how])
    threading.Event().wait(1)  # a signal of another thread's own may take a moment
    return call


def stubborn(journal: Journal, call: object) -> object:
    """Ignore SIGINT and SIGTERM, and never end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    journal.note("started", call)
    while True:
        time.sleep(0.05)


def interruptible(journal: Journal, call: object) -> object:
    """Run until interrupted."""
    journal.note("started", call)
    try:
        while True:
            time.sleep(0.01)
    except KeyboardInterrupt:
        journal.note("interrupted", call)
        raise
