"""Arrays of zarr as this package decodes them: equal to the zarr library's, bounded when damaged."""

from __future__ import annotations

import gzip
import itertools
import zlib
from typing import TYPE_CHECKING, Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from omics.data.errors import InputDataError
from omics.data.sources.zarr_codecs import ChunkCoding, ChunkError, decode_chunk
from omics.data.sources.zarr_files import open_files
from omics.data.sources.zarr_nodes import open_tree

if TYPE_CHECKING:
    from pathlib import Path

INT = np.dtype("<i4")


def counts(dtype: Any, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).poisson(0.6, (13, 7)).astype(dtype)


def v2_layouts() -> list[dict[str, Any]]:
    compressors = [
        numcodecs.Blosc(),
        numcodecs.Blosc(cname="zstd", shuffle=2),
        numcodecs.GZip(),
        numcodecs.Zlib(),
        numcodecs.Zstd(),
        numcodecs.LZ4(),
        None,
    ]
    shapes = [("<i4", "C", "."), (">f8", "F", "/"), ("u1", "C", "/"), ("?", "F", ".")]
    return [
        {
            "dtype": dtype,
            "order": order,
            "compressors": compressor,
            "filters": [numcodecs.Shuffle(4)] if dtype == "<i4" else None,
            "chunk_key_encoding": {"name": "v2", "separator": separator},
        }
        for compressor, (dtype, order, separator) in itertools.product(compressors, shapes)
    ]


def v3_layouts() -> list[dict[str, Any]]:
    compressors: list[list[Any]] = [
        [BloscCodec()],
        [GzipCodec()],
        [ZstdCodec(checksum=True), Crc32cCodec()],
        [],
    ]
    kinds: list[tuple[str, Any, Any, str]] = [
        ("int32", None, (1, 0), "/"),
        ("float64", (10, 6), None, "."),
        ("uint8", (10, 6), (1, 0), "/"),
        ("bool", None, None, "."),
    ]
    return [
        {
            "dtype": dtype,
            "shards": shards,
            "compressors": compressor,
            "filters": [TransposeCodec(order=order)] if order else (),
            "serializer": BytesCodec(endian="big" if dtype in {"int32", "float64"} else None),
            "chunk_key_encoding": {"name": "default", "separator": separator},
        }
        for compressor, (dtype, shards, order, separator) in itertools.product(compressors, kinds)
    ]


@pytest.mark.parametrize(("version", "layouts"), [(2, v2_layouts()), (3, v3_layouts())])
def test_every_layout_is_decoded_as_the_zarr_library_does(
    tmp_path: Path, version: int, layouts: list[dict[str, Any]]
) -> None:
    group = zarr.open_group(tmp_path, mode="w", zarr_format=version).create_group("X")  # type: ignore[arg-type]
    for number, layout in enumerate(layouts):
        array = group.create_array(f"a{number}", shape=(13, 7), chunks=(5, 3), **layout)
        array[...] = counts(layout["dtype"], number)
    with open_files(tmp_path) as files:
        root = open_tree(files)
        for number, layout in enumerate(layouts):
            found, expected = root[f"X/a{number}"], counts(layout["dtype"], number)
            assert found.dtype == expected.dtype.newbyteorder("=")
            for where in (..., slice(3, 9), (slice(2, 11), slice(1, 6)), slice(5, 5)):
                np.testing.assert_array_equal(found[where], expected[where], err_msg=str(layout))
            assert (found.size, found.nbytes) == (91, 91 * expected.itemsize)
    assert len(layouts) >= 16


def test_a_chunk_left_out_has_the_fill_value_and_is_reported(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path, mode="w").create_group("X")
    array = group.create_array("a", shape=(9,), chunks=(4,), dtype="i4", fill_value=7)
    array[4:8] = 1
    with open_files(tmp_path) as files:
        found = open_tree(files)["X/a"]
        np.testing.assert_array_equal(found[...], [7, 7, 7, 7, 1, 1, 1, 1, 7])
        assert found.absent_files() == [(0,), (2,)]
        with pytest.raises(ValueError, match="without steps"):
            found[::2]


def test_a_shard_that_is_damaged_or_cut_is_refused(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path, mode="w").create_group("X")
    group.create_array("a", data=np.arange(32, dtype="i4"), chunks=(4,), shards=(16,))
    shard = tmp_path / "X" / "a" / "c" / "1"
    data = shard.read_bytes()
    for damaged in (data[:-1], data[:20], data[:-9] + bytes(9), b""):
        shard.write_bytes(damaged)
        with open_files(tmp_path) as files:
            found = open_tree(files)["X/a"]
            np.testing.assert_array_equal(found[:16], np.arange(16))
            with pytest.raises(InputDataError, match="X/a/c/1 cannot be used"):
                found[16:]


def decoded(data: bytes, *steps: str, dtype: Any = INT, count: int = 1000) -> np.ndarray[Any, Any]:
    return decode_chunk(data, (count,), ChunkCoding(np.dtype(dtype), tuple((s, 4) for s in steps)))


VALUES = np.arange(1000, dtype=INT)
BOMB = bytes(50 * 2**20)


@pytest.mark.parametrize(
    ("step", "bomb"),
    [
        ("gzip", gzip.compress(BOMB)),
        ("zlib", zlib.compress(BOMB)),
        ("zstd", bytes(numcodecs.Zstd().encode(BOMB))),
        ("blosc", bytes(numcodecs.Blosc().encode(BOMB))),
        ("lz4", bytes(numcodecs.LZ4().encode(BOMB))),
    ],
)
def test_a_chunk_that_unpacks_to_more_than_it_may_hold_is_refused(step: str, bomb: bytes) -> None:
    with pytest.raises(ChunkError, match="it unpacks to"):
        decoded(bomb, step)


@pytest.mark.parametrize(
    ("data", "steps", "words"),
    [
        (b"", ("blosc",), "cut short"),
        (bytes(40), ("blosc",), "no sound blosc header"),
        (bytes(numcodecs.Blosc().encode(VALUES))[:-5], ("blosc",), "no sound blosc header"),
        (b"xx", ("zstd",), "not compressed with zstd"),
        (b"\x28\xb5\x2f\xfd\x00\x58", ("zstd",), "does not say how long"),
        (bytes(numcodecs.Zstd().encode(VALUES))[:-5], ("zstd",), "damaged compression"),
        (gzip.compress(VALUES.tobytes())[:-9], ("gzip",), "cut short"),
        (b"nothing", ("gzip",), "damaged compression"),
        (b"ab", ("lz4",), "cut short"),
        (b"\x01\0\0\0\xff", ("lz4",), "damaged compression"),
        (bytes(4004), ("crc32c",), "checksum differs"),
        (b"abc", ("crc32c",), "cut short"),
        (bytes(4001), ("shuffle",), "whole values"),
        (bytes(3996), (), "3,996 bytes, not 4,000"),
    ],
)
def test_damaged_chunks_are_refused_with_the_reason(
    data: bytes, steps: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ChunkError, match=words):
        decoded(data, *steps)


def test_text_and_flags_are_checked_before_they_are_decoded() -> None:
    texts = bytes(numcodecs.VLenUTF8().encode(np.array(["é", "", "abc"], dtype=object)))
    assert decoded(texts, dtype=object, count=3).tolist() == ["é", "", "abc"]
    for data, words in (
        (texts[:-1], "damaged text"),
        (b"\xff\xff\xff\x7f" + texts[4:], "does not hold 3 texts"),
        (texts[:8], "does not hold 3 texts"),
        (texts.replace("é".encode(), b"\xff\xff"), "damaged text"),
    ):
        with pytest.raises(ChunkError, match=words):
            decoded(data, dtype=object, count=3)
    with pytest.raises(ChunkError, match="neither true nor false"):
        decoded(b"\0\1\2", dtype=bool, count=3)
