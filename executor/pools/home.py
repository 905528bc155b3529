"""What one executor has on a cluster beside its worker pods: the owner of everything, the broker, the way to it.

::

    Home.create ─► Job (suspended) ─► Secret, Service, NetworkPolicies ─► Job goes on
    Home.ready ─► the broker's pod is ready ─► tunnel

One watch sees all pods of the executor, and tells the pools of theirs.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import tenacity

from executor.broker import connection as broker_connection
from executor.broker import keys
from executor.broker.address import BrokerAddress
from executor.broker.mark_of_life import stay_alive
from executor.errors import BrokerUnavailable, ClusterError, ClusterRefused, PoolStartError
from executor.kube import diagnosis, manifests, names
from executor.kube.connection import connect
from executor.kube.watching import Change, watched
from executor.pools.tunnel_thread import TunnelThread
from executor.settings import ClusterSettings

if TYPE_CHECKING:
    from executor.kube.cluster import Cluster
    from executor.pools.pod_options import HomeOptions

log = logging.getLogger("executor")

#: An owner is suspended for a moment while it is made; for so long only if its client died meanwhile. In seconds.
LEFTOVER_AFTER_S = 600.0
#: How long a broker whose pod is ready may be out of reach, in seconds.
REACH_FOR_S = 30.0
#: How long deleting may take before we stop watching it, in seconds.
GONE_WITHIN_S = 60.0

Object = dict[str, Any]


class Home:
    """The cluster side of one executor, shared by its pools.

    Args:
        options: Where, and with which broker.

    Attributes:
        address: The broker as this process reaches it.
        inside_url: The broker as pods reach it.
        owner: The Job that everything hangs on.
    """

    def __init__(self, options: HomeOptions) -> None:
        self.options = options
        self.address: BrokerAddress | None = options.broker
        self.inside_url = ""
        self.owner: Object = {}
        self._cluster: Cluster | None = None
        self._tunnel: TunnelThread | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._pods: dict[str, Object] = {}
        self._changed = asyncio.Event()
        self._listeners: dict[str, Callable[[str, Object], None]] = {}
        self._settings = ClusterSettings.from_environment()
        self._password = secrets.token_urlsafe(24)

    @property
    def cluster(self) -> Cluster:
        """The client of the API server."""
        assert self._cluster is not None
        return self._cluster

    def listen(self, pool: str, heard: Callable[[str, Object], None]) -> None:
        """Have a pool told of its pods: ``ADDED``, ``MODIFIED`` or ``DELETED``, and the pod."""
        self._listeners[pool] = heard

    # ── start ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def create(self) -> None:
        """Create everything but worker pods; the broker comes up meanwhile.

        Raises:
            ClusterError: The API server cannot be used, or refuses.
            PoolStartError: There is an executor of this name.
        """
        self._cluster = await self._connect()
        await self._sweep()
        self.owner = await self._create_owner()
        plan = self._plan()
        bodies = [
            ("secrets", manifests.broker_secret(plan, self.owner)),
            ("services", manifests.broker_service(plan.executor, self.owner)),
            *(("networkpolicies", policy) for policy in manifests.network_policies(plan, self.owner)),
        ]
        await asyncio.gather(*(self.cluster.create(kind, body) for kind, body in bodies))
        await self.cluster.patch("jobs", self.owner["metadata"]["name"], {"spec": {"suspend": False}})
        self._tasks.append(asyncio.create_task(self._watch(), name="pods of the executor"))
        self.inside_url = self._url(f"{names.owner(plan.executor)}.{self.cluster.namespace}.svc", manifests.REDIS_PORT)

    async def ready(self) -> None:
        """Wait for the broker, and make the way to it.

        Raises:
            BrokerError: It cannot be used.
            PoolStartError: Its pod does not come up.
        """
        await self._broker_ready()
        self.address = await self._reach()
        alive = stay_alive(self.address, self.options.executor, self.options.orphan_timeout_s)
        self._tasks.append(asyncio.create_task(alive, name="mark of life"))

    async def _sweep(self) -> None:
        """Delete owners that were made and never went on: their client was killed in that moment."""
        found = await self.cluster.list("jobs", names.selector_of_all(names.BROKER))
        for job in found["items"]:
            age_s = time.time() - datetime.fromisoformat(job["metadata"]["creationTimestamp"]).timestamp()
            if job["spec"].get("suspend") and age_s > LEFTOVER_AFTER_S:
                log.info("Deleting %s, which a client left behind.", job["metadata"]["name"])
                await self.cluster.delete("jobs", job["metadata"]["name"])

    async def _connect(self) -> Cluster:
        options = self.options
        return await connect(
            self._settings, kubeconfig=options.kubeconfig, context=options.context, namespace=options.namespace
        )

    async def _create_owner(self) -> Object:
        try:
            return await self.cluster.create("jobs", manifests.owner_job(self._plan()))
        except ClusterRefused as error:
            if error.details.get("status") == 409:
                raise PoolStartError(
                    f"There is an executor {self.options.executor!r} in namespace {self.cluster.namespace!r} already. "
                    "Choose another name=, or end that one: "
                    f"kubectl -n {self.cluster.namespace} delete job {names.owner(self.options.executor)}"
                ) from error
            raise

    def _plan(self) -> manifests.BrokerPlan:
        options, address = self.options, None
        if self.cluster.inside:
            address = self._settings.address or socket.gethostbyname(socket.gethostname())
        return manifests.BrokerPlan(
            executor=options.executor,
            image=options.broker_image,
            password=self._password,
            alive_key=keys.executor_alive(options.executor),
            orphan_timeout_s=options.orphan_timeout_s,
            memory=options.broker_memory,
            inside=[address] if address else [],
        )

    def _url(self, host: str, port: int) -> str:
        return f"redis://:{quote(self._password, safe='')}@{host}:{port}/0"

    async def _broker_ready(self) -> None:
        began = time.monotonic()
        trouble_since: float | None = None
        while not any(diagnosis.is_ready(pod) for pod in self._brokers()):
            found = next(filter(None, map(diagnosis.waiting_for, self._brokers())), None)
            now = time.monotonic()
            trouble_since = (trouble_since or now) if found is not None and found.hopeless else None
            if trouble_since is not None and now - trouble_since > diagnosis.HOPELESS_AFTER_S:
                raise PoolStartError(f"The broker's pod cannot start. {found}")
            if now - began > self.options.start_timeout_s:
                raise PoolStartError(
                    f"The broker's pod was not ready after {self.options.start_timeout_s:g} s. {found or ''} "
                    f"See: kubectl -n {self.cluster.namespace} describe job {names.owner(self.options.executor)}"
                )
            await self._next_change(1.0)

    async def _next_change(self, timeout_s: float) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(timeout_s):  # Python 3.11's wait_for may lose a cancellation
                await self._changed.wait()
        except TimeoutError:
            pass

    def _brokers(self) -> list[Object]:
        return [pod for pod in self._pods.values() if _component(pod) == names.BROKER and not diagnosis.is_leaving(pod)]

    async def _reach(self) -> BrokerAddress:
        """Directly inside the cluster, else through the API server."""
        if self.cluster.inside:
            address = BrokerAddress.parse(self.inside_url)
        else:
            self._tunnel = TunnelThread(self._connect, self._broker_pod, manifests.REDIS_PORT)
            address = BrokerAddress(scheme="unix", path=await self._tunnel.start(), password=self._password)
        attempts = tenacity.AsyncRetrying(  # a Service knows its pod a moment after the pod is ready
            stop=tenacity.stop_after_delay(REACH_FOR_S),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=2.0),
            retry=tenacity.retry_if_exception_type(BrokerUnavailable),
            reraise=True,
        )
        async for attempt in attempts:
            with attempt:
                await broker_connection.check(address)
        return address

    def _broker_pod(self) -> str:
        """Name of the pod that runs the broker now.

        Raises:
            ConnectionError: There is none at this moment.
        """
        for pod in self._brokers():
            if diagnosis.is_ready(pod):
                return str(pod["metadata"]["name"])
        raise ConnectionError("the broker's pod is not ready")

    # ── while it runs ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _watch(self) -> None:
        try:
            async for change in watched(self.cluster, "pods", names.selector(self.options.executor)):
                self._note(change)
        except ClusterError as error:
            log.error("The pods of this executor can no longer be watched: %s", error)

    def _note(self, change: Change) -> None:
        if change.kind == "SYNCED":
            return
        pod = change.object
        if change.kind == "DELETED":
            self._pods.pop(pod["metadata"]["name"], None)
        else:
            self._pods[pod["metadata"]["name"]] = pod
        self._changed.set()
        pool = pod["metadata"]["labels"].get(names.POOL)
        if pool in self._listeners:
            self._listeners[pool](change.kind, pod)

    # ── stop ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def stop(self, wait: bool = True) -> None:
        """Delete the owner, and with it everything; wait until the pods are gone.

        Args:
            wait: Else return when the deletion has been asked for.
        """
        if self._cluster is None:
            return
        try:
            if self.owner:
                await self.cluster.delete("jobs", self.owner["metadata"]["name"], policy="Background")
                await self._delete_pods()
                if wait:
                    await self._gone()
        except ClusterError as error:
            log.warning(
                "The executor's objects could not be deleted: %s. They go by themselves after %d s.",
                error,
                self.options.orphan_timeout_s,
            )
        finally:
            await self._let_go()

    async def _delete_pods(self) -> None:
        """The garbage collector would do it, some seconds later."""
        await asyncio.gather(*(self.cluster.delete("pods", name, grace_s=1) for name in list(self._pods)))

    async def _gone(self) -> None:
        deadline = time.monotonic() + GONE_WITHIN_S
        while self._pods and time.monotonic() < deadline:
            await self._next_change(1.0)
        if self._pods:
            log.warning("These pods are still being deleted: %s", ", ".join(sorted(self._pods)))

    async def _let_go(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tunnel is not None:
            await asyncio.to_thread(self._tunnel.stop)
        if self._cluster is not None:
            await self._cluster.close()
            self._cluster = None


def _component(pod: Object) -> str:
    return str(pod["metadata"]["labels"].get(names.COMPONENT))
