"""Compiled loops that sort the values of a cell into bins made from the cell itself.

- Quantiles need the values of a cell in order. Counts below 4,096 are ordered by counting them;
  for other rows the order is computed beforehand.
- Arithmetic is that of `numpy.quantile` (linear) and `numpy.digitize` in float64, step by step, so
  that bins are bit-equal to them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from omics.data.compiled import compiled
from omics.data.keyed_loops import cell_bits, entry_bits, to_unit

Array = np.ndarray[Any, np.dtype[Any]]

COUNTED = 4096


@compiled
def width_bin_rows(
    indptr: Array, values: Array, limits: tuple[float, float, int], out: Array
) -> None:
    """Write the bin of each non-zero value among equally wide ones; 0 for zeros.

    Args:
        indptr: int64 [n + 1].
        values: uint32 or float32 [nnz].
        limits: low, high (NaN: those of the row's non-zero values) and number of bins.
        out: int32 [nnz], filled with 0 to the number of bins.
    """
    low, high, num_bins = limits
    for row in range(indptr.size - 1):
        row_values = values[indptr[row] : indptr[row + 1]]
        row_out = out[indptr[row] : indptr[row + 1]]
        first, last = low, high
        if math.isnan(low):
            first, last = np.inf, -np.inf
            for entry in range(row_values.size):
                value = np.float64(row_values[entry])
                if value != 0:
                    first = min(first, value)
                    last = max(last, value)
        width = (last - first) / num_bins
        for entry in range(row_values.size):
            value = np.float64(row_values[entry])
            if value == 0:
                row_out[entry] = 0
            elif not width > 0:
                row_out[entry] = 1
            else:
                steps = (value - first) / width
                if not steps > 0:  # NaN is in the first bin too.
                    row_out[entry] = 1
                elif steps >= num_bins:
                    row_out[entry] = num_bins
                else:
                    row_out[entry] = np.int64(math.floor(steps)) + 1


@compiled
def quantile_bin_rows(
    rows: tuple[Array, Array],
    values: Array,
    order: Array,
    binning: tuple[Array, int, bool, Array, np.uint64],
    out: Array,
) -> None:
    """Write the bin of each non-zero value among quantiles of the row's; 0 for zeros.

    Args:
        rows: int64 [n + 1] where each row begins, and unsigned [nnz] genes.
        values: uint32 or float32 [nnz].
        order: int64 [nnz], each row's positions by ascending value; or empty, if all values are
            counts below `COUNTED`.
        binning: float64 [q] quantiles ascending, the largest bin, whether a value that several
            edges equal is spread over the bins between, int64 [n] names of the cells, key of
            `stream_key`.
        out: int32 [nnz], filled.
    """
    indptr, genes = rows
    quantiles, largest, spread, cells, key = binning
    edges = np.empty(quantiles.size, np.float64)
    tally = np.zeros(COUNTED, np.int64)
    lower_of = np.zeros(COUNTED, np.int64)
    upper_of = np.zeros(COUNTED, np.int64)
    for row in range(indptr.size - 1):
        begin = indptr[row]
        row_genes = genes[begin : indptr[row + 1]]
        row_values = values[begin : indptr[row + 1]]
        row_out = out[begin : indptr[row + 1]]
        bits = cell_bits(key, cells[row])
        if order.size == 0:
            top: Any = np.int64(0)
            for entry in range(row_values.size):
                count = np.int64(row_values[entry])
                tally[count] += 1
                top = max(top, count)
            nonzero = row_values.size - tally[0]
            _edges_of_tally(tally, nonzero, quantiles, edges)
            lower: Any = 0
            upper: Any = 0
            for value in range(1, top + 1):
                if tally[value] > 0:
                    while lower < edges.size and edges[lower] < value:
                        lower += 1
                    upper = max(upper, lower)
                    while upper < edges.size and edges[upper] <= value:
                        upper += 1
                    lower_of[value] = lower
                    upper_of[value] = upper
            for entry in range(row_values.size):
                count = np.int64(row_values[entry])
                row_out[entry] = 0
                if count != 0:
                    draw = to_unit(entry_bits(bits, row_genes[entry])) if spread else 0.0
                    place = draw * (lower_of[count] - upper_of[count]) + upper_of[count]
                    row_out[entry] = min(np.int64(math.ceil(place)), largest)
            tally[: top + 1] = 0
        else:
            row_order = order[begin : indptr[row + 1]]
            _bin_sorted(row_order, (values, genes), (quantiles, edges, largest, spread), bits, out)


@compiled
def _interpolated(below: float, above: float, weight: float) -> float:
    """Return a value between two, as numpy does."""
    gap = above - below
    if weight >= 0.5:
        return above - gap * (1 - weight)
    return below + gap * weight


@compiled
def _edges_of_tally(tally: Array, nonzero: int, quantiles: Array, edges: Array) -> None:
    """Write the quantiles of counts that were counted."""
    count = np.int64(0)
    reached = np.int64(0)  # How many values are at most `count`.
    for edge in range(quantiles.size):
        if nonzero == 0:
            break
        place = (nonzero - 1) * quantiles[edge]
        before = np.int64(math.floor(place))
        while reached <= before:
            count += 1
            reached += tally[count]
        following = count
        if before + 1 < nonzero and reached <= before + 1:
            following = count + 1
            while tally[following] == 0:
                following += 1
        edges[edge] = _interpolated(np.float64(count), np.float64(following), place - before)


@compiled
def _bin_sorted(
    row_order: Array,
    entries: tuple[Array, Array],
    binning: tuple[Array, Array, int, bool],
    bits: np.uint64,
    out: Array,
) -> None:
    """Write the bins of a row whose order is known."""
    values, genes = entries
    quantiles, edges, largest, spread = binning
    length = row_order.size
    # Zeros stand together in an ascending order, between negative and positive values.
    first_zero = np.int64(0)
    while first_zero < length and values[row_order[first_zero]] < 0:
        first_zero += 1
    zeros = np.int64(0)
    while first_zero + zeros < length and values[row_order[first_zero + zeros]] == 0:
        out[row_order[first_zero + zeros]] = 0
        zeros += 1
    nonzero = length - zeros
    if nonzero == 0:
        return
    for edge in range(quantiles.size):
        place = (nonzero - 1) * quantiles[edge]
        before = np.int64(math.floor(place))
        after = min(before + 1, nonzero - 1)
        before_at = before if before < first_zero else before + zeros
        after_at = after if after < first_zero else after + zeros
        edges[edge] = _interpolated(
            np.float64(values[row_order[before_at]]),
            np.float64(values[row_order[after_at]]),
            place - before,
        )
    lower: Any = 0
    upper: Any = 0
    for position in range(nonzero):
        entry = row_order[position if position < first_zero else position + zeros]
        value = np.float64(values[entry])
        while lower < edges.size and edges[lower] < value:
            lower += 1
        upper = max(upper, lower)
        while upper < edges.size and edges[upper] <= value:
            upper += 1
        draw = to_unit(entry_bits(bits, genes[entry])) if spread else 0.0
        out[entry] = min(np.int64(math.ceil(draw * (lower - upper) + upper)), largest)
