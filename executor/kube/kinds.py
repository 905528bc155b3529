"""Where the API server keeps the kinds of objects that we use."""

from __future__ import annotations

from typing import Final

#: Path of each kind, by its plural name; ``{ns}`` is the namespace.
PATHS: Final = {
    "pods": "/api/v1/namespaces/{ns}/pods",
    "secrets": "/api/v1/namespaces/{ns}/secrets",
    "services": "/api/v1/namespaces/{ns}/services",
    "events": "/api/v1/namespaces/{ns}/events",
    "jobs": "/apis/batch/v1/namespaces/{ns}/jobs",
    "networkpolicies": "/apis/networking.k8s.io/v1/namespaces/{ns}/networkpolicies",
}

#: API group of each kind, as a Role names it.
GROUPS: Final = {
    "pods": "",
    "secrets": "",
    "services": "",
    "events": "",
    "jobs": "batch",
    "networkpolicies": "networking.k8s.io",
}


def path(kind: str, namespace: str, name: str = "", below: str = "") -> str:
    """Path of a collection, an object, or something below an object (``log``, ``portforward``)."""
    return "/".join(part for part in (PATHS[kind].format(ns=namespace), name, below) if part)
