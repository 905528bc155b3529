"""Which container, and with what credentials: ``az://account/container/prefix``, and what the environment adds.

The locator travels in the settings of workers, and may be shown; so it never holds a secret. Credentials are taken
from the environment of each process, the first of these that is there:

=====================================  ==============================================================================
``AZURE_STORAGE_CONNECTION_STRING``    endpoint, and key or SAS; with an endpoint alone, one of the following
``AZURE_STORAGE_SAS_TOKEN``            of the account or the container, with the rights to read, add, create, write,
                                       delete and list (``racwdl``)
``AZURE_STORAGE_KEY``                  of the account
the identity of this process           workload identity, managed identity, ``az login``: ``DefaultAzureCredential``
=====================================  ==============================================================================

Nothing here needs the packages of Azure, or a network.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from executor.errors import StoreRefused

if TYPE_CHECKING:
    from executor.settings import AzureSettings

#: Days that a blob stays after its last use; a day at least, so that no call outlives its arguments by surprise.
LIFETIME_DAYS = 7
_FORM = "az://account/container, az://account/container/prefix"
#: The rules of Azure for names of accounts and containers.
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_CONTAINER = re.compile(r"(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*")
_PREFIX = re.compile(r"[A-Za-z0-9_.~=-]+(/[A-Za-z0-9_.~=-]+)*")
_MAX_PREFIX = 512


@dataclass(frozen=True, slots=True)
class AzureLocator:
    """Where blobs lie.

    Attributes:
        account: The storage account.
        container: Its container; it must be there.
        prefix: What the names of blobs begin with, without a slash at the end; may be empty.
        lifetime_days: Days that a blob stays after its last use.
    """

    account: str
    container: str
    prefix: str = ""
    lifetime_days: int = LIFETIME_DAYS

    @classmethod
    def parse(cls, locator: str) -> AzureLocator:
        """Take ``az://account/container/prefix?lifetime_days=30`` apart.

        Raises:
            ValueError: It is none; says which part. What stands after ``?`` is not repeated: it may be a SAS.
        """
        url = urlsplit(locator)
        shown = f"az://{url.netloc.rpartition('@')[2]}{url.path}"
        if url.scheme != "az" or url.fragment or "@" in url.netloc:
            raise ValueError(
                f"{shown!r} is not the locator of a store on Azure: {_FORM}. Credentials are no part of it."
            )
        container, _, prefix = url.path.strip("/").partition("/")
        for part, name, pattern, rule in (
            ("account", url.netloc, _ACCOUNT, "3 to 24 of a-z and 0-9"),
            ("container", container, _CONTAINER, "3 to 63 of a-z and 0-9, with single hyphens between them"),
        ):
            if not pattern.fullmatch(name):
                raise ValueError(f"{name!r} in {shown!r} is not the name of a storage {part} ({rule}); use {_FORM}.")
        if prefix and (not _PREFIX.fullmatch(prefix) or len(prefix) > _MAX_PREFIX or _climbs(prefix)):
            raise ValueError(f"{prefix!r} in {shown!r} is no prefix: names of A-Z a-z 0-9 _ . ~ = - between slashes.")
        return cls(url.netloc, container, prefix, _lifetime_days(url.query, shown))

    @property
    def where(self) -> str:
        """For people: account, container and prefix."""
        return "/".join(filter(None, [f"az://{self.account}", self.container, self.prefix]))

    def blob(self, name: str) -> str:
        """Name of a blob in the container."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def __str__(self) -> str:
        default = self.lifetime_days == LIFETIME_DAYS
        return self.where if default else f"{self.where}?lifetime_days={self.lifetime_days}"


@dataclass(frozen=True, slots=True)
class Access:
    """How to get there; one of ``key`` and ``sas``, or neither: then this process has an identity.

    Attributes:
        endpoint: URL of the account.
        key: Of the account.
        sas: Token.
        said: Where the credentials come from, for people.
    """

    endpoint: str
    key: str | None = field(default=None, repr=False)
    sas: str | None = field(default=None, repr=False)
    said: str = "the identity of this process (DefaultAzureCredential)"

    @classmethod
    def of(cls, locator: AzureLocator, settings: AzureSettings) -> Access:
        """What the environment says about an account.

        Raises:
            StoreRefused: It contradicts the locator, or is malformed. Values are not repeated.
        """
        said, fields = "the connection string in AZURE_STORAGE_CONNECTION_STRING", {}
        if settings.connection_string:
            fields = _fields(settings.connection_string)
            if (account := fields.get("accountname", locator.account)) != locator.account:
                raise StoreRefused(
                    f"{locator} is in the account {locator.account!r}, and AZURE_STORAGE_CONNECTION_STRING is of "
                    f"{account!r}. Set the one of {locator.account!r}: {connection_string_command(locator)}"
                )
        endpoint = fields.get("blobendpoint") or _usual_endpoint(locator, fields)
        key, sas = fields.get("accountkey"), fields.get("sharedaccesssignature")
        if not (key or sas) and settings.sas_token:
            sas, said = settings.sas_token, "the SAS in AZURE_STORAGE_SAS_TOKEN"
        elif not (key or sas) and settings.account_key:
            key, said = settings.account_key, "the account key in AZURE_STORAGE_KEY"
        _check_endpoint(endpoint)
        if not (key or sas):
            return cls(endpoint)
        _check_key(key, said)
        return cls(endpoint, key if not sas else None, sas and sas.lstrip("?"), said)


def connection_string_command(locator: AzureLocator) -> str:
    """The command that shows what AZURE_STORAGE_CONNECTION_STRING must be."""
    return f"az storage account show-connection-string --name {locator.account}"


def _climbs(prefix: str) -> bool:
    return any(part in (".", "..") for part in prefix.split("/"))


def _lifetime_days(query: str, shown: str) -> int:
    options = dict(parse_qsl(query, keep_blank_values=True))
    days = options.pop("lifetime_days", str(LIFETIME_DAYS))
    if options or (query and "=" not in query):
        raise ValueError(
            f"After {shown!r} only ?lifetime_days=N may follow. Credentials are no part of a locator, which others "
            "see: put a SAS into the environment as AZURE_STORAGE_SAS_TOKEN."
        )
    if not re.fullmatch(r"[1-9]\d{0,3}", days):
        raise ValueError(f"lifetime_days of {shown!r} must be whole days from 1 to 9999.")
    return int(days)


def _fields(connection_string: str) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in connection_string.strip().split(";") if entry.strip()]
    fields = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if not pairs or not all(equals for _, equals, _ in pairs) or not fields.keys() & {"accountname", "blobendpoint"}:
        raise StoreRefused(
            "AZURE_STORAGE_CONNECTION_STRING is no connection string: AccountName=...;AccountKey=... or "
            "BlobEndpoint=...;SharedAccessSignature=... Show it with: az storage account show-connection-string"
        )
    return fields


def _usual_endpoint(locator: AzureLocator, fields: dict[str, str]) -> str:
    protocol = fields.get("defaultendpointsprotocol", "https")
    return f"{protocol}://{locator.account}.blob.{fields.get('endpointsuffix', 'core.windows.net')}"


def _check_endpoint(endpoint: str) -> None:
    url = urlsplit(endpoint)
    if url.scheme not in ("https", "http") or not url.hostname or url.query or "@" in url.netloc:
        raise StoreRefused(
            "BlobEndpoint in AZURE_STORAGE_CONNECTION_STRING must be a URL without a query, as "
            "http://127.0.0.1:10000/devstoreaccount1."
        )


def _check_key(key: str | None, said: str) -> None:
    try:
        base64.b64decode(key or "", validate=True)
    except (binascii.Error, ValueError):
        raise StoreRefused(
            f"The key in {said} is not base64: it was cut, or something else was put there. "
            "Show it with: az storage account keys list"
        ) from None
