"""The least that a call over Redis can be: LPUSH and BLPOP here, BLPOP and RPUSH there.

One worker process; nothing is acknowledged, leased, signed or retried. It is the floor, not a rival.
"""

import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.peers.base import Handle, Peer

CALLS, REPLIES = "calls", "replies"


class Reply:
    """The next reply of the list: the calls of one worker come back in order."""

    __slots__ = ("_redis",)

    def __init__(self, redis: Any) -> None:
        self._redis = redis

    def result(self) -> Any:
        return pickle.loads(self._redis.blpop([REPLIES])[1])


class RedisLoop(Peer):
    title = "bare Redis loop"
    distributions = ("redis", "hiredis")
    import_statement = "import redis"
    single_worker = True

    def load(self) -> None:
        import redis

        self._library: Any = redis

    def start(self, workers: int) -> None:
        from benchmarks.peers.redis_server import RedisServer

        self._server = RedisServer()
        self._redis = self._library.Redis(unix_socket_path=self._server.socket_path)
        command = [sys.executable, "-m", "benchmarks.peers.redis_loop", self._server.socket_path]
        self._worker = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def submit(self, fn: Callable[..., Any], *arguments: Any) -> Handle:
        self._redis.lpush(CALLS, pickle.dumps((fn, arguments), protocol=5))
        return Reply(self._redis)

    def stop(self) -> None:
        self._worker.terminate()
        self._worker.wait()
        self._server.stop()


def work(socket_path: str) -> None:
    """Run calls for ever."""
    import redis

    client: Any = redis.Redis(unix_socket_path=socket_path, socket_timeout=None)
    while True:
        fn, arguments = pickle.loads(client.brpop([CALLS])[1])
        client.rpush(REPLIES, pickle.dumps(fn(*arguments), protocol=5))


if __name__ == "__main__":
    work(sys.argv[1])
