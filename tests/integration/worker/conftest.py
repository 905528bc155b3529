"""A worker driven by hand: messages go into Redis, replies come out of a stream, no client of ours between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import redis

from executor.broker import keys
from executor.wire import envelope, frame, outcome, pickling, segments, signing
from tests.faults import Journal, Server, kill
from tests.support import DEADLINE_S, unique_name, until

if TYPE_CHECKING:
    from types import TracebackType

MASTER = bytes(range(32))
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


class Reply(NamedTuple):
    """One reply, opened."""

    header: dict[str, Any]
    payload: bytes

    def values(self) -> list[Any]:
        """What its calls returned, or the exceptions that they ended with; ``"cancelled"`` for those cancelled."""
        if self.header["kind"] == "values":
            values: list[Any] = pickling.loads(self.payload)
            return values
        return [self._value(bytes(segment)) for segment in segments.split(self.payload)]

    @staticmethod
    def _value(data: bytes) -> Any:
        status, body = data[:1], data[1:]
        if status == outcome.VALUE:
            return pickling.loads(body)
        if status == outcome.EXCEPTION:
            return pickling.exception_from(body)
        return "cancelled" if status == outcome.CANCELLED else outcome.error_from(body)


class RawClient:
    """Publishes call messages, and reads the replies to them."""

    def __init__(self, server: Server, queue: str = "ke.default") -> None:
        self.id = unique_name("client").replace("-", "")
        self.redis = server.client()
        self.key = signing.client_key(MASTER, self.id)
        self.queue = queue
        self.replies: list[Reply] = []
        self._last = b"0-0"
        self._numbers = iter(range(1, 1_000_000))
        self.redis.set(keys.client(self.id), "1")

    def store(self, function: Callable[..., Any]) -> str:
        data = pickling.dumps(function)
        digest = signing.content_digest(data)
        sealed = frame.sealed(self.key, frame.FUNCTION, {"digest": digest, "client": self.id}, data)
        self.redis.set(keys.function(self.id, digest), sealed)
        return digest

    def message(
        self, function: Callable[..., Any] | str, arguments: Sequence[Any], kind: str = "calls", **fields: Any
    ) -> envelope.Envelope:
        """A message with one call for each tuple of arguments."""
        payload = (
            segments.join([pickling.dumps((args, {})) for args in arguments])
            if kind == "calls"
            else pickling.dumps(list(arguments))
        )
        root = f"{self.id}-{next(self._numbers)}"
        header = {
            "client": self.id,
            "root": root,
            "n": len(arguments),
            "kind": kind,
            "star": True,
            "fn": function if isinstance(function, str) else self.store(function),
            "timeout": None,
            "max_deliveries": 3,
            "py": PYTHON,
            "protocol": frame.PROTOCOL,
            "name": None,
            "bufs": None,
            **fields,
        }
        sealed = frame.sealed(self.key, frame.CALL, header, payload)
        return envelope.Envelope(self.id, root, 0, len(arguments), self.queue, 0, (), sealed)

    def publish(self, message: envelope.Envelope) -> str:
        """Queue a message; gives its id."""
        self.redis.hset(keys.batches(self.id), message.id, "")
        self.redis.lpush(keys.priority_queue(message.queue, message.priority), envelope.encoded(message))
        return message.id

    def send(self, function: Callable[..., Any], *arguments: Any, **fields: Any) -> str:
        return self.publish(self.message(function, arguments, **fields))

    def read(self, block_ms: int = 100) -> None:
        for _, entries in self.redis.xread({keys.replies(self.id): self._last}, block=block_ms) or []:
            for identifier, fields in entries:
                self._last = identifier
                header, payload = frame.opened(self.key, frame.REPLY, fields[b"m"])
                self.replies.append(Reply(header, bytes(payload)))

    def outcomes(self, count: int, timeout: float = DEADLINE_S) -> dict[tuple[str, int], Any]:
        """Wait for that many outcomes; by root and index. One that comes twice is an error."""
        return self._wait(lambda found: len(found) >= count, timeout)

    def _wait(self, enough: Callable[[dict[tuple[str, int], Any]], bool], timeout: float) -> dict[tuple[str, int], Any]:
        end = time.monotonic() + timeout
        while not enough(found := self._found()):
            assert time.monotonic() < end, f"only these outcomes: {found}"
            self.read()
        return found

    def _found(self) -> dict[tuple[str, int], Any]:
        found: dict[tuple[str, int], Any] = {}
        for reply in self.replies:
            if reply.header["kind"] in ("values", "outcomes"):
                for offset, value in enumerate(reply.values()):
                    where = (reply.header["root"], reply.header["first"] + offset)
                    assert where not in found, f"two outcomes of {where}"
                    found[where] = value
        return found

    def results(self, root: str, count: int, timeout: float = DEADLINE_S) -> list[Any]:
        """The outcomes of one batch, in order."""
        wanted = [(root, index) for index in range(count)]
        found = self._wait(lambda found: all(where in found for where in wanted), timeout)
        return [found[where] for where in wanted]

    def splits(self) -> list[dict[str, Any]]:
        return [reply.header for reply in self.replies if reply.header["kind"] == "split"]


class WorkerProcess:
    """A worker in a session of its own.

    Args:
        directory: For its files.
        server: Its broker.
        settings: More of its settings.
    """

    def __init__(self, directory: Path, server: Server, **settings: Any) -> None:
        self.directory = directory / unique_name("worker")
        self.directory.mkdir()
        key_file, config = self.directory / "key", self.directory / "worker.json"
        key_file.write_text(MASTER.hex())
        self.settings = {
            "broker": server.url,
            "key_file": str(key_file),
            "lease_s": 2.0,
            "sys_path": sys.path,
            "grace_s": 5.0,
            "worker": unique_name("w"),
            **settings,
        }
        config.write_text(json.dumps(self.settings))
        self.log = self.directory / "worker.log"
        self.server = server
        self._life_read, self._life_write = os.pipe()
        environment = {
            **os.environ,
            "KUBE_EXECUTOR_WORKER_CONFIG": str(config),
            "KUBE_EXECUTOR_WORKER_LOG": str(self.log),
            "KUBE_EXECUTOR_LIFE_FD": str(self._life_read),
        }
        with (self.directory / "output").open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "executor.worker"],
                env=environment,
                stdout=output,
                stderr=output,
                pass_fds=[self._life_read],
                start_new_session=True,
            )

    @property
    def id(self) -> str:
        return str(self.settings["worker"])

    @property
    def pid(self) -> int:
        return self.process.pid

    def __enter__(self) -> WorkerProcess:
        until(lambda: self.server.command("HEXISTS", keys.LEASES, self.id), what=f"{self.id} registers")
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.end_life()
        self.process.kill()
        self.process.wait()

    def end_life(self) -> None:
        """As if its supervisor had died."""
        for fd in (self._life_read, self._life_write):
            try:
                os.close(fd)
            except OSError:
                pass
        self._life_read = self._life_write = -1

    def kill(self) -> None:
        kill(self.pid)
        self.process.wait()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def output(self) -> str:
        return (self.directory / "output").read_text()


def initializer(function: Callable[..., object], *args: object) -> str:
    """The setting that has each child call this first."""
    return b64encode(pickling.dumps((function, args))).decode()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as one:
        yield one


@pytest.fixture
def client(server: Server) -> Iterator[RawClient]:
    one = RawClient(server)
    yield one
    one.redis.close()


@pytest.fixture
def start(tmp_path: Path, server: Server) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts as many workers as a test needs."""
    workers: list[WorkerProcess] = []

    def starter(**settings: Any) -> WorkerProcess:
        workers.append(WorkerProcess(tmp_path, server, **settings).__enter__())
        return workers[-1]

    yield starter
    for worker in workers:
        worker.__exit__()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def connection(server: Server) -> Iterator[redis.Redis]:
    one = server.client()
    yield one
    one.close()
