"""What the API server's answers become."""

from __future__ import annotations

import json

from executor.errors import ClusterError, ClusterRefused, ClusterUnavailable
from executor.kube.refusals import refusal, verb_of


def refused(status: int, message: str = "", name: str = "p", verb: str = "create", below: str = "") -> ClusterError:
    body = json.dumps({"kind": "Status", "message": message, "reason": "R"})
    return refusal(status, body, verb=verb, kind="pods", name=name, namespace="ns", below=below)


def test_missing_rights_name_verb_object_and_role() -> None:
    error = refused(403, "pods is forbidden", below="portforward")
    assert isinstance(error, ClusterRefused)
    assert "create pods/portforward" in str(error)
    assert "'ns'" in str(error)
    assert "deploy/rbac" in str(error)


def test_a_quota_is_not_a_missing_right() -> None:
    error = refused(403, "exceeded quota: small")
    assert "quota" in str(error)
    assert "Role" not in str(error)


def test_a_missing_namespace_is_named() -> None:
    assert "no namespace 'ns'" in str(refused(404, name=""))


def test_trouble_of_the_server_may_pass() -> None:
    assert isinstance(refused(429), ClusterUnavailable)
    assert isinstance(refused(503), ClusterUnavailable)


def test_an_answer_that_is_no_status_is_shown() -> None:
    error = refusal(400, "<html>nope</html>", verb="get", kind="pods", name="", namespace="ns")
    assert "<html>nope</html>" in str(error)


def test_verbs() -> None:
    assert verb_of("GET") == "get"
    assert verb_of("GET", whole=True) == "list"
    assert verb_of("GET", whole=True, watching=True) == "watch"
    assert verb_of("DELETE", whole=True) == "deletecollection"
    assert verb_of("POST") == "create"
