"""`ChecksummedFile`: a file of a store while it is written, with the checksums of its chunks.

- Data is hashed as it goes out, so no byte is read again.
- A file can be continued after a crash: what lies beyond the recorded size is cut off.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from omics.data.storage.store_format import ITEM_BYTES, FileEntry

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    Array = np.ndarray[Any, np.dtype[Any]]


class ChecksummedFile:
    """A file that is written once, from its beginning to its end.

    Args:
        path: of the file, which is created.
        dtype: of its items, as in the manifest.
        seed: of its first chunk, see `file_seed`.
        chunk_bytes: of a checksummed chunk.
    """

    def __init__(self, path: Path, dtype: str, seed: int, chunk_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes
        self.path = path
        self.dtype = dtype
        self.seed = seed
        self.size = 0
        self.checksums: list[int] = []
        self._hash: Any = None
        self._whole: Any = None
        self._file = path.open("ab")

    @classmethod
    def of_existing(cls, path: Path, dtype: str, seed: int, chunk_bytes: int) -> ChecksummedFile:
        """Return the closed file that another library wrote, its sha256 included."""
        file = cls(path, dtype, seed, chunk_bytes)
        file._whole = hashlib.sha256()
        with path.open("rb") as stream:
            while data := stream.read(chunk_bytes):
                file._whole.update(data)
                file._add(memoryview(data))
        file.close()
        return file

    @classmethod
    def continued(
        cls,
        path: Path,
        dtype: str,
        seed: int,
        chunk_bytes: int,
        *,
        size: int,
        checksums: Sequence[int],
    ) -> ChecksummedFile:
        """Return a file as it was when `size` bytes had been written.

        Args:
            path: of the file, which holds at least that many bytes.
            dtype: of its items.
            seed: of its first chunk.
            chunk_bytes: of a checksummed chunk.
            size: in bytes.
            checksums: of the chunks that were complete then.

        Raises:
            OSError: the file is shorter.
        """
        complete = len(checksums) * chunk_bytes
        with path.open("r+b") as stream:
            stream.seek(complete)
            data = stream.read(size - complete)
            if complete + len(data) != size:
                raise OSError(f"{path} holds less than the {size} bytes that were recorded")
            stream.truncate(size)
        file = cls(path, dtype, seed, chunk_bytes)
        file.checksums = list(checksums)
        file.size = complete
        file._add(memoryview(data))
        return file

    @property
    def descriptor(self) -> int:
        """The file descriptor, while the file is open."""
        return self._file.fileno()

    @property
    def num_items(self) -> int:
        """How many items have been written."""
        return self.size // ITEM_BYTES[self.dtype]

    def write(self, values: Array) -> None:
        """Append values, cast to the file's type (callers have checked that they fit)."""
        stored = np.ascontiguousarray(values, dtype=np.dtype(self.dtype).newbyteorder("<"))
        if stored.size:
            data = stored.view(np.uint8).data
            self._file.write(data)
            self._add(data)

    def _add(self, data: memoryview) -> None:
        while len(data):
            room = self.chunk_bytes - self.size % self.chunk_bytes
            if self._hash is None:
                self._hash = xxhash.xxh3_64(seed=(self.seed + len(self.checksums)) % 2**64)
            part = data[:room]
            self._hash.update(part)
            self.size += len(part)
            if len(part) == room:
                self._end_chunk()
            data = data[room:]

    def _end_chunk(self) -> None:
        self.checksums.append(self._hash.intdigest())
        self._hash = None

    def make_durable(self) -> None:
        """Put everything written so far on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def complete_checksums(self) -> list[int]:
        """Return the checksums of the chunks that are complete."""
        return self.checksums[: self.size // self.chunk_bytes]

    def close(self) -> None:
        """End the last chunk and close the file; a second call does nothing."""
        if not self._file.closed:
            self._file.close()
            if self._hash is not None:
                self._end_chunk()

    def rename(self, path: Path) -> None:
        """Give the file another name."""
        self.path = self.path.rename(path)

    def entry(self) -> FileEntry:
        """Return what the manifest says of the file."""
        whole = None if self._whole is None else self._whole.hexdigest()
        return FileEntry(self.dtype, self.size, whole)
