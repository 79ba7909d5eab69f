"""All distances between cells, block by block, on every core: they never exist at once.

A block is one matrix product in float32: with the squared norms as two more columns, the product of
[-2x, |x|^2, 1] and [y, 1, |y|^2] is |x - y|^2. Cells are centred first, so that little cancels.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, np.dtype[Any]]

_BLOCK_ENTRIES = 16_000_000  # 64 MB for each core


def for_each_block(points: Array, work: Callable[[int, Array], None]) -> None:
    """Hand every block of squared distances to a function, from several threads.

    Args:
        points: float [n, d], finite.
        work: called with the first row of a block and its squared distances, float32 [b, n], which
            it may overwrite; they are a little below 0 where two cells are the same.
    """
    from threadpoolctl import threadpool_limits

    centred = (points - points.mean(axis=0, dtype=np.float64)).astype(np.float32)
    norms = np.square(centred).sum(axis=1, keepdims=True)
    ones = np.ones_like(norms)
    left = np.hstack([-2 * centred, norms, ones])
    right = np.ascontiguousarray(np.hstack([centred, ones, norms]).T)
    rows = max(1, _BLOCK_ENTRIES // len(points))

    def block(start: int) -> None:
        work(start, left[start : start + rows] @ right)

    # Each core has a block of its own: the product of one block is too small for all of them.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(_num_cores()) as pool:
        for _ in pool.map(block, range(0, len(points), rows)):
            pass


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
