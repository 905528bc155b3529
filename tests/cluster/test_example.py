"""The second example gives the answers of the first one, on pods."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster.conftest import IMAGE
from tests.support import until

if TYPE_CHECKING:
    from tests.cluster.conftest import Admin

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


def digest(where: Path, example: str, *arguments: str) -> str:
    command = [sys.executable, str(where / example / "main.py"), "--limit", "60", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=where, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    found = re.search(r"Digest of the answers: (\w{16})", done.stdout)
    assert found, done.stdout
    return found[1]


def test_pods_give_the_answers_of_plain_python(admin: Admin, tmp_path: Path) -> None:
    for example in ("01_map", "02_pods"):  # a copy: they write beside themselves
        shutil.copytree(EXAMPLES / example, tmp_path / example, ignore=shutil.ignore_patterns("out", "__pycache__"))
    there = digest(tmp_path, "02_pods", "--image", IMAGE, "--pods", "2", "--namespace", admin.namespace)
    assert there == digest(tmp_path, "01_map", "--sequential")
    until(lambda: not admin.left(), what="the pods are gone", timeout=30)
