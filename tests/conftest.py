"""What every test may rely on.

The repository is on the import path, here and in the processes that tests start: a worker finds
``tests.contract.calls`` as it finds any module of a user's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support import Gate

ROOT = Path(__file__).resolve().parent.parent

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate that calls in other processes wait at; opened at the end of the test, so that none stays behind."""
    from tests.support import Gate

    one = Gate(tmp_path / "gate")
    yield one
    one.open()


@pytest.fixture
def new_gate(tmp_path: Path) -> Iterator[Callable[[], Gate]]:
    """Makes as many gates as a test needs; all are opened at its end."""
    from tests.support import Gate

    gates: list[Gate] = []

    def make() -> Gate:
        gates.append(Gate(tmp_path / f"gate{len(gates)}"))
        return gates[-1]

    yield make
    for one in gates:
        one.open()
