"""What a pod's status means."""

from __future__ import annotations

from typing import Any

import pytest

from executor.kube import diagnosis


def pod(status: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": "p", "uid": "1"}, "status": status}


def waiting(reason: str) -> dict[str, Any]:
    return pod({"containerStatuses": [{"image": "x:1", "state": {"waiting": {"reason": reason, "message": "said"}}}]})


def unschedulable(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return pod({"conditions": [condition]})


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"])
def test_an_image_that_does_not_come_is_hopeless_and_named(reason: str) -> None:
    found = diagnosis.waiting_for(waiting(reason))
    assert found is not None
    assert (found.reason, found.hopeless) == (reason, True)
    assert "x:1" in str(found)
    assert "kubectl" in str(found)


def test_a_container_that_is_being_made_is_no_trouble() -> None:
    assert diagnosis.waiting_for(waiting("ContainerCreating")) is None
    assert diagnosis.waiting_for(pod({})) is None


@pytest.mark.parametrize(
    ("message", "hopeless"),
    [
        ("0/2 nodes are available: 2 Insufficient nvidia.com/gpu.", False),
        ("0/2 nodes are available: 2 node(s) had untolerated taint {gpu: true}.", True),
        ("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.", True),
        ("0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {a: b}.", False),
    ],
)
def test_what_a_new_node_may_mend_is_not_hopeless(message: str, hopeless: bool) -> None:
    found = diagnosis.waiting_for(unschedulable(message))
    assert found is not None
    assert (found.reason, found.evidence, found.hopeless) == ("Unschedulable", message, hopeless)


def terminated(**state: Any) -> dict[str, Any]:
    return pod({"phase": "Failed", "containerStatuses": [{"state": {"terminated": state}}]})


def test_how_a_pod_ended() -> None:
    assert diagnosis.ended(pod({"phase": "Running"})) is None
    assert diagnosis.ended(terminated(exitCode=137, reason="OOMKilled")) == diagnosis.End(
        reason="OOMKilled", exit_code=137
    )
    assert diagnosis.ended(terminated(exitCode=137, reason="Error")) == diagnosis.End(reason="SIGKILL", exit_code=137)
    assert diagnosis.ended(terminated(exitCode=3, reason="Error")) == diagnosis.End(reason="exit code 3", exit_code=3)


def test_what_kubernetes_took_away_is_nobodys_fault() -> None:
    end = diagnosis.ended(pod({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}))
    assert end == diagnosis.End(reason="Evicted", message="low on memory", unasked=True)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("EvictionByEvictionAPI", "Evicted"),
        ("PreemptionByScheduler", "Preempted"),
        ("DeletionByTaintManager", "NodeLost"),
        ("SomethingNew", "SomethingNew"),
    ],
)
def test_who_took_a_pod_away_is_told_and_it_is_nobodys_fault(said: str, reason: str) -> None:
    disrupted = {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": said, "message": "why"}]}
    assert diagnosis.taken(pod(disrupted)) == diagnosis.End(reason=reason, message="why", unasked=True)
    killed = terminated(exitCode=137, reason="Error")
    killed["status"] |= disrupted
    assert diagnosis.ended(killed) == diagnosis.End(reason=reason, message="why", exit_code=137, unasked=True)


def test_a_pod_that_was_deleted_by_hand_is_killed_at_the_end_of_its_time_and_not_charged() -> None:
    deleted = terminated(exitCode=137, reason="Error")
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert diagnosis.ended(deleted) == diagnosis.End(reason="Deleted", exit_code=137, unasked=True)
    deleted["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] = "OOMKilled"
    assert diagnosis.ended(deleted) == diagnosis.End(reason="OOMKilled", exit_code=137)
