"""Brings the entries of a matrix into the order of cells, whatever order they come in, out of core.

- Entries are appended to scratch files as they are read; once all are there, the files are the
  values and indices of a CSR matrix, and `MatrixSource` checks and streams it like any other.
- Entries that come in the order of cells are never sorted. Others are dealt out to ranges of cells
  of `BLOCK_ENTRIES` entries, and each range is sorted on its own.
- Memory: 16 bytes per cell and some 10 arrays of one batch or range. Scratch space: 16 bytes per
  entry, twice that while sorting; nothing is left behind.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from omics.data.compiled import compiled
from omics.data.sources.matrix_blocks import BLOCK_ENTRIES, MatrixSource, row_ends

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO

Array = np.ndarray[Any, np.dtype[Any]]

_CELL, _GENE = np.dtype("<u4"), np.dtype("<u4")


@dataclass(frozen=True, slots=True)
class _FileArray:
    """A list of numbers in a file, read by slices."""

    file: IO[bytes]
    dtype: np.dtype[Any]
    length: int
    name: str
    chunks: None = None

    @property
    def shape(self) -> tuple[int]:
        return (self.length,)

    @property
    def ndim(self) -> int:
        return 1

    @property
    def size(self) -> int:
        return self.length

    @property
    def nbytes(self) -> int:
        return self.length * self.dtype.itemsize

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, where: slice) -> Array:
        start, stop, _ = where.indices(self.length)
        self.file.seek(start * self.dtype.itemsize)
        return np.frombuffer(self.file.read(max(stop - start, 0) * self.dtype.itemsize), self.dtype)


class EntrySpool:
    """Entries on their way into the order of cells.

    Args:
        num_cells: rows of the matrix, below 2**32.
        num_genes: columns, below 2**32.
        dtype: of the values.
        scratch: a folder with room for the entries; by default the system's temporary one.
    """

    def __init__(
        self,
        num_cells: int,
        num_genes: int,
        *,
        dtype: np.dtype[Any],
        scratch: Path | None = None,
    ) -> None:
        self.shape = (num_cells, num_genes)
        self._dtype = dtype
        self._scratch = scratch
        self._lengths = np.zeros(num_cells, np.int64)
        self._state = np.array([0, 1], np.int64)  # The last cell; whether all came in order.
        self._files: list[IO[bytes]] = []
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Open the scratch files."""
        self._files = self._new_files()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the scratch files, which removes them."""
        self._closing.close()

    def append(self, cells: Array, genes: Array, values: Array) -> None:
        """Add entries.

        Args:
            cells: integers [n], known to be in range.
            genes: integers [n], known to be in range.
            values: numbers [n].
        """
        cells = np.ascontiguousarray(cells, _CELL)
        compiled(_count)(cells, self._lengths, self._state)
        for file, part, dtype in zip(
            self._files, (cells, genes, values), (_CELL, _GENE, self._dtype), strict=True
        ):
            file.write(np.ascontiguousarray(part, dtype).data)

    def matrix(self, path: Path, location: str) -> MatrixSource:
        """Return the matrix of all entries, readable until the spool is closed.

        Args:
            path: where the entries come from, for messages.
            location: of the matrix there, for messages.
        """
        total = int(self._lengths.sum())
        indptr = np.zeros(len(self._lengths) + 1, np.int64)
        np.cumsum(self._lengths, out=indptr[1:])
        if not self._state[1]:
            self._sort(indptr)
        return MatrixSource(
            path=path,
            location=location,
            encoding="csr",
            shape=self.shape,
            values=_FileArray(self._files[2], self._dtype, total, "values"),
            indices=_FileArray(self._files[1], _GENE, total, "indices"),
            indptr=indptr,
        )

    def _new_files(self) -> list[IO[bytes]]:
        return [
            self._closing.enter_context(tempfile.TemporaryFile(dir=self._scratch)) for _ in range(3)
        ]

    def _sort(self, indptr: Array) -> None:
        """Deal the entries out to ranges of cells, then sort each range."""
        ends = row_ends(self._lengths, BLOCK_ENTRIES)
        starts = np.concatenate([[0], ends[:-1]])
        dealt = self._new_files()
        cursors = indptr[starts]
        for batch in self._batches(int(indptr[-1])):
            ranges = np.searchsorted(starts, batch[0], side="right") - 1
            order = np.argsort(ranges, kind="stable")
            sizes = np.bincount(ranges, minlength=len(starts))
            for file, part in zip(dealt, batch, strict=True):
                ordered, begin = part[order], 0
                for number in np.flatnonzero(sizes):
                    file.seek(int(cursors[number]) * part.dtype.itemsize)
                    file.write(ordered[begin : begin + sizes[number]].data)
                    begin += int(sizes[number])
            cursors += sizes
        self._files = dealt
        for start, end in zip(indptr[starts], indptr[ends], strict=True):
            parts = self._read(int(start), int(end))
            order = np.lexsort((parts[1], parts[0]))
            for file, part in zip(dealt, parts, strict=True):
                file.seek(int(start) * part.dtype.itemsize)
                file.write(part[order].data)

    def _batches(self, total: int) -> Iterator[list[Array]]:
        for start in range(0, total, BLOCK_ENTRIES):
            yield self._read(start, min(start + BLOCK_ENTRIES, total))

    def _read(self, start: int, stop: int) -> list[Array]:
        types = (_CELL, _GENE, self._dtype)
        return [
            _FileArray(file, dtype, stop, "")[start:stop]
            for file, dtype in zip(self._files, types, strict=True)
        ]


def _count(cells: Array, lengths: Array, state: Array) -> None:
    last = state[0]
    ordered = state[1]
    for cell in cells:
        lengths[cell] += 1
        if cell < last:
            ordered = 0
        last = cell
    state[0] = last
    state[1] = ordered
