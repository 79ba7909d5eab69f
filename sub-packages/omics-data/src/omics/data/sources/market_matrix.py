"""A Matrix Market file of features and barcodes as a matrix [cells, genes].

- The text is read once: its entries go to a scratch file, and from there in the order of cells into
  the same checks as any other matrix (`entry_spool`). Files sorted by barcode, as CellRanger writes
  them, are not sorted again.
- A sample comes from the beginning of the text: a compressed one cannot be entered elsewhere.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError
from omics.data.sources.entry_spool import EntrySpool
from omics.data.sources.matrix_market import MarketHeader, read_entries
from omics.data.sources.matrix_sample import MAX_ENTRIES, ValueSample

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from omics.data.sources.protocol import Block, ValueStorage

Array = np.ndarray[Any, np.dtype[Any]]

# A line of counts takes about 12 characters.
_SAMPLE_TEXT = 12 * MAX_ENTRIES


@dataclass(frozen=True, kw_only=True)
class MarketMatrix:
    """A matrix in a Matrix Market file.

    Attributes:
        path: the file.
        location: of the matrix, for messages.
        header: of the file.
        places: int64 [features], which gene of this matrix a feature is; -1 for none.
        shape: cells, genes.
        cells_first: the rows of the file are cells, not features.
    """

    path: Path
    location: str
    header: MarketHeader
    places: Array
    shape: tuple[int, int]
    cells_first: bool = False

    @property
    def encoding(self) -> str:
        """A list of places and values."""
        return "coordinate"

    @property
    def dtype(self) -> np.dtype[Any]:
        """int64 or float64."""
        return self.header.dtype

    @property
    def stored_entries(self) -> int | None:
        """As the header says; None when only some of the features are genes of this matrix."""
        return self.header.entries if self._is_whole else None

    @property
    def _is_whole(self) -> bool:
        return len(self.places) == self.shape[1]

    def error(self, found: str, advice: str = "") -> InputDataError:
        """Return the error for something wrong in this matrix.

        Args:
            found: what was found, beginning in lower case.
            advice: what to do; by default, to fetch the file again.
        """
        advice = advice or "The file is damaged; fetch it again."
        return InputDataError(f"{self.location} of {self.path}: {found}. {advice}")

    def blocks(
        self, storage: ValueStorage = "counts", *, scratch: Path | None = None, first_cell: int = 0
    ) -> Iterator[Block]:
        """Stream the matrix in order of cells, after one pass over the text.

        Args:
            storage: `counts` or `float`, see `MatrixSource.blocks`.
            scratch: a folder with room for 16 bytes per entry, 32 if they are not sorted by cell;
                by default the system's temporary one.
            first_cell: leave out the cells before this one.

        Yields:
            indptr, genes and values of whole cells.

        Raises:
            InputDataError: the file is damaged, or a value is not of the kind asked for.
        """
        with EntrySpool(*self.shape, dtype=np.dtype(np.float64), scratch=scratch) as spool:
            for _, cells, genes, values in self._entries():
                spool.append(cells, genes, values)
            matrix = spool.matrix(self.path, self.location)
            yield from matrix.blocks(storage, scratch=scratch, first_cell=first_cell)

    def sample(self, budget: int) -> ValueSample | None:
        """Return the values of the first cells.

        Args:
            budget: how many bytes of text may be read.

        Returns:
            The sample; never None.

        Raises:
            InputDataError: the file is damaged.
        """
        started = time.perf_counter()
        limit = min(budget, _SAMPLE_TEXT)
        looked_at, parts = 0, [(np.empty(0, np.int64), np.empty(0))]
        for number, cells, _, values in self._entries(limit):
            looked_at += number
            parts.append((cells, values))
        complete = looked_at == self.header.entries
        places = looked_at
        if not self._is_whole:
            share = looked_at / max(self.header.entries, 1)
            places = round(self.shape[0] * self.shape[1] * share)
        values, indptr = _whole_cells(
            np.concatenate([part[0] for part in parts]).astype(np.int64),
            np.concatenate([part[1] for part in parts]),
            complete=complete,
        )
        return ValueSample(
            values=values.astype(np.int64) if self.dtype.kind == "i" else values,
            indptr=indptr,
            num_places=places,
            complete=complete,
            bytes_read=min(limit, self.path.stat().st_size) if complete else limit,
            seconds=time.perf_counter() - started,
        )

    def count_empty(self, budget: int) -> int | None:
        """Return the number of cells without a value, or None if the text is longer than that.

        Args:
            budget: how many bytes of text may be read.
        """
        filled = np.zeros(self.shape[0], np.bool_)
        looked_at = 0
        for number, cells, _, _ in self._entries(budget):
            looked_at += number
            filled[cells] = True
        return int((~filled).sum()) if looked_at == self.header.entries else None

    def _entries(self, limit: int | None = None) -> Iterator[tuple[int, Array, Array, Array]]:
        """Read how many entries, and of those that are genes here: cells, genes, values."""
        for rows, columns, values in read_entries(self.path, limit=limit):
            cells, features = (rows, columns) if self.cells_first else (columns, rows)
            if self._is_whole:
                yield len(cells), cells, features, values
                continue
            genes = self.places[features]
            keep = genes >= 0
            yield len(cells), cells[keep], genes[keep], values[keep]


def _whole_cells(cells: Array, values: Array, *, complete: bool) -> tuple[Array, Array | None]:
    """Return the values that are not zero, by cell; without cells when those are not in order."""
    if (np.diff(cells) < 0).any():
        return values[values != 0], None
    begins = np.flatnonzero(np.diff(cells, prepend=-1) > 0)
    if not complete and len(begins) > 1:
        # The last cell may go on behind the sample.
        cells, values, begins = cells[: begins[-1]], values[: begins[-1]], begins[:-1]
    before = np.concatenate([[0], np.cumsum(values != 0)]).astype(np.int64)
    return values[values != 0], before[np.append(begins, len(cells))]
