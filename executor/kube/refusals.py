"""What the API server's answers mean to a user. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from executor.errors import ClusterError, ClusterRefused, ClusterUnavailable
from executor.kube.kinds import GROUPS

#: Answers after which the same request may be made again: too many requests, and the server's own troubles.
RETRIABLE = frozenset({429, 500, 502, 503, 504})
_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def verb_of(method: str, *, whole: bool = False, watching: bool = False) -> str:
    """The verb that a Role must grant for a request.

    Args:
        method: HTTP method.
        whole: It goes to a collection.
        watching: It watches.
    """
    if method == "GET" and whole:
        return "watch" if watching else "list"
    if method == "DELETE" and whole:
        return "deletecollection"
    return _VERBS[method]


def refusal(
    status: int, body: str, *, verb: str, kind: str, name: str, namespace: str, below: str = ""
) -> ClusterError:
    """The error that a failed request becomes.

    Args:
        status: HTTP status.
        body: What the server said: a ``Status`` object as JSON, or anything.
        verb: As :func:`verb_of` gives it.
        kind: Plural name of the kind.
        name: Of the object, or empty.
        namespace: Where.
        below: Subresource, or empty.
    """
    said = _message(body)
    what = f"{verb} {kind}{'/' + below if below else ''}{' ' + name if name else ''} in namespace {namespace!r}"
    details: dict[str, Any] = {"status": status, "reason": _reason(body), "verb": verb, "kind": kind, "name": name}
    if status == 401:
        text = f"The API server does not know you (401) at: {what}. Log in again; see: kubectl auth whoami"
    elif status == 403 and "exceeded quota" in said:
        details["quota"] = True
        text = (
            f"A quota of the namespace forbids it: {what}: {said}. See: kubectl -n {namespace} describe resourcequota"
        )
    elif status == 403:
        text = (
            f"The API server forbids: {what}. {said} "
            f"Have someone apply the Role of deploy/rbac; it grants {verb!r} on {_granted(kind, below)}."
        )
    elif status == 404 and not name:
        text = f"There is no namespace {namespace!r}, or the cluster does not have {kind}: {said}"
    elif status in RETRIABLE:
        return ClusterUnavailable(f"The API server has trouble ({status}) with: {what}. {said}", details)
    else:
        text = f"The API server refused ({status}): {what}. {said}"
    return ClusterRefused(text, details)


def _granted(kind: str, below: str) -> str:
    group = GROUPS.get(kind, "")
    return f"{kind}{'/' + below if below else ''} (API group {group!r})"


def _message(body: str) -> str:
    return str(_status(body).get("message") or body.strip()[:500])


def _reason(body: str) -> str:
    return str(_status(body).get("reason") or "")


def _status(body: str) -> Mapping[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
