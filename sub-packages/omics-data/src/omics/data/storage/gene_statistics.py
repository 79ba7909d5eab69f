"""Statistics of genes over a whole store: sums, detection, medians of the values that are there.

- Counts are gathered in a histogram per gene while cells are written; only a gene whose median is
  a large count needs a look at its values once more, and so does every gene of a float store.
- Those values are collected for a group of genes at a time, as many as fit `COLLECTED_ENTRIES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.compiled import compiled
from omics.data.storage.block_encoding import LARGE_BINS, SMALL_BINS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Array = np.ndarray[Any, np.dtype[Any]]

COLLECTED_ENTRIES = 8_000_000
# A bin is 32 bits wide: emptied into wide totals before so many cells have been added.
FLUSH_CELLS = 2**31


class CountStatistics:
    """The histogram of the counts of every gene, see `block_encoding.encode_counts`.

    Args:
        num_genes: how many.

    Attributes:
        small: uint32 [g, SMALL_BINS].
        large: uint32 [g, LARGE_BINS].
        escaped_sums: int64 [g].
    """

    def __init__(self, num_genes: int) -> None:
        self.small = np.zeros((num_genes, SMALL_BINS), np.uint32)
        self.large = np.zeros((num_genes, LARGE_BINS), np.uint32)
        self.escaped_sums = np.zeros(num_genes, np.int64)
        self._flushed: Array | None = None
        self._cells = 0

    def make_room(self, num_cells: int) -> None:
        """Prepare for so many more cells; called before they are added."""
        if self._cells + num_cells >= FLUSH_CELLS:
            self._flushed = self.totals()
            self.small[:] = 0
            self.large[:] = 0
            self._cells = 0
        self._cells += num_cells

    def totals(self) -> Array:
        """Return int64 [g, LARGE_BINS], the histogram of all cells so far."""
        totals = self.large.astype(np.int64)
        totals[:, :SMALL_BINS] += self.small
        return totals if self._flushed is None else totals + self._flushed

    def restore(self, totals: Array, escaped_sums: Array) -> None:
        """Continue from what `totals` and `escaped_sums` were."""
        self._flushed = totals
        self.escaped_sums[:] = escaped_sums

    def finish(self) -> tuple[Array, Array, Array, Array]:
        """Return what the histogram says of each gene.

        Returns:
            int64 [g] sums of counts; int64 [g] numbers of cells that have one; float64 [g] medians
            of these counts, 0 for a gene that no cell has; bool [g], True where the median is
            among the counts from 255 and must be looked up.
        """
        totals = self.totals()
        sums = totals[:, :-1] @ np.arange(LARGE_BINS - 1) + self.escaped_sums
        np.cumsum(totals, axis=1, out=totals)
        detection = totals[:, -1].copy()
        lower = (totals <= ((detection - 1) // 2)[:, None]).sum(axis=1)
        upper = (totals <= (detection // 2)[:, None]).sum(axis=1)
        medians = np.where(detection > 0, (lower + upper) / 2, 0.0)
        return sums, detection, medians, (detection > 0) & (upper >= LARGE_BINS - 1)


def collected_medians(
    wanted: Array, detection: Array, entries: Callable[[], Iterator[tuple[Array, Array]]]
) -> Array:
    """Return the median of the values of some genes, looking at all entries.

    Args:
        wanted: int64 [k], positions of genes, ascending.
        detection: int64 [g], how many entries each gene has.
        entries: returns an iterator over (genes [m], values [m]) of everything stored; called
            once for every group of genes.

    Returns:
        float64 [k]. Memory: 8 bytes for `COLLECTED_ENTRIES` entries, or for those of one gene.
    """
    medians = np.zeros(len(wanted), np.float64)
    totals = np.cumsum(detection[wanted])
    first = 0
    while first < len(wanted):
        before = int(totals[first - 1]) if first else 0
        last = int(np.searchsorted(totals, before + COLLECTED_ENTRIES, side="right"))
        last = max(last, first + 1)
        group = wanted[first:last]
        ends = totals[first:last] - before
        place = np.full(len(detection), -1, np.int64)
        place[group] = ends - detection[group]
        collected = np.empty(int(ends[-1]), np.float64)
        for genes, values in entries():
            compiled(_collect)(genes, values, place, collected)
        for index, gene in enumerate(group):
            end = int(ends[index])
            medians[first + index] = np.median(collected[end - int(detection[gene]) : end])
        first = last
    return medians


def _collect(genes: Array, values: Array, place: Array, collected: Array) -> None:
    for entry in range(genes.size):
        at = place[genes[entry]]
        if at >= 0:
            collected[at] = values[entry]
            place[genes[entry]] = at + 1
