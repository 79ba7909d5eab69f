"""Farthest-first traversal: each next cell is the one farthest from all that were chosen.

- The greedy solution of the k-centre problem, within a factor of two of the best possible covering
  radius (Gonzalez 1985, Theor Comput Sci 38:293). It reaches outliers first: use it after quality
  control.
- No randomness: it begins with the cell farthest from the mean, ties go to the lower row.
- One compiled pass over the cells per chosen cell, O(n k d), GIL released; memory 8 bytes per cell.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from omics.data.compiled import compiled
from omics.data.selection.geometric_sketch import check_coordinates
from omics.data.selection.group_quotas import check_number

Array = np.ndarray[Any, np.dtype[Any]]


def farthest_first_rows(coordinates: Array, number: int) -> Array:
    """Choose cells that are far from each other.

    Args:
        coordinates: float [n, d]; Euclidean distances are taken.
        number: cells to choose.

    Returns:
        int64 [number], in the order in which they were chosen: any beginning of it is what a
        smaller number would have given.

    Raises:
        UsageError: more cells are wanted than there are, or none.
        InputDataError: a coordinate is not finite.
    """
    points = np.ascontiguousarray(check_coordinates(coordinates))
    check_number(number, len(points))
    chosen = np.empty(number, np.int64)
    nearest = np.full(len(points), np.inf)
    from_mean = ((points - points.mean(axis=0, dtype=np.float64)) ** 2).sum(axis=1)
    chosen[0] = int(np.argmax(from_mean))
    compiled(_choose)(points, chosen, nearest)
    return chosen


def _choose(points: Array, chosen: Array, nearest: Array) -> None:
    """Fill `chosen` after its first cell; `nearest` holds squared distances to the chosen."""
    for turn in range(1, chosen.size):
        last = points[chosen[turn - 1]]
        farthest = -1.0
        best = 0
        # The last one is marked, not just at distance 0: equal cells are never chosen twice.
        nearest[chosen[turn - 1]] = -1.0
        for cell in range(points.shape[0]):
            if nearest[cell] < 0.0:
                continue
            distance = 0.0
            point = points[cell]
            for axis in range(point.size):
                step = np.float64(point[axis]) - np.float64(last[axis])
                distance += step * step
            distance = min(distance, nearest[cell])
            nearest[cell] = distance
            if distance > farthest:
                farthest = distance
                best = cell
        chosen[turn] = best
