"""What answers of Azure mean."""

from __future__ import annotations

import pickle
import socket
import ssl

import pytest

from executor.errors import CallError, StoreError, StoreRefused, StoreUnavailable, call_error
from executor.stores import azure_failures as failures
from executor.stores.azure_locator import AzureLocator

BOX = AzureLocator("account1", "box", "values")


class Answer(Exception):
    """As the exceptions of azure-core look from outside."""

    def __init__(self, status=None, code=None, message="https://account1/box?sig=secret"):
        super().__init__(message)
        self.status_code, self.error_code = status, code


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (Answer(500), True), (Answer(503, "ServerBusy"), True), (Answer(429), True), (Answer(408), True),
        (Answer(404, "BlobNotFound"), False), (Answer(403), False), (Answer(409), False), (Answer(501), False),
        (Answer(), True), (Answer(206), True), (ConnectionResetError(), True), (TimeoutError(), True),
        (caused(Answer(), ssl.SSLCertVerificationError()), False),
    ],
)  # fmt: skip
def test_what_passes(error, again):
    assert failures.passes(error) is again


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (Answer(404, "ContainerNotFound"), r"There is no container 'box' .*az storage container create"),
        (Answer(404), r"There is no container"),
        (Answer(403, "AuthenticationFailed"), r"refused the key \(AuthenticationFailed, 403\).*wrong or has expired"),
        (Answer(403, "AuthorizationPermissionMismatch"), r"lacks a right.*Storage Blob Data Contributor"),
        (Answer(401), r"refused the key \(Answer, 401\)"),
        (Answer(409, "BlobArchived"), r"archive tier"),
        (Answer(400, "OutOfRangeInput"), r"refused a request \(OutOfRangeInput, 400\).*az storage account show"),
    ],
)
def test_refusals_say_what_happened_and_what_to_do(error, sentence):
    refused = failures.refusal(BOX, "the key", error)
    assert isinstance(refused, StoreRefused)
    with pytest.raises(StoreError, match=sentence):
        raise refused
    assert refused.details == {
        "store": "az://account1/box/values",
        "status": error.status_code,
        "code": error.error_code or "",
    }
    assert "secret" not in str(refused)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (Answer(503, "ServerBusy"), r"\(ServerBusy, 503\).*throttles"),
        (caused(Answer(), ConnectionRefusedError(111, "Connection refused")), r"\(Connection refused\)"),
        (caused(Answer(), socket.gaierror(-2, "Name or service not known")), r"Is the account's name 'account1' right"),
        (caused(Answer(), ssl.SSLCertVerificationError(1, "certificate verify failed")), r"not trusted here"),
        (caused(Answer(), OSError(5000, "GET https://account1/box?sig=secret")), r"\(OSError\)"),
        (Answer(), r"\(Answer\)"),
    ],
)
def test_what_cannot_be_reached_is_told(error, sentence):
    away = failures.unavailable(BOX, "https://account1.blob.core.windows.net", 61.2, error)
    assert isinstance(away, StoreUnavailable)
    with pytest.raises(ConnectionError, match=rf"{sentence}.*curl -sSI" if "throttles" not in sentence else sentence):
        raise away
    assert "tried for 61 s" in str(away)
    assert "secret" not in str(away)


@pytest.mark.parametrize("kind", [StoreError, StoreRefused, StoreUnavailable])
def test_store_errors_travel(kind):
    error = kind("what happened", {"code": "x"})
    for home in (pickle.loads(pickle.dumps(error)), call_error(kind.__name__, str(error), error.details)):
        assert type(home) is kind
        assert isinstance(home, CallError)
        assert (str(home), home.details) == ("what happened", {"code": "x"})


def test_an_error_code_of_the_header_is_found():
    class Response:
        headers = {"x-ms-error-code": "ContainerNotFound"}  # noqa: RUF012

    error = Answer(404)
    error.response = Response()
    assert failures.code_of(error) == "ContainerNotFound"
