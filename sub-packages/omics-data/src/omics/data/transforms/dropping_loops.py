"""Compiled loops that choose entries of cells by chance.

- A chance is compared as an integer: the draw `k * 2**-53` is below it when `k` is below
  `chance * 2**53`, rounded up.
- A row that would lose all its entries keeps the one with the smallest draw.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from omics.data.compiled import compiled
from omics.data.keyed_loops import cell_bits, entry_bits

Array = np.ndarray[Any, np.dtype[Any]]

_SHIFT = np.uint64(11)


@compiled
def mark_by_cell(
    rows: tuple[Array, Array], cells: Array, key: np.uint64, limits: Array, keep: Array
) -> None:
    """Mark the entries whose draw is below the limit of their cell.

    Args:
        rows: int64 [n + 1] where each row begins, and unsigned [nnz] genes.
        cells: int64 [n], the names of the cells.
        key: of `stream_key`.
        limits: uint64 [n], of 2**53.
        keep: bool [nnz], filled.
    """
    indptr, genes = rows
    for row in range(indptr.size - 1):
        row_genes = genes[indptr[row] : indptr[row + 1]]
        row_keep = keep[indptr[row] : indptr[row + 1]]
        bits = cell_bits(key, cells[row])
        limit = limits[row]
        kept = np.int64(0)
        for entry in range(row_genes.size):
            chosen = (entry_bits(bits, row_genes[entry]) >> _SHIFT) < limit
            row_keep[entry] = chosen
            kept += np.int64(chosen)
        if kept == 0 and row_genes.size > 0:
            row_keep[_lowest(bits, row_genes)] = True


@compiled
def mark_by_gene(
    rows: tuple[Array, Array], cells: Array, key: np.uint64, limits: Array, keep: Array
) -> None:
    """Mark the entries whose draw is below the limit of their gene.

    Args:
        rows: int64 [n + 1] where each row begins, and unsigned [nnz] genes.
        cells: int64 [n], the names of the cells.
        key: of `stream_key`.
        limits: uint64 [genes], of 2**53.
        keep: bool [nnz], filled.
    """
    indptr, genes = rows
    for row in range(indptr.size - 1):
        row_genes = genes[indptr[row] : indptr[row + 1]]
        row_keep = keep[indptr[row] : indptr[row + 1]]
        bits = cell_bits(key, cells[row])
        kept = np.int64(0)
        for entry in range(row_genes.size):
            gene = row_genes[entry]
            chosen = (entry_bits(bits, gene) >> _SHIFT) < limits[gene]
            row_keep[entry] = chosen
            kept += np.int64(chosen)
        if kept == 0 and row_genes.size > 0:
            row_keep[_lowest(bits, row_genes)] = True


@compiled
def _lowest(bits: np.uint64, genes: Array) -> int:
    """Return the entry with the smallest draw, the earlier of equal ones."""
    best = 0
    smallest = entry_bits(bits, genes[0]) >> _SHIFT
    for entry in range(1, genes.size):
        draw = entry_bits(bits, genes[entry]) >> _SHIFT
        if draw < smallest:
            best, smallest = entry, draw
    return best
