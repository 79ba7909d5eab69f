"""Silhouette widths of labels, and of batches within each label, from one pass over all distances.

Cells are sorted by label and batch, so that a block of distances is added up in a few long stretches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from omics.eval.integration.distance_blocks import for_each_block

Array = np.ndarray[Any, np.dtype[Any]]


def silhouettes(embedding: Array, labels: Array, batches: Array) -> tuple[Array, Array]:
    """Return how much nearer each cell is to its own group than to the nearest other one.

    Args:
        embedding: float [n, d], finite.
        labels: int [n], from 0; every number occurs.
        batches: int [n], from 0.

    Returns:
        float64 [n], (b - a) / max(a, b) of the mean distances a to cells of the own label and b to
        those of the nearest other; and float64 [n], the same of batches among the cells of the
        own label. 0 for a cell that is alone in its group; NaN where there is no other group.

    Source: Rousseeuw, P. J. (1987), J. Comput. Appl. Math. 20, 53-65.
    """
    order = np.lexsort((batches, labels))
    pairs = labels[order].astype(np.int64) * (int(batches.max()) + 1) + batches[order]
    groups = np.flatnonzero(np.diff(pairs, prepend=-1))  # where a batch of a label begins
    label_of_group = labels[order][groups]
    first_of_label = np.flatnonzero(np.diff(label_of_group, prepend=-1))
    group_sizes = np.diff(groups, append=len(order))
    label_sizes = np.add.reduceat(group_sizes, first_of_label)
    group_of_cell = np.repeat(np.arange(len(groups)), group_sizes)
    # By label, where its groups lie; one past the last of them.
    ends = np.append(first_of_label, len(groups))
    by_label, by_batch = np.empty(len(order)), np.empty(len(order))

    def add_up(start: int, squares: Array) -> None:
        rows = np.arange(len(squares))
        np.abs(squares, out=squares)  # a little below 0 where two cells are the same
        np.sqrt(squares, out=squares)
        squares[rows, start + rows] = 0
        sums = np.add.reduceat(squares, groups, axis=1).astype(np.float64)
        own = group_of_cell[start : start + len(squares)]
        label_sums = np.add.reduceat(sums, first_of_label, axis=1)
        by_label[start : start + len(squares)] = _widths(
            label_sums, label_sizes, label_of_group[own]
        )
        for label in np.unique(label_of_group[own]):
            inside = np.flatnonzero(label_of_group[own] == label)
            begin, end = ends[label], ends[label + 1]
            by_batch[start + inside] = _widths(
                sums[inside, begin:end], group_sizes[begin:end], own[inside] - begin
            )

    for_each_block(np.asarray(embedding)[order], add_up)
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return by_label[back], by_batch[back]


def _widths(sums: Array, sizes: Array, own: Array) -> Array:
    """Return the widths [b] of cells of the groups `own` [b] from sums of distances [b, g]."""
    if len(sizes) == 1:
        return np.full(len(own), np.nan)
    rows = np.arange(len(own))
    inside = sums[rows, own] / np.maximum(sizes[own] - 1, 1)
    means = sums / sizes
    means[rows, own] = np.inf
    outside = means.min(axis=1)
    larger = np.maximum(inside, outside)
    alone = (sizes[own] == 1) | (larger == 0)
    return np.where(alone, 0.0, (outside - inside) / np.where(larger > 0, larger, 1.0))
