"""Every example runs as its reader would run it, on less input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

#: What each example is given to be quick, and what it must print.
RUNS = [
    ("01_map", ["--limit", "60"], r"Digest of the answers: \w{16}"),
    ("01_map", ["--limit", "60", "--sequential"], r"Digest of the answers: \w{16}"),
    ("03_asyncio", ["--limit", "40"], r"40 requests of 16 clients"),
    ("03_asyncio", ["--limit", "20", "--in-loop"], r"20 requests of 16 clients"),
    ("04_pool", ["--limit", "1000000"], r"78,498 primes(.|\n)*The number is right\."),
    ("04_pool", ["--limit", "1000000", "--multiprocessing"], r"78,498 primes(.|\n)*The number is right\."),
    ("05_service", ["--limit", "16"], r"SIGKILL for the worker(.|\n)*16 of 16 bands are done"),
    ("05_service", ["--limit", "16", "--kill", "child"], r"SIGKILL for the child(.|\n)*16 of 16 bands are done"),
]


#: These are run by ``tests/cluster/test_example.py``.
ON_A_CLUSTER = {"02_pods"}


def run(example: str, arguments: Sequence[str], where: Path) -> str:
    """What an example prints; it runs in another directory, as a copy, so that nothing is written into the tree."""
    copy = where / example
    if not copy.exists():
        _copy(EXAMPLES / example, copy)
    environment = {**os.environ, "PYTHONWARNINGS": "error::ResourceWarning", "MPLCONFIGDIR": str(where / "matplotlib")}
    command = [sys.executable, str(copy / "main.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=where, env=environment, timeout=100)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def _copy(source: Path, target: Path) -> None:
    for path in source.rglob("*.py"):
        copied = target / path.relative_to(source)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(path.read_bytes())


def test_runs_cover_every_example() -> None:
    assert {name for name, *_ in RUNS} | ON_A_CLUSTER == {path.parent.name for path in EXAMPLES.glob("*/main.py")}


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("example", "arguments", "expected"), RUNS, ids=[" ".join([name, *rest]) for name, rest, _ in RUNS]
)
def test_example_runs(example: str, arguments: list[str], expected: str, tmp_path: Path) -> None:
    assert re.search(expected, run(example, arguments, tmp_path))


@pytest.mark.timeout(120)
def test_map_example_in_parallel_and_in_sequence_agree(tmp_path: Path) -> None:
    run("01_map", ["--limit", "40"], tmp_path)
    told = run("01_map", ["--limit", "40", "--sequential"], tmp_path)

    assert "the answers agree" in told
    runs = json.loads((tmp_path / "01_map" / "out" / "runs.json").read_text())
    assert runs["parallel"]["digest"] == runs["sequential"]["digest"]
    assert (tmp_path / "01_map" / "out" / "functions.png").stat().st_size > 10_000
