"""What every store promises, and what is special about each."""

import contextlib
import errno
import os
import stat
import threading

import pytest

from executor.errors import BadSignature, BlobMissing
from executor.stores.base import BlobRef, ExpiringStore, open_store
from executor.stores.filesystem import SharedDiskStore
from executor.stores.scratch import ScratchStore
from tests.contract.store_contract import StoreContract

MIB = 1024 * 1024


@pytest.fixture(params=["memory", "file", "shm"])
def store(request, tmp_path):
    locator = "memory:" if request.param == "memory" else f"{request.param}://{tmp_path}/blobs%20here"
    store = open_store(locator)
    yield store
    store.close()


@pytest.fixture
def scratch(tmp_path):
    store = ScratchStore(str(tmp_path / "scratch"))
    yield store
    store.close()


@pytest.fixture
def disk(tmp_path):
    store = SharedDiskStore(str(tmp_path / "disk"))
    yield store
    store.close()


class TestEveryStore(StoreContract):
    pass


class TestBlobRef:
    @pytest.mark.parametrize(
        "value",
        [None, {}, [], ["shm", "a", 1], ["shm", "a", -1, None], ["shm", "a", True, None], ["shm", "a", 1, "short"],
         ["shm", 1, 1, None], ["shm", "a", 1, None, None], ["shm", "a", 1.0, None]],
    )  # fmt: skip
    def test_refuses_what_is_none(self, value):
        with pytest.raises(ValueError, match="A blob reference is"):
            BlobRef.from_json(value)


class TestOpenStore:
    @pytest.mark.parametrize("locator", ["", "/tmp/x", "s3://bucket", "file:relative", "file://host/dir", "shm:x"])
    def test_refuses_unknown_locators(self, locator):
        with pytest.raises(ValueError, match=r"No blob store|absolute directory"):
            open_store(locator)

    @pytest.mark.parametrize("kind", ["file", "shm"])
    def test_makes_no_directory_unless_told(self, kind, tmp_path):
        with pytest.raises(FileNotFoundError):
            open_store(f"{kind}://{tmp_path}/none", create=False)
        with pytest.raises(FileNotFoundError, match=f"{tmp_path}/none is not there, .* mkdir -p it"):
            open_store(f"{kind}://{tmp_path}/none/values")


class TestScratchStore:
    def test_directory_and_files_are_private(self, scratch):
        ref = scratch.put(b"x")
        assert stat.S_IMODE(os.stat(scratch.path).st_mode) == 0o700
        assert stat.S_IMODE(os.stat(f"{scratch.path}/{ref.name}").st_mode) == 0o600

    def test_refuses_a_directory_open_to_others(self, tmp_path):
        (tmp_path / "open").mkdir(mode=0o755)
        with pytest.raises(PermissionError, match="mode 755"):
            ScratchStore(str(tmp_path / "open"))

    def test_refuses_a_symlink(self, scratch, tmp_path):
        (tmp_path / "link").symlink_to(scratch.path)
        with pytest.raises(OSError, match="link"):
            ScratchStore(str(tmp_path / "link"))

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
    def test_refuses_a_directory_of_another_user(self, tmp_path):
        (tmp_path / "other").mkdir(mode=0o700)
        os.chown(tmp_path / "other", 12345, 12345)
        with pytest.raises(PermissionError, match="user 12345"):
            ScratchStore(str(tmp_path / "other"))

    def test_last_unlinks_and_the_view_stays(self, scratch):
        ref = scratch.put(b"z" * 2 * MIB)
        view = scratch.get(ref, last=True)
        assert os.listdir(scratch.path) == []
        view[:3] = b"abc"
        assert bytes(view[:4]) == b"abcz"
        with pytest.raises(BlobMissing):
            scratch.get(ref)

    def test_altered_bytes_are_noticed_where_hashed(self, scratch):
        ref = scratch.put(b"x" * 100, hashed=True)
        with open(f"{scratch.path}/{ref.name}", "r+b") as file:
            file.write(b"y")
        with pytest.raises(BadSignature, match="not those that were stored"):
            scratch.get(ref)

    def test_a_truncated_file_is_not_mapped(self, scratch):
        ref = scratch.put(bytes(2 * MIB))
        os.truncate(f"{scratch.path}/{ref.name}", 5)
        with pytest.raises(BlobMissing, match="another size"):
            scratch.get(ref)

    def test_hundreds_of_views_leave_file_descriptors(self, scratch):
        refs = [scratch.put(bytes(MIB)) for _ in range(4)]
        before = len(os.listdir("/proc/self/fd"))
        views = [scratch.get(ref) for _ in range(75) for ref in refs]
        assert len(os.listdir("/proc/self/fd")) - before <= 128
        assert len(views) == 300

    def test_remove_takes_everything(self, scratch):
        view = scratch.get(scratch.put(b"q" * 2 * MIB))
        scratch.remove()
        assert not os.path.exists(scratch.path)
        assert view[0] == ord("q")

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
    def test_a_full_disk_is_told_and_leaves_nothing(self, scratch, monkeypatch):
        full = os.open("/dev/full", os.O_WRONLY)
        write = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: write(full, data) if len(data) == 777 else write(fd, data))
        with pytest.raises(OSError, match="no space for a value of 777 bytes") as caught:
            scratch.put(bytes(777))
        os.close(full)
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == scratch.path
        assert os.listdir(scratch.path) == []


class TestSharedDiskStore:
    def blobs(self, disk):
        return sorted(name for _, _, names in os.walk(disk.path) for name in names)

    def test_the_same_content_is_stored_once(self, disk):
        refs = [disk.put(b"same" * 1000) for _ in range(3)]
        assert len(set(refs)) == 1
        assert self.blobs(disk) == [refs[0].name]
        assert refs[0].name == refs[0].digest

    def test_files_are_private(self, disk):
        ref = disk.put(b"x")
        path = f"{disk.path}/{ref.name[:2]}/{ref.name}"
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700

    def test_altered_bytes_are_noticed(self, disk):
        ref = disk.put(b"x" * 100)
        with open(f"{disk.path}/{ref.name[:2]}/{ref.name}", "r+b") as file:
            file.write(b"y")
        with pytest.raises(BadSignature):
            disk.get(ref)
        with pytest.raises(BadSignature):
            disk.get(ref._replace(digest=None))

    def test_a_truncated_blob_is_noticed_and_written_again(self, disk):
        ref = disk.put(b"x" * 100)
        os.truncate(f"{disk.path}/{ref.name[:2]}/{ref.name}", 50)
        with pytest.raises(BadSignature):
            disk.get(ref)
        assert bytes(disk.get(disk.put(b"x" * 100))) == b"x" * 100

    def test_delete_leaves_what_others_may_hold(self, disk):
        ref = disk.put(b"x")
        disk.delete([ref])
        assert bytes(disk.get(ref, last=True)) == bytes(disk.get(ref)) == b"x"

    def test_sweep_removes_what_is_unused(self, disk):
        old, used, put_again, fresh = (disk.put(text) for text in (b"old", b"used", b"again", b"fresh"))
        for ref in (old, used, put_again):
            os.utime(f"{disk.path}/{ref.name[:2]}/{ref.name}", (1, 1))
        left_over = f"{disk.path}/tmp-{'0a' * 16}"
        open(left_over, "w").close()
        os.utime(left_over, (1, 1))
        disk.get(used)
        disk.put(b"again")
        assert disk.sweep(3600) == 1
        assert self.blobs(disk) == sorted(ref.name for ref in (used, put_again, fresh))
        with pytest.raises(BlobMissing, match="swept"):
            disk.get(old)

    def test_sweep_leaves_files_of_others_alone(self, disk):
        os.mkdir(f"{disk.path}/de")
        theirs = ["tmp-notes", "de/tmp-" + "0a" * 16, "de/" + "de" * 31, "de/" + "ad" * 32, "de/prices.csv", "it"]
        for name in theirs:
            open(f"{disk.path}/{name}", "w").close()
            os.utime(f"{disk.path}/{name}", (1, 1))
        assert disk.sweep(3600) == 0
        assert all(os.path.exists(f"{disk.path}/{name}") for name in theirs)

    def test_keep_prolongs_what_is_wanted_and_sweeps_the_rest_now_and_then(self, disk):
        def grow_old(*refs):
            for ref in refs:
                os.utime(f"{disk.path}/{ref.name[:2]}/{ref.name}", (1, 1))

        assert isinstance(disk, ExpiringStore)
        wanted, other, gone = (disk.put(text) for text in (b"wanted", b"other", b"gone"))
        os.unlink(f"{disk.path}/{gone.name[:2]}/{gone.name}")
        grow_old(wanted, other)
        disk.keep([wanted, gone])
        assert self.blobs(disk) == sorted([wanted.name, "swept"])
        other = disk.put(b"other")
        grow_old(wanted, other)
        disk.keep([wanted])
        assert self.blobs(disk) == sorted([wanted.name, other.name, "swept"])  # somebody has just looked
        os.utime(f"{disk.path}/swept", (1, 1))
        disk.keep([])
        assert self.blobs(disk) == sorted([wanted.name, "swept"])

    def test_keep_sweeps_once_among_clients_that_begin_at_once(self, disk, monkeypatch):
        real = os.stat

        def stat(path, **how):
            if path == "swept":
                open(f"{disk.path}/swept", "x").close()  # another client is a little quicker
                raise FileNotFoundError(path)
            return real(path, **how)

        ref = disk.put(b"x")
        os.utime(f"{disk.path}/{ref.name[:2]}/{ref.name}", (1, 1))
        monkeypatch.setattr(os, "stat", stat)
        disk.keep([])
        assert ref.name in self.blobs(disk)

    def test_a_sweep_beside_writers_loses_nothing(self, disk):
        stop = threading.Event()

        def sweep():
            while not stop.is_set():
                disk.sweep(3600)

        def grow_old(ref):
            with contextlib.suppress(FileNotFoundError):  # a sweep has just taken it aside to look at it
                os.utime(f"{disk.path}/{ref.name[:2]}/{ref.name}", (1, 1))

        thread = threading.Thread(target=sweep)
        thread.start()
        try:
            for _ in range(300):
                ref = disk.put(b"hot")
                assert bytes(disk.get(ref)) == b"hot"
                grow_old(ref)
        finally:
            stop.set()
            thread.join()
