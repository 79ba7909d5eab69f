"""Streams one matrix of an HDF5 file as blocks of whole cells, validated, in bounded memory.

- A block is (`indptr`, `genes`, `values`): genes ascending within a cell, duplicates summed,
  zeros dropped; at most `BLOCK_ENTRIES` entries, or `DENSE_BLOCK_BYTES` of a dense matrix
  (values below 8 bytes count as 8).
- AnnData reads broken matrices without complaint, so everything is checked here: offsets,
  lengths, index ranges, NaN, infinite, negative and fractional values, with cell and gene named.
- CSC is turned round out of core: one pass counts the entries of each cell and cuts the cells
  into ranges of at most `BLOCK_ENTRIES`; a second pass appends the entries of every chunk of
  columns to the region of their range in a scratch file; each region is then one block. The
  matrix is read twice, the scratch file takes 16 bytes per entry beside the store.
- Memory: some 10 arrays of one block, 8 bytes per cell for CSC, and one HDF5 chunk.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from omics.data.errors import InputDataError
from omics.data.sources.flat_reading import FlatReader
from omics.data.sources.protocol import from_cell
from omics.data.storage.block_checks import compilable, compilable_genes
from omics.data.storage.block_encoding import (
    HAS_ZEROS,
    NOT_A_COUNT,
    NOT_ASCENDING,
    OUT_OF_RANGE,
    inspect_rows,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from omics.data.sources.matrix_sample import ValueSample
    from omics.data.sources.protocol import Block, ValueStorage

Array = np.ndarray[Any, np.dtype[Any]]
Encoding = Literal["csr", "csc", "dense"]

BLOCK_ENTRIES = 1_000_000
DENSE_BLOCK_BYTES = 32 * 2**20
# A place in a matrix of bytes costs as much as one of doubles, once its value is found.
_LEAST_ITEM = 8
INDPTR_WINDOW = 1_000_000
# A cell with more entries than a block and than this many per gene cannot be read in bounds.
MAX_REPEATS = 2
MAX_COUNT = 2**32 - 1

_SCRATCH = np.dtype([("row", "<u4"), ("gene", "<u4"), ("value", "<f8")])


@dataclass(frozen=True, kw_only=True)
class MatrixSource:
    """A matrix [cells, genes] inside an open HDF5 file.

    Attributes:
        path: the file, for messages.
        location: `X`, `raw.X` or `layers/NAME`.
        encoding: how it is stored.
        shape: cells, genes.
        values: the dataset of its values ([nnz], or [cells, genes] when dense).
        indices: the dataset of indices of a sparse matrix.
        indptr: the dataset of offsets of a sparse matrix.
    """

    path: Path
    location: str
    encoding: Encoding
    shape: tuple[int, int]
    values: Any
    indices: Any = None
    indptr: Any = None

    @property
    def stored_entries(self) -> int | None:
        """The number of stored values, explicit zeros included; None for a dense matrix."""
        return None if self.encoding == "dense" else int(self.values.shape[0])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored values, in native byte order."""
        return np.dtype(self.values.dtype).newbyteorder("=")

    def sample(self, budget: int) -> ValueSample | None:
        """Return values from several places of the matrix; see `sample_matrix`."""
        from omics.data.sources.matrix_sample import sample_matrix

        return sample_matrix(self, budget=budget)

    def count_empty(self, budget: int) -> int | None:
        """Return the number of cells without a stored value; None if that is not in the offsets."""
        if self.encoding != "csr" or self.indptr.size * self.indptr.dtype.itemsize > budget:
            return None
        offsets = self.read(self.indptr, slice(None)).astype(np.int64)
        return int(np.count_nonzero(np.diff(offsets) == 0))

    def blocks(
        self,
        storage: ValueStorage = "counts",
        *,
        scratch: Path | None = None,
        first_cell: int = 0,
    ) -> Iterator[Block]:
        """Stream the matrix in order of cells.

        Args:
            storage: `counts` refuses anything but counts; `float` yields float32 values and
                refuses NaN and infinite ones only.
            scratch: a folder with room for a CSC matrix; the system's temporary one by default.
            first_cell: leave out the cells before this one.

        Yields:
            indptr int64 [n + 1] starting at 0, genes (int32 or int64) [nnz], values [nnz]; the
            blocks together hold every cell once.

        Raises:
            InputDataError: the matrix is damaged, or a value is not of the kind asked for.
        """
        first = first_cell
        for block in self.stored_blocks(scratch=scratch, first_cell=first_cell):
            yield self.canonical(first, *block, storage=storage)
            first += len(block[0]) - 1

    def stored_blocks(self, *, scratch: Path | None = None, first_cell: int = 0) -> Iterator[Block]:
        """Stream the matrix in order of cells as it is stored; `canonical` checks a block.

        Args:
            scratch: see `blocks`.
            first_cell: see `blocks`.

        Yields:
            indptr int64 [n + 1] ascending from 0, genes (integers of any value and order) [nnz],
            values (numbers) [nnz].

        Raises:
            InputDataError: the matrix is damaged.
        """
        self.check_structure()
        if self.encoding == "csc":
            yield from from_cell(self._csc_blocks(scratch), first_cell)
        elif self.encoding == "dense":
            yield from self._dense_blocks(first_cell)
        else:
            yield from self._csr_blocks(first_cell)

    def error(self, found: str, advice: str = "") -> InputDataError:
        """Return the error for something wrong in this matrix.

        Args:
            found: what was found, beginning in lower case.
            advice: what to do; by default, to write the file again.
        """
        advice = advice or "The file is damaged or was written by a faulty program; write it again."
        return InputDataError(f"{self.location} of {self.path}: {found}. {advice}")

    # --- reading ---------------------------------------------------------------------------------

    def read(self, dataset: Any, where: Any) -> Array:
        """Return a selection of one of the datasets, in native byte order.

        Args:
            dataset: `values`, `indices` or `indptr`.
            where: a slice, or a tuple of slices.

        Raises:
            InputDataError: HDF5 cannot read it (a damaged chunk, a file cut short).
        """
        try:
            found = dataset[where]
        except (OSError, RuntimeError) as error:
            raise self._unreadable(getattr(dataset, "name", "it"), error) from error
        return np.asarray(found.astype(found.dtype.newbyteorder("="), copy=False))

    def _unreadable(self, what: str, error: Exception) -> InputDataError:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        if "memory allocation failed" in reason:  # So HDF5 says it; the file may be sound.
            raise MemoryError(reason) from error
        return self.error(f"{what} cannot be read ({reason})")

    def read_values(self, where: Any) -> Array:
        """Return a selection of the values, in native byte order."""
        return self.read(self.values, where)

    def check_structure(self) -> None:
        """Check types and lengths, which costs no read of the matrix.

        Raises:
            InputDataError: a dataset is of the wrong type, or their lengths do not fit.
        """
        if self.values.dtype.kind not in "biuf":
            raise self.error(f"its values are of type {self.values.dtype}, not numbers")
        if self.encoding == "dense":
            return
        for name, dataset in (("indices", self.indices), ("indptr", self.indptr)):
            if dataset.dtype.kind not in "iu" or dataset.ndim != 1:
                raise self.error(f"its {name} are of type {dataset.dtype}, not a list of integers")
        if self.values.shape != self.indices.shape:
            raise self.error(
                f"it has {self.values.shape[0]:,} values for {self.indices.shape[0]:,} indices"
            )
        major = self.shape[0] if self.encoding == "csr" else self.shape[1]
        if len(self.indptr) != major + 1:
            raise self.error(
                f"its indptr has {len(self.indptr):,} offsets where {major + 1:,} are needed"
            )

    def _spans(self, limit: int) -> Iterator[tuple[int, Array]]:
        """Cut the compressed axis into (first position, offsets) of at most `limit` entries."""
        total, previous = int(self.values.shape[0]), 0
        major = len(self.indptr) - 1
        for start in range(0, max(major, 1), INDPTR_WINDOW):
            stop = min(start + INDPTR_WINDOW, major)
            offsets = self.read(self.indptr, slice(start, stop + 1)).astype(np.int64)
            if offsets[0] != previous or (np.diff(offsets) < 0).any() or offsets[-1] > total:
                raise self.error("its indptr does not ascend from 0 to the number of values")
            previous = int(offsets[-1])
            first = 0
            while first < stop - start:
                end = int(np.searchsorted(offsets, offsets[first] + limit, side="right")) - 1
                last = max(first + 1, end)
                self._check_size(start + first, int(offsets[last] - offsets[first]), limit)
                yield start + first, offsets[first : last + 1]
                first = last
        if previous != total:
            raise self.error(f"its indptr ends at {previous:,}, not at its {total:,} values")

    def _check_size(self, position: int, entries: int, limit: int) -> None:
        across = self.shape[1] if self.encoding == "csr" else self.shape[0]
        if entries > max(limit, MAX_REPEATS * across):
            name = "row" if self.encoding == "csr" else "column"
            raise self.error(f"{name} {position} has {entries:,} entries for {across:,} places")

    def _checked_indices(self, first: int, offsets: Array) -> Array:
        begin, end = int(offsets[0]), int(offsets[-1])
        indices = self.read(self.indices, slice(begin, end)).astype(np.int64)
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= self.shape[0]):
            self._refuse_index(first, offsets - begin, indices)
        return indices

    def _refuse_index(self, first: int, offsets: Array, indices: Array) -> None:
        across = self.shape[0] if self.encoding == "csc" else self.shape[1]
        names = ("column", "row") if self.encoding == "csc" else ("row", "column")
        entry = int(np.argmax((indices < 0) | (indices >= across)))
        major = first + int(np.searchsorted(offsets, entry, side="right")) - 1
        raise self.error(
            f"{names[0]} {major} has an entry at {names[1]} {indices[entry]}, outside 0 to "
            f"{across - 1}"
        )

    def _csr_blocks(self, first_cell: int) -> Iterator[Block]:
        genes_reader, values_reader = self._readers
        for first, offsets in self._spans(BLOCK_ENTRIES):
            skipped = min(max(first_cell - first, 0), len(offsets) - 1)
            if skipped == len(offsets) - 1:
                continue
            kept = offsets[skipped:]
            begin, end = int(kept[0]), int(kept[-1])
            genes = self._guarded(genes_reader, begin, end)
            values = self._guarded(values_reader, begin, end)
            yield kept - begin, genes, values

    @cached_property
    def _readers(self) -> tuple[FlatReader, FlatReader]:
        return FlatReader(self.path, self.indices), FlatReader(self.path, self.values)

    def _guarded(self, reader: FlatReader, begin: int, end: int) -> Array:
        try:
            return reader.read(begin, end)
        except (OSError, RuntimeError) as error:
            raise self._unreadable(reader.name, error) from error

    @property
    def dense_rows(self) -> int:
        """How many cells of a dense matrix are one block."""
        row_bytes = self.shape[1] * max(self.values.dtype.itemsize, _LEAST_ITEM)
        return max(1, DENSE_BLOCK_BYTES // max(row_bytes, 1))

    def _dense_blocks(self, first_cell: int) -> Iterator[Block]:
        num_cells = self.shape[0]
        rows = self.dense_rows
        chunk_rows = self.values.chunks[0] if self.values.chunks else 1
        if rows > chunk_rows:
            rows -= rows % chunk_rows
        for start in range(first_cell, num_cells, rows):
            block = self.read_values(slice(start, min(start + rows, num_cells)))
            cells, genes = np.nonzero(block)
            indptr = np.zeros(len(block) + 1, np.int64)
            np.cumsum(np.bincount(cells, minlength=len(block)), out=indptr[1:])
            yield indptr, genes, block[cells, genes]

    # --- CSC -------------------------------------------------------------------------------------

    def _csc_blocks(self, scratch: Path | None) -> Iterator[Block]:
        lengths = np.zeros(self.shape[0], np.int64)
        for first, offsets in self._spans(BLOCK_ENTRIES):
            indices = self._checked_indices(first, offsets)
            lengths += np.bincount(indices, minlength=self.shape[0])
        ends = row_ends(lengths, BLOCK_ENTRIES)
        if len(ends) <= 1:
            parts = [self._column_entries(*span) for span in self._spans(BLOCK_ENTRIES)]
            entries = np.concatenate(parts) if parts else np.empty(0, _SCRATCH)
            if self.shape[0]:
                yield _block_of_entries(entries, 0, self.shape[0])
            return
        with tempfile.TemporaryFile(dir=scratch) as file:
            starts = np.concatenate([[0], ends[:-1]])
            self._scatter(file, lengths, starts)
            regions = np.concatenate([[0], np.cumsum(np.add.reduceat(lengths, starts))])
            file.seek(0)
            for bucket, (start, end) in enumerate(zip(starts, ends, strict=True)):
                size = int(regions[bucket + 1] - regions[bucket])
                entries = np.frombuffer(file.read(size * _SCRATCH.itemsize), _SCRATCH)
                yield _block_of_entries(entries, int(start), int(end))

    def _column_entries(self, first: int, offsets: Array) -> Array:
        entries = np.empty(int(offsets[-1] - offsets[0]), _SCRATCH)
        entries["row"] = self._checked_indices(first, offsets)
        columns = np.arange(first, first + len(offsets) - 1)
        entries["gene"] = np.repeat(columns, np.diff(offsets))
        values = self.read_values(slice(int(offsets[0]), int(offsets[-1])))
        # float64 holds every count exactly; what it rounds (above 2^53) is refused as too large.
        entries["value"] = values
        return entries

    def _scatter(self, file: Any, lengths: Array, starts: Array) -> None:
        cursors = np.cumsum(lengths)[starts] - lengths[starts]
        for first, offsets in self._spans(BLOCK_ENTRIES):
            entries = self._column_entries(first, offsets)
            buckets = np.searchsorted(starts, entries["row"], side="right") - 1
            entries = entries[np.argsort(buckets, kind="stable")]
            sizes = np.bincount(buckets, minlength=len(starts))
            begin = 0
            for bucket in np.flatnonzero(sizes):
                part = entries[begin : begin + sizes[bucket]]
                file.seek(int(cursors[bucket]) * _SCRATCH.itemsize)
                file.write(part.tobytes())
                cursors[bucket] += len(part)
                begin += len(part)

    # --- validation ------------------------------------------------------------------------------

    def canonical(
        self, first: int, indptr: Array, genes: Array, values: Array, *, storage: ValueStorage
    ) -> Block:
        """Check a stored block and, where it is needed, bring its entries into their one order.

        Args:
            first: the number of its first cell, for messages.
            indptr: as `stored_blocks` yields it.
            genes: likewise.
            values: likewise.
            storage: see `blocks`.

        Returns:
            A block as `blocks` yields it.

        Raises:
            InputDataError: an index is out of range, or a value is not of the kind asked for.
        """
        genes, numbers = compilable_genes(genes), compilable(values)
        found = inspect_rows(indptr, genes, numbers, self.shape[1])
        if found & OUT_OF_RANGE:
            self._refuse_index(first, indptr, genes)
        if storage == "float":
            values = self._floats(first, indptr, genes, values)
        elif found & NOT_A_COUNT:
            self._counts(first, indptr, genes, values)
        else:
            values = numbers
        if found & NOT_ASCENDING:
            indptr, genes, values = self._sorted(first, indptr, genes, values, storage=storage)
        if found & (HAS_ZEROS | NOT_ASCENDING) or storage == "float":
            indptr, genes, values = _without_zeros(indptr, genes, values)
        return indptr, genes, values

    def _counts(self, first: int, indptr: Array, genes: Array, values: Array) -> Array:
        # The cast of NaN, infinite or negative values is undefined, so the result is compared.
        with np.errstate(invalid="ignore"):
            counts = values.astype(np.uint32)
        wrong = counts != values
        if wrong.any():
            entry = int(np.argmax(wrong))
            row = first + int(np.searchsorted(indptr, entry, side="right")) - 1
            raise self._wrong_value(row, int(genes[entry]), values[entry])
        return counts

    def _floats(self, first: int, indptr: Array, genes: Array, values: Array) -> Array:
        with np.errstate(over="ignore"):
            floats = values.astype(np.float32)
        wrong = ~np.isfinite(floats)
        if wrong.any():
            entry = int(np.argmax(wrong))
            row = first + int(np.searchsorted(indptr, entry, side="right")) - 1
            raise self._wrong_value(row, int(genes[entry]), values[entry])
        return floats

    def _wrong_value(self, row: int, column: int, value: Any) -> InputDataError:
        number = float(value)
        if not np.isfinite(number):
            found = f"{number} is not a number of the data"
        elif number < 0:
            found = f"{value} is negative"
        elif number != np.floor(number):
            found = f"{value} is not a whole number"
        else:
            found = f"{value} is larger than the largest count a store can hold ({MAX_COUNT:,})"
        return self.error(
            f"the value at row {row}, column {column} is no raw count: {found}"
            if np.isfinite(number)
            else f"the value at row {row}, column {column}: {found}",
            "Look at the file with `omics-data check`, or choose another matrix with --counts.",
        )

    def _sorted(
        self, first: int, indptr: Array, genes: Array, values: Array, *, storage: ValueStorage
    ) -> Block:
        from scipy.sparse import csr_matrix

        wide = values.astype(np.int64 if storage == "counts" else np.float64)
        shape = (len(indptr) - 1, self.shape[1])
        matrix = csr_matrix((wide, genes.astype(np.int64), indptr), shape=shape, copy=True)
        matrix.sum_duplicates()
        indptr, genes = matrix.indptr.astype(np.int64), matrix.indices
        narrowed = self._counts if storage == "counts" else self._floats
        return indptr, genes, narrowed(first, indptr, genes, matrix.data)


def _without_zeros(indptr: Array, genes: Array, values: Array) -> Block:
    keep = values != 0
    if keep.all():
        return indptr, genes, values
    kept_before = np.zeros(len(keep) + 1, np.int64)
    np.cumsum(keep, out=kept_before[1:])
    return kept_before[indptr], genes[keep], values[keep]


def row_ends(lengths: Array, limit: int) -> Array:
    """Cut rows into consecutive ranges that each hold a bounded number of entries.

    Args:
        lengths: integers [n], entries of each row.
        limit: how many entries a range may hold (a single longer row is a range of its own).

    Returns:
        int64 [ranges], the row after the last one of each range.
    """
    totals = np.cumsum(lengths)
    ends: list[int] = []
    start, before = 0, 0
    while start < len(lengths):
        end = max(start + 1, int(np.searchsorted(totals, before + limit, side="right")))
        ends.append(end)
        start, before = end, int(totals[end - 1])
    return np.asarray(ends, np.int64)


def _block_of_entries(entries: Array, start: int, end: int) -> Block:
    rows = entries["row"].astype(np.int64) - start
    order = np.argsort(rows, kind="stable")
    indptr = np.zeros(end - start + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=end - start), out=indptr[1:])
    return indptr, entries["gene"][order].astype(np.int64), entries["value"][order]
