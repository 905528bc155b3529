"""Why a pod does not work, or how it ended, in Kubernetes' own words. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

#: What cannot mend itself fails the pool after this time, in seconds (design: P6).
HOPELESS_AFTER_S = 30.0

_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_CONFIG = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CreatePodSandboxError")
_SIGNALS = {137: "SIGKILL", 143: "SIGTERM", 139: "SIGSEGV", 134: "SIGABRT"}


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Why a pod cannot make progress.

    Attributes:
        reason: Kubernetes' spelling: ``ImagePullBackOff``, ``Unschedulable``, ``OOMKilled``, ...
        evidence: What Kubernetes said.
        remedy: What to do, and the next command.
        hopeless: Whether it cannot mend itself, so that waiting helps nobody.
    """

    reason: str
    evidence: str
    remedy: str
    hopeless: bool = False

    def __str__(self) -> str:
        return f"{self.reason}: {self.evidence.rstrip('.')}. {self.remedy}"


def waiting_for(pod: Mapping[str, Any]) -> Diagnosis | None:
    """Why a pod that was made does not run yet; None where nothing is wrong, or nothing is known."""
    status = pod.get("status") or {}
    for container in _containers(status):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if found := _waiting(waiting, container, pod):
            return found
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return _unscheduled(condition)
    return None


def _waiting(waiting: Mapping[str, Any], container: Mapping[str, Any], pod: Mapping[str, Any]) -> Diagnosis | None:
    reason, message = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
    name = pod["metadata"]["name"]
    if reason in _IMAGE:
        return Diagnosis(
            reason=reason,
            evidence=f"the image {container.get('image')!r} of {name}: {message}",
            remedy="Check image=, its tag, and image_pull_secrets; a local image must be loaded into the nodes. "
            f"See: kubectl describe pod {name}",
            hopeless=True,
        )
    if reason in _CONFIG:
        return Diagnosis(
            reason=reason,
            evidence=f"{name}: {message}",
            remedy=f"Check secrets=, volumes=, env= and pod_template=. See: kubectl describe pod {name}",
            hopeless=True,
        )
    return None


def _unscheduled(condition: Mapping[str, Any]) -> Diagnosis:
    said = str(condition.get("message") or "")
    reason = str(condition.get("reason") or "Unschedulable")
    hopeless = "Insufficient" not in said and ("untolerated taint" in said or "didn't match" in said)
    return Diagnosis(
        reason=reason,
        evidence=said,
        remedy="Ask for less (resources=), tolerate the taint (tolerations=), change node_selector=, or add nodes.",
        hopeless=hopeless,
    )


@dataclass(frozen=True, kw_only=True)
class End:
    """How a pod ended.

    Attributes:
        reason: ``OOMKilled``, ``Evicted``, ``Deleted``, ``SIGKILL``, ``Error``, ...
        exit_code: Of the container, or None.
        message: What Kubernetes said, or nothing.
        unasked: Whether Kubernetes took it away (evicted, preempted, deleted): not the call's fault.
    """

    reason: str
    exit_code: int | None = None
    message: str = ""
    unasked: bool = False


def ended(pod: Mapping[str, Any]) -> End | None:
    """How a pod ended; None while it has not."""
    status = pod.get("status") or {}
    if status.get("phase") not in ("Failed", "Succeeded"):
        return None
    if reason := status.get("reason"):  # the whole pod: Evicted, NodeLost, Shutdown, Preempting
        return End(reason=str(reason), message=str(status.get("message") or ""), unasked=True)
    for container in _containers(status):
        over = (container.get("state") or {}).get("terminated")
        if over:
            code = int(over.get("exitCode", 0))
            said = str(over.get("reason") or "Error")
            if said != "OOMKilled" and (is_leaving(pod) or _disruption(pod)):  # killed when its grace period was over
                return replace(taken(pod), exit_code=code)
            reason = said if said not in ("Error", "Completed") else _SIGNALS.get(code, f"exit code {code}")
            return End(reason=reason, exit_code=code, message=str(over.get("message") or ""))
    return End(reason=str(status.get("phase")))


#: Who takes pods away, in the words of the condition ``DisruptionTarget``, and what that makes of the end.
_DISRUPTIONS = {
    "EvictionByEvictionAPI": "Evicted",
    "TerminationByKubelet": "Evicted",
    "PreemptionByScheduler": "Preempted",
    "DeletionByTaintManager": "NodeLost",
    "DeletionByPodGC": "NodeLost",
}


def taken(pod: Mapping[str, Any]) -> End:
    """Who took a pod away, and why, that had not ended by itself."""
    if found := _disruption(pod):
        said = str(found.get("reason"))
        return End(reason=_DISRUPTIONS.get(said, said), message=str(found.get("message") or ""), unasked=True)
    return End(reason="Deleted", unasked=True)


def _disruption(pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            return dict(condition)
    return None


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Whether all its containers are ready."""
    conditions: Sequence[Mapping[str, Any]] = (pod.get("status") or {}).get("conditions") or ()
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


def is_leaving(pod: Mapping[str, Any]) -> bool:
    """Whether it is being deleted."""
    return "deletionTimestamp" in pod["metadata"]


def _containers(status: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
