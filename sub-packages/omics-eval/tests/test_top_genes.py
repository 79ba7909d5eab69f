"""Means, tests and stability of genes by class."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from omics.eval.explained_cells import ExplainedCells
from omics.eval.intervals import bootstrap_interval, mean_metric
from omics.eval.top_genes import genes_by_class, jaccard, names_in_common

NUM_GENES = 12


def cells_of(dense, classes, shown):
    """Pairs whose cells show some genes, with their scores."""
    cell, gene = np.nonzero(shown)
    return ExplainedCells(
        rows=np.arange(len(dense)),
        classes=np.asarray(classes),
        offsets=np.concatenate([[0], np.cumsum(shown.sum(axis=1))]),
        genes=gene,
        scores=dense[cell, gene],
        of_field={},
        measured={},
    )


@pytest.fixture
def made():
    """Gene 0 argues for class 0 and gene 1 for class 2; class 1 has no cell; gene 11 is not shown."""
    generator = np.random.default_rng(0)
    classes = np.repeat([0, 2], [30, 20])
    dense = generator.normal(0, 1, (50, NUM_GENES))
    dense[classes == 0, 0] += 3
    dense[classes == 2, 1] += 3
    shown = generator.random((50, NUM_GENES)) < 0.8
    shown[:, 11] = False
    return dense * shown, classes, shown


def test_means_and_tests_are_those_of_scipy_with_unseen_genes_as_zeros(made):
    dense, classes, shown = made
    found = genes_by_class(
        cells_of(dense, classes, shown), num_classes=3, num_genes=NUM_GENES, num_top=4
    )
    assert [each.class_number for each in found] == [0, 2]
    for each in found:
        own = dense[classes == each.class_number]
        assert each.num_cells == len(own)
        assert each.cells_with_gene.tolist() == shown[classes == each.class_number].sum(0).tolist()
        np.testing.assert_allclose(each.means, own.mean(axis=0), atol=1e-12)
        expected = stats.ttest_1samp(own[:, :11], 0)
        np.testing.assert_allclose(each.t[:11], expected.statistic)
        np.testing.assert_allclose(each.p[:11], expected.pvalue)
        assert np.isnan([each.t[11], each.p[11], each.p_holm[11]]).all()
        assert (np.diff(each.means[each.top]) <= 0).all()
        assert (each.means[each.top] > 0).all()
        metric = mean_metric(own[:, each.top[0]])
        assert each.interval(int(each.top[0]), seed=3) == bootstrap_interval(metric, seed=3)
    assert (found[0].top[0], found[1].top[0]) == (0, 1)
    assert found[0].p_holm[0] < 1e-6


def test_one_cell_has_a_mean_and_no_test():
    dense = np.zeros((1, NUM_GENES))
    dense[0, 3] = 2.0
    (found,) = genes_by_class(
        cells_of(dense, [1], dense > 0), num_classes=2, num_genes=NUM_GENES, num_top=4
    )
    assert found.top.tolist() == [3]
    assert np.isnan(found.p_holm[3])
    assert found.shared_by_halves(4, seed=0) is None


def test_halves_share_planted_genes_and_hardly_any_of_noise(made):
    dense, classes, shown = made
    planted, _ = genes_by_class(
        cells_of(dense, classes, shown), num_classes=3, num_genes=NUM_GENES, num_top=1
    )
    share = planted.shared_by_halves(1, seed=0)
    assert (share.value, share.low, share.high) == (1.0, 1.0, 1.0)
    noise = np.random.default_rng(1).normal(0, 1, (40, 200))
    (found,) = genes_by_class(
        cells_of(noise, np.zeros(40, int), np.ones((40, 200), bool)),
        num_classes=1,
        num_genes=200,
        num_top=5,
    )
    assert found.shared_by_halves(5, seed=0).value < 0.2
    assert found.shared_by_halves(5, seed=0) == found.shared_by_halves(5, seed=0)


def test_sets_in_common():
    first = np.array([[True, True, False], [False, False, False]])
    second = np.array([[False, True, True], [False, False, False]])
    assert jaccard(first, second).tolist() == [1 / 3, 0.0]
    assert names_in_common(["a", "b"], ["b", "c", "d"]) == 0.25
