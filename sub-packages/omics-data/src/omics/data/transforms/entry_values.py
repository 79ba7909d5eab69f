"""The values of a batch's entries in one of two types, and its entries in another order.

- Loops are compiled for each type of input: counts (8, 16 or 32 bits) become uint32 and every
  other value float32 before they enter one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, UnknownNameError, nearest

if TYPE_CHECKING:
    from omics.data.cell_batch import CellBatch

    Array = np.ndarray[Any, np.dtype[Any]]

COUNTS = "counts"


def entry_values(batch: CellBatch, source: str) -> Array:
    """Return a value per entry as uint32 (counts and other unsigned integers) or float32.

    Args:
        batch: cells.
        source: `counts`, or the name of a field.

    Raises:
        UnknownNameError: the batch lacks the field.
    """
    if source == COUNTS:
        values = batch.counts
    elif source in batch.fields:
        values = batch.fields[source]
    else:
        known = [COUNTS, *batch.fields]
        raise UnknownNameError(f"The cells carry no field {source!r}.{nearest(source, known)}")
    unsigned = values.dtype.kind in "bu" and values.dtype.itemsize <= 4
    return values.astype(np.uint32 if unsigned else np.float32, copy=False)


def whole_counts(batch: CellBatch, needed_by: str) -> Array:
    """Return uint32 [nnz], the counts of the entries.

    Args:
        batch: cells.
        needed_by: the name of the transform, for the message.

    Raises:
        InputDataError: they are not counts.
    """
    values = batch.counts
    if values.dtype.kind == "u" and values.dtype.itemsize <= 4:
        return values.astype(np.uint32, copy=False)
    whole = (values >= 0) & (values < 2.0**32) & (values == np.floor(values))
    if not whole.all():
        example = values[np.flatnonzero(~whole)[0]]
        raise InputDataError(
            f"{needed_by} draws from counts, and the cells hold values such as {example}. Use a "
            "store of raw counts."
        )
    return values.astype(np.uint32)


def is_whole(values: Array) -> bool:
    """Say whether values of `entry_values` are counts."""
    return bool(values.dtype == np.uint32)


def order_keys(values: Array) -> Array:
    """Return uint32 [nnz] that sort as the values do (NaN last).

    Args:
        values: uint32 or float32 [nnz].
    """
    if is_whole(values):
        return values
    bits = (values + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0.
    return np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(0x80000000))


def take_entries(batch: CellBatch, indptr: Array, taken: Array) -> CellBatch:
    """Return the same cells with entries in another order, or some of them, or some repeated.

    Args:
        batch: cells, left unchanged.
        indptr: int64 [n + 1], where each cell begins in `taken`.
        taken: int64 [m], positions of entries in the batch.
    """
    return replace(
        batch,
        indptr=indptr,
        genes=batch.genes[taken],
        counts=batch.counts[taken],
        fields={name: values[taken] for name, values in batch.fields.items()},
    )
