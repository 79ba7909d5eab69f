"""Statistics of genes over a whole store: sums, detection, medians of the values that are there.

- Counts are gathered in a histogram per gene while cells are written; only a gene whose median is
  a large count needs a look at its values once more, and so does every gene of a float store.
- Those values are collected for a group of genes at a time, as many as fit `COLLECTED_ENTRIES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.compiled import compiled
from omics.data.storage.block_encoding import LARGE_BINS, SMALL_BINS, count_codes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from omics.data.storage.coded_blocks import CodedBlock

    Array = np.ndarray[Any, np.dtype[Any]]

COLLECTED_ENTRIES = 8_000_000
# How many cells the narrow bins take, and the wide ones, before they are emptied into wider ones.
NARROW_CELLS = 2**16 - 1
WIDE_CELLS = 2**31


class CountStatistics:
    """The histogram of the counts of every gene, see `block_encoding`.

    Args:
        num_genes: how many.
    """

    def __init__(self, num_genes: int) -> None:
        self._small = np.zeros((SMALL_BINS, num_genes), np.uint16)
        self._large = np.zeros((num_genes, LARGE_BINS), np.uint32)
        self._escaped_sums = np.zeros(num_genes, np.int64)
        self._widest: Array | None = None
        self._narrow_cells = 0
        self._wide_cells = 0

    def add(self, block: CodedBlock) -> None:
        """Count a block of counts.

        Args:
            block: of genes that this histogram has.
        """
        for first in range(0, block.num_cells, NARROW_CELLS):
            last = min(first + NARROW_CELLS, block.num_cells)
            if self._narrow_cells + last - first > NARROW_CELLS:
                self._empty_narrow()
            self._narrow_cells += last - first
            span = slice(int(block.indptr[first]), int(block.indptr[last]))
            count_codes(
                block.positions[span], block.values[span], small=self._small, large=self._large
            )
        np.add.at(self._escaped_sums, block.positions[block.escapes], block.large.astype(np.int64))

    def _empty_narrow(self) -> None:
        if self._wide_cells + self._narrow_cells >= WIDE_CELLS:
            self._widest = self._totals()
            self._large[:] = 0
            self._wide_cells = 0
        self._large[:, :SMALL_BINS] += self._small.T
        self._small[:] = 0
        self._wide_cells += self._narrow_cells
        self._narrow_cells = 0

    def _totals(self) -> Array:
        totals = self._large.astype(np.int64)
        return totals if self._widest is None else totals + self._widest

    def state(self) -> dict[str, Array]:
        """Return what `restore` takes: int64 [g, LARGE_BINS] counts, int64 [g] escaped sums."""
        self._empty_narrow()
        return {"histogram": self._totals(), "escaped_sums": self._escaped_sums}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Continue from what `state` returned."""
        self._widest = state["histogram"]
        self._escaped_sums[:] = state["escaped_sums"]

    def finish(self) -> tuple[Array, Array, Array, Array]:
        """Return what the histogram says of each gene.

        Returns:
            int64 [g] sums of counts; int64 [g] numbers of cells that have one; float64 [g] medians
            of these counts, 0 for a gene that no cell has; bool [g], True where the median is
            among the counts from 255 and must be looked up.
        """
        self._empty_narrow()
        totals = self._large if self._widest is None else self._totals()
        sums = self._escaped_sums.copy()
        detection = np.zeros(len(sums), np.int64)
        middle = np.zeros((len(sums), 2), np.int64)
        compiled(_summarise)(totals, sums, detection, middle)
        medians = np.where(detection > 0, middle.sum(axis=1) / 2, 0.0)
        return sums, detection, medians, (detection > 0) & (middle[:, 1] >= LARGE_BINS - 1)


def _summarise(totals: Array, sums: Array, detection: Array, middle: Array) -> None:
    for gene in range(totals.shape[0]):
        bins = totals[gene]
        cells = np.int64(0)
        for count in range(LARGE_BINS):
            cells += bins[count]
        detection[gene] = cells
        below = np.int64(0)
        for count in range(LARGE_BINS):
            if count < LARGE_BINS - 1:
                sums[gene] += np.int64(bins[count]) * count
            below += bins[count]
            if below <= (cells - 1) // 2:
                middle[gene, 0] = count + 1
            if below <= cells // 2:
                middle[gene, 1] = count + 1


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
