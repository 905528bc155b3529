"""Servers for tests: a user's redis-server with any options, certificates for TLS, and one that only pretends."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from typing import TYPE_CHECKING, BinaryIO, Self

import pytest

from tests.support import free_port, until

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

needs_redis = pytest.mark.skipif(
    shutil.which("redis-server") is None and not os.environ.get("CI"), reason="no redis-server on the PATH"
)


class RedisServer:
    """A redis-server of the test's own, on a loopback port.

    Args:
        directory: For its files.
        options: More of its options.
        tls: Whether the port speaks TLS.
    """

    def __init__(self, directory: Path, *options: str, tls: bool = False) -> None:
        self.port = free_port()
        listen = ["--tls-port", str(self.port), "--port", "0"] if tls else ["--port", str(self.port)]
        self.log = directory / "redis.log"
        argv = ["redis-server", *listen, "--save", "", "--dir", str(directory), "--logfile", str(self.log), *options]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self) -> Self:
        until(self._listens, what=f"redis-server listens; its log is {self.log}")
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()

    def _listens(self) -> bool:
        assert self.process.poll() is None, f"redis-server ended:\n{self.log.read_text()}"
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


class PretendedServer:
    """Answers each line it is sent with the reply for its first word, or closes the connection without one.

    Args:
        replies: Reply (RESP) by upper-case word; ``b""`` closes the connection.

    Attributes:
        heard: The words it was sent.
    """

    def __init__(self, replies: dict[bytes, bytes], default: bytes = b"-ERR unknown command\r\n") -> None:
        self._replies, self._default = replies, default
        self.heard: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                self._talk(connection, lines)

    def _talk(self, connection: socket.socket, lines: BinaryIO) -> None:
        while line := lines.readline():
            words = [_bulk(lines) for _ in range(int(line[1:]))] if line[:1] == b"*" else line.split()
            word = words[0].upper()
            self.heard.append(word)
            reply = self._replies.get(word, self._default)
            if not reply:
                return
            connection.sendall(reply)


def _bulk(lines: BinaryIO) -> bytes:
    """One word of a command, after the line with its length."""
    lines.readline()
    return lines.readline().strip()


class Certificates:
    """An authority, a server's certificate for ``localhost`` and a client's, made by the openssl command."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = directory / "ca.crt"
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", "/CN=test authority", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
            "-keyout", "ca.key", "-out", "ca.crt",
        )  # fmt: skip
        self._issue("server", "subjectAltName=DNS:localhost")
        self._issue("client", "extendedKeyUsage=clientAuth")

    def server_options(self, *, client_certificates: bool = False) -> list[str]:
        """What a redis-server needs to speak TLS."""
        return [
            "--tls-cert-file", str(self.directory / "server.crt"), "--tls-key-file", str(self.directory / "server.key"),
            "--tls-ca-cert-file", str(self.ca), "--tls-auth-clients", "yes" if client_certificates else "no",
        ]  # fmt: skip

    def _issue(self, name: str, extension: str) -> None:
        identifiers = "authorityKeyIdentifier=keyid,issuer\nsubjectKeyIdentifier=hash\n"  # Python 3.13 insists on them
        (self.directory / f"{name}.ext").write_text(identifiers + extension)
        self._openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.csr",
        )  # fmt: skip
        self._openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.crt",
        )  # fmt: skip

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Made once for all tests."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on the PATH to make certificates with")
    return Certificates(tmp_path_factory.mktemp("certificates"))
