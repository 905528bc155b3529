"""Dead letters: calls and tasks given up after too many deaths, kept in the broker until somebody decides.

Workers write them (``requeue.lua``); here they are listed and queued again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from executor.broker import keys
from executor.broker.connection import connect_sync, explain
from executor.broker.requeueing import TASK_DEATHS
from executor.broker.scripts import Scripts

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from executor.broker.address import BrokerAddress

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One call or task that was given up.

    Attributes:
        key: The list that it lies in.
        text: The whole letter, JSON: ``id``, ``task``, ``pool``, ``queue``, ``at`` (Unix time), ``deaths``, ``raw``.
    """

    key: str
    text: str

    def __getitem__(self, field: str) -> Any:
        return json.loads(self.text)[field]


class DeadLetters:
    """Those of one server, all pools. Connects for each question.

    Args:
        address: The server.
    """

    def __init__(self, address: BrokerAddress) -> None:
        self._address = address

    def all(self) -> list[DeadLetter]:
        """The newest last in each pool.

        Raises:
            BrokerError: The server cannot be asked; says why.
        """
        return self._asked(
            lambda client: [
                DeadLetter(key, text)
                for key in sorted(_text(key) for key in client.scan_iter(match=keys.dead_letters("*")))
                for text in map(_text, cast("list[bytes]", client.lrange(key, 0, -1)))
            ]
        )

    def resubmit(self, letter: DeadLetter) -> bool:
        """Queue it again, with its deaths forgotten; False where somebody else has taken it.

        A plain task runs as if it had just been sent. Of a call, the result goes to its client, if that still waits.

        Raises:
            BrokerError: The server cannot be asked; says why.
        """
        wanted = [letter.key, letter["queue"]], [letter.text, _without_deaths(letter["raw"])]
        return bool(self._asked(lambda client: Scripts(client).run("resubmit", *wanted)))

    def _asked(self, question: Callable[[redis.Redis], T]) -> T:
        from redis.exceptions import RedisError

        with connect_sync(self._address) as client:
            try:
                return question(client)
            except (RedisError, OSError) as error:
                raise explain(self._address, error) from error


def _without_deaths(raw: str) -> str:
    try:
        message = json.loads(raw)
        del message["headers"][TASK_DEATHS]
    except (ValueError, LookupError, TypeError):
        return raw  # a call, whose letter was written without; or nothing that anybody can read
    return json.dumps(message)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
