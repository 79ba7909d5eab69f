"""Random cells: of all, the same number of every group, or the same number of every label.

- Equal per group: the wanted number is divided by the number of groups; smaller groups are taken
  whole, and what they leave over goes round the others one cell at a time, in the order of the
  groups, until the number is met exactly.
- One permutation of all cells decides: the first cells of a group in it are the chosen ones, so the
  same seed with a larger number gives a superset.
- Memory: 16 bytes per cell.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from omics.data.errors import InputDataError, UsageError

Array = np.ndarray[Any, np.dtype[Any]]


def random_rows(num_cells: int, number: int, *, seed: int = 0) -> Array:
    """Choose cells at random, without replacement.

    Args:
        num_cells: of the store.
        number: how many to choose.
        seed: same seed, same cells.

    Returns:
        int64 [number], ascending.

    Raises:
        UsageError: more cells are wanted than there are, or none.
    """
    check_number(number, num_cells)
    return np.sort(_shuffled(num_cells, seed)[:number])


def equal_per_group_rows(codes: Array, number: int, *, seed: int = 0) -> Array:
    """Choose cells so that every group has the same number, as far as it has so many.

    Args:
        codes: int64 [n], the group of each cell; -1 is never chosen.
        number: cells in all.
        seed: same seed, same cells.

    Returns:
        int64 [number], ascending.

    Raises:
        UsageError: more cells are wanted than groups hold, or none.
    """
    sizes = _sizes(codes)
    check_number(number, int(sizes.sum()), "cells with a group")
    return _first_of_groups(codes, group_quotas(sizes, number), seed)


def label_balanced_rows(codes: Array, per_label: int, *, seed: int = 0) -> Array:
    """Choose the same number of cells of every label; a smaller label is taken whole.

    Args:
        codes: int64 [n], the label of each cell; -1 is never chosen.
        per_label: cells of each label.
        seed: same seed, same cells.

    Returns:
        int64 [m], ascending.

    Raises:
        UsageError: `per_label` is less than 1.
        InputDataError: no cell has a label.
    """
    if per_label < 1:
        raise UsageError(f"{per_label} cells of each label are wanted; ask for at least 1.")
    sizes = _sizes(codes)
    if not sizes.sum():
        raise InputDataError("No cell has a label, so none can be chosen by it.")
    return _first_of_groups(codes, np.minimum(sizes, per_label), seed)


def group_quotas(sizes: Array, number: int) -> Array:
    """Return how many cells each group gives.

    Args:
        sizes: int64 [g], the cells of each group.
        number: in all, at most the sum of `sizes`.

    Returns:
        int64 [g] that sum to `number`: equal but for smaller groups, which give all they have, and
        for a last round that reaches only the first of the larger ones.
    """
    low, high = 0, int(sizes.max(initial=0))
    while low < high:  # The last level up to which every group can be filled.
        middle = (low + high + 1) // 2
        if int(np.minimum(sizes, middle).sum()) <= number:
            low = middle
        else:
            high = middle - 1
    quotas = np.minimum(sizes, low)
    larger = np.flatnonzero(sizes > low)
    quotas[larger[: number - int(quotas.sum())]] += 1
    return np.asarray(quotas, np.int64)


def check_number(number: int, available: int, what: str = "cells") -> None:
    """Refuse a number of cells that cannot be chosen.

    Args:
        number: wanted.
        available: there are.
        what: they are called.

    Raises:
        UsageError: the number is less than 1 or more than there are.
    """
    if number < 1:
        raise UsageError(f"{number:,} cells are wanted; ask for at least 1.")
    if number > available:
        raise UsageError(
            f"{number:,} cells are wanted, but there are {available:,} {what} to choose from."
        )


def _sizes(codes: Array) -> Array:
    return np.bincount(codes[codes >= 0], minlength=1).astype(np.int64)


def _shuffled(num_cells: int, seed: int) -> Array:
    if seed < 0:
        raise UsageError(f"The seed is {seed}; it must not be negative.")
    return np.random.Generator(np.random.PCG64(seed)).permutation(num_cells)


def _first_of_groups(codes: Array, quotas: Array, seed: int) -> Array:
    """Return the first cells of each group in a random order of all cells, ascending."""
    order = _shuffled(len(codes), seed)
    order = order[codes[order] >= 0]
    grouped = order[np.argsort(codes[order], kind="stable")]
    sizes = np.bincount(codes[grouped], minlength=len(quotas))
    place = np.arange(len(grouped)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(grouped[place < quotas[codes[grouped]]])
