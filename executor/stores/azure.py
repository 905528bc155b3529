"""The requests to a container of Azure Blob Storage: the only file that imports the packages of Azure.

They are imported at the first request (0.5 to 1 s). Their own retries are off: those count tries and pause 15 s at
first; ours (tenacity) begin after a fraction of a second, are spread by chance, and end by time.
"""

from __future__ import annotations

import asyncio
import io
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from executor.stores import azure_failures as failures
from executor.stores.azure_transfers import PART_BYTES, Found

if TYPE_CHECKING:
    from azure.storage.blob.aio import BlobClient, ContainerClient

    from executor.stores.azure_locator import Access, AzureLocator

T = TypeVar("T")

#: Seconds for one try of one request: enough for a part of 8 MiB at 70 KiB/s.
ATTEMPT_S = 120.0
#: Seconds to wait for a connection, and for the first or next bytes of an answer.
CONNECT_S, READ_S = 10.0, 20.0
#: Pauses between tries: at random up to 0.2 s, then 0.4, 0.8, ... 5 s.
FIRST_PAUSE_S, LAST_PAUSE_S = 0.2, 5.0
#: Failures that are further apart, in seconds, belong to different outages.
FORGET_S = 60.0
#: Parts on their way at a time, up and down, so that a store takes 32 MiB of memory beside the values themselves.
PARTS_AT_A_TIME = 4

_THERE = {"BlobAlreadyExists", "ConditionNotMet", "TargetConditionNotMet", "UnspecifiedConditionNotMet"}
_PARTS_GONE = {"InvalidBlockList", "InvalidBlobOrBlock"}


class Outage:
    """Since when the requests of a store fail, all of them: whoever comes late does not wait as long once more.

    Args:
        patience_s: Seconds to keep trying.
    """

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s
        self._since, self._seen = 0.0, -math.inf

    def failed(self) -> float:
        """A request has failed; returns since when they do. One that nobody has seen for long is another outage."""
        now = time.monotonic()
        if now - self._seen > FORGET_S:
            self._since = now
        self._seen = now
        return self._since

    def ended(self) -> None:
        """A request was answered."""
        self._seen = -math.inf

    def patience(self) -> Patience:
        """For one request."""
        return Patience(self)


class Patience:
    """How long one request is tried: no longer because others are answered meanwhile."""

    def __init__(self, outage: Outage) -> None:
        self._outage = outage
        self._since: float | None = None

    def failed(self) -> bool:
        """It has failed; True, for the use in a condition."""
        since = self._outage.failed()
        self._since = since if self._since is None else min(since, self._since)
        return True

    @property
    def tried_s(self) -> float:
        """Seconds since the first failure."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    @property
    def over(self) -> bool:
        """Whether to give up."""
        return self.tried_s >= self._outage.patience_s


class AzureContainer:
    """The requests to one container; see :class:`.azure_transfers.Container`. Of one event loop.

    Args:
        locator: Which.
        access: How to get there.
        patience_s: Seconds to keep trying.
    """

    def __init__(self, locator: AzureLocator, access: Access, patience_s: float) -> None:
        self._locator, self._access, self._patience_s = locator, access, patience_s
        self._client: ContainerClient | None = None
        self._identity: Any = None
        self._outage = Outage(patience_s)
        self._parts = asyncio.Semaphore(PARTS_AT_A_TIME)

    async def head(self, name: str) -> Found | None:
        """Get Blob Properties."""
        properties = await self._ask(lambda: self._blob(name).get_blob_properties(), {"BlobNotFound"})
        return None if properties is None else _found(properties, properties.size)

    async def touch(self, name: str) -> bool:
        """Set Blob Metadata, to none: of a blob all that is changed is its time."""
        return await self._ask(lambda: self._blob(name).set_blob_metadata(), {"BlobNotFound"}) is not None

    async def write(self, name: str, data: bytes, replaces: str | None) -> datetime | None:
        """Put Blob."""
        condition = _condition(replaces)
        blob = self._blob(name)
        answer = await self._ask(lambda: blob.upload_blob(data, length=len(data), overwrite=True, **condition), _THERE)
        return None if answer is None else answer["last_modified"]

    async def stage(self, name: str, block: str, data: memoryview) -> None:
        """Put Block."""
        async with self._parts:  # aiohttp takes no memoryview, and warns of large bytes: hence a copy
            await self._ask(lambda: self._blob(name).stage_block(block, io.BytesIO(data), length=data.nbytes))

    async def commit(self, name: str, blocks: Sequence[str], replaces: str | None) -> bool:
        """Put Block List."""
        from azure.storage.blob import BlobBlock

        listed, condition = [BlobBlock(block) for block in blocks], _condition(replaces)
        code: list[str] = []
        answer = await self._ask(
            lambda: self._blob(name).commit_block_list(listed, **condition), _THERE | _PARTS_GONE, said=code.append
        )
        return answer is not None or code[0] in _THERE

    async def read(self, name: str, start: int, buffer: memoryview) -> Found | None:
        """Get Blob, a range of it."""

        async def fetch() -> Found:
            stream = await self._blob(name).download_blob(start, buffer.nbytes, max_concurrency=1)
            data = await stream.readall()
            found = _found(stream.properties, int((stream.properties.content_range or "/0").rpartition("/")[2]))
            if len(data) != min(buffer.nbytes, max(0, found.size - start)):
                raise EOFError(f"{len(data)} bytes of {buffer.nbytes}")
            buffer[: len(data)] = data
            return found

        async with self._parts:
            code: list[str] = []
            found = await self._ask(fetch, {"BlobNotFound", "InvalidRange"}, said=code.append)
        return Found(0, datetime.now(UTC), "") if code == ["InvalidRange"] else found

    async def listed(self) -> AsyncIterator[tuple[str, Found]]:
        """List Blobs, page by page."""
        prefix = self._locator.blob("")
        token: str | None = ""
        while token is not None:
            pages: Any = self._connected().list_blobs(name_starts_with=prefix or None).by_page(token or None)

            async def page(pages: Any = pages) -> list[Any]:
                return [blob async for blob in await anext(pages)]

            for blob in await self._ask(page) or ():
                yield blob.name[len(prefix) :], _found(blob, blob.size)
            token = pages.continuation_token or None

    async def delete(self, name: str, etag: str) -> bool:
        """Delete Blob."""
        condition = _condition(etag)
        blob = self._blob(name)
        code: list[str] = []
        await self._ask(lambda: blob.delete_blob(**condition), {"BlobNotFound", *_THERE}, said=code.append)
        return not code

    async def close(self) -> None:
        """Close connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()
        if self._identity is not None:
            await self._identity.close()

    async def _ask(
        self,
        request: Callable[[], Awaitable[T]],
        expected: Iterable[str] = (),
        said: Callable[[str], object] = lambda code: None,
    ) -> T | None:
        """Make a request, again while that may help; None if the answer is one of the codes ``expected``.

        Raises:
            StoreRefused: Azure said no.
            StoreUnavailable: It said nothing, or "later", for too long.
        """
        from azure.core.exceptions import AzureError, ClientAuthenticationError
        from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential

        expected, patience = frozenset(expected), self._outage.patience()

        def passes(error: BaseException) -> bool:
            if isinstance(error, ClientAuthenticationError) or not _is_failure(error, AzureError):
                return False
            return failures.passes(error) and patience.failed()

        tries = AsyncRetrying(
            retry=retry_if_exception(passes),
            stop=lambda state: patience.over,
            wait=wait_random_exponential(multiplier=FIRST_PAUSE_S, max=LAST_PAUSE_S),
            reraise=True,
        )
        try:
            answer: T = await tries(self._once, request)
        except ClientAuthenticationError as error:
            if failures.status_of(error) is None and self._access.key is None and self._access.sas is None:
                raise failures.no_identity(self._locator) from None
            raise failures.refusal(self._locator, self._access.said, error) from None
        except Exception as error:
            if not _is_failure(error, AzureError):
                raise
            if (code := failures.code_of(error)) in expected:
                self._outage.ended()
                said(code)
                return None
            if failures.status_of(error) is not None and not failures.passes(error):
                raise failures.refusal(self._locator, self._access.said, error) from None
            # the text of the error may hold a URL, and that a SAS: hence None
            raise failures.unavailable(self._locator, self._access.endpoint, patience.tried_s, error) from None
        self._outage.ended()
        return answer

    async def _once(self, request: Callable[[], Awaitable[T]]) -> T:
        async with asyncio.timeout(ATTEMPT_S):
            return await request()

    def _blob(self, name: str) -> BlobClient:
        return self._connected().get_blob_client(self._locator.blob(name))

    def _connected(self) -> ContainerClient:
        if self._client is None:
            from azure.storage.blob.aio import ContainerClient

            self._client = ContainerClient(
                self._access.endpoint,
                self._locator.container,
                credential=self._credential(),
                retry_total=0,
                connection_timeout=CONNECT_S,
                read_timeout=READ_S,
                max_single_get_size=PART_BYTES,
                max_single_put_size=PART_BYTES,
            )
        return self._client

    def _credential(self) -> Any:
        from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential

        if self._access.sas is not None:
            return AzureSasCredential(self._access.sas)
        if self._access.key is not None:
            return AzureNamedKeyCredential(self._locator.account, self._access.key)
        from azure.identity.aio import DefaultAzureCredential

        self._identity = DefaultAzureCredential()
        return self._identity


def _found(properties: Any, size: int) -> Found:
    return Found(size, properties.last_modified, properties.etag)


def _condition(replaces: str | None) -> dict[str, Any]:
    from azure.core import MatchConditions

    if replaces is None:
        return {"match_condition": MatchConditions.IfMissing}
    return {"match_condition": MatchConditions.IfNotModified, "etag": replaces}


def _is_failure(error: BaseException, azure_error: type[Exception]) -> bool:
    """Whether it is Azure or the network that failed, and not this program."""
    from aiohttp import ClientError

    return isinstance(error, (azure_error, ClientError, OSError, EOFError))
