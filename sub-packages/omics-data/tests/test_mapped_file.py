"""A mapped file: the right size, regular, and checked where it is touched."""

from __future__ import annotations

import io

import numpy as np
import pytest
import xxhash

from omics.data.errors import CorruptStoreError
from omics.data.storage.mapped_file import MappedFile, read_small

DATA = np.arange(20, dtype="<u2").tobytes()


def _open(path, *, verify="first", check=None, size=40, dtype="uint16"):
    chunks = [DATA[begin : begin + 16] for begin in range(0, size, 16)]
    sums = [xxhash.xxh3_64_intdigest(chunk, seed=5 + i) for i, chunk in enumerate(chunks)]
    return MappedFile(
        path,
        dtype=dtype,
        size=size,
        chunk_bytes=16,
        seed=5,
        checksums=np.array(sums, np.uint64),
        verify=verify,
        seen=np.zeros(len(sums), np.uint8),
        check=check,
    )


@pytest.fixture
def path(tmp_path):
    (tmp_path / "f.bin").write_bytes(DATA)
    return tmp_path / "f.bin"


def _touch(file, *ranges):
    begins, ends = np.array(ranges, np.int64).reshape(-1, 2).T
    file.touch(begins, ends)


def test_only_touched_chunks_are_checked(path):
    with path.open("r+b") as opened:
        opened.seek(17)
        opened.write(b"\xff")
    file = _open(path)
    _touch(file, (0, 8), (16, 20), (8, 8), (20, 20))
    for damaged in [(8, 9), (7, 9), (0, 20), (15, 17)]:
        with pytest.raises(CorruptStoreError, match=r"fails its checksum in chunk 1 \(16-32\)"):
            _touch(file, damaged)
    with pytest.raises(CorruptStoreError):
        file.touch_all()


def test_chunks_between_first_and_last_are_checked_although_those_are_good(path):
    with path.open("r+b") as opened:
        opened.seek(17)
        opened.write(b"\xff")
    file = _open(path)
    _touch(file, (0, 1), (19, 20))
    with pytest.raises(CorruptStoreError, match="chunk 1"):
        _touch(file, (0, 20))


@pytest.mark.parametrize("verify", ["first", "always", "off"])
def test_structure_is_checked_in_every_mode(verify, path):
    file = _open(path, verify=verify, check=lambda items: "holds 9" if 9 in items else None)
    _touch(file, (0, 8))
    with pytest.raises(CorruptStoreError, match="holds 9 in chunk 1"):
        _touch(file, (8, 16))


def test_empty_file_has_no_items_but_their_type(tmp_path):
    (tmp_path / "e.bin").write_bytes(b"")
    file = _open(tmp_path / "e.bin", size=0)
    assert file.touch_all().dtype == np.uint16
    assert not file.array.flags.writeable
    _touch(file, (0, 0))


def test_reader_is_a_file_over_checked_bytes(path):
    reader = _open(path, dtype="parquet").reader()
    assert reader.readable()
    assert reader.seekable()
    assert reader.read(3) == DATA[:3]
    assert reader.tell() == 3
    assert reader.seek(-4, io.SEEK_END) == len(DATA) - 4
    assert reader.read() == DATA[-4:]
    assert reader.read(5) == b""
    assert reader.seek(-100, io.SEEK_CUR) == 0
    assert reader.read(-1) == DATA
    reader.seek(10**6)
    assert reader.read(1) == b""


def test_small_files_have_a_limit(path):
    assert read_small(path, 100) == DATA
    with pytest.raises(CorruptStoreError, match="holds more than 39 bytes"):
        read_small(path, 39)
