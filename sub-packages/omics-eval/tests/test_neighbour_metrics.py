from __future__ import annotations

import numpy as np
import pytest
from integration_cells import golden, planted_groups
from scipy.stats import chisquare

from omics.eval.integration.nearest_cells import NearestCells, nearest_cells
from omics.eval.integration.neighbour_metrics import (
    in_largest_component,
    local_groups,
    well_mixed,
)


def test_lisi_of_equally_far_neighbours_counts_the_groups():
    indices = np.array([[j for j in range(13) if j != i] for i in range(13)], np.int32)
    nearest = NearestCells(indices, np.ones((13, 12)))
    groups = np.array([0] * 7 + [1] * 6)
    found = local_groups(nearest, [groups, np.zeros(13, int)])
    # Cell 0 has six neighbours of each group, cell 12 seven and five.
    np.testing.assert_allclose(found[0, [0, 12]], [2, 144 / (49 + 25)])
    np.testing.assert_allclose(found[1], 1)


def test_lisi_weighs_near_neighbours_by_the_perplexity():
    rng = np.random.default_rng(0)
    distances = np.sort(rng.uniform(1, 3, (1, 30)))
    nearest = NearestCells(np.arange(1, 31, dtype=np.int32)[None], distances)
    groups = np.concatenate([[0], np.arange(30) % 3])
    found = local_groups(nearest, [groups])[0, 0]
    betas = np.linspace(0, 20, 200_001)[:, None]
    weights = np.exp(-betas * (distances - distances.min()))
    weights /= weights.sum(axis=1, keepdims=True)
    entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(axis=1)
    best = weights[np.abs(entropy - np.log(31 // 3)).argmin()]
    shares = np.bincount(np.arange(30) % 3, best)
    assert found == pytest.approx(1 / (shares**2).sum(), abs=1e-3)


def test_kbet_is_a_chi_squared_test_around_each_cell():
    points, _, _, batches = planted_groups()
    nearest = nearest_cells(points, 49)
    expected = []
    shares = np.bincount(batches) / len(batches)
    for cell, around in enumerate(nearest.indices):
        seen = np.bincount(batches[np.append(around, cell)], minlength=3)
        expected.append(chisquare(seen, 50 * shares).pvalue >= 0.05)
    found = well_mixed(nearest, batches)
    assert found.tolist() == expected
    assert found.mean() == golden()["before"]["kbet"]
    assert well_mixed(nearest, batches, level=0.0).all()


def test_connectivity_finds_the_islands_of_a_label():
    # Label 0 is a path and a pair, label 1 a pair; 6 is a label of its own.
    indices = np.array([[1], [2], [1], [4], [3], [2], [5], [6]], np.int32)
    labels = np.array([0, 0, 0, 0, 0, 1, 2, 1])
    nearest = NearestCells(indices, np.ones((8, 1)))
    inside = in_largest_component(nearest, labels)
    assert inside[:5].tolist() == [True, True, True, False, False]
    assert inside[6]
    assert inside[[5, 7]].sum() == 1  # not neighbours of each other: one of two equal parts counts
