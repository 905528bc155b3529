"""A Celery service and KubeExecutor share one pool of workers, and one of them is killed in the middle.

`shop/` and `gallery.py` are a plain Celery service: they import celery, not executor, and talk to `redis://`. This
program starts a pool whose workers also run the shop's tasks, starts the service as a process of its own, kills a
worker with SIGKILL after a quarter of the work, and shows that every task gets done all the same.

    python examples/05_service/main.py
    python examples/05_service/main.py --kill child     # one of its child processes instead of the whole worker
"""

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from executor import KubeExecutor, PoolSpec
from executor.broker.embedded import EmbeddedServer, ServerPlan, find_server

HERE = Path(__file__).parent
PICTURE = HERE / "out" / "mandelbrot.pgm"


@contextmanager
def redis_server(url: str | None) -> Iterator[str]:
    """The URL given, or that of a private server on a free port of this machine."""
    if url is not None:
        yield url
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="shop-") as directory:
        plan = ServerPlan(find_server(), directory, secrets.token_hex(16), port)
        with EmbeddedServer(plan):
            yield plan.url


@contextmanager
def service(bands: int) -> Iterator[subprocess.Popen[str]]:
    """The gallery, as a process of its own."""
    command = [sys.executable, str(HERE / "gallery.py"), str(bands), str(PICTURE)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def watch(process: subprocess.Popen[str], bands: int, victim: str) -> list[dict]:
    """Read what the service finished; after a quarter, kill the worker that did the last one."""
    finished = []
    for line in process.stdout:
        finished.append(json.loads(line))
        if len(finished) == max(1, bands // 4):
            pid = finished[-1]["pid" if victim == "child" else "worker"]
            print(f"{len(finished)} of {bands} bands are done: SIGKILL for the {victim} with pid {pid}")
            os.kill(pid, signal.SIGKILL)
    return finished


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker-url", help="redis://... of your own (default: a private server)")
    parser.add_argument("--kill", choices=("worker", "child"), default="worker", help="what to kill")
    parser.add_argument("--limit", type=int, default=40, help="bands of the picture; 40 are all of it")
    options = parser.parse_args()
    bands = min(options.limit, 40)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server and the service end with us

    with redis_server(options.broker_url) as url:
        os.environ["SHOP_REDIS_URL"] = url  # for the service, and for the shop's app in the workers
        pool = PoolSpec(name="shop", max_workers=2, celery_app="shop.tasks:app", queues=["render", "thumbs"])
        with KubeExecutor(1, broker_url=url, pools=[pool]) as ex:
            begun = time.perf_counter()
            ours = ex.options(pool="shop").submit(sum, range(1000)).result(timeout=30)  # in the same workers
            print(f"A call of our own in the same pool: {ours:,}")
            with service(bands) as gallery:
                finished = watch(gallery, bands, options.kill)
                exit_code = gallery.wait()
            seconds = time.perf_counter() - begun

    done = Counter(picture["band"] for picture in finished)
    print(f"{len(done)} of {bands} bands are done in {seconds:.1f} s, by {len({p['pid'] for p in finished})} processes")
    print(f"Picture: {PICTURE}")
    if len(done) != bands or exit_code:
        sys.exit(f"The service ended with exit code {exit_code}; {bands - len(done)} bands are missing.")


if __name__ == "__main__":
    main()
