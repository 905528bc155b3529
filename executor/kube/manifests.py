"""Every object that we create, as plain dictionaries. Pure.

::

    Job ke-NAME          runs Redis; owner of all others: what is deleted with it, is gone with it
    ├── Secret           password and redis.conf, read by that pod only
    ├── Service          where workers and services find Redis
    ├── NetworkPolicies  who may reach Redis (workers, and whoever carries the label); nobody reaches workers
    ├── Secret           for each pool: settings, broker URL, key of the signatures
    └── Pods             workers

All pods meet the Pod Security standard ``restricted``, and mount no token of a service account.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from executor.kube import names
from executor.kube.pod_template import merged
from executor.tasks.resources import quantity

Object = dict[str, Any]

REDIS_PORT = 6379
#: User and group of our pods, where the template does not say otherwise: any that is not root.
UID = 10001
#: Where a pod finds what it was given, and what it may write to.
CONFIG_DIR, SCRATCH_DIR = "/etc/kube-executor", "/tmp"
#: Seconds after which a finished owner, and all that hangs on it, is deleted.
OWNER_TTL_S = 5
#: Name of the container that runs calls.
WORKER = "worker"
#: Share of the broker's memory that data may take; the rest is for buffers and copies.
MAXMEMORY_SHARE = 0.75

#: Runs Redis for as long as somebody renews the mark; ends well when nobody does, and badly when Redis ended.
_BROKER_SCRIPT = """\
set -u
export REDISCLI_AUTH="$(cat {config}/password)"
redis-server {config}/redis.conf &
server=$!
trap 'kill -TERM $server; wait $server; exit 143' TERM INT
until redis-cli -p {port} ping >/dev/null 2>&1; do
  kill -0 $server 2>/dev/null || exit 1
  sleep 0.05
done
redis-cli -p {port} set "$ALIVE_KEY" starting nx ex "$ORPHAN_TIMEOUT_S" >/dev/null
while kill -0 $server 2>/dev/null; do
  sleep 1 &
  wait $!
  if [ "$(redis-cli -p {port} exists "$ALIVE_KEY" 2>/dev/null)" = 0 ]; then
    kill -TERM $server
    exit 0
  fi
done
exit 1
"""


#: A pod on a node that is lost goes after this time, and another takes its place; Kubernetes' own default is 300 s.
LOST_NODE_S = 30
_LOST_NODE = [
    {"key": f"node.kubernetes.io/{what}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": LOST_NODE_S}
    for what in ("not-ready", "unreachable")
]

#: The worker's hub touches the file each five seconds; one that has not for a minute is stuck.
_LIVE = f'test -n "$(find {SCRATCH_DIR}/probes/live -mmin -1)"'


@dataclass(frozen=True, kw_only=True)
class BrokerPlan:
    """The pod that runs Redis.

    Attributes:
        executor: Name of the executor.
        image: With ``redis-server``, ``redis-cli`` and ``sh``.
        password: Of the default user.
        alive_key: Key that somebody renews while the executor is in use.
        orphan_timeout_s: How long nobody may renew it, in seconds.
        cpu: Request.
        memory: Request and limit.
        inside: Addresses of clients in pods that carry no label of ours.
    """

    executor: str
    image: str
    password: str
    alive_key: str
    orphan_timeout_s: int = 600
    cpu: str = "100m"
    memory: str = "1Gi"
    inside: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class WorkerPlan:
    """The worker pods of one pool.

    Attributes:
        executor: Name of the executor.
        pool: Name of the pool.
        image: With Python and this package.
        resources: Requests and limits as :func:`resources` gives them.
        grace_s: Seconds between SIGTERM and SIGKILL.
        env: More environment variables.
        secrets: Names of Secrets whose keys become environment variables.
        volumes: ``{mount path: volume source}``.
        node_selector: Labels that a node must have.
        tolerations: Taints that are borne.
        image_pull_secrets: Names of Secrets of registries.
        service_account: Name of a service account, or None.
        template: The user's pod template, merged last.
    """

    executor: str
    pool: str
    image: str
    resources: Mapping[str, Any]
    grace_s: int = 30
    env: Mapping[str, str] | None = None
    secrets: Sequence[str] = ()
    volumes: Mapping[str, Mapping[str, Any]] | None = None
    node_selector: Mapping[str, str] | None = None
    tolerations: Sequence[Mapping[str, Any]] = ()
    image_pull_secrets: Sequence[str] = ()
    service_account: str | None = None
    template: Mapping[str, Any] | None = None


def owner_job(plan: BrokerPlan) -> Object:
    """The owner, suspended: it begins when everything that hangs on it is there."""
    labels = names.labels(plan.executor, names.BROKER)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": names.owner(plan.executor), "labels": labels},
        "spec": {
            "suspend": True,
            "backoffLimit": 1000,
            "ttlSecondsAfterFinished": OWNER_TTL_S,
            "template": {"metadata": {"labels": labels}, "spec": _broker_pod(plan)},
        },
    }


def _broker_pod(plan: BrokerPlan) -> Object:
    name = names.owner(plan.executor)
    ping = ["sh", "-c", f'REDISCLI_AUTH="$(cat {CONFIG_DIR}/password)" redis-cli -p {REDIS_PORT} ping | grep -q PONG']
    container = {
        "name": "redis",
        "image": plan.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", _BROKER_SCRIPT.format(config=CONFIG_DIR, port=REDIS_PORT)],
        "env": [
            {"name": "ALIVE_KEY", "value": plan.alive_key},
            {"name": "ORPHAN_TIMEOUT_S", "value": str(plan.orphan_timeout_s)},
        ],
        "ports": [{"name": "redis", "containerPort": REDIS_PORT}],
        "resources": {"requests": {"cpu": plan.cpu, "memory": plan.memory}, "limits": {"memory": plan.memory}},
        "readinessProbe": {"exec": {"command": ping}, "periodSeconds": 2, "timeoutSeconds": 5},
        "securityContext": _container_security(),
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
            {"name": "scratch", "mountPath": SCRATCH_DIR},
        ],
        "workingDir": SCRATCH_DIR,
    }
    return {
        **_pod_basics(),
        "restartPolicy": "OnFailure",
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
        "volumes": [_secret_volume("config", name), {"name": "scratch", "emptyDir": {"sizeLimit": "64Mi"}}],
    }


def broker_secret(plan: BrokerPlan, owner: Object) -> Object:
    """Password and configuration of Redis."""
    limit = int(quantity(plan.memory, "memory") * int(MAXMEMORY_SHARE * 100) / 100)
    config = (
        f'port {REDIS_PORT}\nbind * -::*\nprotected-mode yes\nrequirepass "{plan.password}"\nsave ""\nappendonly no\n'
        f"dir {SCRATCH_DIR}\nmaxmemory {limit}\nmaxmemory-policy noeviction\ntcp-keepalive 60\n"
    )
    return _secret(
        names.owner(plan.executor),
        names.labels(plan.executor, names.BROKER),
        owner,
        {"password": plan.password, "redis.conf": config},
    )


def broker_service(executor: str, owner: Object) -> Object:
    """Where pods find Redis."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _owned(names.owner(executor), names.labels(executor, names.BROKER), owner),
        "spec": {
            "selector": names.labels(executor, names.BROKER),
            "ports": [{"name": "redis", "port": REDIS_PORT, "targetPort": REDIS_PORT}],
        },
    }


def network_policies(plan: BrokerPlan, owner: Object) -> list[Object]:
    """Redis hears workers and whoever is let in; workers hear nobody. Out of pods everything goes."""
    peers: list[Object] = [
        {"podSelector": {"matchLabels": names.labels(plan.executor, names.WORKER)}},
        {"podSelector": {"matchLabels": {names.ACCESS: plan.executor}}},
    ]
    peers += [{"ipBlock": {"cidr": f"{address}/{128 if ':' in address else 32}"}} for address in plan.inside]
    ports = [{"port": REDIS_PORT, "protocol": "TCP"}]
    name = names.owner(plan.executor)
    return [
        _policy(f"{name}.broker", plan.executor, names.BROKER, owner, [{"from": peers, "ports": ports}]),
        _policy(f"{name}.workers", plan.executor, names.WORKER, owner, []),
    ]


def _policy(name: str, executor: str, component: str, owner: Object, ingress: list[Object]) -> Object:
    labels = names.labels(executor, component)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _owned(name, labels, owner),
        "spec": {"podSelector": {"matchLabels": labels}, "policyTypes": ["Ingress"], "ingress": ingress},
    }


def pool_secret(executor: str, pool: str, owner: Object, files: Mapping[str, str]) -> Object:
    """What the workers of a pool are told: settings with the broker's URL, and the key of the signatures."""
    return _secret(names.pool_secret(executor, pool), names.labels(executor, names.WORKER, pool), owner, files)


def worker_pod(plan: WorkerPlan, owner: Object, name: str) -> Object:
    """One worker."""
    labels = names.labels(plan.executor, names.WORKER, plan.pool)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _owned(name, labels, owner),
        "spec": {
            **_pod_basics(),
            "restartPolicy": "Never",
            "shareProcessNamespace": True,  # the pause container reaps what user code leaves behind
            "terminationGracePeriodSeconds": plan.grace_s,
            "containers": [_worker_container(plan)],
            "volumes": [
                _secret_volume("config", names.pool_secret(plan.executor, plan.pool)),
                {"name": "scratch", "emptyDir": {}},
                *({"name": _volume_name(i), **source} for i, source in enumerate((plan.volumes or {}).values())),
            ],
            **_given(
                nodeSelector=dict(plan.node_selector or {}),
                tolerations=[*_LOST_NODE, *(dict(toleration) for toleration in plan.tolerations)],
                imagePullSecrets=[{"name": secret} for secret in plan.image_pull_secrets],
                serviceAccountName=plan.service_account,
            ),
        },
    }
    return merged(pod, {key: value for key, value in (plan.template or {}).items() if key in ("metadata", "spec")})


def _worker_container(plan: WorkerPlan) -> Object:
    home = f"{SCRATCH_DIR}/home"
    fixed = {
        "KUBE_EXECUTOR_WORKER_CONFIG": f"{CONFIG_DIR}/worker.json",
        "HOME": home,
        "USER": WORKER,
        "LOGNAME": WORKER,
        "TMPDIR": SCRATCH_DIR,
        "XDG_CACHE_HOME": f"{SCRATCH_DIR}/cache",
    }
    pod_name = {"name": "KUBE_EXECUTOR_WORKER_ID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    ready = f"{SCRATCH_DIR}/probes/ready"
    return {
        "name": WORKER,
        "image": plan.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-m", "executor.worker"],
        "env": [
            *({"name": name, "value": value} for name, value in {**fixed, **(plan.env or {})}.items()),
            pod_name,
        ],
        **_given(envFrom=[{"secretRef": {"name": secret}} for secret in plan.secrets]),
        "resources": dict(plan.resources),
        "startupProbe": {"exec": {"command": ["cat", ready]}, "periodSeconds": 1, "failureThreshold": 3600},
        "readinessProbe": {"exec": {"command": ["cat", ready]}, "periodSeconds": 10},
        "livenessProbe": {"exec": {"command": ["sh", "-c", _LIVE]}, "periodSeconds": 30, "timeoutSeconds": 10},
        "securityContext": _container_security(),
        "workingDir": SCRATCH_DIR,
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
            {"name": "scratch", "mountPath": SCRATCH_DIR},
            *({"name": _volume_name(i), "mountPath": path} for i, path in enumerate(plan.volumes or {})),
        ],
    }


def resources(cpu: str | None, memory: str | None, gpu: int, ephemeral_storage: str | None) -> Object:
    """Requests and limits: CPU is requested and not limited, memory, disk and GPUs are both."""
    hard = _given(
        memory=memory,
        **{"ephemeral-storage": ephemeral_storage, "nvidia.com/gpu": str(gpu) if gpu else None},
    )
    return _given(requests={**_given(cpu=cpu), **hard}, limits=hard)


def _pod_basics() -> Object:
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "runAsGroup": UID,
            "fsGroup": UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _container_security() -> Object:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _secret(name: str, labels: Mapping[str, str], owner: Object, files: Mapping[str, str]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": _owned(name, labels, owner),
        "data": {key: b64encode(text.encode()).decode("ascii") for key, text in files.items()},
    }


def _owned(name: str, labels: Mapping[str, str], owner: Object) -> Object:
    """Metadata of an object that goes when its owner goes.

    The owner is not the *controller*: a Job would let go of pods that its selector does not match.
    """
    reference = {"apiVersion": "batch/v1", "kind": "Job", "name": owner["metadata"]["name"]}
    return {
        "name": name,
        "labels": dict(labels),
        "ownerReferences": [{**reference, "uid": owner["metadata"]["uid"], "blockOwnerDeletion": False}],
    }


def _secret_volume(name: str, secret: str) -> Object:
    return {"name": name, "secret": {"secretName": secret, "defaultMode": 0o440}}


def _volume_name(index: int) -> str:
    return f"user-{index}"


def _given(**fields: Any) -> Object:
    return {name: value for name, value in fields.items() if value}
