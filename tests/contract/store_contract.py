"""What every blob store promises."""

from __future__ import annotations

import os
import threading
from pickle import PickleBuffer
from typing import Any

import pytest

from executor.errors import BlobMissing
from executor.stores.base import BlobRef, BlobStore, open_store
from executor.stores.memory import MemoryStore

MIB = 1024 * 1024
SIZES = [0, 1, 65_536, 3 * MIB + 1, 9 * MIB]


class StoreContract:
    def test_satisfies_the_protocol(self, store: Any) -> None:
        assert isinstance(store, BlobStore)

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("hashed", [False, True])
    def test_bytes_come_back(self, store: Any, size: Any, hashed: Any) -> None:
        data = os.urandom(size)
        ref = store.put(data, hashed=hashed)
        assert bytes(store.get(ref)) == data
        assert ref.size == size
        assert BlobRef.from_json(ref.to_json()) == ref
        assert not hashed or ref.digest

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, PickleBuffer])
    def test_takes_every_kind_of_buffer(self, store: Any, kind: Any) -> None:
        assert bytes(store.get(store.put(kind(b"abc" * 100)))) == b"abc" * 100

    def test_takes_views_of_other_shapes(self, store: Any) -> None:
        view = memoryview(bytearray(range(24))).cast("B", (4, 6))
        assert bytes(store.get(store.put(view))) == bytes(range(24))

    def test_refuses_a_buffer_with_gaps(self, store: Any) -> None:
        with pytest.raises(BufferError):
            store.put(memoryview(b"abcdef")[::2])

    @pytest.mark.parametrize("hashed", [False, True])
    @pytest.mark.parametrize("size", [10, 2 * MIB])
    def test_a_view_is_writable_and_private(self, store: Any, size: Any, hashed: Any) -> None:
        ref = store.put(bytes(size), hashed=hashed)
        view, other = store.get(ref), store.get(ref)
        view[0] = 7
        assert (view[0], other[0], store.get(ref)[0]) == (7, 0, 0)

    def test_put_copies(self, store: Any) -> None:
        data = bytearray(100)
        ref = store.put(data)
        data[0] = 1
        assert store.get(ref)[0] == 0

    def test_a_missing_blob_is_told_clearly(self, store: Any) -> None:
        ref = store.put(b"x" * 10)
        gone = ref._replace(name="0" * len(ref.name))
        with pytest.raises(BlobMissing, match="no longer in"):
            store.get(gone)
        store.delete([gone, gone])

    def test_a_view_outlives_its_blob(self, store: Any) -> None:
        ref = store.put(b"y" * 2 * MIB)
        view = store.get(ref)
        store.delete([ref])
        assert bytes(view) == b"y" * 2 * MIB

    @pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "", ".", "a" * 31, "A" * 32, "a" * 64 + "\n"])
    def test_a_name_never_leaves_the_store(self, store: Any, name: Any) -> None:
        ref = store.put(b"x")._replace(name=name)
        with pytest.raises(ValueError, match="not the name of a blob"):
            store.get(ref)

    def test_a_reference_to_another_store_is_told(self, store: Any) -> None:
        with pytest.raises(BlobMissing, match="'elsewhere' store"):
            store.get(store.put(b"x")._replace(store="elsewhere"))

    def test_many_threads(self, store: Any) -> None:
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for turn in range(20):
                    data = bytes([number]) * (70_000 + turn % 3)
                    ref = store.put(data)
                    assert bytes(store.get(ref)) == data
                    store.delete([ref])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(i % 3,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures

    def test_the_locator_opens_the_same_store(self, store: Any) -> None:
        if isinstance(store, MemoryStore):
            pytest.skip("memory is not shared")
        other = open_store(store.locator, create=False)
        assert bytes(other.get(store.put(b"here"))) == b"here"
        other.close()
