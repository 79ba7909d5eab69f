"""What a block of cells must be before a store takes it, and the error that names the cell."""

from __future__ import annotations

from typing import Any

import numpy as np

from omics.data.errors import InputDataError

Array = np.ndarray[Any, np.dtype[Any]]


class BlockError(Exception):
    """What is wrong with a block, and at which of its entries."""

    def __init__(self, found: str, entry: int | None = None) -> None:
        super().__init__(found)
        self.found = found
        self.entry = entry

    def located(self, indptr: Array, cells_before: int) -> InputDataError:
        """Return the error for users, naming the cell."""
        where = f"in the block that begins at cell {cells_before}"
        if self.entry is not None:
            cell = int(np.searchsorted(indptr, self.entry, side="right")) - 1 + cells_before
            where = f"in cell {cell}"
        return InputDataError(
            f"{self.found}, {where}. The matrix is not what a store can hold; mend the source."
        )


def checked_structure(indptr: Array, genes: Array, values: Array) -> Array:
    """Return indptr as int64 if the three arrays fit each other.

    Args:
        indptr: integers [n + 1].
        genes: integers [nnz].
        values: [nnz].

    Raises:
        BlockError: they do not.
    """
    if any(array.ndim != 1 for array in (indptr, genes, values)) or len(indptr) == 0:
        raise BlockError("The arrays of a block are not one-dimensional")
    if indptr.dtype.kind not in "iu" or genes.dtype.kind not in "iu":
        raise BlockError(f"indptr is {indptr.dtype}, genes {genes.dtype}; both must be integers")
    indptr = indptr.astype(np.int64)
    if len(genes) != len(values) or indptr[0] != 0 or indptr[-1] != len(genes):
        raise BlockError(
            f"indptr runs from {indptr[0]} to {indptr[-1]} for {len(genes)} genes and "
            f"{len(values)} values"
        )
    if (indptr[1:] < indptr[:-1]).any():
        raise BlockError("indptr decreases")
    return indptr


def check_genes(indptr: Array, genes: Array, num_genes: int) -> None:
    """Refuse gene positions that are out of range or do not ascend within a cell.

    Args:
        indptr: int64 [n + 1].
        genes: integers [nnz].
        num_genes: positions must be below it.

    Raises:
        BlockError: at the first such entry.
    """
    if len(genes) == 0:
        return
    if int(genes.min()) < 0 or int(genes.max()) >= num_genes:
        entry = int(np.flatnonzero((genes < 0) | (genes >= num_genes))[0])
        raise BlockError(f"Gene position {genes[entry]} is outside 0..{num_genes - 1}", entry)
    rising = np.empty(len(genes), np.bool_)
    rising[0] = True
    np.greater(genes[1:], genes[:-1], out=rising[1:])
    begins = indptr[:-1]
    rising[begins[begins < len(genes)]] = True
    if not rising.all():
        entry = int(np.flatnonzero(~rising)[0])
        raise BlockError(f"Gene position {genes[entry]} follows {genes[entry - 1]}", entry)


def compilable(values: Array) -> Array:
    """Return values in one of the few types that `encode_counts` is compiled for."""
    kind = values.dtype.kind
    if kind not in "iufb":
        raise BlockError(f"Values of type {values.dtype} are not counts")
    if kind == "f":
        return values.astype(np.float32 if values.dtype.itemsize <= 4 else np.float64, copy=False)
    return values.astype(np.int64, copy=False)


def compilable_genes(genes: Array) -> Array:
    """Return gene positions in one of the few types that the loops are compiled for."""
    if genes.dtype in (np.int32, np.int64):
        return genes
    return genes.astype(np.int64)
