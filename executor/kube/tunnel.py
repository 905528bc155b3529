"""A unix socket on this machine that ends at a port of a pod, through the API server.

::

    redis client ──► unix socket ──► websocket (v4.channel.k8s.io) ──► API server ──► kubelet ──► pod

One websocket for each connection. It runs on a loop and thread of its own, so that a thread which waits for an answer
from the broker, the executor's own loop even, never waits for itself. The pod is looked up for each connection: when it
moves, who reconnects finds the new one.

Of a port-forward over ``v4.channel.k8s.io`` the first byte of a message is its channel (0 data, 1 error), and the first
message of each channel is the port's number.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from executor.errors import ClusterError

if TYPE_CHECKING:
    from executor.kube.cluster import Cluster

log = logging.getLogger("executor")

_DATA, _ERROR = 0, 1
_CHUNK_BYTES = 256 * 1024
#: Bytes that may wait to be written to a local client before the pod's side is read on.
_HIGH_WATER_BYTES = 4 * 1024 * 1024


class Tunnel:
    """Listens on a unix socket in a private directory. All methods run on the tunnel's own loop.

    Args:
        cluster: A client of its own: aiohttp's sessions belong to one loop.
        find_pod: Name of the pod to connect to.
        port: Of the pod.

    Attributes:
        path: Of the socket; only its user may connect.
    """

    def __init__(self, cluster: Cluster, find_pod: Callable[[], Awaitable[str]], port: int) -> None:
        self._cluster, self._find_pod, self._port = cluster, find_pod, port
        self._directory = tempfile.mkdtemp(prefix="ke-tunnel-")
        self.path = os.path.join(self._directory, "broker.sock")
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._accept, self.path, limit=_CHUNK_BYTES)

    async def stop(self) -> None:
        """Close everything, and remove the socket."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections, timeout=5)
        await self._cluster.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writer.transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        try:
            await self._serve(reader, writer)
        except ClusterError as error:
            log.warning("The tunnel to the broker cannot be opened: %s", error)
        except asyncio.CancelledError:  # by stop(); asyncio's streams do not expect a handler to be cancelled
            pass
        except (ConnectionError, OSError) as error:
            log.debug("a connection through the tunnel ended: %s", error)
        finally:
            self._connections.discard(task)
            writer.transport.abort()  # the client sees a closed connection, and comes again

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._cluster.port_forward(await self._find_pod(), self._port) as socket:
            ways = [asyncio.create_task(_out(reader, socket)), asyncio.create_task(_back(socket, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)


async def _out(reader: asyncio.StreamReader, socket: Any) -> None:
    channel = bytes([_DATA])
    while data := await reader.read(_CHUNK_BYTES):
        await socket.send_bytes(channel + data)


async def _back(socket: Any, writer: asyncio.StreamWriter) -> None:
    import aiohttp

    begun: set[int] = set()
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
            break
        channel = message.data[0]
        if channel not in begun:
            begun.add(channel)  # the port's number
            continue
        if channel == _ERROR:
            log.warning("The tunnel to the broker: %s", message.data[1:].decode(errors="replace").strip())
            break
        writer.write(memoryview(message.data)[1:])
        await writer.drain()
