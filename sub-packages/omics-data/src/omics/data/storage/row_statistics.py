"""Sums over the entries of cells and genes, exact for counts.

- A cell's sum depends on its own values alone, not on the block or batch it is computed in.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def sums_by_cell(indptr: Array, values: Array) -> Array:
    """Return the sum of each cell's values.

    Args:
        indptr: int64 [n + 1].
        values: [nnz], integers or floats.

    Returns:
        int64 [n] of integers, float64 [n] of floats; 0 for an empty cell.
    """
    dtype = np.float64 if values.dtype.kind == "f" else np.int64
    sums = np.zeros(len(indptr) - 1, dtype)
    filled = indptr[1:] > indptr[:-1]
    if filled.any():
        sums[filled] = np.add.reduceat(values, indptr[:-1][filled], dtype=dtype)
    return sums


def sums_by_gene(genes: Array, values: Array, num_genes: int) -> Array:
    """Return the sum of each gene's values.

    Args:
        genes: int64 [nnz].
        values: [nnz], unsigned integers of at most 32 bits, or floats.
        num_genes: how many sums to return.

    Returns:
        int64 [num_genes] of integers, float64 [num_genes] of floats.
    """
    if values.dtype.kind == "f" or len(values) == 0:
        dtype = np.float64 if values.dtype.kind == "f" else np.int64
        return np.bincount(genes, weights=values, minlength=num_genes).astype(dtype)
    # bincount adds in float64, which is exact below 2**53: split large counts in two halves.
    if int(values.max()) < 2**16:
        return np.bincount(genes, weights=values, minlength=num_genes).astype(np.int64)
    low = np.bincount(genes, weights=values & 0xFFFF, minlength=num_genes).astype(np.int64)
    high = np.bincount(genes, weights=values >> 16, minlength=num_genes).astype(np.int64)
    return np.asarray(low + (high << 16))
