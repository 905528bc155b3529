"""The files that a local worker reads at its start, and the command that starts it."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from executor.pools.supervisor_process import package_root

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["write_worker"]


def write_worker(
    private: Path, key: bytes, settings: Mapping[str, Any], argv: Sequence[str] | None = None
) -> dict[str, Any]:
    """Write key and configuration of a worker, readable by their owner only.

    Args:
        private: Directory for them.
        key: Master key of the signatures.
        settings: What :mod:`executor.worker.config` reads; key file, probes and import path are added.
        argv: The worker's command, if not the usual one.

    Returns:
        What the supervisor needs to know (see :class:`executor.pools.supervised.Worker`).
    """
    probes = private / "probes"
    probes.mkdir(mode=0o700)
    _write(private / "key", key.hex())
    cwd = _working_directory()
    config = {
        **settings,
        "key_file": str(private / "key"),
        "probes": str(probes),
        "sys_path": [os.path.join(cwd or "", path) for path in sys.path],
        "cwd": cwd,
    }
    _write(private / "worker.json", json.dumps(config))
    return {
        "argv": list(argv or _worker_argv()),
        "config": str(private / "worker.json"),
        "log": str(private / "worker.log"),
        "ready_file": str(probes / "ready"),
        "import_path": _import_path(),
    }


def _worker_argv() -> list[str]:
    """As the client's Python was started (``-O``, ``-X``, ``-W``), but without the current directory on its path."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *flags, *([] if "-P" in flags else ["-P"]), "-m", "executor.worker"]


def _import_path() -> str | None:
    """Where this package is, unless every Python of this environment finds it anyway."""
    root = package_root()
    return None if root in (*site.getsitepackages(), site.getusersitepackages()) else root


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
