"""What an import costs, beyond what every such program imports anyway."""

import statistics
import subprocess
import sys

from benchmarks.cases.base import Case, Column, Metrics, Sizes
from benchmarks.peers.base import Peer

BASELINE = "import asyncio, concurrent.futures"
_TIMED = "import time; started = time.perf_counter(); {statement}; print(time.perf_counter() - started)"


def import_time(peer: Peer, n: int) -> Metrics:
    """Import in `n` fresh interpreters, in turn with the baseline."""
    _import_ms(peer.import_statement)
    pairs = [(_import_ms(BASELINE), _import_ms(peer.import_statement)) for _ in range(n)]
    baseline_ms, import_ms = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {"beyond_ms": import_ms - baseline_ms, "import_ms": import_ms, "baseline_ms": baseline_ms}


def _import_ms(statement: str) -> float:
    command = [sys.executable, "-c", _TIMED.format(statement=statement)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 1_000


CASES = [
    Case(
        name="import",
        title="Import",
        run=import_time,
        sizes=Sizes(15, 5, 5, 3),
        columns=(
            Column("beyond_ms", "beyond the baseline, ms", "{:,.1f}", comparable=False),
            Column("import_ms", "alone, ms", "{:,.1f}"),
            Column("baseline_ms", "the baseline, ms", "{:,.1f}"),
        ),
        peers=("ours", "process-pool", "mp-pool", "loky", "dask", "ray", "ray-pool", "parsl", "celery", "redis-loop"),
        note=f"The baseline is `{BASELINE}`; the statement is what a program writes, e.g. `import ray`.",
    ),
]
