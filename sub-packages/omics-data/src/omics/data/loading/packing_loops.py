"""Loops of `packed_order`: which of the waiting cells go into a batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from omics.data.compiled import compiled

Array = np.ndarray[Any, np.dtype[Any]]


@compiled
def pack_rows(order: Array, sizes: Array, budget: int, window: int, packed: Array) -> None:
    """Write the rows of one batch after the other.

    Args:
        order: int64 [n], rows of the epoch.
        sizes: int32 [cells of the store], tokens of each cell.
        budget: tokens of a batch.
        window: cells that wait at most.
        packed: int64 [n], for the rows.
    """
    waiting = np.empty(window, np.int64)  # Rows, those that waited longest first.
    taken = np.zeros(window, np.bool_)
    count = read = written = 0
    while written < order.size:
        while count < window and read < order.size:
            waiting[count] = order[read]
            count += 1
            read += 1
        choose(sizes[waiting[:count]], budget, taken)
        left = 0
        for place in range(count):
            if taken[place]:
                packed[written] = waiting[place]
                written += 1
                taken[place] = False
            else:
                waiting[left] = waiting[place]
                left += 1
        count = left


@compiled
def choose(size: Array, budget: int, taken: Array) -> None:
    """Choose the cells of a batch.

    Args:
        size: int32 [n], tokens of the cells that wait, those that waited longest first.
        budget: tokens of the batch.
        taken: bool [n or more], set for the cells that are chosen; the first always is.
    """
    number = 1
    gap = budget - size[0]
    taken[0] = True
    while number < size.size and size[number] <= gap:
        gap -= size[number]
        taken[number] = True
        number += 1
    if gap <= 0 or number == size.size:
        return
    ascending = np.argsort(size, kind="mergesort")
    if number > 1:
        # The last one may give way to two that leave less empty than any one beside it.
        last = number - 1
        best = size[last]
        for place in range(number, size.size):
            if size[place] <= gap:
                best = max(best, size[last] + size[place])
        low, high = best_pair(size, ascending, last, gap + size[last], best)
        if low >= 0:
            gap += size[last] - size[low] - size[high]
            taken[last] = False
            taken[low] = taken[high] = True
    # Whatever still fits, the largest first: the next batch must begin with what does not.
    for place in ascending[::-1]:
        if not taken[place] and size[place] <= gap:
            taken[place] = True
            gap -= size[place]


@compiled
def best_pair(size: Array, ascending: Array, first: int, room: int, best: int) -> tuple[int, int]:
    """Return the two cells that fill a room best; (-1, -1) where none is better than `best`.

    Args:
        size: int32 [n], tokens of the cells.
        ascending: int64 [n], cells in the order of their sizes.
        first: cells before this one are taken.
        room: tokens that the two may have.
        best: tokens that they must exceed.
    """
    found = (-1, -1)
    low, high = 0, size.size - 1
    while low < high:
        one, other = ascending[low], ascending[high]
        both = size[one] + size[other]
        if other < first or (one >= first and both > room):
            high -= 1
        elif one < first:
            low += 1
        else:
            if both > best:
                best = both
                found = (one, other)
            low += 1
    return found
