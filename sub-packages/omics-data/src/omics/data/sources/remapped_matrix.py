"""`RemappedMatrix`: matrices with genes of their own, one below the other, over one list of genes.

- The genes of every part are put into their places of the common list as its blocks stream by, and
  brought into ascending order where the places are not; nothing is copied beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.matching.gene_remap import GeneMap
from omics.data.sources.matrix_sample import ValueSample

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from omics.data.errors import InputDataError
    from omics.data.sources.protocol import Block, Matrix, ValueStorage

Array = np.ndarray[Any, np.dtype[Any]]

SAMPLED_PARTS = 8


@dataclass(frozen=True, kw_only=True)
class GenePart:
    """Some consecutive cells.

    Attributes:
        matrix: [cells, genes of the part].
        places: int64 [genes of the part], the place of each gene in the common list; all different.
    """

    matrix: Matrix
    places: Array


class RemappedMatrix:
    """Parts of consecutive cells as one matrix over the genes of all.

    Args:
        parts: in the order of their cells, at least one.
        num_genes: of the common list.

    Attributes:
        location: of the first part.
        encoding: of the first part.
        shape: cells of all parts, genes of the common list.
        dtype: one that holds the values of all parts.
        stored_entries: of all parts together, None if one does not know.
    """

    def __init__(self, parts: Sequence[GenePart], *, num_genes: int) -> None:
        matrices = [part.matrix for part in parts]
        self._parts = list(parts)
        self.location = matrices[0].location
        self.encoding = matrices[0].encoding
        self.shape = (sum(matrix.shape[0] for matrix in matrices), num_genes)
        self.dtype: np.dtype[Any] = np.result_type(*(matrix.dtype for matrix in matrices))
        entries = [matrix.stored_entries for matrix in matrices]
        known = [each for each in entries if each is not None]
        self.stored_entries: int | None = sum(known) if len(known) == len(entries) else None

    def blocks(
        self, storage: ValueStorage = "counts", *, scratch: Path | None = None, first_cell: int = 0
    ) -> Iterator[Block]:
        """Stream the parts one after the other; see `Matrix.blocks`."""
        before = 0
        for part in self._parts:
            cells = part.matrix.shape[0]
            skip = min(max(first_cell - before, 0), cells)
            before += cells
            if skip == cells:
                continue
            placed = GeneMap(part.places, self.shape[1])
            for block in part.matrix.blocks(storage, scratch=scratch, first_cell=skip):
                yield placed.apply(*block)

    def sample(self, budget: int) -> ValueSample | None:
        """Return values from up to `SAMPLED_PARTS` parts; None if one of these cannot be sampled.

        Args:
            budget: how many decompressed bytes may be read.
        """
        count = min(SAMPLED_PARTS, len(self._parts))
        chosen = [self._parts[place * len(self._parts) // count] for place in range(count)]
        found = [part.matrix.sample(budget // count) for part in chosen]
        samples = [each for each in found if each is not None]
        if len(samples) < count:
            return None
        offsets = [each.indptr for each in samples if each.indptr is not None]
        whole_cells = len(offsets) == count
        lengths = np.concatenate([np.diff(each) for each in offsets]) if whole_cells else None
        return ValueSample(
            values=np.concatenate([each.values for each in samples]),
            indptr=None if lengths is None else np.concatenate([[0], np.cumsum(lengths)]),
            num_places=sum(each.num_places for each in samples),
            complete=count == len(self._parts) and all(each.complete for each in samples),
            bytes_read=sum(each.bytes_read for each in samples),
            seconds=sum(each.seconds for each in samples),
        )

    def count_empty(self, budget: int) -> int | None:
        """Return the number of cells without a stored value, None if a part does not know.

        Args:
            budget: how many bytes may be read, divided by the cells of the parts.
        """
        total = 0
        for part in self._parts:
            share = budget * part.matrix.shape[0] // max(self.shape[0], 1)
            # One offset more than cells is read of every part.
            found = part.matrix.count_empty(share + 8)
            if found is None:
                return None
            total += found
        return total

    def error(self, found: str, advice: str = "") -> InputDataError:
        """Return the error for something wrong in this matrix; see `Matrix.error`."""
        return self._parts[0].matrix.error(found, advice)
