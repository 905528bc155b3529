"""Scripts as people write them: everything in `__main__`, the same for the standard library and for us."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

INITIALIZER = """
    import multiprocessing, sys
    from executor import KubeExecutor, Pool
    from concurrent.futures import ProcessPoolExecutor

    table = []
    scale = None

    def prepare(number):
        global scale
        scale = number
        table.append(number)

    def scaled(x):
        return scale * x + len(table)

    if __name__ == "__main__":
        pools = {"Pool": Pool, "multiprocessing": multiprocessing.Pool}
        if sys.argv[1] in pools:
            with pools[sys.argv[1]](1, initializer=prepare, initargs=(10,)) as pool:
                print(pool.map(scaled, [1, 2, 3]))
        else:
            kinds = {"KubeExecutor": KubeExecutor, "ProcessPoolExecutor": ProcessPoolExecutor}
            with kinds[sys.argv[1]](1, initializer=prepare, initargs=(10,)) as ex:
                print(list(ex.map(scaled, [1, 2, 3])))
"""


@pytest.mark.parametrize(
    "kind",
    [
        "multiprocessing",
        "ProcessPoolExecutor",
        "Pool",
        "KubeExecutor",
    ],
)
def test_initializer_in_main_sets_globals_that_calls_see(kind: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(INITIALIZER))
    done = subprocess.run([sys.executable, str(script), kind], capture_output=True, text=True, timeout=50)
    assert done.stdout.strip() == "[11, 21, 31]", done.stderr
