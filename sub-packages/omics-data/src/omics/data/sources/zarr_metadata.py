"""Reads the metadata of zarr arrays, formats 2 and 3, and refuses what is not read safely.

- The JSON of a stranger is taken as data: types, shapes and codecs are compared with what is
  known, and everything else is refused by name. Nothing is looked up or imported for it.
- Consolidated metadata are not used: each array is described by its own file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from omics.data.sources.hdf5_safety import MAX_CHUNK_BYTES
from omics.data.sources.zarr_codecs import BYTES_CODECS, ChunkCoding

MAX_METADATA_BYTES = 64 * 2**20

_KINDS = frozenset("biufSU")
_V3_TYPES = frozenset(
    {"bool", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
_V3_TEXT = frozenset({"string", "numpy.variable_length_utf8", "variable_length_utf8"})
_TEXT = np.dtype(object)


class MetadataError(ValueError):
    """Why an array cannot be read, a phrase for the message that names its file."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """How the chunks of a shard are found in its file.

    Attributes:
        at_end: the index is at the end of the file, not at its start.
    """

    at_end: bool


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """What the metadata of an array say.

    Attributes:
        shape: of the array.
        chunks: shape of a chunk, the unit that is decoded.
        files: shape of what one file holds: a chunk, or a shard of several.
        coding: of a chunk.
        fill: the value of places that no file holds.
        prefix: what the names of its files begin with.
        separator: between the numbers in their names.
        sharding: of the files; None when a file is a chunk.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    files: tuple[int, ...]
    coding: ChunkCoding
    fill: Any
    prefix: str
    separator: str
    sharding: Sharding | None = None


def parse_json(data: bytes) -> dict[str, Any]:
    """Return the object that a metadata file holds.

    Args:
        data: the file.

    Raises:
        MetadataError: it is no JSON object.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MetadataError(f"it is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise MetadataError("it is not a JSON object")
    return found


def parse_v2(found: dict[str, Any]) -> ArrayLayout:
    """Return the layout that a `.zarray` describes.

    Args:
        found: the file as parsed.

    Raises:
        MetadataError: something in it is wrong or refused.
    """
    shape, chunks = _lengths(found, "shape"), _lengths(found, "chunks")
    separator = found.get("dimension_separator", ".")
    filters = found.get("filters") or []
    if not isinstance(filters, list):
        raise MetadataError("its filters are not a list")
    compressor = found.get("compressor")
    names = [(_codec_id(each), each) for each in (*filters, *([compressor] if compressor else []))]
    if found.get("dtype") == "|O":
        if not names or names[0][0] != "vlen-utf8":
            raise MetadataError(
                "it holds Python objects, not text, so its values would have to be unpickled"
            )
        dtype, names = _TEXT, names[1:]
    else:
        dtype = _numpy_type(found.get("dtype"))
    if found.get("order") not in ("C", "F") or separator not in (".", "/"):
        raise MetadataError("its order of values or the names of its chunks are unknown")
    axes = tuple(reversed(range(len(shape)))) if found["order"] == "F" else None
    coding = ChunkCoding(dtype, tuple(_bytes_step(name, each) for name, each in names), axes)
    fill = _fill(found.get("fill_value"), dtype)
    return _checked(ArrayLayout(shape, chunks, chunks, coding, fill, "", separator))


def parse_v3(found: dict[str, Any]) -> ArrayLayout:
    """Return the layout that the `zarr.json` of an array describes.

    Args:
        found: the file as parsed.

    Raises:
        MetadataError: something in it is wrong or refused.
    """
    shape = _lengths(found, "shape")
    grid = _named(found.get("chunk_grid"), "chunk_grid")
    if grid[0] != "regular" or found.get("storage_transformers"):
        raise MetadataError("its chunks do not lie on a regular grid")
    files = _lengths(grid[1], "chunk_shape")
    key = _named(found.get("chunk_key_encoding"), "chunk_key_encoding")
    separator = key[1].get("separator", "/" if key[0] == "default" else ".")
    if key[0] not in {"default", "v2"} or separator not in (".", "/"):
        raise MetadataError(f"the names of its chunks are of an unknown kind ({key[0]!r})")
    prefix = f"c{separator}" if key[0] == "default" else ""
    data_type = found.get("data_type")
    if isinstance(data_type, str) and data_type in _V3_TEXT:
        dtype = _TEXT
    elif isinstance(data_type, str) and data_type in _V3_TYPES:
        dtype = np.dtype(data_type)
    else:
        raise MetadataError(f"its values are of the type {data_type!r}, which is not read")
    codecs = _codec_list(found.get("codecs"))
    chunks, sharding = files, None
    if len(codecs) == 1 and codecs[0][0] == "sharding_indexed":
        chunks, codecs, sharding = _sharding(codecs[0][1], files)
    coding = _v3_coding(codecs, dtype, len(shape))
    fill = _fill(found.get("fill_value"), dtype)
    return _checked(ArrayLayout(shape, chunks, files, coding, fill, prefix, separator, sharding))


def _v3_coding(
    codecs: list[tuple[str, dict[str, Any]]], dtype: np.dtype[Any], ndim: int
) -> ChunkCoding:
    axes = None
    if codecs and codecs[0][0] == "transpose":
        order = codecs[0][1].get("order")
        if not isinstance(order, list) or sorted(map(str, order)) != sorted(map(str, range(ndim))):
            raise MetadataError(f"its axes are in an unknown order ({order!r})")
        axes, codecs = tuple(order), codecs[1:]
    if not codecs or codecs[0][0] != ("vlen-utf8" if dtype == _TEXT else "bytes"):
        raise MetadataError("its values are not coded as plain bytes or text")
    if codecs[0][1].get("endian") == "big":
        dtype = dtype.newbyteorder(">")
    return ChunkCoding(dtype, tuple(_bytes_step(name, each) for name, each in codecs[1:]), axes)


def _sharding(
    found: dict[str, Any], files: tuple[int, ...]
) -> tuple[tuple[int, ...], list[tuple[str, dict[str, Any]]], Sharding]:
    chunks = _lengths(found, "chunk_shape")
    if len(chunks) != len(files) or any(a % b for a, b in zip(files, chunks, strict=True) if b):
        raise MetadataError("its shards do not hold a whole number of chunks")
    index = _codec_list(found.get("index_codecs"))
    # Without the checksum a damaged index would turn chunks into zeros unnoticed.
    if [name for name, _ in index] != ["bytes", "crc32c"] or index[0][1].get("endian") == "big":
        raise MetadataError("the index of its shards has no checksum")
    place = found.get("index_location", "end")
    if place not in ("start", "end"):
        raise MetadataError(f"the index of its shards is at {place!r}")
    return chunks, _codec_list(found.get("codecs")), Sharding(at_end=place == "end")


def _bytes_step(name: str, found: dict[str, Any]) -> tuple[str, int]:
    name = name.removeprefix("numcodecs.")
    if name not in BYTES_CODECS:
        raise MetadataError(
            f"it is coded with {name!r}; only {', '.join(sorted(BYTES_CODECS))} are read"
        )
    size = found.get("elementsize", 4) if name == "shuffle" else 0
    if not isinstance(size, int) or not 0 <= size <= 64:
        raise MetadataError(f"its shuffle has an element size of {size!r}")
    return name, size


def _codec_id(found: Any) -> str:
    if not isinstance(found, dict) or not isinstance(found.get("id"), str):
        raise MetadataError("it names its codecs in an unknown way")
    return str(found["id"])


def _codec_list(found: Any) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(found, list):
        raise MetadataError("it names no codecs")
    return [_named(each, "codec") for each in found]


def _named(found: Any, what: str) -> tuple[str, dict[str, Any]]:
    if isinstance(found, str):
        return found, {}
    if isinstance(found, dict) and isinstance(found.get("name"), str):
        configuration = found.get("configuration") or {}
        if isinstance(configuration, dict):
            return found["name"], configuration
    raise MetadataError(f"its {what} is of an unknown kind")


def _lengths(found: dict[str, Any], name: str) -> tuple[int, ...]:
    lengths = found.get(name)
    sound = isinstance(lengths, list) and all(
        isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 2**62
        for each in lengths
    )
    if not sound or lengths is None or len(lengths) > 32:
        raise MetadataError(f"its {name} is not a list of whole numbers")
    return tuple(lengths)


def _numpy_type(found: Any) -> np.dtype[Any]:
    try:
        dtype = np.dtype(found) if isinstance(found, str) else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.kind not in _KINDS or not dtype.itemsize:
        raise MetadataError(f"its values are of the type {found!r}, which is not read")
    return dtype


def _fill(found: Any, dtype: np.dtype[Any]) -> Any:
    if dtype.kind in "OSU":
        # Format 2 writes 0 for no text at all; byte strings are given in base64 when not empty.
        if found in (None, 0, ""):
            return b"" if dtype.kind == "S" else ""
        raise MetadataError(f"its fill value is {found!r}")
    if found is None:
        return dtype.type(0)
    if dtype.kind == "f" and found in ("NaN", "Infinity", "-Infinity"):
        return dtype.type(float(found))
    if isinstance(found, int | float):
        try:
            return dtype.type(found)
        except (OverflowError, ValueError) as error:
            raise MetadataError(f"its fill value is {found!r}") from error
    raise MetadataError(f"its fill value is {found!r}")


def _checked(layout: ArrayLayout) -> ArrayLayout:
    ndim = len(layout.shape)
    if len(layout.chunks) != ndim or len(layout.files) != ndim or 0 in layout.chunks:
        raise MetadataError(f"it has chunks of {layout.chunks} for a shape of {layout.shape}")
    size = max(layout.coding.dtype.itemsize, 1)
    for length in layout.chunks:
        size *= length
    if size > MAX_CHUNK_BYTES:
        raise MetadataError(
            f"it has chunks of {size:,} bytes; at most {MAX_CHUNK_BYTES:,} are read"
        )
    return layout
