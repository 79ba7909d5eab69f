"""Reading past HDF5 gives what HDF5 gives, or HDF5 is asked."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omics.data.sources.flat_reading import FlatReader

VALUES = np.random.default_rng(0).integers(0, 2**31, 1003)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("flat") / "a.h5"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["contiguous"] = VALUES.astype("<f4")
        file.create_dataset("chunked", data=VALUES, chunks=(64,))
        growing = file.create_dataset("growing", (0,), "<i4", maxshape=(None,), chunks=(100,))
        other = file.create_dataset("other", (0,), "<i4", maxshape=(None,), chunks=(7,))
        for begin in range(0, 1003, 100):  # Chunks of two datasets, in turn.
            growing.resize(min(begin + 100, 1003), 0)
            growing[begin:] = VALUES[begin : begin + 100]
            other.resize(begin + 1, 0)
            other[begin] = 1
        file.create_dataset("zipped", data=VALUES, chunks=(64,), compression="gzip")
        file.create_dataset("big_endian", data=VALUES.astype(">i4"))
        sparse = file.create_dataset("sparse", (1003,), "<i4", chunks=(64,), fillvalue=9)
        sparse[:64] = VALUES[:64]
        file["empty"] = np.zeros(0, np.int64)
    return path


@pytest.mark.parametrize(
    ("name", "direct"),
    [
        ("contiguous", True),
        ("chunked", True),
        ("growing", True),
        ("zipped", False),
        ("big_endian", False),
        ("sparse", False),
        ("empty", False),
    ],
)
@settings(max_examples=25)
@given(data=st.data())
def test_any_range_is_what_hdf5_reads(path, name, direct, data):
    with h5py.File(path) as file:
        reader = FlatReader(path, file[name])
        assert (reader._runs is not None) == direct
        size = len(file[name])
        begin = data.draw(st.integers(0, size))
        end = data.draw(st.integers(begin, size))
        found = reader.read(begin, end)
        assert found.dtype.isnative
        assert found.tolist() == file[name][begin:end].tolist()


def test_memory_is_used_again_only_when_nobody_holds_it(path):
    with h5py.File(path) as file:
        reader = FlatReader(path, file["contiguous"])
        reader._memory._free.clear()
        first = reader.read(0, 400)
        part = first[100:200]
        expected = part.tolist()
        address = first.ctypes.data
        del first
        second = reader.read(400, 800)
        assert second.ctypes.data != address
        assert part.tolist() == expected
        del part
        assert reader.read(0, 400).ctypes.data == address


def test_a_region_that_hdf5_does_not_confirm_is_not_trusted(path, monkeypatch):
    def moved(dataset):
        return np.zeros(1, np.int64), np.array([dataset.id.get_offset() + 4], np.int64)

    monkeypatch.setattr("omics.data.sources.flat_reading._runs", moved)
    with h5py.File(path) as file:
        assert FlatReader(path, file["contiguous"]).read(0, 1003).tolist() == (
            VALUES.astype("<f4").tolist()
        )


def test_a_file_cut_short_while_it_is_read_is_an_error(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = VALUES
    with h5py.File(tmp_path / "a.h5") as file:
        reader = FlatReader(tmp_path / "a.h5", file["x"])
        assert reader._runs is not None
        (tmp_path / "a.h5").write_bytes((tmp_path / "a.h5").read_bytes()[:4000])
        with pytest.raises(OSError, match="ends before"):
            reader.read(0, 1003)
