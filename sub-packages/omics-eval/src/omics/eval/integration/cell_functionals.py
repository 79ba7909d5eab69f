"""Metrics of integration as functions of how often each cell counts, for the bootstrap.

Each is exact for whole weights: a cell that counts twice is two cells with the same numbers. What a
cell has from its surroundings (neighbours, clusters, silhouette width) stays as it is.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from omics.eval.intervals import CellMetric

Array = np.ndarray[Any, np.dtype[Any]]


class SortedGroups:
    """Cells sorted by group, so that sums over groups are sums over stretches."""

    def __init__(self, codes: Array, *, used: Array | None = None) -> None:
        """Sort the cells.

        Args:
            codes: int [n], the group of each cell, from 0.
            used: bool [n], the cells to take; None for all.
        """
        rows = np.arange(len(codes)) if used is None else np.flatnonzero(used)
        self.rows = rows[np.argsort(codes[rows], kind="stable")]
        self.starts = np.flatnonzero(np.diff(codes[self.rows], prepend=-1))

    def take(self, weights: Array) -> Array:
        """Return the weights [r, m] of the cells in their new order, of weights [r, n]."""
        return np.take(weights, self.rows, axis=1)

    def sums(self, taken: Array) -> Array:
        """Return the sums [r, groups] of what `take` gave, for the groups that occur."""
        return np.add.reduceat(taken, self.starts, axis=1)


def macro_mean_metric(values: Array, groups: Array, *, name: str) -> CellMetric:
    """Return the mean over groups of the mean over their cells.

    Args:
        values: float [n]; NaN leaves a cell out, and a group without any other with it.
        groups: int [n], from 0.
        name: of the metric.
    """
    cells = SortedGroups(groups, used=~np.isnan(values))
    ordered = values[cells.rows]

    def of(weights: Array) -> Array:
        taken = cells.take(weights)
        sizes = cells.sums(taken)
        taken *= ordered
        means = cells.sums(taken) / np.where(sizes > 0, sizes, 1)
        # A resample without a cell of a group says nothing about that group.
        return np.asarray(means.sum(axis=1) / (sizes > 0).sum(axis=1))

    return CellMetric(name, len(values), of)


def median_metric(values: Array, *, name: str) -> CellMetric:
    """Return the median of one number per cell.

    Args:
        values: float [n].
        name: of the metric.
    """
    order = np.argsort(values, kind="stable")
    ascending = values[order]

    def of(weights: Array) -> Array:
        reached = np.cumsum(np.take(weights, order, axis=1), axis=1)
        # The two middle cells, which differ where exactly half of the weight lies below.
        lower = [np.searchsorted(row, row[-1] / 2, "left") for row in reached]
        upper = [np.searchsorted(row, row[-1] / 2, "right") for row in reached]
        return np.asarray((ascending[lower] + ascending[upper]) / 2)

    return CellMetric(name, len(values), of)


def scaled_metric(metric: CellMetric, *, offset: float, factor: float) -> CellMetric:
    """Return (metric - offset) * factor.

    Args:
        metric: to scale.
        offset: what becomes 0.
        factor: by which the rest is multiplied.
    """
    return CellMetric(
        metric.name, metric.num_cells, lambda weights: (metric(weights) - offset) * factor
    )


class _Contingency:
    """How much weight each pair of a label and a cluster has."""

    def __init__(self, labels: Array, clusters: Array) -> None:
        pairs, codes = np.unique(
            labels.astype(np.int64) * (int(clusters.max()) + 1) + clusters, return_inverse=True
        )
        self._pairs = SortedGroups(codes)
        self._labels = np.eye(int(labels.max()) + 1)[pairs // (int(clusters.max()) + 1)]
        self._clusters = np.eye(int(clusters.max()) + 1)[pairs % (int(clusters.max()) + 1)]

    def __call__(self, weights: Array) -> tuple[Array, Array, Array]:
        """Return weights of pairs [r, p], labels [r, c] and clusters [r, k]."""
        pairs = self._pairs.sums(self._pairs.take(weights))
        return pairs, pairs @ self._labels, pairs @ self._clusters


def nmi_metric(labels: Array, clusters: Array, *, name: str = "nmi") -> CellMetric:
    """Return the mutual information of labels and clusters, over the mean of their entropies.

    Args:
        labels: int [n], from 0.
        clusters: int [n], from 0.
        name: of the metric.

    Source: Strehl, A. & Ghosh, J. (2002), J. Mach. Learn. Res. 3, 583-617; arithmetic mean.
    """
    table = _Contingency(labels, clusters)

    def of(weights: Array) -> Array:
        total = weights.sum(axis=1)
        pairs, rows, columns = (_entropy(part, total) for part in table(weights))
        mean = (rows + columns) / 2
        # Two partitions of a single group each are the same partition.
        return np.where(mean > 0, (rows + columns - pairs) / np.where(mean > 0, mean, 1), 1.0)

    return CellMetric(name, len(labels), of)


def ari_metric(labels: Array, clusters: Array, *, name: str = "ari") -> CellMetric:
    """Return the share of pairs of cells that labels and clusters agree on, beyond chance.

    Args:
        labels: int [n], from 0.
        clusters: int [n], from 0.
        name: of the metric.

    Source: Hubert, L. & Arabie, P. (1985), Journal of Classification 2, 193-218.
    """
    table = _Contingency(labels, clusters)

    def of(weights: Array) -> Array:
        together, rows, columns = ((part * (part - 1) / 2).sum(axis=1) for part in table(weights))
        total = weights.sum(axis=1)
        expected = rows * columns / (total * (total - 1) / 2)
        room = (rows + columns) / 2 - expected
        return np.where(room != 0, (together - expected) / np.where(room != 0, room, 1), 1.0)

    return CellMetric(name, len(labels), of)


def explained_share_metric(embedding: Array, groups: Array, *, name: str) -> CellMetric:
    """Return the share of the variance of an embedding that lies between groups.

    Principal components are only turned axes, so the mean of their R^2, weighted by their
    variance, is this share, and none need be computed.

    Args:
        embedding: float [n, d].
        groups: int [n], from 0.
        name: of the metric.

    Source: principal component regression, Büttner, M. et al. (2019), Nature Methods 16, 43-49.
    """
    cells = SortedGroups(groups)
    points = np.asarray(embedding, np.float64)[cells.rows]
    points -= points.mean(axis=0)
    squares = np.square(points).sum(axis=1)
    ends = np.append(cells.starts, len(points))
    members = [slice(begin, end) for begin, end in pairwise(ends)]

    def of(weights: Array) -> Array:
        taken = cells.take(weights)
        sizes = cells.sums(taken)
        sums = np.stack([taken[:, rows] @ points[rows] for rows in members], axis=1)
        centre = np.square(sums.sum(axis=1)).sum(axis=1) / sizes.sum(axis=1)
        total = taken @ squares - centre
        between = (np.square(sums).sum(axis=2) / np.where(sizes > 0, sizes, 1)).sum(axis=1) - centre
        return np.where(total > 0, between / np.where(total > 0, total, 1), 0.0)

    return CellMetric(name, len(points), of)


def removed_share_metric(before: CellMetric, after: CellMetric, *, name: str) -> CellMetric:
    """Return which share of a number has gone: (before - after) / before, not below 0.

    Args:
        before: such as the share of variance between batches in the principal components.
        after: the same in an embedding.
        name: of the metric.
    """

    def of(weights: Array) -> Array:
        was = before(weights)
        gone = (was - after(weights)) / np.where(was > 0, was, 1)
        return np.maximum(np.where(was > 0, gone, 0.0), 0.0)

    return CellMetric(name, before.num_cells, of)


def _entropy(weights: Array, total: Array) -> Array:
    """Return the entropy [r] of groups with weights [r, g], in nats."""
    shares = weights / total[:, None]
    logs = np.log(np.where(shares > 0, shares, 1.0))
    return np.asarray(-(shares * logs).sum(axis=1))
