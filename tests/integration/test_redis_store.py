"""Large values in a real Redis: over sockets, with passwords and TLS, with servers that come and go."""

import os
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

from executor.broker import redis_store
from executor.broker.address import BrokerAddress, TlsOptions
from executor.broker.redis_store import RedisStore
from executor.errors import BadSignature, BlobMissing, BrokerRefused, BrokerUnavailable
from executor.stores.base import BlobRef, BlobStore, ExpiringStore
from executor.stores.offload import packed, unpacked

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(
        shutil.which("redis-server") is None and not os.environ.get("CI"), reason="no redis-server on the PATH"
    ),
]
MIB = 1024 * 1024


class Server:
    """A redis-server of this test's own."""

    def __init__(self, directory, *options):
        self.path = str(directory / "redis.sock")
        self.options = [
            "--unixsocket",
            self.path,
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            str(directory),
            *options,
        ]
        if "--port" not in options:
            self.options += ["--port", "0"]
        self.url = f"unix://{self.path}"
        self.start()

    def start(self):
        self.process = subprocess.Popen(["redis-server", *self.options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(self.path)
                return
            except OSError:
                time.sleep(0.02)
        raise AssertionError("redis-server did not come up")

    def stop(self):
        self.process.kill()
        self.process.wait()

    def address(self, **changes):
        return BrokerAddress.parse(changes.get("url", self.url))


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def store(server):
    store = RedisStore(server.address(), "client1", patience_s=10)
    yield store
    store.close()


def ask(store, *command):
    return store._exchange(lambda connection: connection.command(*command))


def key_count(store):
    return ask(store, "DBSIZE")


@pytest.mark.parametrize("size", [0, 1, 65_536, 9 * MIB + 1])
def test_bytes_come_back_writable(store, size):
    data = os.urandom(size)
    ref = store.put(data)
    assert isinstance(store, BlobStore)
    assert isinstance(store, ExpiringStore)
    assert BlobRef.from_json(ref.to_json()) == ref
    assert ref.digest
    view = store.get(ref)
    assert bytes(view) == data
    assert not view.readonly


def test_values_beyond_a_part_are_split(store, monkeypatch):
    monkeypatch.setattr(redis_store, "PART_BYTES", MIB)
    data = os.urandom(3 * MIB + 17)
    ref = store.put(data)
    assert key_count(store) == 4
    assert bytes(store.get(ref)) == data
    store.delete([ref])
    assert key_count(store) == 0


def test_last_deletes_after_the_value_is_here(store):
    ref = store.put(b"once")
    assert bytes(store.get(ref, last=True)) == b"once"
    with pytest.raises(BlobMissing, match="no longer in"):
        store.get(ref)
    store.delete([ref, ref])
    store.delete([])


def test_values_have_a_time_to_live(server):
    store = RedisStore(server.address(), "client1", ttl_s=1)
    kept, gone = store.put(b"kept"), store.put(b"gone")
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        store.keep([kept])
        time.sleep(0.1)
    assert bytes(store.get(kept)) == b"kept"
    with pytest.raises(BlobMissing, match="time to live"):
        store.get(gone)
    store.close()


def test_delete_waits_for_nobody(server):
    """Who deletes is about to settle futures; the values go at the end of their time."""
    store = RedisStore(server.address(), "client1", patience_s=3600)
    refs = [store.put(b"x") for _ in range(2)]
    server.stop()
    for ref in refs:
        store.delete([ref])
    server.start()
    store.delete(refs)  # no other is tried for a while
    kept = store.put(b"kept")
    store.delete([kept])
    assert bytes(store.get(kept)) == b"kept"
    store._away_until = 0.0
    store.delete([kept])
    assert key_count(store) == 0
    store.close()


def test_clients_do_not_see_each_other(server, store):
    other = RedisStore(server.address(), "client2")
    with pytest.raises(BlobMissing):
        other.get(store.put(b"mine"))
    other.close()


@pytest.mark.parametrize("name", ["../x", "a" * 31, "x" * 32, "a" * 32 + ".1", "a" * 16 + "\r\n" + "a" * 14])
def test_a_name_never_leaves_its_prefix(store, name):
    with pytest.raises(ValueError, match="not the name"):
        store.get(store.put(b"x")._replace(name=name))


def test_altered_bytes_are_noticed(store):
    ref = store.put(b"x" * 100)
    ask(store, "SET", f"ke:buf:client1:{ref.name}", memoryview(b"y" * 100))
    with pytest.raises(BadSignature):
        store.get(ref)


def test_another_length_is_an_error_and_not_a_hang(server):
    store = RedisStore(server.address(), "client1", patience_s=0)
    ref = store.put(b"x" * 100)
    ask(store, "SET", f"ke:buf:client1:{ref.name}", memoryview(b"y" * 99))
    with pytest.raises(BrokerUnavailable):
        store.get(ref)
    assert bytes(store.get(store.put(b"next"))) == b"next"
    store.close()


def test_many_threads(store):
    failures = []

    def work(number):
        try:
            for turn in range(15):
                data = bytes([number]) * (200_000 + turn)
                ref = store.put(data)
                assert bytes(store.get(ref, last=True)) == data
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert key_count(store) == 0


def test_a_cut_connection_is_replaced(server, store):
    ref = store.put(b"x" * 100)
    killer = RedisStore(server.address(), "killer")
    ask(killer, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert bytes(store.get(ref)) == b"x" * 100
    killer.close()


def test_a_server_that_comes_back_is_waited_for(server, store):
    store.put(b"x")
    server.stop()
    os.unlink(server.path)
    threading.Timer(0.5, server.start).start()
    assert bytes(store.get(store.put(b"after"))) == b"after"


def test_a_frozen_server_is_waited_for(server, store):
    ref = store.put(b"x" * MIB)
    server.process.send_signal(signal.SIGSTOP)
    threading.Timer(0.5, server.process.send_signal, (signal.SIGCONT,)).start()
    assert bytes(store.get(ref)) == b"x" * MIB


def test_a_server_that_stays_away_is_told(tmp_path):
    store = RedisStore(BrokerAddress.parse(f"unix://{tmp_path}/none"), "client1", patience_s=0.2)
    with pytest.raises(BrokerUnavailable, match="There is no socket"):
        store.put(b"x")


def test_a_full_server_is_told_and_keeps_nothing(tmp_path, monkeypatch):
    server = Server(tmp_path, "--maxmemory", "12mb")
    store = RedisStore(server.address(), "client1")
    monkeypatch.setattr(redis_store, "PART_BYTES", 2 * MIB)
    with pytest.raises(BrokerRefused, match="no memory left for a value of 31457280 bytes"):
        store.put(bytes(30 * MIB))
    assert key_count(store) == 0
    assert bytes(store.get(store.put(b"small"))) == b"small"
    store.close()
    server.stop()


def test_user_and_password_and_database(tmp_path):
    server = Server(tmp_path, "--requirepass", "s3 cret@", "--user", "ann", "on", ">pw", "~*", "+@all")
    for login in (":s3%20cret%40", "ann:pw"):
        store = RedisStore(BrokerAddress.parse(f"unix://{login}@{server.path}?db=3"), "client1")
        assert bytes(store.get(store.put(b"x"))) == b"x"
        assert "pw" not in repr(store)
        store.close()
    for login, sentence in ((":wrong@", "refused the password"), ("", "wants a password")):
        store = RedisStore(BrokerAddress.parse(f"unix://{login}{server.path}"), "client1")
        with pytest.raises(BrokerRefused, match=sentence):
            store.put(b"x")
        store.close()
    server.stop()


@pytest.fixture
def certificate(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on the PATH")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "crt"]
    command += ["-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, *names], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path / "crt", tmp_path / "key"


def test_tcp_with_tls(tmp_path, certificate):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    crt, key = map(str, certificate)
    tls = ["--tls-cert-file", crt, "--tls-key-file", key, "--tls-ca-cert-file", crt, "--tls-auth-clients", "no"]
    server = Server(tmp_path, "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", *tls)
    url, data = f"rediss://localhost:{port}/0", os.urandom(9 * MIB)
    for options in (TlsOptions(ca_certs=crt), TlsOptions(cert_reqs="none")):
        store = RedisStore(BrokerAddress.parse(url, tls=options), "client1")
        assert bytes(store.get(store.put(data))) == data
        store.close()
    store = RedisStore(BrokerAddress.parse(url), "client1")
    with pytest.raises(BrokerUnavailable, match="not trusted"):
        store.put(b"x")
    server.stop()


def test_large_values_offloaded(store):
    numpy = pytest.importorskip("numpy")
    value = [numpy.arange(200_000), b"y" * 400_000]
    data, refs = packed(value, store)
    home = unpacked(data, refs, store, last=True)
    assert (home[0] == value[0]).all()
    assert home[1] == value[1]
    assert key_count(store) == 0


def test_a_fork_opens_connections_of_its_own(store):
    ref = store.put(b"x" * 1000)
    child = os.fork()
    if child == 0:
        os._exit(0 if all(bytes(store.get(ref)) == b"x" * 1000 for _ in range(20)) else 1)
    for _ in range(20):
        assert bytes(store.get(ref)) == b"x" * 1000
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
