"""``az://`` locators and what the environment adds to them; secrets stay out of every text."""

from __future__ import annotations

import base64
import importlib.util
import traceback

import pytest

from executor import KubeExecutor
from executor.errors import StoreError, StoreRefused
from executor.settings import AzureSettings
from executor.stores import azure_store
from executor.stores.azure_locator import Access, AzureLocator
from executor.stores.base import open_store

KEY = base64.b64encode(b"a key that nobody may see").decode()
SAS = "sv=2024-11-04&sr=c&sig=aSignatureThatNobodyMaySee%3D"
BOX = AzureLocator("account1", "box")


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch):
    for name in ("CONNECTION_STRING", "SAS_TOKEN", "KEY"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)


def access(**settings):
    return Access.of(BOX, AzureSettings(**settings))


@pytest.mark.parametrize(
    ("locator", "parsed", "blob"),
    [
        ("az://account1/box", AzureLocator("account1", "box"), "x"),
        ("az://account1/box/", AzureLocator("account1", "box"), "x"),
        ("az://account1/box/a/b=1/c.d", AzureLocator("account1", "box", "a/b=1/c.d"), "a/b=1/c.d/x"),
        ("az://account1/box-2/a/?lifetime_days=30", AzureLocator("account1", "box-2", "a", 30), "a/x"),
    ],
)
def test_locator_is_parsed_and_written_again(locator, parsed, blob):
    assert AzureLocator.parse(locator) == parsed == AzureLocator.parse(str(parsed))
    assert parsed.blob("x") == blob


@pytest.mark.parametrize(
    "locator",
    [
        "az:", "az://", "az://account1", "az://account1/", "az:///box", "az://Account1/box", "az://ac/box",
        "az://account1.blob.core.windows.net/box", "az://account1:80/box", "az://account1/Box", "az://account1/bo",
        "az://account1/a--b", "az://account1/-box", "az://account1/box//a", "az://account1/box/../a", "az://account1/box/.",
        "az://account1/box/a b", "az://account1/box/%2e%2e", "az://account1/box/a#b", "az://account1/box/" + "a" * 600,
        "az://account1/box?lifetime_days=0", "az://account1/box?lifetime_days=x", "az://account1/box?lifetime_days=",
        "az://account1/box?days=7", "az://account1/box?7",
    ],
)  # fmt: skip
def test_bad_locator_is_refused_before_anything_starts(locator):
    with pytest.raises(ValueError, match="az://"):
        AzureLocator.parse(locator)
    with pytest.raises(ValueError, match="az://"):
        open_store(locator)
    with pytest.raises(ValueError, match="az://"):
        KubeExecutor(1, store=locator)


@pytest.mark.parametrize("locator", ["s3://bucket", "file:relative", "file://host/dir", "shm:x", "redis://:a:b:c"])
def test_other_bad_stores_are_refused_before_anything_starts(locator):
    with pytest.raises(ValueError, match=r"No blob store|absolute directory|redis"):
        KubeExecutor(1, store=locator)


@pytest.mark.parametrize("locator", [f"az://account1/box?{SAS}", f"az://account1:{KEY}@account1/box"])
def test_a_secret_in_a_locator_is_refused_and_not_repeated(locator):
    with pytest.raises(ValueError, match="Credentials are no part") as caught:
        AzureLocator.parse(locator)
    text = "".join(traceback.format_exception_only(caught.value))
    assert "sig=" not in text
    assert KEY not in text


@pytest.mark.parametrize(
    ("settings", "endpoint", "key", "sas"),
    [
        ({"account_key": KEY}, "https://account1.blob.core.windows.net", KEY, None),
        ({"sas_token": "?" + SAS}, "https://account1.blob.core.windows.net", None, SAS),
        ({"sas_token": SAS, "account_key": KEY}, "https://account1.blob.core.windows.net", None, SAS),
        ({}, "https://account1.blob.core.windows.net", None, None),
        (
            {"connection_string": f"AccountName=account1;AccountKey={KEY};EndpointSuffix=core.chinacloudapi.cn;"},
            "https://account1.blob.core.chinacloudapi.cn", KEY, None,
        ),
        (
            {"connection_string": f"BlobEndpoint=http://127.0.0.1:10000/account1;SharedAccessSignature={SAS}"},
            "http://127.0.0.1:10000/account1", None, SAS,
        ),
        (
            {"connection_string": "BlobEndpoint=https://box.example", "sas_token": SAS, "account_key": KEY},
            "https://box.example", None, SAS,
        ),
        (
            {"connection_string": "BlobEndpoint=https://box.example", "account_key": KEY},
            "https://box.example", KEY, None,
        ),
        ({"connection_string": "BlobEndpoint=https://box.example"}, "https://box.example", None, None),
    ],
)  # fmt: skip
def test_credentials_are_found_in_order(settings, endpoint, key, sas):
    found = access(**settings)
    assert (found.endpoint, found.key, found.sas) == (endpoint, key, sas)
    assert KEY not in repr(found)
    assert "sig=" not in repr(found) + repr(AzureSettings(**settings))
    assert KEY not in repr(AzureSettings(**settings))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"connection_string": "nonsense"}, "is no connection string"),
        ({"connection_string": f"AccountKey={KEY}"}, "is no connection string"),
        ({"connection_string": f"AccountName=another;AccountKey={KEY}"}, "is of 'another'"),
        ({"connection_string": f"AccountName=account1;BlobEndpoint=box;AccountKey={KEY}"}, "must be a URL"),
        ({"connection_string": f"BlobEndpoint=https://box?{SAS}"}, "must be a URL"),
        ({"connection_string": f"BlobEndpoint=https://me:{KEY}@box"}, "must be a URL"),
        ({"connection_string": "AccountName=account1;AccountKey=secret!"}, "not base64"),
        ({"account_key": "secret!"}, "AZURE_STORAGE_KEY is not base64"),
    ],
)
def test_malformed_credentials_are_refused_and_not_repeated(settings, sentence):
    with pytest.raises(StoreRefused, match=sentence) as caught:
        access(**settings)
    assert not any(secret in str(caught.value) for secret in (KEY, "sig=", "secret!"))


def test_settings_come_from_the_environment():
    assert AzureSettings.from_environment({}) == AzureSettings()
    environment = {
        "AZURE_STORAGE_CONNECTION_STRING": " a\n",
        "AZURE_STORAGE_SAS_TOKEN": "b",
        "AZURE_STORAGE_KEY": "",
    }
    assert AzureSettings.from_environment(environment) == AzureSettings("a", "b", None)


def test_an_executor_with_credentials_is_made_without_a_network(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
    executor = KubeExecutor(1, store="az://account1/box/a")
    assert KEY not in repr(executor)
    executor.shutdown()


@pytest.mark.parametrize(
    ("missing", "extra"),
    [
        ("azure.storage.blob", "azure"),
        ("aiohttp", "azure"),
        ("tenacity", "azure"),
        ("azure.identity", "azure-identity"),
    ],
)
def test_a_missing_package_is_told_before_anything_starts(monkeypatch, missing, extra):
    monkeypatch.setattr(azure_store, "_installed", lambda package: package != missing)
    with pytest.raises(StoreError, match=rf"pip install 'kube-executor\[{extra}\]'"):
        KubeExecutor(1, store="az://account1/box")
    if extra == "azure-identity":  # nobody needs it who has a key
        monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)
        KubeExecutor(1, store="az://account1/box").shutdown()


def test_what_is_installed_is_found():
    assert azure_store._installed("json.decoder")
    assert not azure_store._installed("nonsense_that.nobody_has")
    assert azure_store._installed("tenacity") == (importlib.util.find_spec("tenacity") is not None)
