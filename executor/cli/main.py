"""``kube-executor``: look whether everything is in place, and what became of calls that were given up."""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

from executor.cli.image import check_image
from executor.errors import KubeExecutorError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        Exit code: 0 when all is well, 1 when something is not, 2 for wrong arguments.
    """
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "check":
            _check(arguments.broker_url, arguments.max_workers)
        elif arguments.command == "dead-letter":
            return _dead_letters(arguments.broker_url, arguments.id, arguments.resubmit)
        elif arguments.command == "image":
            check_image(arguments.image, arguments.namespace, arguments.context, arguments.timeout)
        else:
            _parser().print_help()
            return 2
    except (KubeExecutorError, ValueError) as error:
        print(f"kube-executor: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kube-executor", description="Python callables on warm workers, behind concurrent.futures."
    )
    parser.add_argument("--version", action="version", version=f"kube-executor {version('kube-executor')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    check = commands.add_parser("check", help="start an executor, run one call, say what was found")
    check.add_argument("--broker-url", metavar="URL", help="a Redis or Valkey of yours; without it, one is started")
    check.add_argument("--max-workers", type=int, default=1, metavar="N", help="worker processes (default: 1)")
    image = commands.add_parser("image", help="about worker images").add_subparsers(
        dest="image_command", metavar="COMMAND", required=True
    )
    fits = image.add_parser("check", help="start one pod, and say whether the image fits this client")
    fits.add_argument("image", metavar="IMAGE", help="as in KubeExecutor(image=...)")
    fits.add_argument("--namespace", help="default: the context's")
    fits.add_argument("--context", help="of the kubeconfig; default: its current one")
    fits.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds to wait (default: 120)")
    dead = commands.add_parser("dead-letter", help="list calls and tasks that were given up, or queue one again")
    dead.add_argument("id", nargs="?", help="show this one with all its deaths")
    dead.add_argument("--broker-url", metavar="URL", required=True, help="the Redis or Valkey they lie in")
    dead.add_argument("--resubmit", action="store_true", help="queue the one named again")
    return parser


def _dead_letters(broker_url: str, wanted: str | None, resubmit: bool) -> int:
    from executor.broker.address import BrokerAddress
    from executor.broker.dead_letters import DeadLetters

    if resubmit and wanted is None:
        raise ValueError("--resubmit needs the id of a dead letter; `kube-executor dead-letter` lists them.")
    letters = DeadLetters(BrokerAddress.parse(broker_url))
    found = [letter for letter in letters.all() if wanted in (None, letter["id"])]
    for letter in found:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter["at"]))
        reasons = ", ".join(death.get("reason") or "unknown" for death in letter["deaths"])
        print(f"{letter['id']}  {at}  pool {letter['pool']}  {letter['task']}  died of: {reasons}")
        if wanted is not None:
            print(json.dumps(letter["deaths"], indent=2))
    if wanted is not None and not found:
        raise ValueError(f"There is no dead letter {wanted!r}.")
    if resubmit:
        print("queued again" if letters.resubmit(found[0]) else "somebody else has taken it")
    return 0


def _check(broker_url: str | None, max_workers: int) -> None:
    from executor.broker.address import BrokerAddress
    from executor.broker.connection import check
    from executor.kube_executor import KubeExecutor

    began = time.perf_counter()
    with KubeExecutor(max_workers, broker_url=broker_url) as ex:
        server = asyncio.run(check(BrokerAddress.parse(ex.broker_url)))
        whose = "yours" if broker_url else "embedded"
        print(f"server   {server.server} {server.version} ({whose})")
        print(f"client   Python {platform.python_version()}, kube-executor {version('kube-executor')}")
        print(f"worker   Python {ex.submit(platform.python_version).result()}")
        print(f"first result after {time.perf_counter() - began:.2f} s")
        began = time.perf_counter()
        ex.submit(platform.python_version).result()
        print(f"a call there and back in {1000 * (time.perf_counter() - began):.1f} ms")
