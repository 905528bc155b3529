"""One connection to Redis, bare: no pool, no retry, never replaced unseen.

redis-py's ``execute_command`` costs more than the server's answer; and its pools reconnect where nobody looks, perhaps
to a server that has lost its data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import redis


class Line:
    """Sends commands and reads their answers, as bytes.

    Args:
        client: Whose settings to connect with; it belongs to this line from now on.

    Attributes:
        run_id: Which run of which server this is.
        version: Of the server.

    Raises:
        redis.RedisError, OSError: The server cannot be reached.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool: Any = client.connection_pool
        self._connection: Any = self._pool.get_connection()
        info = dict(field.split(b":", 1) for field in self.execute_command("INFO", "server").split() if b":" in field)
        self.run_id, self.version = info[b"run_id"].decode(), info[b"redis_version"].decode()

    def execute_command(self, *args: Any) -> Any:
        """Send one command and wait for its answer.

        Raises:
            redis.RedisError, OSError: Close the line then, unless the server said no (``ResponseError``).
        """
        self._connection.send_command(*args)
        return self._connection.read_response(disable_decoding=True)

    def close(self) -> None:
        """Close the connection."""
        try:
            self._pool.disconnect()
        except OSError:
            pass
