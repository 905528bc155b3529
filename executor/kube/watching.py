"""One list, then one watch, and again: what changes among the objects of a selector.

::

    watched() ── list ─► all as ADDED ─► watch ─► ADDED, MODIFIED, DELETED ─► 410, silence, errors ─► list

What a relist no longer shows is reported as DELETED. ``kubernetes_asyncio``'s own ``Watch`` repeats a 410 with the same
version; this one lists anew.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from executor.errors import ClusterUnavailable

if TYPE_CHECKING:
    from executor.kube.cluster import Cluster

log = logging.getLogger("executor")

#: The server ends a watch after this time, and we begin another; in seconds.
WATCH_S = 300
#: A watch that says nothing for so long, not even a bookmark (the server sends one each minute), is dead; in seconds.
SILENCE_S = 90.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
#: A watch that ends so soon was refused in some way: pause before the next, in seconds.
_TOO_SHORT_S = 1.0


class Change(NamedTuple):
    """What happened to an object: ``ADDED``, ``MODIFIED``, ``DELETED``; ``SYNCED`` (no object): a list is through."""

    kind: str
    object: dict[str, Any]


async def watched(cluster: Cluster, kind: str, selector: str = "", fields: str = "") -> AsyncIterator[Change]:
    """Follow the objects of a selector, for ever.

    Args:
        cluster: Where.
        kind: Plural name.
        selector: Of labels.
        fields: Field selector.

    Raises:
        ClusterRefused: The rights are missing.
    """
    known: dict[str, dict[str, Any]] = {}
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            found = await cluster.list(kind, selector, fields)
            for difference in _difference(known, found["items"]):
                yield difference
            yield Change("SYNCED", {})
            version = found["metadata"]["resourceVersion"]
            while version:
                began = monotonic()
                async for change, seen in _watch_once(cluster, kind, selector, fields, version):
                    version = seen
                    if change is not None:
                        _note(known, change)
                        yield change
                if monotonic() - began < _TOO_SHORT_S:
                    break
                pause_s = _FIRST_PAUSE_S
        except ClusterUnavailable as error:
            log.warning("Lost sight of %s: %s", kind, error)
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)


async def _watch_once(
    cluster: Cluster, kind: str, selector: str, fields: str, version: str
) -> AsyncIterator[tuple[Change | None, str]]:
    """One watch request: each change with the version to go on from; an empty one asks for a new list."""
    query = {
        "resourceVersion": version,
        "allowWatchBookmarks": "true",
        "timeoutSeconds": WATCH_S,
        **({"labelSelector": selector} if selector else {}),
        **({"fieldSelector": fields} if fields else {}),
    }
    async with cluster.watch(kind, query, silence_s=SILENCE_S) as stream:
        async for line in stream:
            event = json.loads(line)
            what, item = event["type"], event["object"]
            if what == "ERROR":  # 410: what we know is too old
                log.debug("a watch of %s ended: %s", kind, item.get("message"))
                yield None, ""
                return
            version = item["metadata"]["resourceVersion"]
            yield (None if what == "BOOKMARK" else Change(what, item)), version


def _difference(known: dict[str, dict[str, Any]], items: list[dict[str, Any]]) -> list[Change]:
    """What has changed since the last list."""
    changes = []
    present = {item["metadata"]["uid"] for item in items}
    for uid in [uid for uid in known if uid not in present]:
        changes.append(Change("DELETED", known.pop(uid)))
    for item in items:
        uid, version = item["metadata"]["uid"], item["metadata"]["resourceVersion"]
        if uid not in known:
            changes.append(Change("ADDED", item))
        elif known[uid]["metadata"]["resourceVersion"] != version:
            changes.append(Change("MODIFIED", item))
        known[uid] = item
    return changes


def _note(known: dict[str, dict[str, Any]], change: Change) -> None:
    uid = change.object["metadata"]["uid"]
    if change.kind == "DELETED":
        known.pop(uid, None)
    else:
        known[uid] = change.object
