"""Worker pods on a cluster.

::

    KubernetesPool.start ─► Home.create (owner, broker) ─► Secret of the pool ─► pods; Home.ready (tunnel)
                                 watch of all pods ─► _heard ─► a pod ended: obituary, delete it, make another
                                                             ─► a pod cannot start: diagnosis, then on_broken
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from executor.broker.obituaries import bury, is_worker
from executor.errors import ClusterError, ClusterRefused, PoolBroken, PoolStartError
from executor.kube import diagnosis, manifests, names
from executor.pools.base import PoolState, PoolStatus, WorkerDeath, WorkerPool
from executor.tasks.resources import quantity

if TYPE_CHECKING:
    from executor.broker.address import BrokerAddress
    from executor.pools.home import Home
    from executor.pools.pod_options import PodOptions
    from executor.tasks.pool_spec import PoolSpec

__all__ = ["KubernetesPool"]

log = logging.getLogger("executor")

#: Pause before another pod is made after one failed; it doubles with each that fails, up to the longest. In seconds.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
#: Pause after the API server did not let us make a pod, in seconds.
HINDERED_PAUSE_S = 2.0
#: A pod that lived for so long did not fail at its start, in seconds.
LIVED_S = 10.0
#: While workers are waited for, how often that is said, in seconds.
TELL_EVERY_S = 5.0
#: How often the pool looks at itself though nothing has happened, in seconds.
TICK_S = 1.0

Object = dict[str, Any]


class KubernetesPool(WorkerPool):
    """As many worker pods as the pool declares, each replaced when it ends.

    Args:
        spec: The pool.
        options: What its pods are told.
        home: What the executor has on the cluster; the first pool starts it, the last one stops it.
    """

    def __init__(self, spec: PoolSpec, options: PodOptions, home: Home) -> None:
        super().__init__(spec)
        self.options, self.home = options, home
        self._state = PoolState.NEW
        self._joined = False
        self._pods: dict[str, Object] = {}
        self._buried: set[str] = set()
        self._wanted = spec.max_workers or 1
        self._restarts = 0
        self._failures = 0
        self._hindrance = ""
        self._next_pod = 0.0
        self._idle_since = time.monotonic()
        self._hopeless_since: float | None = None
        self._last_death: WorkerDeath | None = None
        self._reason: str | None = None
        self._wake, self._news = asyncio.Event(), asyncio.Event()
        self._reconciler: asyncio.Task[None] | None = None
        self._errands: set[asyncio.Task[Any]] = set()

    @property
    def slots(self) -> int:
        """Calls that run at a time when all pods are up."""
        return self._wanted * self.spec.slots

    @property
    def address(self) -> BrokerAddress:
        """The broker as this process reaches it."""
        if self.home.address is None:
            raise PoolStartError("The pool has no broker yet: it was not started. Call start() first.")
        return self.home.address

    @property
    def service_url(self) -> str:
        """The broker as pods reach it."""
        return self.home.inside_url

    def status(self) -> PoolStatus:
        """Everything about the pool at this moment."""
        return PoolStatus(
            name=self.spec.name,
            state=self._state,
            slots=self.slots,
            workers=tuple(sorted(name for name, pod in self._pods.items() if diagnosis.is_ready(pod))),
            restarts=self._restarts,
            last_death=self._last_death,
            reason=self._reason or self._hindrance or (str(found) if (found := self._trouble()) else None),
        )

    def join(self, other: WorkerPool) -> None:
        """Use the home of a pool that runs."""
        self._joined, self.store = True, other.store

    async def start(self) -> None:
        """Bring up the broker, unless another pool has, and begin to make pods.

        Raises:
            ClusterError: The API server cannot be used, or refuses.
            PoolStartError: The broker does not come up.
        """
        if self._state is not PoolState.NEW:
            raise PoolStartError(f"The pool {self.spec.name!r} is {self._state} and cannot be started again.")
        self._state = PoolState.STARTING
        self.home.listen(self.spec.name, self._heard)
        try:
            if not self._joined:
                await self.home.create()
            await self.home.cluster.create("secrets", self._secret())
            self._idle_since = time.monotonic()
            self._reconciler = asyncio.create_task(self._reconcile_forever(), name=f"pods of pool {self.spec.name}")
            if not self._joined:  # meanwhile the workers come up, too
                await self.home.ready()
                self.store = self.options.store or self.address.url
            await self._workers_ready(self.spec.min_workers)
        except BaseException:
            await self.stop()
            raise
        if self._state is PoolState.STARTING:
            self._state = PoolState.RUNNING

    async def stop(self, wait: bool = True, *, grace_s: float | None = None) -> None:
        """Delete everything. With several pools, all go with the first, which is stopped last."""
        if self._state is PoolState.STOPPED:
            return
        self._state = PoolState.STOPPING
        tasks = [task for task in (self._reconciler, *self._errands) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self._joined:
            await self.home.stop(wait)
        self._state = PoolState.STOPPED

    async def _workers_ready(self, wanted: int) -> None:
        """Wait for so many workers, and say what is waited for."""
        said = 0.0
        while (ready := len(self.status().workers)) < wanted:
            if self._state is PoolState.BROKEN:
                raise PoolStartError(f"The pool {self.spec.name!r} did not come up: {self._reason}")
            if time.monotonic() - said > TELL_EVERY_S:
                said = time.monotonic()
                log.info(
                    "%d of %d workers of pool %r are ready. %s", ready, wanted, self.spec.name, self._trouble() or ""
                )
            await _set_again(self._news, TICK_S)

    # ── what pods are told ──────────────────────────────────────────────────────────────────────────────────────────

    def _secret(self) -> Object:
        options, spec = self.options, self.spec
        settings = {
            "broker": self.home.inside_url,
            "key_file": f"{manifests.CONFIG_DIR}/key",
            "pool": spec.name,
            "queues": [options.queue],
            "service_queues": list(spec.queues),
            "celery_app": spec.celery_app,
            "slots": spec.slots,
            "owner": options.owner,
            "lease_s": options.lease_s,
            "grace_s": options.grace_s,
            "store": options.store or self.home.inside_url,
            "max_tasks_per_child": options.max_tasks_per_child,
            "initializer": None if options.initializer is None else base64.b64encode(options.initializer).decode(),
            "probes": f"{manifests.SCRATCH_DIR}/probes",
        }
        files = {"worker.json": json.dumps(settings), "key": options.key.hex()}
        return manifests.pool_secret(self.home.options.executor, spec.name, self.home.owner, files)

    def _plan(self) -> manifests.WorkerPlan:
        spec, wanted = self.spec, self.spec.resources
        return manifests.WorkerPlan(
            executor=self.home.options.executor,
            pool=spec.name,
            image=spec.image or "",
            resources=manifests.resources(wanted.cpu, wanted.memory, wanted.gpu, wanted.ephemeral_storage),
            grace_s=int(self.options.grace_s) + 5,
            env=spec.env,
            secrets=spec.secrets,
            volumes=spec.volumes,
            node_selector=spec.node_selector,
            tolerations=spec.tolerations,
            image_pull_secrets=spec.image_pull_secrets,
            service_account=spec.service_account,
            template=spec.pod_template,
        )

    # ── reconcile ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _heard(self, kind: str, pod: Object) -> None:
        name = pod["metadata"]["name"]
        end = diagnosis.ended(pod)
        if kind == "DELETED":
            self._pods.pop(name, None)
            self._lost(pod, end or diagnosis.taken(pod))
        elif end is not None:
            self._pods.pop(name, None)
            self._lost(pod, end)
            self._errand(self.home.cluster.delete("pods", name))
        else:
            self._pods[name] = pod
            if diagnosis.is_ready(pod):
                self._failures = 0
        self._wake.set()
        self._news.set()

    def _lost(self, pod: Object, end: diagnosis.End) -> None:
        """A worker is gone: have its calls back now rather than at the end of its lease."""
        name = pod["metadata"]["name"]
        if name in self._buried or self._state in (PoolState.STOPPING, PoolState.STOPPED):
            return
        self._buried.add(name)
        self._restarts += 1
        lived_s = time.time() - _started(pod)
        if lived_s < LIVED_S and not end.unasked:
            self._failures += 1
            self._next_pod = time.monotonic() + min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**self._failures)
        self._errand(self._bury(name, end))

    async def _bury(self, name: str, end: diagnosis.End) -> None:
        output = await self.home.cluster.log(name, lines=20)
        death = WorkerDeath(host=name, pid=0, reason=end.reason, exit_code=end.exit_code, output=output[-2048:])
        self._last_death = death
        log.warning("The pod %s ended: %s. %s", name, end.reason, end.message)
        if self.home.address is not None:
            story = {**asdict(death), "charged": not end.unasked, "limit_bytes": self._memory_limit()}
            await bury(self.home.address, is_worker(name), story)
        if self.on_worker_died is not None:
            self.on_worker_died(death)

    def _memory_limit(self) -> int | None:
        memory = self.spec.resources.memory
        return None if memory is None else int(quantity(memory))

    def _errand(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._errands.add(task)
        task.add_done_callback(self._errand_done)

    def _errand_done(self, task: asyncio.Task[Any]) -> None:
        self._errands.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("An errand for the pool %r failed: %s", self.spec.name, error)

    async def _reconcile_forever(self) -> None:
        while True:
            try:
                await self._reconcile()
                self._hindrance = ""
            except ClusterError as error:
                if self._is_final(error):
                    self._break(str(error))
                    return
                if not self._hindrance:
                    log.warning("Pods cannot be made at the moment: %s", error)
                self._hindrance = str(error)
                await asyncio.sleep(HINDERED_PAUSE_S)
            self._judge()
            await _set_again(self._wake, TICK_S)

    def _is_final(self, error: ClusterError) -> bool:
        """Whether no pod will ever be made: a refusal, unless a quota may make room, or workers are there already."""
        ready = any(diagnosis.is_ready(pod) for pod in self._pods.values())
        return isinstance(error, ClusterRefused) and not error.details.get("quota") and not ready

    async def _reconcile(self) -> None:
        present = [pod for pod in self._pods.values() if not diagnosis.is_leaving(pod)]
        missing = self._wanted - len(present)
        if missing <= 0 or time.monotonic() < self._next_pod:
            return
        if self._failures:
            missing = 1
        await asyncio.gather(*(self._make() for _ in range(missing)))

    async def _make(self) -> None:
        executor = self.home.options.executor
        name = names.worker_pod(executor, self.spec.name)
        pod = await self.home.cluster.create("pods", manifests.worker_pod(self._plan(), self.home.owner, name))
        if name not in self._buried:  # the watch may have seen its end before we heard of its beginning
            self._pods.setdefault(name, pod)

    # ── when it does not work ───────────────────────────────────────────────────────────────────────────────────────

    def _trouble(self) -> diagnosis.Diagnosis | None:
        return next(filter(None, map(diagnosis.waiting_for, self._pods.values())), None)

    def _judge(self) -> None:
        """Give the pool up when no worker is there and none can come."""
        now = time.monotonic()
        if any(diagnosis.is_ready(pod) for pod in self._pods.values()):
            self._idle_since, self._hopeless_since = now, None
            return
        found = self._trouble()
        self._hopeless_since = (self._hopeless_since or now) if found is not None and found.hopeless else None
        if self._hopeless_since is not None and now - self._hopeless_since > diagnosis.HOPELESS_AFTER_S:
            self._break(str(found))
        elif self._failures >= 3 and self._last_death is not None:
            death = self._last_death
            last = f"Last output:\n{said}" if (said := death.output.strip()) else "They printed nothing."
            self._break(f"its pods end as soon as they start ({death.reason}). {last}")
        elif now - self._idle_since > self.options.start_timeout_s:
            why = self._hindrance or found or ""
            self._break(f"no worker was ready for {self.options.start_timeout_s:g} s. {why}")

    def _break(self, reason: str) -> None:
        if self._state in (PoolState.BROKEN, PoolState.STOPPING, PoolState.STOPPED):
            return
        self._state, self._reason = PoolState.BROKEN, reason
        self._news.set()
        if self.on_broken is not None:
            self.on_broken(PoolBroken(f"The pool {self.spec.name!r} is broken: {reason}"))


async def _set_again(event: asyncio.Event, timeout_s: float) -> None:
    """Wait until an event is set, or for so long; then it is clear."""
    try:
        async with asyncio.timeout(timeout_s):  # Python 3.11's wait_for may lose a cancellation
            await event.wait()
    except TimeoutError:
        pass
    event.clear()


def _started(pod: Object) -> float:
    from datetime import datetime

    started = (pod.get("status") or {}).get("startTime") or pod["metadata"]["creationTimestamp"]
    return datetime.fromisoformat(str(started)).timestamp()
