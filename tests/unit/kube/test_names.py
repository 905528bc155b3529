"""Names that Kubernetes takes."""

from __future__ import annotations

import pytest

from executor.kube import names


def test_a_pod_is_named_after_executor_and_pool() -> None:
    one, other = names.worker_pod("mine", "gpu"), names.worker_pod("mine", "gpu")
    assert one.startswith("ke-mine-gpu-")
    assert one != other


def test_the_longest_names_fit_exactly() -> None:
    executor, pool = "e" * (names.ROOM - 10), "p" * 10
    names.check_names(executor, [pool])
    assert len(names.worker_pod(executor, pool)) == names.LONGEST
    with pytest.raises(ValueError, match="characters together"):
        names.check_names(executor + "e", [pool])


@pytest.mark.parametrize("name", ["", "Mine", "my_name", "-x", "x-", "a.b", "ä", "a" * 64])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name="):
        names.check_names(name, ["default"])


def test_no_executor_has_the_objects_of_another() -> None:
    assert names.pool_secret("a", "b") != names.owner("a-b")
