"""List, watch, and list again, against a double of the API server: it says what is written down for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import pytest

from executor.errors import ClusterRefused, ClusterUnavailable
from executor.kube import watching
from executor.kube.cluster import Cluster

Object = dict[str, Any]


def pod(uid: str, version: str) -> Object:
    return {"metadata": {"uid": uid, "name": uid, "resourceVersion": version}}


def event(what: str, item: Object) -> bytes:
    return json.dumps({"type": what, "object": item}).encode()


class ServerDouble:
    """Answers lists and watches in the order given; an exception is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.versions: list[str] = []

    def _next(self) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def list(self, kind: str, selector: str, fields: str) -> Object:
        version, *items = self._next()
        return {"metadata": {"resourceVersion": version}, "items": items}

    @asynccontextmanager
    async def watch(self, kind: str, query: Mapping[str, Any], *, silence_s: float) -> AsyncIterator[Any]:
        self.versions.append(query["resourceVersion"])
        lines = self._next()

        async def stream() -> AsyncIterator[bytes]:
            for line in lines:
                if isinstance(line, Exception):
                    raise line
                yield line

        yield stream()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(watching, "_LONGEST_PAUSE_S", 0.0)


async def seen(server: ServerDouble, count: int) -> list[tuple[str, str]]:
    """The first changes: what, and the object's uid."""
    found: list[tuple[str, str]] = []
    async with aclosing(watching.watched(cast("Cluster", server), "pods")) as changes:  # type: ignore[type-var]
        async for change in changes:
            found.append((change.kind, change.object["metadata"]["uid"] if change.object else ""))
            if len(found) == count:
                break
    return found


async def test_what_is_there_comes_first_and_then_what_changes() -> None:
    server = ServerDouble(("5", pod("a", "1")), [event("MODIFIED", pod("a", "6")), event("ADDED", pod("b", "7"))])
    assert await seen(server, 4) == [("ADDED", "a"), ("SYNCED", ""), ("MODIFIED", "a"), ("ADDED", "b")]
    assert server.versions == ["5"]


async def test_a_version_that_is_too_old_is_listed_anew_and_differences_told() -> None:
    gone = event("ERROR", {"code": 410, "message": "too old resource version"})
    server = ServerDouble(
        ("5", pod("a", "1"), pod("b", "2")),
        [gone],
        ("9", pod("b", "8"), pod("c", "9")),
        [],
    )
    assert await seen(server, 7) == [
        ("ADDED", "a"),
        ("ADDED", "b"),
        ("SYNCED", ""),
        ("DELETED", "a"),
        ("MODIFIED", "b"),
        ("ADDED", "c"),
        ("SYNCED", ""),
    ]


async def test_what_has_not_changed_is_not_told_again() -> None:
    server = ServerDouble(("5", pod("a", "1")), [ClusterUnavailable("cut")], ("6", pod("a", "1")), [])
    assert await seen(server, 3) == [("ADDED", "a"), ("SYNCED", ""), ("SYNCED", "")]


async def test_a_server_in_trouble_is_asked_again() -> None:
    server = ServerDouble(ClusterUnavailable("503"), ClusterUnavailable("503"), ("5", pod("a", "1")), [])
    assert await seen(server, 2) == [("ADDED", "a"), ("SYNCED", "")]


async def test_missing_rights_are_told() -> None:
    with pytest.raises(ClusterRefused):
        await seen(ServerDouble(ClusterRefused("403")), 1)


async def test_a_bookmark_moves_on_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_TOO_SHORT_S", -1.0)
    server = ServerDouble(("5",), [event("BOOKMARK", pod("", "8"))], [event("ADDED", pod("a", "9"))])
    assert await seen(server, 2) == [("SYNCED", ""), ("ADDED", "a")]
    assert server.versions == ["5", "8"]
