"""Large values in a real Azurite: once, verified, refused with reasons, and not lost when it goes away."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from executor.errors import BadSignature, BlobMissing, StoreRefused, StoreUnavailable
from executor.stores import azure, azure_store
from executor.stores.azure_locator import AzureLocator
from executor.stores.azure_store import AzureStore
from executor.stores.base import BlobRef, open_store
from executor.stores.offload import packed, unpacked
from tests.azurite import ACCOUNT, Azurite, Box, BusyProxy
from tests.contract.store_contract import StoreContract
from tests.faults import Proxy
from tests.support import unique_name, until

pytestmark = [pytest.mark.azurite, pytest.mark.timeout(120)]
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    with Azurite(tmp_path_factory.mktemp("server")) as one:
        yield one


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Azurite]:
    """One that the test may stop."""
    with Azurite(tmp_path) as one:
        yield one


@pytest.fixture
def box(server: Azurite) -> Iterator[Box]:
    one = Box(server)
    with one.client:
        yield one


@pytest.fixture
def new_store() -> Iterator[Callable[..., AzureStore]]:
    """Makes stores, and closes them at the end."""
    made: list[AzureStore] = []

    def make(box: Box, **options: object) -> AzureStore:
        patience_s = options.pop("patience_s", 60.0)
        settings = box.server.settings(**options)
        made.append(AzureStore(AzureLocator.parse(box.locator), settings, patience_s=patience_s))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def store(
    box: Box, new_store: Callable[..., AzureStore], server: Azurite, monkeypatch: pytest.MonkeyPatch
) -> AzureStore:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", server.connection_string())
    return new_store(box)


class TestContract(StoreContract):
    pass


# --- once, and verified ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 65_536, 100 * MIB])
def test_bytes_come_back_through_another_store(
    store: AzureStore, box: Box, new_store: Callable[..., AzureStore], size: int
) -> None:
    data = os.urandom(size)
    ref = store.put(data)
    assert ref == BlobRef("az", hashlib.sha256(data).hexdigest(), size, hashlib.sha256(data).hexdigest())
    assert new_store(box).get(ref) == data


@pytest.mark.parametrize("size", [10, 9 * MIB])
def test_the_same_content_is_written_once(store: AzureStore, box: Box, size: int) -> None:
    ref = store.put(b"x" * size)
    etag = box.etag(ref.name)
    assert [store.put(b"x" * size) for _ in range(3)] == [ref] * 3
    assert box.etag(ref.name) == etag
    assert box.digests() == [ref.name]


def test_the_locator_names_the_store_and_no_secret(store: AzureStore, server: Azurite, box: Box) -> None:
    assert store.locator == box.locator
    assert repr(store) == f"<AzureStore {box.locator}>"
    assert server.key not in repr(vars(store))
    other = open_store(store.locator)
    assert bytes(other.get(store.put(b"here"))) == b"here"
    other.close()


@pytest.mark.parametrize("size", [100, 9 * MIB])
def test_altered_bytes_are_noticed(store: AzureStore, box: Box, size: int) -> None:
    ref = store.put(b"x" * size)
    box.blob(ref.name).upload_blob(b"x" * (size - 1) + b"y", overwrite=True)
    for asked in (ref, ref._replace(digest=None)):
        with pytest.raises(BadSignature, match="not those that were stored"):
            store.get(asked)


@pytest.mark.parametrize("length", [0, 5, 5 * MIB, 9 * MIB + 1, 20 * MIB])
def test_another_length_is_noticed_and_written_again(store: AzureStore, box: Box, length: int) -> None:
    data = os.urandom(9 * MIB)
    ref = store.put(data)
    box.blob(ref.name).upload_blob(bytes(length), overwrite=True)
    with pytest.raises(BadSignature):
        store.get(ref)
    assert store.get(store.put(data)) == data


@pytest.mark.parametrize("size", [0, 10, 9 * MIB])
def test_a_blob_that_was_deleted_is_told(store: AzureStore, box: Box, size: int) -> None:
    ref = store.put(bytes(size))
    box.blob(ref.name).delete_blob()
    with pytest.raises(BlobMissing, match=r"not used for 7 days.*lifetime_days"):
        store.get(ref)
    assert store.get(store.put(bytes(size))) == bytes(size)


def test_what_others_may_hold_is_not_deleted(store: AzureStore) -> None:
    ref = store.put(b"x")
    store.delete([ref])
    assert bytes(store.get(ref, last=True)) == bytes(store.get(ref)) == b"x"


def test_large_values_offloaded(store: AzureStore) -> None:
    numpy = pytest.importorskip("numpy")
    value = [numpy.arange(200_000), b"y" * 400_000]
    data, refs = packed(value, store)
    home = unpacked(data, refs, store, last=True)
    assert (home[0] == value[0]).all()
    assert home[1] == value[1]


# --- lifetime -------------------------------------------------------------------------------------------------------


def test_sweep_removes_what_is_unused(store: AzureStore, box: Box) -> None:
    refs = [store.put(bytes([number]) * 100) for number in range(20)]
    box.client.upload_blob("values/notes.txt", b"of somebody else")
    box.client.upload_blob("other/" + "0" * 64, b"of another prefix")
    assert store.sweep(3600) == 0
    assert bytes(store.get(refs[0])) == bytes(100)
    assert store.sweep(-60) == 20  # unused for minus a minute: all
    assert box.digests() == ["0" * 64, "notes.txt"]
    with pytest.raises(BlobMissing):
        store.get(refs[0])


def test_one_that_is_used_meanwhile_stays(store: AzureStore, box: Box) -> None:
    ref = store.put(b"x")
    etag = box.etag(ref.name)
    assert store._run(lambda container: container.touch(ref.name))
    assert not store._run(lambda container: container.delete(ref.name, etag))
    assert store._run(lambda container: container.delete(ref.name, box.etag(ref.name)))
    assert not store._run(lambda container: container.delete(ref.name, etag))
    assert not store._run(lambda container: container.touch(ref.name))


def test_use_renews(store: AzureStore, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azure_store, "RENEW", -1.0)  # every use is due
    ref = store.put(b"x" * 2 * MIB)
    first = box.etag(ref.name)
    store.put(b"x" * 2 * MIB)
    second = box.etag(ref.name)
    assert second != first
    store.get(ref)
    until(lambda: box.etag(ref.name) != second, what="renewed by a reader")
    assert store.get(ref) == b"x" * 2 * MIB


def test_values_of_waiting_calls_are_kept(store: AzureStore, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azure_store, "RENEW", -1.0)
    ref = store.put(b"x")
    etag = box.etag(ref.name)
    store.keep([ref, ref._replace(name="0" * 64)])
    assert box.etag(ref.name) != etag
    store.keep([])


def test_the_first_to_store_a_value_sweeps(store: AzureStore, box: Box) -> None:
    store.put(b"x")
    marker = box.blob("swept")
    until(marker.exists, what="somebody has swept")
    etag = marker.get_blob_properties().etag
    other = open_store(store.locator)
    other.put(b"y")
    other.close()  # waits for what is done in the background
    assert marker.get_blob_properties().etag == etag


def test_many_pages_are_swept(store: AzureStore, monkeypatch: pytest.MonkeyPatch, box: Box) -> None:
    for number in range(7):
        store.put(bytes([number]))
    client = store._container._client
    listed = client.list_blobs
    monkeypatch.setattr(client, "list_blobs", lambda **options: listed(**options, results_per_page=3))
    assert store.sweep(-60) == 7
    assert box.digests() == []


# --- many at a time -------------------------------------------------------------------------------------------------


def test_concurrent_writers_of_one_value(box: Box, new_store: Callable[..., AzureStore]) -> None:
    data, refs, failures = os.urandom(13 * MIB), [], []
    begin = threading.Barrier(4)

    def write() -> None:
        try:
            one = new_store(box)
            begin.wait()
            refs.append(one.put(data))
            assert one.get(refs[0]) == data
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(set(refs)) == 1
    assert box.digests() == [refs[0].name]


async def test_on_an_event_loop(store: AzureStore) -> None:
    assert bytes(store.get(store.put(b"x" * 5 * MIB))) == b"x" * 5 * MIB


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_opens_connections_of_its_own(store: AzureStore) -> None:
    ref = store.put(b"x" * 1000)
    child = os.fork()
    if child == 0:
        fine = False
        try:
            fine = all(bytes(store.get(ref)) == b"x" * 1000 for _ in range(5))
            store.close()
        finally:
            os._exit(0 if fine else 1)
    assert all(bytes(store.get(ref)) == b"x" * 1000 for _ in range(5))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_closed_store_opens_anew(store: AzureStore) -> None:
    ref = store.put(b"x" * 2 * MIB)
    before = set(threading.enumerate())
    store.get(ref)
    store.close()
    assert set(threading.enumerate()) < before
    store.close()
    assert store.get(ref) == b"x" * 2 * MIB


# --- refused --------------------------------------------------------------------------------------------------------


def said(error: BaseException) -> str:
    """All that a person, or a log, gets to see of an exception."""
    return "".join(traceback.format_exception(error)) + repr(error) + str(getattr(error, "details", ""))


def test_a_wrong_key_is_refused(box: Box, new_store: Callable[..., AzureStore]) -> None:
    wrong = base64.b64encode(b"wrong" * 6).decode()
    store = new_store(box, key=wrong)
    for operation in (
        lambda: store.put(b"x"),
        lambda: store.get(BlobRef("az", "0" * 64, 1, None)),
        lambda: store.sweep(0),
    ):
        with pytest.raises(StoreRefused, match=r"refused .*AZURE_STORAGE_CONNECTION_STRING.*403.* az ") as caught:
            operation()
        assert "d3Jvbmd3" not in said(caught.value)


def test_a_token_to_read_reads_and_does_not_write(
    store: AzureStore, box: Box, server: Azurite, new_store: Callable[..., AzureStore],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(azure_store, "RENEW", -1.0)
    caplog.set_level(logging.DEBUG)
    sas = server.sas(box.name, "r")
    signature = re.search(r"sig=([^&]+)", sas)[1]
    ref = store.put(b"x")
    reader = new_store(box, sas=sas)
    assert bytes(reader.get(ref)) == b"x"
    with pytest.raises(StoreRefused, match="lacks a right") as caught:
        reader.put(b"y")
    reader.close()
    assert signature not in said(caught.value) + caplog.text
    assert server.key not in caplog.text


@pytest.mark.parametrize("token", ["?{}", "{}"])
def test_a_token_alone_will_do(box: Box, server: Azurite, token: str) -> None:
    settings = server.settings()
    endpoint = settings.connection_string.rpartition(";")[2]
    sas = token.format(server.sas(box.name, "racwdl"))
    store = AzureStore(AzureLocator.parse(box.locator), type(settings)(connection_string=endpoint, sas_token=sas))
    assert bytes(store.get(store.put(b"x" * 2 * MIB))) == b"x" * 2 * MIB
    assert store.sweep(-60) == 1
    store.close()


def test_an_expired_token_is_refused(box: Box, server: Azurite, new_store: Callable[..., AzureStore]) -> None:
    store = new_store(box, sas=server.sas(box.name, "racwdl", hours=-1))
    with pytest.raises(StoreRefused, match="has expired"):
        store.put(b"x")


def test_no_identity_is_told(box: Box, server: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    from executor.settings import AzureSettings

    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID"):
        monkeypatch.delenv(name, raising=False)
    endpoint = AzureSettings(connection_string=f"BlobEndpoint={server.endpoint().replace('http:', 'https:')}")
    store = AzureStore(AzureLocator.parse(box.locator), endpoint)
    with pytest.raises(StoreRefused, match="no identity that Azure accepts"):
        store.put(b"x")
    store.close()


def test_a_missing_container_is_told(server: Azurite) -> None:
    store = AzureStore(AzureLocator.parse(f"az://{ACCOUNT}/{unique_name('none')}"), server.settings())
    for operation in (
        lambda: store.put(b"x"),
        lambda: store.get(BlobRef("az", "0" * 64, 1, None)),
        lambda: store.sweep(0),
    ):
        with pytest.raises(StoreRefused, match=r"There is no container .*az storage container create"):
            operation()
    store.close()


# --- gone for a while -----------------------------------------------------------------------------------------------


def test_a_server_that_comes_back_is_waited_for(own_server: Azurite, new_store: Callable[..., AzureStore]) -> None:
    box = Box(own_server)
    store = new_store(box)
    values = [os.urandom(9 * MIB) for _ in range(4)]
    refs = [store.put(value) for value in values[:2]]
    own_server.stop()
    back = threading.Timer(1.5, own_server.start)
    back.start()
    refs += [store.put(value) for value in values[2:]]
    back.join()
    own_server.stop()
    back = threading.Timer(1.5, own_server.start)
    back.start()
    assert [store.get(ref) for ref in refs] == values
    back.join()
    box.client.close()


def test_connections_that_break_in_the_middle(box: Box, new_store: Callable[..., AzureStore]) -> None:
    data, over = os.urandom(40 * MIB), threading.Event()
    with Proxy(box.server.port) as proxy:
        store = new_store(box, port=int(proxy.url.rpartition(":")[2].partition("/")[0]))

        def break_them() -> None:
            while not over.wait(0.3):
                proxy.reset()

        breaking = threading.Thread(target=break_them)
        breaking.start()
        try:
            ref = store.put(data)
            assert store.get(ref) == data
        finally:
            over.set()
            breaking.join()
        store.close()
    assert box.digests() == [ref.name]


def test_a_service_that_throttles_is_waited_for(box: Box, new_store: Callable[..., AzureStore]) -> None:
    answers = [(503, "ServerBusy"), (500, "InternalError"), (429, ""), (408, ""), (502, ""), (504, "")]
    with BusyProxy(box.server.port, answers) as proxy:
        store = new_store(box, port=proxy.port)
        assert bytes(store.get(store.put(b"x"))) == b"x"
        assert proxy.answers == []
        store.close()


def test_a_service_that_throttles_for_too_long_is_told(box: Box, new_store: Callable[..., AzureStore]) -> None:
    with BusyProxy(box.server.port, [(503, "ServerBusy")] * 1000) as proxy:
        store = new_store(box, port=proxy.port, patience_s=0.5)
        with pytest.raises(StoreUnavailable, match=r"ServerBusy, 503.*throttles"):
            store.put(b"x")
        left = len(proxy.answers)
        with pytest.raises(StoreUnavailable):
            store.put(b"y")
        assert left - len(proxy.answers) <= 2  # at most a try or two: it has been failing for long enough
        proxy.answers.clear()
        assert bytes(store.get(store.put(b"x"))) == b"x"
        store.close()


def test_a_frozen_server_is_waited_for(
    own_server: Azurite, new_store: Callable[..., AzureStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azure, "READ_S", 1.0)
    box = Box(own_server)
    store = new_store(box)
    data = os.urandom(9 * MIB)
    ref = store.put(data)
    own_server.pause()
    thaw = threading.Timer(3.0, own_server.resume)
    thaw.start()
    assert store.get(ref) == data
    thaw.join()
    box.client.close()


def test_a_server_that_stays_away_is_told(
    own_server: Azurite, new_store: Callable[..., AzureStore], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    box = Box(own_server)
    sas = own_server.sas(box.name, "racwdl")
    signature = re.search(r"sig=([^&]+)", sas)[1]
    store = new_store(box, sas=sas, patience_s=0.5)
    ref = store.put(b"x" * 9 * MIB)
    own_server.stop()
    for operation in (lambda: store.put(b"y"), lambda: store.get(ref), lambda: store.sweep(0)):
        with pytest.raises(StoreUnavailable, match=r"cannot be reached at http.*Look with: curl") as caught:
            operation()
        assert isinstance(caught.value, ConnectionError)
        assert signature not in said(caught.value)
    own_server.start()
    assert store.get(ref) == b"x" * 9 * MIB
    store.close()
    assert signature not in caplog.text
    box.client.close()
