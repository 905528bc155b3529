"""Large parts of a value go to the store, and come home."""

import json
import os
import pickle
import threading

import pytest

from executor.errors import BadSignature, BlobMissing
from executor.stores.memory import MemoryStore
from executor.stores.offload import INLINE_BYTES, blob_refs, packed, unpacked
from executor.stores.scratch import ScratchStore

numpy = pytest.importorskip("numpy")
KIB = 1024


@pytest.fixture
def store():
    return MemoryStore()


def travelled(value, store, **options):
    """Pack, pass the references through JSON, unpack."""
    data, refs = packed(value, store, **options)
    return unpacked(data, json.loads(json.dumps(refs)), store)


class FailingStore(MemoryStore):
    """Refuses the third blob."""

    def put(self, data, *, hashed=False):
        if len(self) == 2:
            raise OSError(28, "full")
        return super().put(data, hashed=hashed)


def test_small_values_stay_in_the_message(store):
    data, refs = packed({"a": [1, 2]}, store)
    assert (pickle.loads(data), refs, len(store)) == ({"a": [1, 2]}, [], 0)


def test_without_a_store_everything_stays(store):
    array = numpy.arange(1_000_000)
    data, refs = packed(array, None)
    assert refs == []
    assert (unpacked(data, refs, None) == array).all()


def test_arrays_go_beside_the_pickle(store):
    arrays = [numpy.full(100_000, i) for i in range(3)]
    data, refs = packed(arrays, store)
    assert len(data) < KIB
    assert len(refs) == len(store) == 3
    home = travelled(arrays, store)
    assert all((a == b).all() for a, b in zip(arrays, home, strict=True))
    home[0][0] = 99  # as with a ProcessPoolExecutor, arrays that arrive may be written to


def test_fortran_order_survives(store):
    array = numpy.asfortranarray(numpy.random.default_rng(0).random((300, 400)))
    home = travelled(array, store)
    assert home.flags.f_contiguous
    assert (home == array).all()


def test_a_read_only_array_stays_read_only(store):
    array = numpy.zeros(100_000)
    array.flags.writeable = False
    assert not travelled(array, store).flags.writeable


@pytest.mark.parametrize("size", [INLINE_BYTES - 100, INLINE_BYTES + 1, 2_000_000])
def test_a_large_pickle_goes_to_the_store_with_a_digest(store, size):
    value = os.urandom(size)
    data, refs = packed(value, store)
    assert (data == b"") == (size > INLINE_BYTES) == bool(refs)
    assert all(ref.digest for ref in blob_refs(refs))
    assert unpacked(data, refs, store) == value


def test_a_large_pickle_beside_arrays(store):
    value = ["x" * 500_000, numpy.arange(100_000)]
    home = travelled(value, store)
    assert home[0] == value[0]
    assert (home[1] == value[1]).all()


def test_threshold_is_obeyed(store):
    assert packed(b"x" * 100, store, threshold=50)[0] == b""
    assert travelled(b"x" * 100, store, threshold=50) == b"x" * 100


def test_a_failing_put_leaves_nothing_behind():
    store = FailingStore()
    with pytest.raises(OSError, match="full"):
        packed([numpy.zeros(100_000) for _ in range(3)], store)
    assert len(store) == 0


def test_an_unpicklable_value_leaves_nothing_behind(store):
    with pytest.raises(Exception, match="pickle"):
        packed([numpy.zeros(100_000), threading.Lock()], store)
    assert len(store) == 0


def test_last_frees_the_blobs(store):
    data, refs = packed([numpy.zeros(100_000), b"x" * 500_000], store)
    unpacked(data, refs, store, last=True)
    assert len(store) == 0


def test_refs_can_be_deleted(store):
    _, refs = packed([numpy.zeros(100_000), b"x" * 500_000], store)
    store.delete(blob_refs(refs))
    assert len(store) == 0


def test_a_side_without_store_says_so(store):
    data, refs = packed(numpy.zeros(100_000), store)
    with pytest.raises(BlobMissing, match="this side has none"):
        unpacked(data, refs, None)


def test_an_altered_pickle_is_not_unpickled(tmp_path):
    store = ScratchStore(str(tmp_path / "s"))
    data, refs = packed(b"x" * 500_000, store)
    with open(tmp_path / "s" / refs[0][1], "r+b") as file:
        file.write(b"cos\nsystem\n")
    with pytest.raises(BadSignature):
        unpacked(data, refs, store)
    store.close()


def test_a_pickle_without_digest_is_not_unpickled(store):
    data, refs = packed(b"x" * 500_000, store)
    refs[0][3] = None
    with pytest.raises(ValueError, match="no digest"):
        unpacked(data, refs, store)


@pytest.mark.parametrize("refs", [[None], ["abc"], [["memory", "a", 1, None, "other"]], [[]]])
def test_malformed_references_are_refused(store, refs):
    with pytest.raises(ValueError, match="A blob reference is"):
        unpacked(b"", refs, store)
