"""What an answer of Azure means: worth another try, or an error that says what to do. Pure; knows no package of Azure.

Texts are made from status and code alone. Messages of the packages below are not repeated: they may hold URLs, and a
URL may hold a SAS.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING

from executor.errors import StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from executor.stores.azure_locator import AzureLocator

#: Overloaded, restarting, or behind a gateway that is.
_PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_NO_CONTAINER = frozenset({"ContainerNotFound", "ContainerBeingDeleted", "ContainerDisabled"})
_NO_RIGHT = frozenset(
    {
        "AuthorizationFailure",
        "AuthorizationPermissionMismatch",
        "AuthorizationProtocolMismatch",
        "AuthorizationResourceTypeMismatch",
        "AuthorizationServiceMismatch",
        "AuthorizationSourceIPMismatch",
        "InsufficientAccountPermissions",
    }
)


def status_of(error: BaseException) -> int | None:
    """HTTP status of an answer, None where there was none or it was cut short."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) and status >= 300 else None


def code_of(error: BaseException) -> str:
    """Azure's word for an error, e.g. ``BlobNotFound``; empty if it gave none."""
    code = getattr(error, "error_code", None)
    if not code and (response := getattr(error, "response", None)) is not None:
        code = response.headers.get("x-ms-error-code")
    return str(getattr(code, "value", code) or "")


def passes(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later: no answer, half an answer, or one that says so."""
    status = status_of(error)
    if status is not None:
        return status in _PASSING_STATUS
    return not any(isinstance(each, ssl.SSLCertVerificationError) for each in _chain(error))


def refusal(locator: AzureLocator, credentials: str, error: BaseException) -> StoreRefused:
    """The error for an answer that will not change by itself.

    Args:
        locator: Which store.
        credentials: Where they come from.
        error: What was raised.
    """
    status, code = status_of(error), code_of(error)
    account, container = locator.account, locator.container
    details = {"store": str(locator), "status": status, "code": code}
    answer = f"{code or type(error).__name__}{f', {status}' if status else ''}"
    if code in _NO_CONTAINER or status == 404:
        said = f"There is no container {container!r} in the storage account {account!r} ({answer}). It was deleted, or "
        said += (
            f"its name is misspelt. Make it: az storage container create --account-name {account} --name {container}"
        )
    elif code in _NO_RIGHT:
        said = (
            f"{locator.where} refused an operation to {credentials} ({answer}). It lacks a right (read, add, create, "
        )
        said += "write, delete, list), has expired, its key is wrong, or the account's firewall does not admit this "
        said += 'machine. Give it the role: az role assignment create --role "Storage Blob Data Contributor", or a new '
        said += f"SAS: az storage container generate-sas --account-name {account} --name {container} "
        said += "--permissions racwdl --expiry ..."
    elif status in (401, 403) or code == "KeyBasedAuthenticationNotPermitted":
        said = f"{locator.where} refused {credentials} ({answer}). The key or SAS is wrong or has expired, or this "
        said += f"machine's clock is off. Compare: az storage account keys list --account-name {account}; date"
    elif code == "BlobArchived":
        said = f"A value in {locator.where} was moved to the archive tier by a lifecycle rule, and cannot be read. "
        said += f"Look at the rule: az storage account management-policy show --account-name {account}"
    else:
        said = f"{locator.where} refused a request ({answer}). "
        said += f"Look at the account: az storage account show --name {account}"
    return StoreRefused(said, details)


def no_identity(locator: AzureLocator) -> StoreRefused:
    """The error where this process has no credentials at all, or none that anybody believes."""
    return StoreRefused(
        f"No credentials for {locator.where}: neither AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_SAS_TOKEN nor "
        "AZURE_STORAGE_KEY is set, and this process has no identity that Azure accepts. Set one of them, or look who "
        "you are with: az account show",
        {"store": str(locator)},
    )


def unavailable(locator: AzureLocator, endpoint: str, tried_s: float, error: BaseException) -> StoreUnavailable:
    """The error after all tries.

    Args:
        locator: Which store.
        endpoint: URL of the account.
        tried_s: Seconds since it last worked, or was first tried.
        error: The last failure.
    """
    chain = [*_chain(error)]
    said = f"{locator.where} cannot be reached at {endpoint} ({_word(error, chain)}), tried for {tried_s:.0f} s. "
    if any(isinstance(each, socket.gaierror) for each in chain):
        said += f"Is the account's name {locator.account!r} right, and is there a name server? "
    elif any(isinstance(each, ssl.SSLError) for each in chain):
        said += "Its certificate is not trusted here: is there a proxy in between? "
    else:
        said += "Azure is down or throttles, or a firewall or private endpoint is in between. "
    said += f"Look with: curl -sSI '{endpoint}/{locator.container}?restype=container'"
    return StoreUnavailable(said, {"store": str(locator), "status": status_of(error), "code": code_of(error)})


def no_package(name: str, extra: str, locator: object) -> StoreRefused:
    """The error where a package is not installed."""
    return StoreRefused(
        f"{locator} needs the package {name}, which is not installed here. Install it, on the workers, too: "
        f"pip install 'kube-executor[{extra}]'"
    )


def _word(error: BaseException, chain: list[BaseException]) -> str:
    """The shortest that tells, without any text that could hold a URL."""
    if code_of(error) or status_of(error):
        return f"{code_of(error) or type(error).__name__}, {status_of(error)}"
    for each in chain:
        if isinstance(each, OSError) and each.errno and each.strerror and "://" not in each.strerror:
            return each.strerror
    return type(chain[-1]).__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or getattr(seen, "os_error", None) or seen.__context__
