"""Compiled loops that turn the counts of cells into expression.

- The logarithms of small counts are taken once a cell: most counts are below 64, and looking one
  up is cheaper than computing it.
- A row's result depends on the row alone: nothing is carried from one to the next.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from omics.data.compiled import compiled

Array = np.ndarray[Any, np.dtype[Any]]

_TABLE = 64


@compiled
def row_total(values: Array, is_whole: bool) -> float:
    """Return the sum of a row: exact for counts, in float64 otherwise."""
    if is_whole:
        whole = np.int64(0)
        for entry in range(values.size):
            whole += np.int64(values[entry])
        return np.float64(whole)
    total = np.float64(0.0)
    for entry in range(values.size):
        total += np.float64(values[entry])
    return total


@compiled
def log_normalize_rows(
    indptr: Array, values: Array, is_whole: bool, scaling: tuple[float, float], out: Array
) -> None:
    """Write log(1 + value * target / (total + added)) of every entry.

    Args:
        indptr: int64 [n + 1].
        values: uint32 or float32 [nnz].
        is_whole: whether the values are counts.
        scaling: target and added.
        out: float32 [nnz], filled; 0 in a row whose total is 0.
    """
    target, added = scaling
    table = np.zeros(_TABLE, np.float32)
    for row in range(indptr.size - 1):
        row_values = values[indptr[row] : indptr[row + 1]]
        row_out = out[indptr[row] : indptr[row + 1]]
        total = row_total(row_values, is_whole)
        scale = np.float32(0.0)
        if total != 0:
            scale = np.float32(target / (total + added))
        if is_whole:
            known = min(_TABLE, row_values.size)
            for count in range(known):
                table[count] = np.log1p(np.float32(count) * scale)
            for entry in range(row_values.size):
                value = np.int64(row_values[entry])
                if value < known:
                    row_out[entry] = table[value]
                else:
                    row_out[entry] = np.log1p(np.float32(row_values[entry]) * scale)
        else:
            for entry in range(row_values.size):
                row_out[entry] = np.log1p(np.float32(row_values[entry]) * scale)


@compiled
def median_normalize_rows(
    rows: tuple[Array, Array],
    values: Array,
    is_whole: bool,
    scaling: tuple[float, Array],
    out: Array,
) -> None:
    """Write value / total * target / median of every entry.

    Args:
        rows: int64 [n + 1] where each row begins, and unsigned [nnz] genes.
        values: uint32 or float32 [nnz].
        is_whole: whether the values are counts.
        scaling: target, and float64 [genes] medians.
        out: float32 [nnz], filled; 0 in a row whose total is 0.
    """
    indptr, genes = rows
    target, medians = scaling
    for row in range(indptr.size - 1):
        row_genes = genes[indptr[row] : indptr[row + 1]]
        row_values = values[indptr[row] : indptr[row + 1]]
        row_out = out[indptr[row] : indptr[row + 1]]
        total = row_total(row_values, is_whole)
        scale = target / total if total != 0 else 0.0
        for entry in range(row_values.size):
            value = np.float64(row_values[entry]) * scale / medians[row_genes[entry]]
            row_out[entry] = np.float32(value)
