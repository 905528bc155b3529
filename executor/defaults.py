"""Arguments of ``KubeExecutor`` that were not given: from the environment, else from a file.

Each argument has a variable: ``max_workers=`` is ``KUBE_EXECUTOR_MAX_WORKERS``. Lists are written with commas, mappings
and ``resources`` as JSON: ``KUBE_EXECUTOR_RESOURCES='{"memory": "4Gi"}'``. An empty variable counts as none.

The file is TOML, with the names of the arguments: that of ``KUBE_EXECUTOR_CONFIG``, else
``~/.config/kube-executor.toml`` (``$XDG_CONFIG_HOME``) if there is one::

    image = "registry/me/worker:1"
    namespace = "team"
    max_workers = 8
    resources = { memory = "4Gi" }

An argument wins over a variable, a variable over the file. Types are checked here, in sentences that say where a value
comes from; values where the argument's would be.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

PREFIX = "KUBE_EXECUTOR_"
#: Where the file is named, and where it is looked for in the user's directory of configurations.
CONFIG, FILE_NAME = PREFIX + "CONFIG", "kube-executor.toml"


def _whole(value: Any) -> int:
    if isinstance(value, str) and value.strip().isdigit():
        return int(value)
    if type(value) is int and value >= 0:
        return value
    raise ValueError("must be a whole number")


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("must be a number of seconds")
    try:
        return float(value)
    except ValueError:
        raise ValueError("must be a number of seconds") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


def _texts(value: Any) -> list[str]:
    listed = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(listed, list) or not all(isinstance(part, str) and part for part in listed):
        raise ValueError("must be a list of strings")
    return listed


def _json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from None


def _mapping(value: Any) -> dict[str, Any]:
    found = _json(value)
    if not isinstance(found, dict):
        raise ValueError("must be a mapping")
    return found


def _mappings(value: Any) -> list[dict[str, Any]]:
    found = _json(value)
    if not isinstance(found, list) or not all(isinstance(part, dict) for part in found):
        raise ValueError("must be a list of mappings")
    return found


#: Arguments that have defaults here, and what each is read by.
ARGUMENTS: Mapping[str, Callable[[Any], Any]] = {
    "max_workers": _whole,
    "broker_url": _text,
    "name": _text,
    "lease": _seconds,
    "store": _text,
    "image": _text,
    "namespace": _text,
    "context": _text,
    "kubeconfig": _text,
    "resources": _mapping,
    "min_workers": _whole,
    "slots": _whole,
    "start_timeout": _seconds,
    "orphan_timeout": _seconds,
    "env": _mapping,
    "secrets": _texts,
    "volumes": _mapping,
    "node_selector": _mapping,
    "tolerations": _mappings,
    "image_pull_secrets": _texts,
    "service_account": _text,
    "pod_template": _mapping,
}


def from_variables(environment: Mapping[str, str]) -> dict[str, Any]:
    """Arguments that the environment has.

    Raises:
        ValueError: One does not parse; names the variable.
    """
    found: dict[str, Any] = {}
    for name, read in ARGUMENTS.items():
        variable = PREFIX + name.upper()
        text = environment.get(variable, "").strip()
        if text:
            found[name] = _read(read, text, variable, "in the environment")
    return found


def from_file(text: str, path: str) -> dict[str, Any]:
    """Arguments that a file has.

    Args:
        text: What is in it.
        path: Where it lies, for sentences.

    Raises:
        ValueError: It is not TOML, has a name that is no argument, or a value of another type.
    """
    import tomllib  # not before there is a file: it costs 5 ms

    try:
        listed = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    for name in listed:
        if name not in ARGUMENTS:
            import difflib

            close = difflib.get_close_matches(name, ARGUMENTS, 1)
            hint = f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(ARGUMENTS)}."
            raise ValueError(f"{path} has {name!r}, which is no argument of KubeExecutor. {hint}")
    return {name: _read(ARGUMENTS[name], value, name, f"in {path}") for name, value in listed.items()}


def _read(read: Callable[[Any], Any], value: Any, name: str, where: str) -> Any:
    try:
        return read(value)
    except ValueError as error:
        raise ValueError(f"{name}={value!r} {where} {error}.") from None
