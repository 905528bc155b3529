"""Measure one case with one peer in this fresh interpreter, and print one JSON line.

Usage: ``python -m benchmarks.measure CASE PEER N``
"""

import json
import os
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks.cases import CASES
from benchmarks.peers import peer as new_peer
from benchmarks.peers.base import Peer


def main(arguments: list[str]) -> None:
    """Measure, print, stop; the process ends without waiting for what `stop` leaves behind."""
    case_name, key, n = arguments[0], arguments[1], int(arguments[2])
    peer = new_peer(key)
    print(json.dumps({"case": case_name, "peer": key, "n": n} | outcome(case_name, peer, n)), flush=True)
    if case_name not in ("start", "import", "pending"):
        _stop(peer)
    os._exit(0)


def outcome(case_name: str, peer: Peer, n: int) -> dict[str, Any]:
    """Return metrics, or why there are none."""
    started = time.perf_counter()
    try:
        peer.load()
    except ModuleNotFoundError as error:
        return {"status": "not installed", "reason": str(error)}
    except Exception as error:
        return _failure(error)
    load_s = time.perf_counter() - started
    try:
        metrics = CASES[case_name].run(peer, n)
    except Exception as error:
        return _failure(error)
    return {"status": "ok", "metrics": metrics | {"load_s": load_s}, "versions": versions(peer)}


def versions(peer: Peer) -> dict[str, str]:
    """Return the versions of the peer's distributions."""
    return {name: _version(name) for name in peer.distributions}


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _failure(error: Exception) -> dict[str, str]:
    traceback.print_exc()
    sentence = " ".join(str(error).split())
    return {"status": "failed", "reason": f"{type(error).__name__}: {sentence}"[:300]}


def _stop(peer: Peer) -> None:
    try:
        peer.stop()
    except Exception:
        traceback.print_exc()


if __name__ == "__main__":
    main(sys.argv[1:])
