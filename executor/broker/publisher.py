"""The client's commands to Redis: publish batches, cancel them, ask where they are, stay alive.

Every command is safe to repeat after a lost connection: publishing adds a message once under its id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

from executor.broker import keys
from executor.broker.connection import explain
from executor.broker.lean import LeanConnection
from executor.broker.replies import EntryId, entry_id
from executor.broker.scripts import digest, runs_shebang, source

if TYPE_CHECKING:
    import redis.asyncio

    from executor.broker.address import BrokerAddress
    from executor.errors import BrokerError

#: Seconds that what a client left in Redis outlives its last sign of life (design: orphan_timeout).
CLIENT_TTL_S = 600


class Message(NamedTuple):
    """One message ready to publish: its id, the Redis list, and the envelope's text."""

    id: str
    queue_key: str
    raw: str


class Publisher:
    """Speaks for one client.

    Args:
        redis: Connection of its own.
        client: Id of the client.
        address: Where the connection goes, for sentences.
    """

    def __init__(self, redis: redis.asyncio.Redis, client: str, address: BrokerAddress) -> None:
        self._redis = redis
        self._lean = LeanConnection(redis)
        self._client, self._address = client, address
        self._functions: set[str] = set()
        self._batches = keys.batches(client)
        self._shebang = False
        self._ttl_s = CLIENT_TTL_S

    async def keep_for(self, seconds: float) -> None:
        """What is this client's outlives its last sign of life so long, or longer if something else asks for that."""
        if seconds > self._ttl_s:
            self._ttl_s = ceil(seconds)
            await self.stay_alive()

    async def publish(self, messages: Sequence[Message], functions: Iterable[tuple[str, bytes]]) -> None:
        """Publish messages, and first the functions they name (digest and signed frame).

        Raises:
            redis.RedisError: As the server or the connection says; see :mod:`.failures` for what has been done then.
        """
        fresh = list(functions)
        if fresh:  # a step of its own: in one write, a server that is just full could refuse these and take the rest
            await self._store(fresh)
        args: list[Any] = [self._ttl_s]
        for message in messages:
            args += message
        await self._script("publish", [self._batches], args, shebang=False)

    async def _store(self, functions: Sequence[tuple[str, bytes]]) -> None:
        pipe = self._redis.pipeline(transaction=False)
        for name, frame in functions:
            pipe.set(keys.function(self._client, name), frame, ex=self._ttl_s)
        await pipe.execute()
        self._functions.update(name for name, _ in functions)

    def explain(self, error: BaseException) -> BrokerError:
        """The one sentence for an error of :data:`.failures.LOST`; the caller raises it ``from`` the error."""
        return explain(self._address, error)

    def knows(self, function_digest: str) -> bool:
        """Whether the function is at the broker already."""
        return function_digest in self._functions

    def forget(self, function_digest: str | None = None) -> None:
        """A function (or, after the server lost its data, any) may no longer be at the broker."""
        if function_digest is None:
            self._functions.clear()
        else:
            self._functions.discard(function_digest)

    async def cancel(self, wanted: Sequence[tuple[str, str]]) -> list[str]:
        """Cancel calls of queued messages.

        Args:
            wanted: Message id and comma-separated indexes, each.

        Returns:
            For each: ``"cancelled"``, ``"gone"``, or the id of the worker that has it.
        """
        pipe = self._redis.pipeline(transaction=False)
        script = source("cancel", self._shebang)
        for message, indexes in wanted:
            pipe.eval(script, 2, self._batches, keys.cancels(self._client), message, indexes, str(self._ttl_s))
        return [_text(reply) for reply in await pipe.execute()]

    async def holders(self, messages: Sequence[str]) -> list[str | None]:
        """Who has each message: a worker's id, ``""`` while it is queued, None when it is not there."""
        replies = await self._redis.hmget(self._batches, list(messages)) if messages else []
        return [None if reply is None else _text(reply) for reply in replies]

    async def last_reply(self) -> EntryId | None:
        """Id of the last entry in this client's reply stream, or None where there is none."""
        found = await self._script("last_reply", [keys.replies(self._client)], [], shebang=self._shebang)
        return None if found is None else entry_id(found)

    async def control(self, worker: str, text: str) -> None:
        """Leave a control message for a worker."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.lpush(keys.control(worker), text)
        pipe.expire(keys.control(worker), 60)
        await pipe.execute()

    async def is_known(self) -> bool:
        """Renew the alive mark; False where the server no longer has it, because it has lost its data."""
        return bool(await self._redis.expire(keys.client(self._client), self._ttl_s))

    async def stay_alive(self) -> bool:
        """Renew the alive mark and whatever else belongs to this client.

        Returns:
            False where the mark had gone: the server has lost its data, or this is the first time.
        """
        known = await self.is_known()
        if not known:  # only then: a full server refuses to set what it has already
            await self._redis.set(keys.client(self._client), "1", ex=self._ttl_s)
        pipe = self._redis.pipeline(transaction=False)
        mine = (keys.replies(self._client), self._batches, keys.cancels(self._client))
        for key in (*mine, *(keys.function(self._client, name) for name in self._functions)):
            pipe.expire(key, self._ttl_s)
        await pipe.execute()
        return known

    async def server_run(self) -> str:
        """Identifies one run of the server: it changes when the server restarts."""
        info = await self._redis.info("server")
        self._shebang = runs_shebang(str(info["redis_version"]))
        return str(info["run_id"])

    async def leave(self, queues: Iterable[str] = (), *, others: bool = False) -> None:
        """Remove what belongs to this client; functions and outcomes of a later time find nobody.

        What is noted of messages that workers still hold stays until they are done with them.

        Args:
            queues: Queues that nobody else uses; they go too.
            others: Whether calls of this client may wait in queues that stay.
        """
        gone = [keys.client(self._client), keys.replies(self._client)]
        gone += [key for queue in queues for key in keys.queue_keys(queue)]
        gone += [keys.function(self._client, name) for name in self._functions]
        names = [self._batches, keys.cancels(self._client), *gone]
        await self._script("leave", names, ["0" if others else "1"], shebang=self._shebang)

    async def close(self) -> None:
        """Close the connection."""
        await self._lean.close()

    async def _script(self, name: str, names: Sequence[str], args: Sequence[Any], *, shebang: bool) -> Any:
        from redis.exceptions import NoScriptError

        try:
            return await self._lean.execute("EVALSHA", digest(name, shebang), len(names), *names, *args)
        except NoScriptError:
            return await self._lean.execute("EVAL", source(name, shebang), len(names), *names, *args)


def _text(reply: object) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)
