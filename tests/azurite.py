"""The real Azurite, Microsoft's emulator of Azure Storage, on a loopback port.

It is found on the ``PATH``, or in ``.azurite`` of this repository, where ``npm install --prefix .azurite azurite``
puts it. Without it tests that need it are skipped by name; with ``CI=true`` they fail.
"""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import signal
import socket
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from executor.settings import AzureSettings
from tests.faults import Proxy
from tests.support import DEADLINE_S, free_port, unique_name, until

if TYPE_CHECKING:
    from types import TracebackType

    from azure.storage.blob import BlobClient, ContainerClient

ACCOUNT = "account1"
_LOCAL = Path(__file__).resolve().parent.parent / ".azurite/node_modules/.bin"
_INSTALL = "npm install --prefix .azurite azurite"


def program() -> str:
    """The path of azurite-blob; skips the test if there is none."""
    found = shutil.which("azurite-blob") or shutil.which("azurite-blob", path=str(_LOCAL))
    if found is None and os.environ.get("CI"):
        pytest.fail(f"no azurite-blob on the PATH, and CI wants these tests: {_INSTALL}")
    if found is None:
        pytest.skip(f"no azurite-blob on the PATH: {_INSTALL}")
    return found


class Azurite:
    """One server with one account; keeps its data when it is stopped and started again.

    Args:
        directory: For its files.
    """

    def __init__(self, directory: Path) -> None:
        self.key = base64.b64encode(secrets.token_bytes(32)).decode()
        self.port = free_port()
        self._directory = directory / unique_name("azurite")
        self._directory.mkdir()
        self._argv = [program(), "--silent", "--disableTelemetry", "--skipApiVersionCheck", "--location"]
        self._argv += [str(self._directory), "--blobHost", "127.0.0.1", "--blobPort", str(self.port)]
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.resume()
        self.kill()

    def start(self) -> Self:
        """Start it, and wait until it listens."""
        environment = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{self.key}"}
        log = self._directory / "azurite.log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                self._argv, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        until(self._listens, 2 * DEADLINE_S, f"azurite-blob listens; its log is {log}")
        return self

    def stop(self) -> None:
        """End it in good order: what it has is on disk then."""
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
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)

    def endpoint(self, port: int | None = None) -> str:
        """URL of the account, directly or through a proxy on another port."""
        return f"http://127.0.0.1:{port or self.port}/{ACCOUNT}"

    def connection_string(self, *, key: str | None = None, sas: str | None = None, port: int | None = None) -> str:
        """As ``az storage account show-connection-string`` says it."""
        secret = f"SharedAccessSignature={sas}" if sas else f"AccountKey={key or self.key}"
        return f"AccountName={ACCOUNT};{secret};BlobEndpoint={self.endpoint(port)}"

    def settings(self, *, key: str | None = None, sas: str | None = None, port: int | None = None) -> AzureSettings:
        """What :class:`AzureStore` takes."""
        return AzureSettings(connection_string=self.connection_string(key=key, sas=sas, port=port))

    def sas(self, container: str, permissions: str, *, hours: float = 1.0) -> str:
        """A token for a container; with negative hours one that has expired."""
        from azure.storage.blob import generate_container_sas

        expiry = datetime.now(UTC) + timedelta(hours=hours)
        return generate_container_sas(ACCOUNT, container, account_key=self.key, permission=permissions, expiry=expiry)

    def container(self, name: str) -> ContainerClient:
        """The stock client of a container, to look behind the store; to be closed."""
        from azure.storage.blob import ContainerClient

        return ContainerClient.from_connection_string(self.connection_string(), name)

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"azurite-blob ended: {(self._directory / 'azurite.log').read_text()}"
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


class Box:
    """A container of one test's own.

    Args:
        server: Where.
        name: Of the container; made unless it is there.
    """

    def __init__(self, server: Azurite, name: str | None = None) -> None:
        self.server, self.name = server, name or unique_name("box")
        self.locator = f"az://{ACCOUNT}/{self.name}/values"
        self.client = server.container(self.name)
        self.client.create_container()

    def blob(self, digest: str) -> BlobClient:
        """The stock client of a blob."""
        return self.client.get_blob_client(f"values/{digest}")

    def digests(self) -> list[str]:
        """Names of all values."""
        names = [name.partition("/")[2] for name in self.client.list_blob_names()]
        return sorted(name for name in names if name != "swept")

    def etag(self, digest: str) -> str:
        """Changes with every write and every touch."""
        return str(self.blob(digest).get_blob_properties().etag)


class BusyProxy(Proxy):
    """Answers the first connections as a service does that throttles or is being restarted.

    Args:
        port: Of the server.
        answers: A status and a code of Azure for each of those connections.
    """

    def __init__(self, port: int, answers: list[tuple[int, str]]) -> None:
        super().__init__(port)
        self.port = int(self.url.rpartition(":")[2].partition("/")[0])
        self.answers = list(answers)

    def _join(self, near: socket.socket, far: socket.socket) -> None:
        if not self.answers:
            super()._join(near, far)
            return
        status, code = self.answers.pop(0)
        with near, far:
            near.recv(1 << 16)
            head = (
                f"HTTP/1.1 {status} Busy\r\nx-ms-error-code: {code}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            near.sendall(head.encode())
