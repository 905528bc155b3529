"""Arguments from the environment and from a file."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from executor import KubeExecutor, PoolSpec, Resources
from executor.defaults import ARGUMENTS, from_file, from_variables
from executor.settings import Settings
from executor.tasks.pool_spec import PodFields


def settings(tmp_path: Path, text: str = "", **variables: str) -> Settings:
    """What a user has whose home is empty but for a file."""
    (tmp_path / ".config").mkdir(exist_ok=True)
    (tmp_path / ".config" / "kube-executor.toml").write_text(text)
    return Settings.from_environment({"HOME": str(tmp_path), **variables})


def test_every_argument_that_can_be_written_down_has_a_variable() -> None:
    named = set(inspect.signature(KubeExecutor).parameters) | set(PodFields.__annotations__)
    assert named - set(ARGUMENTS) == {"initializer", "initargs", "max_tasks_per_child", "pools", "pod"}
    assert set(ARGUMENTS) <= named


def test_an_argument_wins_over_a_variable_and_a_variable_over_the_file(tmp_path: Path) -> None:
    found = settings(tmp_path, "max_workers = 2\nslots = 3\nlease = 7", KUBE_EXECUTOR_MAX_WORKERS="4")
    assert found.pick("max_workers", 5, None) == 5
    assert found.pick("max_workers", None, None) == 4
    assert found.pick("slots", None, 1) == 3
    assert found.pick("min_workers", None, 1) == 1
    assert found.filled({"env": {"A": "1"}}, ["env", "slots", "secrets"]) == {"env": {"A": "1"}, "slots": 3}


def test_values_are_read_by_type(tmp_path: Path) -> None:
    found = from_variables(
        {
            "KUBE_EXECUTOR_LEASE": "2.5",
            "KUBE_EXECUTOR_SECRETS": "a, b",
            "KUBE_EXECUTOR_RESOURCES": '{"memory": "4Gi"}',
            "KUBE_EXECUTOR_TOLERATIONS": '[{"key": "gpu"}]',
            "KUBE_EXECUTOR_IMAGE": "  ",
            "KUBE_EXECUTOR_NO_LOGS": "1",
        }
    )
    assert found == {
        "lease": 2.5,
        "secrets": ["a", "b"],
        "resources": {"memory": "4Gi"},
        "tolerations": [{"key": "gpu"}],
    }
    text = 'image = "worker:1"\nsecrets = ["a"]\n[resources]\nmemory = "1Gi"\n[env]\nA = "b"'
    assert from_file(text, "x") == {
        "image": "worker:1",
        "secrets": ["a"],
        "resources": {"memory": "1Gi"},
        "env": {"A": "b"},
    }


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MAX_WORKERS", "many", "KUBE_EXECUTOR_MAX_WORKERS='many' in the environment must be a whole number"),
        ("LEASE", "soon", "must be a number of seconds"),
        ("SECRETS", "a,,b", "must be a list of strings"),
        ("RESOURCES", "4Gi", "is not JSON"),
        ("ENV", "[]", "must be a mapping"),
        ("TOLERATIONS", "[1]", "must be a list of mappings"),
    ],
)
def test_a_variable_that_does_not_parse_is_named(name: str, value: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_variables({f"KUBE_EXECUTOR_{name}": value})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_worker = 3", "kube-executor.toml has 'max_worker', which is no argument.*Did you mean 'max_workers'"),
        ("zzz = 3", "There are: max_workers, broker_url"),
        ("max_workers = ", "is not TOML"),
        ("max_workers = true", "max_workers=True in .*kube-executor.toml must be a whole number"),
        ("lease = true", "must be a number of seconds"),
        ("image = 3", "must be a string"),
        ("secrets = 3", "must be a list of strings"),
    ],
)
def test_a_file_that_makes_no_sense_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(tmp_path, text)


def test_the_file_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    with pytest.raises(FileNotFoundError):
        Settings.from_environment({"KUBE_EXECUTOR_CONFIG": str(path)})
    path.write_text("slots = 2")
    assert Settings.from_environment({"KUBE_EXECUTOR_CONFIG": str(path)}).values == {"slots": 2}
    assert Settings.from_environment({"HOME": str(tmp_path)}).values == {}
    assert Settings.from_environment({"XDG_CONFIG_HOME": "/dev/null/x"}).values == {}


@pytest.fixture
def spec_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the pool that an executor makes of a file and of arguments."""

    def make(text: str, **arguments: Any) -> PoolSpec:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        monkeypatch.setenv("KUBE_EXECUTOR_CONFIG", str(path))
        executor = KubeExecutor(**arguments)
        executor.shutdown()
        return executor._session.pools["default"].spec

    return make


def test_an_executor_takes_what_it_was_not_given(spec_of: Any) -> None:
    text = 'image = "worker:1"\nmax_workers = 3\nslots = 2\n[resources]\nmemory = "1Gi"\n[env]\nA = "b"'
    spec = spec_of(text)
    assert (spec.image, spec.max_workers, spec.slots, spec.resources) == ("worker:1", 3, 2, Resources(memory="1Gi"))
    assert spec.env == {"A": "b"}
    spec = spec_of(text, slots=1, env={}, resources=Resources(cpu="1"))
    assert (spec.slots, spec.env, spec.resources) == (1, {}, Resources(cpu="1"))


def test_resources_that_do_not_exist_are_told(spec_of: Any) -> None:
    with pytest.raises(ValueError, match="has more than cpu, memory, gpu, ephemeral_storage"):
        spec_of("[resources]\nram = 3")
