"""A matrix of a SOMA experiment, streamed as blocks of whole cells in the order of the cells.

- Ranges of cells are read by a thread ahead of the consumer; a range is planned for about
  `RANGE_ENTRIES` values, and one that turns out to hold far more is cut in halves, so memory stays
  within some 4 x `RANGE_ENTRIES` x 60 bytes, beside the budget that TileDB is given
  (`soma_access`).
- Sparse values come as coordinates in any order: a stable radix sort by cell makes rows of them.
- Every value goes through the checks of all matrices (`MatrixSource`). An entry of a gene that var
  does not have, or of a cell that obs does not have, is an error: nothing is dropped unasked.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.sources.matrix_blocks import DENSE_BLOCK_BYTES, MatrixSource, row_ends
from omics.data.sources.matrix_sample import NUM_PLACES, ValueSample
from omics.data.sources.soma_access import patiently

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from omics.data.sources.protocol import Block

Array = np.ndarray[Any, np.dtype[Any]]

RANGE_ENTRIES = 2_000_000
RANGES_AHEAD = 2
MAX_RANGE_CELLS = 2**16 - 1
# A range that holds this many times what was planned is cut in halves.
_SURPRISE = 4
# A coordinate pair and a value, as TileDB hands them out.
_ENTRY_BYTES = 24
_SAMPLE_CELLS = 64
# Up to here genes are asked for one by one, above by the range they span.
_SINGLE_GENES = 256
_TABLE_GENES = 2**22


@dataclass(frozen=True, kw_only=True)
class SomaMatrix(MatrixSource):
    """A matrix [cells, genes] of an open SOMA experiment, or the part of it that was asked for.

    Attributes:
        path: the address of the experiment, for messages.
        location: the name of the X layer.
        encoding: `coordinate` or `dense`.
        array: the open SOMA array.
        cells: int64 [n], the joinids of the cells, ascending.
        genes: int64 [g], the joinids of the genes, ascending.
        lengths: int64 [n], stored values of each cell, if obs tells.
        all_cells: no cell was left out.
        all_genes: no gene was left out.
        table_cells: how many cells the whole of obs has.
        reading: the thread pools that are at work; their source ends them before it closes, as
            TileDB would crash on reading from what is closed.
    """

    path: Any
    encoding: Any
    values: Any = None
    array: Any
    cells: Array
    genes: Array
    lengths: Array | None = None
    all_cells: bool = True
    all_genes: bool = True
    table_cells: int = 0
    reading: set[ThreadPoolExecutor] = field(default_factory=set)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored values."""
        return np.dtype(self.array.schema.field("soma_data").type.to_pandas_dtype())

    @property
    def stored_entries(self) -> int | None:
        """The number of stored values; None where that is not known without reading them."""
        if self.encoding == "dense" or not self.all_genes:
            return None
        if self.all_cells:
            return int(self.array.nnz)
        return None if self.lengths is None else int(self.lengths.sum())

    @property
    def mean_entries(self) -> float:
        """About how many values a cell has."""
        if self.lengths is not None and len(self.lengths):
            return float(self.lengths.mean())
        if self.encoding == "dense":
            return float(self.shape[1])
        return float(self.array.nnz) / max(self.table_cells, 1)

    def check_structure(self) -> None:
        """Check the type of the values.

        Raises:
            InputDataError: they are not numbers.
        """
        if self.dtype.kind not in "biuf":
            raise self.error(f"its values are of type {self.dtype}, not numbers")

    def count_empty(self, budget: int) -> int | None:
        """Return the number of cells without a value if obs tells it, else None."""
        if self.lengths is None or self.lengths.nbytes > budget:
            return None
        return int(np.count_nonzero(self.lengths == 0))

    # --- blocks ----------------------------------------------------------------------------------

    def stored_blocks(self, *, scratch: Path | None = None, first_cell: int = 0) -> Iterator[Block]:
        """Stream the matrix in order of cells. Cells before the first are not read.

        Args:
            scratch: not used: nothing has to be sorted on disk.
            first_cell: leave out the cells before this one.
        """
        self.check_structure()
        found = 0
        for block in self._ranges(first_cell):
            found += len(block[1])
            yield block
        whole = self.all_cells and self.all_genes and first_cell == 0
        if whole and self.encoding != "dense" and found != self.array.nnz:
            raise self.error(
                f"it holds {self.array.nnz:,} values, but only {found:,} are of cells in obs"
            )

    def _ranges(self, first_cell: int) -> Iterator[Block]:
        """Yield unchecked blocks in order, reading ahead."""
        # One thread: an open array must not be read by two at a time (tiledbsoma 2.3 corrupts its
        # memory then). TileDB itself fetches and unpacks the tiles of a range in parallel.
        pending: deque[tuple[int, int, Future[Block | None]]] = deque()
        thread = ThreadPoolExecutor(1, thread_name_prefix="omics-soma")
        self.reading.add(thread)
        try:
            for first, last in self._planned(first_cell):
                pending.append((first, last, thread.submit(self._read, first, last)))
                if len(pending) > RANGES_AHEAD:
                    yield from self._finished(*pending.popleft(), thread)
            while pending:
                yield from self._finished(*pending.popleft(), thread)
        finally:
            thread.shutdown(wait=True, cancel_futures=True)
            self.reading.discard(thread)

    def stop_reading(self) -> None:
        """End what is being read ahead, of iterators that were not read to their end."""
        for threads in list(self.reading):
            threads.shutdown(wait=True, cancel_futures=True)

    def _finished(
        self, first: int, last: int, future: Future[Block | None], thread: ThreadPoolExecutor
    ) -> Iterator[Block]:
        block = future.result()
        if block is not None:
            yield block
            return
        middle = (first + last) // 2
        for begin, end in ((first, middle), (middle, last)):
            yield from self._finished(begin, end, thread.submit(self._read, begin, end), thread)

    def _planned(self, first_cell: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of cells that hold about as many values as a range may."""
        if self.encoding == "dense":
            rows = max(DENSE_BLOCK_BYTES // max(self.shape[1] * self.dtype.itemsize, 1), 1)
            while first_cell < len(self.cells):
                limit = self.cells[first_cell] + rows
                last = int(np.searchsorted(self.cells, limit))
                yield first_cell, last
                first_cell = last
            return
        if self.lengths is not None:
            # One more for each cell bounds the number of cells too.
            spread = np.maximum(self.lengths[first_cell:], -(-RANGE_ENTRIES // MAX_RANGE_CELLS))
            ends = row_ends(spread, RANGE_ENTRIES) + first_cell
        else:
            step = int(RANGE_ENTRIES / max(self.mean_entries, 1))
            step = min(max(step, 1), MAX_RANGE_CELLS)
            ends = np.arange(first_cell, len(self.cells), step) + step
        first = first_cell
        for end in ends:
            last = min(int(end), len(self.cells))
            yield first, last
            first = last

    def _read(self, first: int, last: int) -> Block | None:
        """Return the unchecked values of a range of cells; None if they are far too many."""
        read = self._read_dense if self.encoding == "dense" else self._read_sparse
        return patiently(lambda: read(first, last), str(self.path))

    def _read_sparse(self, first: int, last: int) -> Block | None:
        wanted = self.cells[first:last]
        rows: Any = wanted
        if int(wanted[-1] - wanted[0]) == len(wanted) - 1:
            rows = slice(int(wanted[0]), int(wanted[-1]))
        columns: Any = slice(None)
        if not self.all_genes:
            few = len(self.genes) <= _SINGLE_GENES
            columns = self.genes if few else slice(int(self.genes[0]), int(self.genes[-1]))
        parts: list[tuple[Array, Array, Array]] = []
        total = 0
        for table in self.array.read((rows, columns)).tables():
            total += table.num_rows
            if total > _SURPRISE * RANGE_ENTRIES and last - first > 1:
                return None
            cells = _places(wanted, table.column("soma_dim_0").to_numpy()).astype(np.uint16)
            genes = self._gene_places(table.column("soma_dim_1").to_numpy())
            values = table.column("soma_data").to_numpy()
            if not self.all_genes:
                kept = genes >= 0
                cells, genes, values = cells[kept], genes[kept], values[kept]
            parts.append((cells, genes, values))
        if not parts:
            parts.append((np.empty(0, np.uint16), np.empty(0, np.int32), np.empty(0, self.dtype)))
        cells, genes, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        order = np.argsort(cells, kind="stable")
        indptr = np.zeros(len(wanted) + 1, np.int64)
        np.cumsum(np.bincount(cells, minlength=len(wanted)), out=indptr[1:])
        return indptr, genes[order].astype(np.int64), values[order]

    def _gene_places(self, joinids: Array) -> Array:
        """Return int32 positions in the gene table; -1, or an error, for genes not in it."""
        found = _places(self.genes, joinids).astype(np.int32)
        if self.all_genes and len(found) and int(found.min()) < 0:
            stray = int(joinids[found < 0][0])
            raise self.error(f"it has a value for gene {stray}, which var does not have")
        return found

    def _read_dense(self, first: int, last: int) -> Block:
        wanted = self.cells[first:last]
        begin = int(wanted[0])
        tensor = self.array.read((slice(begin, int(wanted[-1])), slice(None)))
        block = tensor.to_numpy()[wanted - begin]
        if int(self.genes[-1]) >= block.shape[1]:
            raise self.error(f"it has {block.shape[1]} columns, too few for the genes of var")
        block = block[:, self.genes]
        cells, genes = np.nonzero(block)
        indptr = np.zeros(len(wanted) + 1, np.int64)
        np.cumsum(np.bincount(cells, minlength=len(wanted)), out=indptr[1:])
        return indptr, genes.astype(np.int64), block[cells, genes]

    # --- a small sample --------------------------------------------------------------------------

    def sample(self, budget: int) -> ValueSample | None:
        """Return the values of cells from several places; see `Matrix`."""
        started = time.perf_counter()
        self.check_structure()
        fitting = int(budget / (_SURPRISE * _ENTRY_BYTES * max(self.mean_entries, 1)))
        if fitting < 1:
            return None
        total = len(self.cells)
        complete = total <= min(fitting, NUM_PLACES * _SAMPLE_CELLS)
        places = 1 if complete else min(NUM_PLACES, fitting)
        step = total if complete else min(fitting // places, _SAMPLE_CELLS, total)
        lengths: list[Array] = []
        values: list[Array] = []
        for place in range(places):
            first = min(place * total // places, total - step)
            block = self._read(first, first + step)
            if block is None:
                return None
            filled = np.zeros(len(block[2]) + 1, np.int64)
            np.cumsum(block[2] != 0, out=filled[1:])
            lengths.append(np.diff(filled[block[0]]))
            values.append(block[2][block[2] != 0])
        joined = np.concatenate(values)
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        return ValueSample(
            values=joined,
            indptr=indptr,
            num_places=max(len(joined), places * step),
            complete=complete,
            bytes_read=len(joined) * _ENTRY_BYTES,
            seconds=time.perf_counter() - started,
        )


def _places(known: Array, wanted: Array) -> Array:
    """Return int64 positions of joinids in an ascending list of them, -1 where they are not."""
    span = int(known[-1] - known[0]) + 1
    if span == len(known):
        found = wanted - known[0]
        outside = (found < 0) | (found >= span)
        return np.where(outside, -1, found) if outside.any() else found
    if span <= _TABLE_GENES and len(wanted) > len(known):
        table = np.full(span + 1, -1, np.int64)
        table[known - known[0]] = np.arange(len(known))
        return table[np.clip(wanted - known[0], -1, span)]
    found = np.searchsorted(known, wanted)
    found[found == len(known)] = 0
    return np.where(known[found] == wanted, found, -1)
