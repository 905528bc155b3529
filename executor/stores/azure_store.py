"""Large values in Azure Blob Storage: each stored once, under the hash of its content.

::

    az://account/container/prefix/9f86d081884c…    a blob, never changed once it is there
                                 /swept            when somebody last looked for what nobody uses any more

A blob that is there already is not written again, only counts as used anew. So blobs belong to nobody: ``delete``
leaves them, and what has not been used for ``lifetime_days`` goes: once a day one of the processes that store values
sweeps, in the background. Parts that were sent and never became a blob Azure itself removes, after a week.

The client of Azure is asynchronous, and runs on a thread of this store's own (:mod:`.side_loop`).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from executor.errors import StoreError
from executor.settings import AzureSettings
from executor.stores import azure_failures as failures
from executor.stores import azure_transfers as transfers
from executor.stores.azure import AzureContainer
from executor.stores.azure_locator import Access, AzureLocator
from executor.stores.base import BlobRef, Data, check_digest, check_ref, damaged, flat, missing, sha256
from executor.stores.side_loop import SideLoop

if TYPE_CHECKING:
    from executor.stores.azure_transfers import Found

T = TypeVar("T")

log = logging.getLogger("executor")

#: Seconds to keep trying while Azure throttles or cannot be reached, as with the broker's store. A request that is
#: accepted and then not answered adds up to azure.ATTEMPT_S. A store that has failed for longer gets one try a request.
PATIENCE_S = 60.0
#: Blobs are swept once in so long, by whichever process comes first; each process asks once in ASK_S.
SWEEP_EVERY = timedelta(days=1)
ASK_S = 3600.0
#: A blob is touched when this part of its lifetime has passed since its last use: its users have the rest of it.
RENEW = 1 / 8


class AzureStore:
    """Blobs by content in a container, verified whenever they are read.

    Safe under concurrent writers, readers and sweeps. It connects at the first use.

    Args:
        locator: Where.
        settings: Credentials.
        patience_s: Seconds to keep trying while Azure cannot be reached.

    Raises:
        StoreRefused: A package is not installed, or there are no credentials, or they are malformed.
    """

    def __init__(
        self, locator: AzureLocator, settings: AzureSettings | None = None, *, patience_s: float = PATIENCE_S
    ) -> None:
        self.locator, self._where = str(locator), locator
        self._access = Access.of(locator, settings or AzureSettings.from_environment())
        self._lifetime = timedelta(days=locator.lifetime_days)
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._pid, self._loop, self._container = os.getpid(), None, None  # type: tuple[int, SideLoop | None, Any]
        self._asked_at = -ASK_S
        self._inherited: list[Any] = []
        _check_packages(locator, self._access)

    def put(self, data: Data, *, hashed: bool = True) -> BlobRef:
        """Store a blob unless it is there; the reference always has the digest. See :meth:`BlobStore.put`.

        Raises:
            StoreRefused: Wrong credentials or rights, no such container.
            StoreUnavailable: Azure cannot be reached.
        """
        view = flat(data)
        digest = sha256(view)
        self._run(lambda container: self._put(container, digest, view))
        return BlobRef("az", digest, view.nbytes, digest)

    def get(self, ref: BlobRef, *, last: bool = False) -> memoryview:
        """Fetch a blob and verify it; see :meth:`BlobStore.get`. ``last`` is ignored: others may hold the same.

        Raises:
            StoreRefused, StoreUnavailable: As :meth:`put`.
        """
        name = check_ref(ref, "az", by_digest=True)
        fetched = self._run(lambda container: self._get(container, name, ref.size))
        if fetched is None:
            raise missing(ref, self._where.where, self._gone())
        buffer, digest, found = fetched
        if found.size != ref.size:
            raise damaged(ref, self._where.where)
        check_digest(ref._replace(digest=name), digest, self._where.where)
        return buffer

    def delete(self, refs: Iterable[BlobRef]) -> None:
        """Nothing: a blob may be another call's as well. Lifetime is the matter of :meth:`sweep`."""

    def keep(self, refs: Iterable[BlobRef]) -> None:
        """Have blobs count as used now, for values whose calls are still waiting, and sweep if that is due.

        Raises:
            StoreRefused, StoreUnavailable: As :meth:`put`.
        """
        names = [check_ref(ref, "az", by_digest=True) for ref in refs]
        self._run(lambda container: self._keep(container, names))

    def sweep(self, older_than_s: float) -> int:
        """Remove what has not been written or read for ``older_than_s`` seconds; returns how many blobs went.

        Reading counts from an eighth of the lifetime on; sweep nothing younger than that while others use the store.

        Raises:
            StoreRefused, StoreUnavailable: As :meth:`put`; it needs the rights to list and delete.
        """
        return self._run(lambda container: transfers.sweep(container, timedelta(seconds=older_than_s)))

    def close(self) -> None:
        """Close connections and end the thread; blobs stay. The next use connects anew."""
        with self._lock:
            loop, container = self._loop, self._container
            self._loop = self._container = None
        if loop is not None and self._pid == os.getpid():
            loop.close(container.close())

    async def _put(self, container: AzureContainer, digest: str, view: memoryview) -> None:
        await transfers.upload(container, digest, view, self._lifetime * RENEW)
        if time.monotonic() - self._asked_at >= ASK_S:
            self._asked_at = time.monotonic()
            self._beside(self._sweep_if_due(container))

    async def _keep(self, container: AzureContainer, names: list[str]) -> None:
        await transfers.keep(container, names, self._lifetime * RENEW)
        await self._sweep_if_due(container)

    async def _get(self, container: AzureContainer, name: str, size: int) -> tuple[memoryview, str, Found] | None:
        fetched = await transfers.download(container, name, size)
        if fetched is not None and datetime.now(UTC) - fetched[2].used >= self._lifetime * RENEW:
            self._beside(_renewed(container, name))
        return fetched

    async def _sweep_if_due(self, container: AzureContainer) -> None:
        try:
            swept = await transfers.sweep_if_due(container, self._lifetime, SWEEP_EVERY)
        except StoreError as error:
            log.warning("Values in %s that nobody uses any more could not be removed: %s", self._where, error)
        else:
            if swept:
                log.info("Removed %d values from %s that nobody had used for %s.", swept, self._where, self._lifetime)

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._loop is not None
        self._loop.beside(work)

    def _run(self, work: Callable[[AzureContainer], Coroutine[Any, Any, T]]) -> T:
        with self._lock:
            if self._pid != os.getpid():  # a fork: thread and connections belong to the parent
                self._inherited += [self._loop, self._container]  # not to be finalized here
                self._pid, self._loop, self._container = os.getpid(), None, None
            loop = self._loop
            if loop is None:
                loop = self._loop = SideLoop(f"azure-{self._where.container}")
                self._container = AzureContainer(self._where, self._access, self._patience_s)
            container = self._container
        return loop.run(work(container))

    def _gone(self) -> str:
        days = self._where.lifetime_days
        return (
            f"It was not used for {days} days and swept, or somebody deleted it, or a lifecycle rule did. Submit the "
            f"call again; let values stay longer by ?lifetime_days= in the locator {self.locator}."
        )

    def __repr__(self) -> str:
        return f"<AzureStore {self.locator}>"


async def _renewed(container: AzureContainer, name: str) -> None:
    try:
        await container.touch(name)
    except StoreError as error:  # who may only read relies on those who write
        log.debug("A value that was read could not be renewed: %s", error)


def _check_packages(locator: AzureLocator, access: Access) -> None:
    for package in ("azure.storage.blob", "aiohttp", "tenacity"):
        if not _installed(package):
            raise failures.no_package(
                {"azure.storage.blob": "azure-storage-blob"}.get(package, package), "azure", locator
            )
    if access.key is None and access.sas is None and not _installed("azure.identity"):
        error = failures.no_identity(locator)
        hint = "For workload identity: pip install 'kube-executor[azure-identity]'"
        raise type(error)(f"{error} {hint}", error.details)


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
