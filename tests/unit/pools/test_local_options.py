"""What the constructor refuses, before anything is started."""

from __future__ import annotations

from typing import Any

import pytest

from executor import KubeExecutor


@pytest.mark.parametrize("lease", [0, -1, 0.01, 3601, float("inf"), float("nan")])
def test_lease_that_no_worker_could_keep_is_refused(lease: float) -> None:
    with pytest.raises(ValueError, match="lease="):
        KubeExecutor(1, lease=lease)


@pytest.mark.parametrize("lease", ["5", [5]])
def test_lease_that_is_no_number_is_refused(lease: Any) -> None:
    with pytest.raises(TypeError, match="lease="):
        KubeExecutor(1, lease=lease)


@pytest.mark.parametrize("lease", [1, 1.5, 3600])
def test_lease_in_seconds_is_taken(lease: float) -> None:
    KubeExecutor(1, lease=lease)
