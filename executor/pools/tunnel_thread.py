"""Runs the tunnel on a loop and thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from executor.kube.tunnel import Tunnel

if TYPE_CHECKING:
    from executor.kube.cluster import Cluster


class TunnelThread:
    """A tunnel that works while every other thread waits for it.

    Args:
        connect: Makes a client of the API server, on the tunnel's loop.
        find_pod: Name of the pod to connect to; from any thread.
        port: Of the pod.
    """

    def __init__(self, connect: Callable[[], Awaitable[Cluster]], find_pod: Callable[[], str], port: int) -> None:
        self._connect, self._find_pod, self._port = connect, find_pod, port
        self._loop = asyncio.new_event_loop()
        self._tunnel: Tunnel | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="executor-tunnel", daemon=True)
        self._thread.start()

    async def start(self) -> str:
        """Listen; returns the path of the socket."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._start(), self._loop))

    async def _start(self) -> str:
        async def find() -> str:
            return self._find_pod()

        self._tunnel = Tunnel(await self._connect(), find, self._port)
        await self._tunnel.start()
        return self._tunnel.path

    def stop(self) -> None:
        """Close all connections, and end the thread. Blocks for a moment."""
        if self._tunnel is not None:
            asyncio.run_coroutine_threadsafe(self._tunnel.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()
