"""A file of a store, mapped read-only, whose chunks are checked before they are used.

- The size is compared with the manifest before mapping: a mapped file that is too short would
  kill the process at the first access beyond its end.
- A chunk is hashed and checked for structure (`check`) when it is first touched; a map remembers
  which ones are known to be good (see `seen_chunks`). Two threads or processes may check the same
  chunk: harmless.
- Files are opened without blocking, and only regular ones: a FIFO in their place cannot hang us.
"""

from __future__ import annotations

import io
import mmap
import os
import stat
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from omics.data.errors import ResourceError
from omics.data.storage.gather import all_seen
from omics.data.storage.store_format import ITEM_BYTES, damaged

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Array = np.ndarray[Any, np.dtype[Any]]

VERIFY_MODES = ("first", "always", "off")


class MappedFile:
    """One file of a generation.

    Args:
        path: the file.
        dtype: of its items, as in the manifest; `parquet` is read as bytes.
        size: in bytes, as in the manifest.
        chunk_bytes: of a checksummed chunk.
        seed: of the first chunk, see `file_seed`.
        checksums: uint64 [number of chunks].
        verify: `first` checks a chunk when it is first touched, `always` at every touch, `off`
            leaves the checksums out (the structure is still checked at first touch).
        seen: uint8 [number of chunks], not 0 where a chunk is known to be good.
        check: takes the items of one chunk and returns what is wrong with them, or None.

    Raises:
        CorruptStoreError: the file is missing, not a regular file or of another size.
        ResourceError: it exists but may not be read.
    """

    def __init__(
        self,
        path: Path,
        *,
        dtype: str,
        size: int,
        chunk_bytes: int,
        seed: int,
        checksums: Array,
        verify: str,
        seen: Array,
        check: Callable[[Array], str | None] | None = None,
    ) -> None:
        self.path = path
        self.size = size
        self.num_chunks = len(checksums)
        self._buffer = map_file(path, size)
        item = np.uint8 if dtype == "parquet" else np.dtype(dtype).newbyteorder("<")
        self.array: Array = np.frombuffer(self._buffer, dtype=item)
        self.array.flags.writeable = False  # Also of an empty file, so that types stay the same.
        self._item_bytes = ITEM_BYTES[dtype]
        self._chunk_bytes = chunk_bytes
        self._seed = seed
        self._checksums = checksums
        self._hashing = verify != "off"
        self._always = verify == "always"
        self._check = check
        self._seen = seen
        self._all_seen = False
        self._items_per_chunk = chunk_bytes // self._item_bytes

    def rows_seen(self, starts: Array, indptr: Array) -> bool:
        """Say whether all chunks that rows lie in are known to be good, without checking any.

        Args:
            starts: int64 [n], the first item of each row.
            indptr: int64 [n + 1], differences are the numbers of items.
        """
        if self._always:
            return False
        return self._all_seen or all_seen(starts, indptr, self._seen, self._items_per_chunk)

    def touch(self, begins: Array, ends: Array) -> None:
        """Check the chunks that hold some ranges of items, unless they are known to be good.

        Args:
            begins: int64 [n], first items; 0 <= begin <= end.
            ends: int64 [n], one beyond the last items; at most the number of items.

        Raises:
            CorruptStoreError: a chunk is damaged; the message names it.
        """
        if self._all_seen:
            return
        filled = ends > begins
        if not filled.all():
            begins, ends = begins[filled], ends[filled]
        if len(begins) == 0:
            return
        first = begins * self._item_bytes // self._chunk_bytes
        last = (ends * self._item_bytes - 1) // self._chunk_bytes
        lengths = last - first + 1
        ends_before = np.cumsum(lengths) - lengths
        chunks = np.unique(np.arange(lengths.sum()) + np.repeat(first - ends_before, lengths))
        if not self._always:
            chunks = chunks[self._seen[chunks] == 0]
        for chunk in chunks.tolist():
            self.check_chunk(chunk)
        if not self._always:
            self._all_seen = bool(self._seen.all())

    def touch_all(self) -> Array:
        """Check every chunk that is not known to be good and return all items.

        Raises:
            CorruptStoreError: a chunk is damaged; the message names it.
        """
        if not self._all_seen:
            self.touch(np.zeros(1, np.int64), np.array([len(self.array)], np.int64))
        return self.array

    def check_chunk(self, chunk: int, *, hashing: bool | None = None) -> None:
        """Check one chunk now.

        Args:
            chunk: its number.
            hashing: compare its checksum; None follows the file's `verify`.

        Raises:
            CorruptStoreError: it is damaged.
        """
        begin = chunk * self._chunk_bytes
        end = min(begin + self._chunk_bytes, self.size)
        if self._hashing if hashing is None else hashing:
            seed = (self._seed + chunk) % 2**64
            found = xxhash.xxh3_64_intdigest(memoryview(self._buffer)[begin:end], seed=seed)
            if found != int(self._checksums[chunk]):
                raise damaged(self.path, f"fails its checksum in chunk {chunk} ({begin}-{end})")
        if self._check is not None:
            wrong = self._check(self.array[begin // self._item_bytes : end // self._item_bytes])
            if wrong is not None:
                raise damaged(self.path, f"{wrong} in chunk {chunk} ({begin}-{end})")
        self._seen[chunk] = 1

    def reader(self) -> io.BufferedIOBase:
        """Return a file object over the checked bytes."""
        return _CheckedReader(self)


class _CheckedReader(io.BufferedIOBase):
    """Reads a mapped file, checking what it touches."""

    def __init__(self, source: MappedFile) -> None:
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}
        self._position = max(0, base[whence] + offset)
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        begin = min(self._position, self._source.size)
        end = self._source.size if size is None or size < 0 else begin + size
        end = min(end, self._source.size)
        self._source.touch(np.array([begin], np.int64), np.array([end], np.int64))
        self._position = end
        return self._source.array[begin:end].tobytes()


def map_file(path: Path, size: int) -> mmap.mmap | bytes:
    """Map a regular file read-only after comparing its size.

    Args:
        path: the file.
        size: in bytes, as in the manifest.

    Returns:
        The mapping, or empty bytes for an empty file.
    """
    descriptor = open_regular(path)
    try:
        found = os.fstat(descriptor).st_size
        if found != size:
            raise damaged(path, f"holds {found} bytes instead of {size}")
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be mapped: {error.strerror}. Close other programs or stores, or raise "
            "the limit of open files (ulimit -n)."
        ) from error
    finally:
        os.close(descriptor)


def read_small(path: Path, limit: int) -> bytes:
    """Read a small regular file.

    Args:
        path: the file.
        limit: the most bytes it may hold.

    Raises:
        CorruptStoreError: it is missing, not a regular file or too large.
    """
    descriptor = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        # Python sets aside all that is asked for: ask for what is there.
        data = file.read(min(os.fstat(descriptor).st_size, limit) + 1)
    if len(data) > limit:
        raise damaged(path, f"holds more than {limit} bytes")
    return data


def open_regular(path: Path) -> int:
    """Return a descriptor of a regular file, opened for reading without blocking."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise damaged(path, "is missing") from None
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be opened: {error.strerror}. Check its permissions and the disk."
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise damaged(path, "is not a regular file")
    return descriptor
