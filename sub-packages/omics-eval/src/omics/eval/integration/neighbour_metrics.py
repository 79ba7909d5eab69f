"""What neighbours tell of each cell: how many labels and batches are near, and whether too few.

- LISI: the effective number of groups among 89 neighbours, near ones more (Korsunsky 2019).
- kBET: whether the batches of 49 neighbours and the cell could be drawn from all (Büttner 2019).
- Connectivity: whether a cell hangs together with most of its label through 14 neighbours
  (Luecken 2022).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.eval.integration.nearest_cells import neighbour_graph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omics.eval.integration.nearest_cells import NearestCells

Array = np.ndarray[Any, np.dtype[Any]]

KBET_LEVEL = 0.05


def local_groups(nearest: NearestCells, groupings: Sequence[Array]) -> Array:
    """Return LISI: the effective number of groups among the neighbours of each cell.

    Args:
        nearest: of each cell; the perplexity is a third of their number with the cell itself.
        groupings: int [n] each, from 0, such as labels and batches.

    Returns:
        float64 [groupings, n], from 1 to the number of groups.

    Source: Korsunsky, I. et al. (2019), Nature Methods 16, 1289-1296.
    """
    from omics.eval.integration.neighbour_loops import inverse_simpson

    codes = np.stack([np.asarray(groups, np.int64) for groups in groupings])
    mixing = np.empty(codes.shape)
    inverse_simpson(
        np.ascontiguousarray(nearest.distances),
        np.ascontiguousarray(nearest.indices),
        codes,
        float(max((nearest.indices.shape[1] + 1) // 3, 1)),
        mixing,
    )
    return mixing


def well_mixed(nearest: NearestCells, batches: Array, *, level: float = KBET_LEVEL) -> Array:
    """Return kBET: whether a chi-squared test accepts the batches around each cell.

    Args:
        nearest: of each cell, which is counted among its neighbours.
        batches: int [n], from 0; at least two.
        level: a p-value below it is a refusal.

    Returns:
        bool [n].

    Source: Büttner, M. et al. (2019), Nature Methods 16, 43-49.
    """
    from scipy.stats import chi2

    sizes = np.bincount(batches)
    around = batches[nearest.indices]
    expected = (nearest.indices.shape[1] + 1) * sizes / sizes.sum()
    statistic = np.zeros(nearest.num_cells)
    for batch in range(len(sizes)):
        seen = (around == batch).sum(axis=1) + (batches == batch)
        statistic += (seen - expected[batch]) ** 2 / expected[batch]
    return np.asarray(chi2.sf(statistic, len(sizes) - 1) >= level)


def in_largest_component(nearest: NearestCells, labels: Array) -> Array:
    """Return whether each cell is in the largest connected part of its label.

    Two cells are connected if either is among the neighbours of the other.

    Args:
        nearest: of each cell.
        labels: int [n], from 0; every number occurs.

    Returns:
        bool [n]; the mean over labels of its means is the graph connectivity.

    Source: Luecken, M. D. et al. (2022), Nature Methods 19, 41-50.
    """
    from scipy.sparse.csgraph import connected_components

    # No edge leaves a label, so the parts of all labels are found at once.
    _, parts = connected_components(neighbour_graph(nearest, labels), directed=False)
    sizes = np.bincount(parts)
    largest = np.zeros(int(labels.max()) + 1, np.int64)
    np.maximum.at(largest, labels, sizes[parts])
    # Of parts of the same size one counts.
    first = np.full(len(largest), -1, np.int64)
    candidates = np.flatnonzero(sizes[parts] == largest[labels])[::-1]
    first[labels[candidates]] = parts[candidates]
    return np.asarray(parts == first[labels])
