"""A small compression service: an asyncio server whose heavy work runs in worker processes.

Clients send the name of a source file of the standard library over TCP and get back how well it compresses. While all
cores compress, the event loop stays free: the longest time it was late is printed at the end. `--in-loop` computes in
the loop itself, to show what happens without an executor.

    python examples/03_asyncio/main.py
    python examples/03_asyncio/main.py --in-loop
"""

import argparse
import asyncio
import json
import lzma
import sysconfig
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from executor import KubeExecutor

LIBRARY = Path(sysconfig.get_path("stdlib"))

Reply = dict[str, str | int]
Compress = Callable[[str], Awaitable[Reply]]


def compressed(name: str) -> Reply:
    """Runs in a worker: size of one file before and after xz."""
    text = (LIBRARY / name).read_bytes()
    return {"name": name, "bytes": len(text), "xz": len(lzma.compress(text, preset=9))}


class Service:
    """One line with a name in, one line of JSON out."""

    def __init__(self, compress: Compress) -> None:
        self.compress = compress
        self.conversations: set[asyncio.Task[None]] = set()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until it hangs up."""
        self.conversations.add(asyncio.current_task())
        async for line in reader:
            writer.write(json.dumps(await self.compress(line.decode().strip())).encode() + b"\n")
            await writer.drain()
        writer.close()


async def ask(port: int, names: list[str]) -> list[Reply]:
    """One client: a connection of its own, one question after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    replies = []
    for name in names:
        writer.write(f"{name}\n".encode())
        replies.append(json.loads(await reader.readline()))
    writer.close()
    await writer.wait_closed()
    return replies


class LoopWatch:
    """Measures how late the loop wakes a task that wants to run every 5 ms."""

    def __init__(self) -> None:
        self.worst_seconds = 0.0

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            due = time.perf_counter() + 0.005
            await asyncio.sleep(0.005)
            self.worst_seconds = max(self.worst_seconds, time.perf_counter() - due)


async def serve_clients(compress: Compress, names: list[str], clients: int) -> list[Reply]:
    """Start the server, let all clients ask at the same time, tell how the loop fared."""
    watch, service = LoopWatch(), Service(compress)
    watching = asyncio.create_task(watch.run())
    begun = time.perf_counter()
    async with await asyncio.start_server(service.converse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        answers = await asyncio.gather(*(ask(port, names[index::clients]) for index in range(clients)))
        await asyncio.gather(*service.conversations)
    watching.cancel()
    replies = [reply for answer in answers for reply in answer]
    print(
        f"{len(replies)} requests of {clients} clients in {time.perf_counter() - begun:.2f} s; "
        f"the loop was late by {1000 * watch.worst_seconds:.0f} ms at worst"
    )
    return replies


async def in_workers(names: list[str], clients: int) -> list[Reply]:
    async with KubeExecutor() as ex:
        replies = await serve_clients(lambda name: ex.submit(compressed, name), names, clients)
        biggest = 0
        async for reply in ex.map(compressed, names[:20]):  # results of a map, one at a time, in order
            biggest = max(biggest, reply["bytes"])
        print(f"The largest of the first {len(names[:20])} files has {biggest:,} bytes.")
    return replies


async def in_loop(names: list[str], clients: int) -> list[Reply]:
    async def compress(name: str) -> Reply:
        return compressed(name)

    return await serve_clients(compress, names, clients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in-loop", action="store_true", help="compute in the event loop: no workers")
    parser.add_argument("--clients", type=int, default=16, help="connections at the same time")
    parser.add_argument("--limit", type=int, default=300, help="number of requests")
    options = parser.parse_args()
    names = sorted(path.name for path in LIBRARY.glob("*.py"))[: options.limit]
    names *= -(-options.limit // len(names))
    work = in_loop if options.in_loop else in_workers
    replies = asyncio.run(work(names[: options.limit], options.clients))
    before, after = sum(reply["bytes"] for reply in replies), sum(reply["xz"] for reply in replies)
    print(f"{before:,} bytes became {after:,}: {after / before:.1%}")


if __name__ == "__main__":
    main()
