"""Some columns of a CSR matrix as a matrix of its own, such as the genes among other features."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.sources.matrix_blocks import MAX_REPEATS
from omics.data.sources.matrix_sample import MAX_ENTRIES, MAX_ROWS, NUM_PLACES, ValueSample

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from omics.data.errors import InputDataError
    from omics.data.sources.matrix_blocks import MatrixSource
    from omics.data.sources.protocol import Block, ValueStorage

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class GeneSubset:
    """Columns of a matrix stored as CSR.

    Attributes:
        whole: the matrix.
        location: of the subset, for messages.
        columns: int64 [genes], ascending: which columns of `whole`.
    """

    whole: MatrixSource
    location: str
    columns: Array

    @property
    def encoding(self) -> str:
        """As the whole matrix is stored."""
        return self.whole.encoding

    @property
    def shape(self) -> tuple[int, int]:
        """Cells, genes of the subset."""
        return self.whole.shape[0], len(self.columns)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored values."""
        return self.whole.dtype

    @property
    def stored_entries(self) -> int | None:
        """Not known without reading every index."""
        return None

    def error(self, found: str, advice: str = "") -> InputDataError:
        """Return the error for something wrong in the matrix.

        Args:
            found: what was found, beginning in lower case.
            advice: what to do.
        """
        return self.whole.error(found, advice)

    def blocks(
        self, storage: ValueStorage = "counts", *, scratch: Path | None = None, first_cell: int = 0
    ) -> Iterator[Block]:
        """Stream the subset in order of cells; the whole matrix is read and checked.

        Args:
            storage: `counts` or `float`, see `MatrixSource.blocks`.
            scratch: not needed.
            first_cell: leave out the cells before this one.

        Yields:
            indptr, genes and values of whole cells.

        Raises:
            InputDataError: the matrix is damaged, or a value is not of the kind asked for.
        """
        places = column_places(self.columns, self.whole.shape[1])
        blocks = self.whole.blocks(storage, scratch=scratch, first_cell=first_cell)
        for indptr, genes, values in blocks:
            yield kept_columns(places, indptr, genes, values)

    def sample(self, budget: int) -> ValueSample | None:
        """Return the values of whole cells from several places.

        Args:
            budget: how many decompressed bytes may be read.

        Returns:
            The sample; None when a single place would cost more.

        Raises:
            InputDataError: the matrix is damaged.
        """
        started = time.perf_counter()
        self.whole.check_structure()
        places = column_places(self.columns, self.whole.shape[1])
        num_cells = self.whole.shape[0]
        cost = sum(
            _chunk_bytes(each)
            for each in (self.whole.values, self.whole.indices, self.whole.indptr)
        )
        tries = min(NUM_PLACES, budget // (2 * cost))
        if not tries:
            return None
        rows = max(1, min(MAX_ROWS, num_cells // tries))
        room = budget // (2 * tries)
        if self._bytes <= budget // 2 and int(self.whole.values.size) <= MAX_ENTRIES:
            tries, rows = 1, num_cells
        parts = [
            self._rows(place * num_cells // tries, rows, places, room) for place in range(tries)
        ]
        values = np.concatenate([part[1] for part in parts])
        lengths = np.concatenate([np.diff(part[0]) for part in parts])
        keep = values != 0
        cells = np.repeat(np.arange(len(lengths)), lengths)[keep]
        indptr = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(np.bincount(cells, minlength=len(lengths)), out=indptr[1:])
        return ValueSample(
            values=values[keep],
            indptr=indptr,
            num_places=len(lengths) * self.shape[1],
            complete=len(lengths) == num_cells,
            bytes_read=sum(part[2] for part in parts) + tries * cost,
            seconds=time.perf_counter() - started,
        )

    def count_empty(self, budget: int) -> int | None:
        """Return the number of cells without a value of these genes.

        Args:
            budget: how many bytes may be read; the whole matrix is needed.

        Returns:
            The number, or None if that costs more.
        """
        if self._bytes > budget:
            return None
        return sum(int((np.diff(block[0]) == 0).sum()) for block in self.blocks("float"))

    @property
    def _bytes(self) -> int:
        parts = (self.whole.values, self.whole.indices, self.whole.indptr)
        return sum(int(part.size) * int(part.dtype.itemsize) for part in parts)

    def _rows(self, first: int, rows: int, places: Array, room: int) -> tuple[Array, Array, int]:
        whole = self.whole
        stop = min(first + rows, whole.shape[0])
        offsets = whole.read(whole.indptr, slice(first, stop + 1)).astype(np.int64)
        if not len(offsets) or offsets[0] < 0 or (np.diff(offsets) < 0).any():
            raise whole.error("its indptr does not ascend from 0 to the number of values")
        item = whole.values.dtype.itemsize + whole.indices.dtype.itemsize
        last = max(1, int(np.searchsorted(offsets, offsets[0] + room // item, side="right")) - 1)
        last = min(last, len(offsets) - 1)
        if offsets[last] - offsets[0] > max(room // item, MAX_REPEATS * len(places)):
            raise whole.error(f"row {first} has {offsets[1] - offsets[0]:,} entries")
        span = slice(int(offsets[0]), int(offsets[last]))
        genes = whole.read(whole.indices, span).astype(np.int64)
        if len(genes) != span.stop - span.start or ((genes < 0) | (genes >= len(places))).any():
            raise whole.error("an index is outside the features")
        indptr = offsets[: last + 1] - offsets[0]
        kept = kept_columns(places, indptr, genes, whole.read_values(span))
        return kept[0], kept[2], item * len(genes)


def column_places(columns: Array, total: int) -> Array:
    """Return where each column of a matrix is in a subset.

    Args:
        columns: int64 [genes], the columns of the subset.
        total: columns of the matrix.

    Returns:
        int64 [total], -1 for columns that are not in it.
    """
    places = np.full(total, -1, np.int64)
    places[columns] = np.arange(len(columns))
    return places


def kept_columns(places: Array, indptr: Array, genes: Array, values: Array) -> Block:
    """Return the entries of a block that belong to a subset of the columns.

    Args:
        places: int64 [columns], from `column_places`.
        indptr: int64 [n + 1].
        genes: integers [nnz].
        values: [nnz].

    Returns:
        The block of the subset.
    """
    found = places[genes]
    keep = found >= 0
    before = np.zeros(len(keep) + 1, np.int64)
    np.cumsum(keep, out=before[1:])
    return before[indptr], found[keep].astype(np.uint32), values[keep]


def _chunk_bytes(array: Any) -> int:
    chunks = array.chunks or (1,)
    return int(np.prod(chunks, dtype=np.int64)) * int(array.dtype.itemsize)
