"""Each metric at weights 1 is that of scikit-learn or numpy; at other whole weights, of cells repeated."""

from __future__ import annotations

import numpy as np
import pytest
from integration_cells import golden, planted_groups
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from omics.eval.integration.cell_functionals import (
    ari_metric,
    explained_share_metric,
    macro_mean_metric,
    median_metric,
    nmi_metric,
    removed_share_metric,
    scaled_metric,
)
from omics.eval.intervals import CellMetric, joint_draws, mean_metric
from omics.eval.many_comparisons import normal_interval

N = 60


@pytest.fixture
def drawn():
    """Weights of resamples [5, n], the first all 1, and the rows that they stand for."""
    rng = np.random.default_rng(0)
    weights = rng.multinomial(N, np.full(N, 1 / N), 5)
    weights[0] = 1
    return weights.astype(float), [np.repeat(np.arange(N), w) for w in weights]


def same_as_repeated(metric, drawn, expected):
    weights, rows = drawn
    np.testing.assert_allclose(metric(weights), [expected(each) for each in rows], rtol=1e-9)


def test_nmi_and_ari_are_those_of_scikit_learn(drawn):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, N)
    clusters = np.where(rng.random(N) < 0.6, labels, rng.integers(0, 6, N))
    same_as_repeated(
        nmi_metric(labels, clusters),
        drawn,
        lambda rows: normalized_mutual_info_score(labels[rows], clusters[rows]),
    )
    same_as_repeated(
        ari_metric(labels, clusters),
        drawn,
        lambda rows: adjusted_rand_score(labels[rows], clusters[rows]),
    )


def test_two_partitions_of_one_group_agree():
    one = np.zeros(5, int)
    assert nmi_metric(one, one).value == 1
    assert ari_metric(one, one).value == 1
    assert nmi_metric(np.array([0, 1, 0, 1, 0]), one).value == 0


def test_median_is_that_of_numpy(drawn):
    values = np.random.default_rng(2).normal(size=N).round(1)  # with ties
    same_as_repeated(median_metric(values, name="m"), drawn, lambda r: np.median(values[r]))
    odd = median_metric(np.array([3.0, 1.0, 2.0]), name="m")
    assert odd(np.array([[1.0, 1, 1], [2, 0, 1], [0, 3, 0]])).tolist() == [2, 3, 1]


def test_macro_mean_gives_every_group_one_voice(drawn):
    rng = np.random.default_rng(3)
    values, groups = rng.normal(size=N), np.minimum(rng.integers(0, 9, N), 3)
    values[groups == 1] = np.nan
    same_as_repeated(
        macro_mean_metric(values, groups, name="m"),
        drawn,
        lambda rows: np.mean([values[rows][groups[rows] == g].mean() for g in (0, 2, 3)]),
    )
    two = macro_mean_metric(np.array([1.0, 3.0, 9.0]), np.array([0, 0, 1]), name="m")
    assert two(np.array([[1.0, 1, 1], [1, 2, 0]])).tolist() == [5.5, 7 / 3]


def test_explained_share_is_principal_component_regression(drawn):
    rng = np.random.default_rng(4)
    groups = rng.integers(0, 3, N)
    points = rng.normal(size=(N, 5)) + 2 * np.eye(3, 5)[groups]

    def regression(rows):
        pca = PCA().fit(points[rows])
        components = pca.transform(points[rows])
        one_hot = np.eye(3)[groups[rows]]
        fits = [LinearRegression().fit(one_hot, c).score(one_hot, c) for c in components.T]
        return np.dot(fits, pca.explained_variance_) / pca.explained_variance_.sum()

    same_as_repeated(explained_share_metric(points, groups, name="pcr"), drawn, regression)
    assert explained_share_metric(np.ones((N, 2)), groups, name="pcr").value == 0


def test_explained_share_is_that_of_scib_metrics():
    before, after, _, batches = planted_groups()
    for points, name in ((before, "before"), (after, "after")):
        found = explained_share_metric(points, batches, name="pcr").value
        assert found == pytest.approx(golden()[name]["pcr"], abs=1e-6)


def test_removed_share_is_cut_at_zero():
    before = mean_metric(np.array([0.4, 0.4]))
    better, worse = mean_metric(np.array([0.1, 0.1])), mean_metric(np.array([0.8, 0.8]))
    nothing = CellMetric("none", 2, lambda weights: np.zeros(len(weights)))
    assert removed_share_metric(before, better, name="r").value == pytest.approx(0.75)
    assert removed_share_metric(before, worse, name="r").value == 0
    assert removed_share_metric(nothing, better, name="r").value == 0
    assert scaled_metric(before, offset=0.2, factor=3).value == pytest.approx(0.6)


def test_intervals_over_cells_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(5)

    def drawn_metrics(num_cells):
        labels = rng.choice(4, num_cells, p=[0.4, 0.3, 0.2, 0.1])
        clusters = np.where(rng.random(num_cells) < 0.7, labels, rng.integers(0, 5, num_cells))
        batches = rng.integers(0, 3, num_cells)
        points = rng.normal(size=(num_cells, 5)) + 0.7 * np.eye(3, 5)[batches]
        return [
            nmi_metric(labels, clusters),
            ari_metric(labels, clusters),
            median_metric(rng.lognormal(size=num_cells), name="median"),
            explained_share_metric(points, batches, name="pcr"),
        ]

    truth = [metric.value for metric in drawn_metrics(200_000)]
    held = np.zeros(4)
    for trial in range(150):
        metrics = drawn_metrics(300)
        draws = joint_draws(metrics, num_resamples=150, seed=trial)
        for place, (metric, row) in enumerate(zip(metrics, draws, strict=True)):
            interval = normal_interval(metric.value, row)
            held[place] += interval.low <= truth[place] <= interval.high
    # NMI itself is a little too high on few cells, which no interval around it can mend.
    assert 0.84 <= held[0] / 150 <= 0.97
    assert (held[1:] / 150 >= 0.89).all()
    assert (held[1:] / 150 <= 0.99).all()
