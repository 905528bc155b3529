"""What is refused before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest

from executor import KubeExecutor, PoolSpec

IMAGE = "worker:1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": ""}, "name="),
        ({"name": "two words"}, "name="),
        ({"name": "a\n"}, "name="),
        ({"broker_url": ""}, "redis://"),
        ({"image": "Not An Image"}, "image="),
        ({"image": ""}, "image="),
        ({"image": IMAGE, "name": "My_Executor"}, "name="),
        ({"image": IMAGE, "name": "x" * 60}, "characters together"),
        ({"image": IMAGE, "max_workers": 2, "min_workers": 3}, "min_workers=3"),
        ({"image": IMAGE, "min_workers": -1}, "min_workers"),
        ({"image": IMAGE, "slots": 0}, "slots"),
        ({"image": IMAGE, "env": {"A": 1}}, r"env\['A'\]"),
        ({"image": IMAGE, "volumes": {"data": {}}}, "volumes"),
        ({"image": IMAGE, "secrets": "login"}, "secrets"),
        ({"image": IMAGE, "tolerations": {"key": "gpu"}}, "tolerations"),
        ({"image": IMAGE, "pod_template": {"spec": {"restartPolicy": "Always"}}}, "restartPolicy"),
        ({"image": IMAGE, "broker_url": "redis://here:6379"}, "broker_url"),
        ({"pools": [PoolSpec(name="gpu", image=IMAGE)]}, "image"),
    ],
)
def test_arguments_that_make_no_sense_are_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        KubeExecutor(**arguments)


def test_a_name_is_a_string() -> None:
    with pytest.raises(TypeError, match="name=3"):
        KubeExecutor(name=3)  # type: ignore[arg-type]


def test_initargs_are_a_tuple() -> None:
    with pytest.raises(TypeError, match="initargs must be a tuple of the initializer's arguments, not 3"):
        KubeExecutor(initializer=print, initargs=3)  # type: ignore[arg-type]


def test_a_template_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(TypeError, match="pod_template"):
        KubeExecutor(image=IMAGE, pod_template="spec: {}")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "image",
    ["worker", "worker:1", "registry.example.org:5000/team/worker:1.2", "a/b/c@sha256:" + "0" * 64, "localhost/x_y:t"],
)
def test_names_of_images_pass(image: str) -> None:
    assert PoolSpec(image=image).image == image
