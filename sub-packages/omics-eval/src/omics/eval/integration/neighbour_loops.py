"""Loops over the neighbours of each cell, compiled: search, weights of a graph, mixing of groups."""

from __future__ import annotations

from typing import Any

import numpy as np

from omics.data.compiled import compiled

Array = np.ndarray[Any, np.dtype[Any]]

# Candidates more than wanted, so that rounding in float32 loses no neighbour.
_SPARE = 10
_TOLERANCE = 1e-5
_MAX_HALVINGS = 64
_MIN_SCALE = 1e-3


@compiled
def nearest_of_block(
    squares: Array, start: int, points: Array, indices: Array, distances: Array
) -> None:
    """Find the nearest other cells of a block of cells.

    Candidates are the smallest of the float32 squares, a few more than wanted; their distances are
    then computed again in float64, and sorted: ties go to the lower row.

    Args:
        squares: float32 [b, n]; those of a cell with itself are overwritten.
        start: the row of the first of these cells.
        points: float64 [n, d].
        indices: int32 [n, k], written.
        distances: float64 [n, k], written.
    """
    size = min(indices.shape[1] + _SPARE, squares.shape[1] - 1)
    heap = np.empty(size, np.float32)
    rows = np.empty(size, np.int32)
    for b in range(squares.shape[0]):
        row = squares[b]
        row[start + b] = np.inf
        for j in range(size):
            _rise(heap, rows, j, row[j])
        # Nearly all cells are farther away than the farthest candidate: one comparison each.
        limit = heap[0]
        for j in range(size, len(row)):
            if row[j] < limit:
                _sink(heap, rows, row[j], j)
                limit = heap[0]
        _sort_exactly(rows, start + b, points, indices, distances)


@compiled
def _rise(heap: Array, rows: Array, row: int, square: float) -> None:
    """Put a candidate at the end of a heap with the largest first, and let it rise."""
    place = row
    while place > 0 and heap[(place - 1) // 2] < square:
        parent = (place - 1) // 2
        heap[place], rows[place] = heap[parent], rows[parent]
        place = parent
    heap[place], rows[place] = square, row


@compiled
def _sink(heap: Array, rows: Array, square: float, row: int) -> None:
    """Put a candidate in the place of the largest, and let it sink."""
    place = 0
    while True:
        child = 2 * place + 1
        if child + 1 < len(heap) and heap[child + 1] > heap[child]:
            child += 1
        if child >= len(heap) or heap[child] <= square:
            break
        heap[place], rows[place] = heap[child], rows[child]
        place = child
    heap[place], rows[place] = square, row


@compiled
def _sort_exactly(rows: Array, own: int, points: Array, indices: Array, distances: Array) -> None:
    """Write the nearest of the candidates `rows`, by distances in float64."""
    exact = np.empty(len(rows), np.float64)
    for c in range(len(rows)):
        row = rows[c]
        total = 0.0
        for d in range(points.shape[1]):
            step = points[own, d] - points[row, d]
            total += step * step
        place = c
        while place > 0 and (
            exact[place - 1] > total or (exact[place - 1] == total and rows[place - 1] > row)
        ):
            exact[place], rows[place] = exact[place - 1], rows[place - 1]
            place -= 1
        exact[place], rows[place] = total, row
    for c in range(indices.shape[1]):
        indices[own, c] = rows[c]
        distances[own, c] = np.sqrt(exact[c])


@compiled
def fuzzy_weights(distances: Array, weights: Array) -> None:
    """Weigh the neighbours of each cell: 1 for the nearest, then falling at the cell's own scale.

    The scale makes the weights add up to the logarithm (base 2) of the number of neighbours, the
    cell itself included.

    Args:
        distances: float64 [n, k], ascending, of other cells.
        weights: float64 [n, k], written.
    """
    num_cells, k = distances.shape
    target = np.log2(k + 1)
    overall = distances.mean() * k / (k + 1)  # the cell itself, at 0, is counted
    for i in range(num_cells):
        nearest = 0.0
        for j in range(k):
            if distances[i, j] > 0:
                nearest = distances[i, j]
                break
        low, high, scale = 0.0, np.inf, 1.0
        for _ in range(_MAX_HALVINGS):
            total = 0.0
            for j in range(k):
                beyond = distances[i, j] - nearest
                total += np.exp(-beyond / scale) if beyond > 0 else 1.0
            if abs(total - target) < _TOLERANCE:
                break
            if total > target:
                high = scale
                scale = (low + high) / 2
            else:
                low = scale
                scale = 2 * scale if np.isinf(high) else (low + high) / 2
        mean = distances[i].mean() * k / (k + 1) if nearest > 0 else overall
        scale = max(scale, _MIN_SCALE * mean)
        for j in range(k):
            beyond = distances[i, j] - nearest
            weights[i, j] = np.exp(-beyond / scale) if beyond > 0 and scale > 0 else 1.0


@compiled
def inverse_simpson(
    distances: Array,
    indices: Array,
    codes: Array,
    perplexity: float,
    mixing: Array,
) -> None:
    """Count the groups among the neighbours of each cell, near ones more, for several groupings.

    Neighbours have weights exp(-beta d), with beta such that their entropy is the logarithm of the
    perplexity; the number of groups is one over the sum of the squared shares of the groups.

    Args:
        distances: float64 [n, k] of other cells.
        indices: int32 [n, k].
        codes: int64 [m, n], the group of each cell, from 0, by grouping.
        perplexity: of the weights.
        mixing: float64 [m, n], written: 1 for one group.
    """
    num_cells, k = distances.shape
    weights = np.empty(k)
    shares = np.empty(codes.max() + 1)
    aim = np.log(perplexity)
    for i in range(num_cells):
        beta, low, high = 1.0, -np.inf, np.inf
        total = 0.0
        for attempt in range(_MAX_HALVINGS):
            total, spread = 0.0, 0.0
            for j in range(k):
                weights[j] = np.exp(-(distances[i, j] - distances[i, 0]) * beta)
                total += weights[j]
                spread += weights[j] * (distances[i, j] - distances[i, 0])
            excess = np.log(total) + beta * spread / total - aim
            if abs(excess) < _TOLERANCE or attempt == _MAX_HALVINGS - 1:
                break
            if excess > 0:
                low = beta
                beta = 2 * beta if np.isinf(high) else (beta + high) / 2
            else:
                high = beta
                beta = beta / 2 if np.isinf(low) else (beta + low) / 2
        for m in range(codes.shape[0]):
            shares[:] = 0.0
            for j in range(k):
                shares[codes[m, indices[i, j]]] += weights[j] / total
            mixing[m, i] = 1 / (shares**2).sum()
