"""How a user's ``pod_template`` is laid over the pod that we made. Pure.

Rules, in the spirit of Kubernetes' strategic merge:

- A mapping is merged key by key; ``None`` removes the key.
- A list whose items have a merge key (below) is merged item by item: an item with a known key is merged into ours, one
  with a new key is added after ours. The container that runs calls is called ``worker``.
- Tolerations are added to ours. Any other list, and every other value, replaces ours.
- What pods are found by (our labels, name, namespace, owner) cannot be changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Merge key of the items of each list, by the name of the list.
MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "ports": "containerPort",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
}
_ADDED = frozenset({"tolerations"})


def check_template(template: object, labels: Mapping[str, str]) -> None:
    """Refuse a template that cannot be merged.

    Args:
        template: As the user gave it.
        labels: Those that pods are found by.

    Raises:
        TypeError: It is not a mapping.
        ValueError: It has keys that a pod does not have, or changes what pods are found by; names the field.
    """
    if not isinstance(template, Mapping):
        raise TypeError(f"pod_template must be a mapping with 'metadata' and 'spec', not {type(template).__name__}.")
    if unknown := sorted(set(template) - {"metadata", "spec", "apiVersion", "kind"}):
        raise ValueError(f"pod_template has {unknown[0]!r} beside 'metadata' and 'spec': put it into 'spec'.")
    metadata = template.get("metadata") or {}
    for field in ("name", "namespace", "ownerReferences", "generateName"):
        if field in metadata:
            raise ValueError(f"pod_template.metadata.{field} is ours to set; remove it.")
    for label, value in (metadata.get("labels") or {}).items():
        if label in labels and value != labels[label]:
            raise ValueError(f"pod_template.metadata.labels[{label!r}] is what we find our pods by; use another label.")
    if "restartPolicy" in (template.get("spec") or {}) and template["spec"]["restartPolicy"] != "Never":
        raise ValueError(
            "pod_template.spec.restartPolicy must be Never: a worker that ends is replaced by another pod."
        )


def merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another.

    Args:
        ours: Stays as it is.
        theirs: Wins.

    Raises:
        ValueError: An item of a list lacks its merge key.
    """
    result = dict(ours)
    for key, value in theirs.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            below = result.get(key)
            result[key] = merged(below if isinstance(below, Mapping) else {}, value)
        elif isinstance(value, (list, tuple)):
            result[key] = _merged_list(key, list(result.get(key) or ()), list(value))
        else:
            result[key] = value
    return result


def _merged_list(name: str, ours: list[Any], theirs: list[Any]) -> list[Any]:
    if name in _ADDED:
        return [*ours, *(item for item in theirs if item not in ours)]
    merge_key = MERGE_KEYS.get(name)
    if merge_key is None:
        return theirs
    result = list(ours)
    for item in theirs:
        if not isinstance(item, Mapping) or merge_key not in item:
            raise ValueError(f"pod_template: each of {name!r} needs {merge_key!r}, to be merged by.")
        place = next((i for i, own in enumerate(result) if own.get(merge_key) == item[merge_key]), None)
        if place is None:
            result.append(dict(item))
        else:
            result[place] = merged(result[place], item)
    return result
