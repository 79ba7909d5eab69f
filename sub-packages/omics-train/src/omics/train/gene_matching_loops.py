"""Which entry of one ragged list of genes is that of another: one pass, no sorting, no pairs."""

from __future__ import annotations

from typing import Any

import numpy as np

from omics.data.compiled import compiled

Array = np.ndarray[Any, np.dtype[Any]]


@compiled
def match_rows(
    rows: tuple[Array, Array], key_rows: tuple[Array, Array], table: Array, found: Array
) -> None:
    """Write for each gene the position of the first equal key of its own cell.

    Args:
        rows: int64 [n + 1] where each cell begins, and [T] genes.
        key_rows: int64 [n + 1] where each cell begins, and [E] keys.
        table: int64 [number of ids], all -1; it is so again afterwards.
        found: int64 [T], filled; -1 where the cell has no such key.
    """
    offsets, genes = rows
    key_offsets, keys = key_rows
    for cell in range(offsets.size - 1):
        begin, end = key_offsets[cell], key_offsets[cell + 1]
        for position in range(begin, end):
            if table[keys[position]] < 0:
                table[keys[position]] = position
        for position in range(offsets[cell], offsets[cell + 1]):
            found[position] = table[genes[position]]
        for position in range(begin, end):
            table[keys[position]] = -1
