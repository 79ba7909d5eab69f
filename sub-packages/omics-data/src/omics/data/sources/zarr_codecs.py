"""Turns the bytes of one zarr chunk into an array, with every size bounded before it is allocated.

- Only the codecs named here are used; pickled objects and codecs that run foreign code are refused
  when the metadata is read.
- Compressed bytes say how long they are unpacked: that number is compared with what the chunk may
  hold first. A blosc header is checked field by field: a damaged one makes the library crash.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from omics.data.errors import InputDataError
from omics.data.sources.hdf5_safety import MAX_CHUNK_BYTES

Array = np.ndarray[Any, np.dtype[Any]]

BYTES_CODECS = frozenset({"gzip", "zlib", "zstd", "blosc", "lz4", "crc32c", "shuffle"})

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_BLOSC_HEADER = 16
_BLOSC_COPIED = 2


class ChunkError(ValueError):
    """Why a chunk cannot be decoded, a phrase for the message that names the chunk."""


@dataclass(frozen=True, slots=True)
class ChunkCoding:
    """How a chunk is coded.

    Attributes:
        dtype: of its values; `object` for text.
        steps: what was applied to its bytes, `(name, element size)`, in the order of encoding.
        axes: the order of the axes in which the values lie; None for the usual one.
    """

    dtype: np.dtype[Any]
    steps: tuple[tuple[str, int], ...] = ()
    axes: tuple[int, ...] | None = None


def decode_chunk(data: bytes, shape: tuple[int, ...], coding: ChunkCoding) -> Array:
    """Return the values of a chunk.

    Args:
        data: its bytes.
        shape: of the chunk.
        coding: how it is coded.

    Returns:
        The values [shape], numbers in native byte order, text as objects.

    Raises:
        ChunkError: the bytes are damaged or stand for something else than such a chunk.
    """
    count = int(np.prod(shape, dtype=np.int64))
    is_text = coding.dtype == object
    limit = MAX_CHUNK_BYTES if is_text else count * coding.dtype.itemsize
    # What stands between two steps can be a little longer than the values themselves.
    for number, (name, size) in enumerate(reversed(coding.steps)):
        is_last = number == len(coding.steps) - 1
        data = _undo(name, size, data, limit if is_last else limit + limit // 8 + 4096)
    values = _text_values(data, count) if is_text else _number_values(data, count, coding.dtype)
    axes = coding.axes or tuple(range(len(shape)))
    return values.reshape([shape[axis] for axis in axes]).transpose(np.argsort(axes))


def _undo(name: str, size: int, data: bytes, limit: int) -> bytes:
    if name in {"gzip", "zlib"}:
        return _inflated(data, limit, 31 if name == "gzip" else 15)
    if name == "zstd":
        return _zstd(data, limit)
    if name == "blosc":
        return _blosc(data, limit)
    if name == "lz4":
        return _lz4(data, limit)
    if name == "crc32c":
        return _checked(data)
    return _unshuffled(data, size)


def _inflated(data: bytes, limit: int, window: int) -> bytes:
    parts: list[bytes] = []
    while data:
        stream = zlib.decompressobj(window)
        try:
            parts.append(stream.decompress(data, limit + 1))
        except zlib.error as error:
            raise ChunkError(f"damaged compression: {error}") from error
        limit -= len(parts[-1])
        if limit < 0:
            raise ChunkError("it unpacks to more than the chunk holds")
        if not stream.eof:
            raise ChunkError("it is cut short")
        data = stream.unused_data
    return b"".join(parts)


def _zstd(data: bytes, limit: int) -> bytes:
    from numcodecs import zstd

    size = _zstd_size(data)
    if size is None:
        raise ChunkError("its zstd frame does not say how long it is unpacked")
    _check_size(size, limit)
    try:
        return bytes(zstd.decompress(data))
    except (RuntimeError, ValueError) as error:
        raise ChunkError(f"damaged compression: {error}") from error


def _zstd_size(data: bytes) -> int | None:
    """Return the unpacked size in the header of a zstd frame (RFC 8878, section 3.1.1.1)."""
    if not data.startswith(_ZSTD_MAGIC):
        raise ChunkError("it is not compressed with zstd")
    data = data[:18].ljust(18, b"\0")
    descriptor = data[4]
    single = descriptor >> 5 & 1
    start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    width = (single, 2, 4, 8)[descriptor >> 6]
    if width == 0:
        return None
    size = int.from_bytes(data[start : start + width], "little")
    return size + 256 if width == 2 else size


def _blosc(data: bytes, limit: int) -> bytes:
    from numcodecs import blosc

    if len(data) < _BLOSC_HEADER:
        raise ChunkError("it is cut short")
    version, _, flags, item = data[:4]
    size, block, stored = struct.unpack_from("<III", data, 4)
    _check_size(size, limit)
    if flags & _BLOSC_COPIED:
        sound = stored == size + _BLOSC_HEADER
    else:
        num_blocks = -(-size // block) if block else 0
        sound = (0 < block <= size or size == 0) and _BLOSC_HEADER + 4 * num_blocks <= stored
    if version != 2 or not item or stored != len(data) or not sound:
        raise ChunkError("it has no sound blosc header")
    try:
        return bytes(blosc.decompress(data))
    except (RuntimeError, ValueError) as error:
        raise ChunkError(f"damaged compression: {error}") from error


def _lz4(data: bytes, limit: int) -> bytes:
    from numcodecs import lz4

    if len(data) < 4:
        raise ChunkError("it is cut short")
    _check_size(int.from_bytes(data[:4], "little"), limit)
    try:
        return bytes(lz4.decompress(data))
    except (RuntimeError, ValueError) as error:
        raise ChunkError(f"damaged compression: {error}") from error


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise ChunkError(f"it unpacks to {size:,} bytes where the chunk holds {limit:,}")


def _checked(data: bytes) -> bytes:
    from numcodecs.checksum32 import CRC32C

    if len(data) < 4:
        raise ChunkError("it is cut short")
    try:
        CRC32C(location="end").decode(data)
    except (RuntimeError, ValueError) as error:
        raise ChunkError("its checksum differs") from error
    return data[:-4]


def _unshuffled(data: bytes, size: int) -> bytes:
    if size < 2:
        return data
    if len(data) % size:
        raise ChunkError("it does not hold whole values")
    return np.frombuffer(data, np.uint8).reshape(size, -1).T.tobytes()


def _number_values(data: bytes, count: int, dtype: np.dtype[Any]) -> Array:
    if len(data) != count * dtype.itemsize:
        raise ChunkError(f"it holds {len(data):,} bytes, not {count * dtype.itemsize:,}")
    if dtype.kind == "b":
        flags = np.frombuffer(data, np.uint8)
        if (flags > 1).any():
            raise ChunkError("it holds bytes that are neither true nor false")
    values = np.frombuffer(data, dtype)
    return values.astype(dtype.newbyteorder("="), copy=False)


def _text_values(data: bytes, count: int) -> Array:
    from numcodecs import VLenUTF8

    if len(data) < 4 + 4 * count or int.from_bytes(data[:4], "little") != count:
        raise ChunkError(f"it does not hold {count:,} texts")
    try:
        values: Array = VLenUTF8().decode(data)
    except (ValueError, RuntimeError) as error:
        raise ChunkError(f"damaged text: {error}") from error
    return values


def input_error(path: Any, what: str, why: str) -> InputDataError:
    """Return the error for a chunk or a metadata file.

    Args:
        path: of the store.
        what: the file inside it.
        why: what is wrong with it.
    """
    return InputDataError(
        f"{path}: {what} cannot be used: {why}. The store is damaged or of an unusual kind; copy or "
        f"download it again, or load it with anndata.io.read_zarr and write it again."
    )
