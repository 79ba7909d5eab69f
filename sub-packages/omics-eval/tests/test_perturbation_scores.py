"""Scores of perturbations against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from omics.data.errors import InputDataError, UsageError
from omics.eval import PerturbationTruth, differential_genes, pseudobulk_of_values
from omics.eval.perturbation_scores import METRICS, metric_bounds, welch_t


def truth_of(values, control, *, de_genes=None, perturbed=None):
    values, none = np.asarray(values, np.float64), np.zeros(0, np.int64)
    p, g = values.shape
    return PerturbationTruth(
        names=np.array([f"p{i}" for i in range(p)], dtype=object),
        values=values,
        control=np.asarray(control, np.float64),
        de_genes=[np.arange(g)] * p if de_genes is None else de_genes,
        perturbed=[none] * p if perturbed is None else perturbed,
    )


@pytest.fixture
def screen():
    generator = np.random.default_rng(3)
    control = generator.random(40)
    return truth_of(control + generator.normal(0, 0.2, (7, 40)), control)


def test_a_perfect_prediction_has_the_best_scores(screen):
    scores = screen.scores(screen.values)
    assert set(scores) == set(METRICS)
    for metric, found in scores.items():
        best = 0.0 if metric.startswith(("mae", "mse")) else 1.0
        np.testing.assert_allclose(found, best, atol=1e-12, err_msg=metric)


def test_scores_are_what_they_are_by_hand():
    control, truth = np.array([1.0, 2.0, 0.0, 5.0]), np.array([2.0, 2.5, 0.5, 4.0])
    predicted = np.array([1.5, 2.0, 1.0, 5.5])
    screen = truth_of([truth, truth + 9], control, de_genes=[np.array([3, 0]), np.arange(4)])
    found = {name: values[0] for name, values in screen.scores(np.array([predicted] * 2)).items()}
    x, y = predicted - control, truth - control
    assert found["pearson"] == pytest.approx(stats.pearsonr(predicted, truth).statistic)
    assert found["delta_pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found["mae"] == pytest.approx((0.5 + 0.5 + 0.5 + 1.5) / 4)
    assert found["mse"] == pytest.approx((0.25 * 3 + 2.25) / 4)
    assert found["mae_de"] == pytest.approx(1.0)
    assert found["mse_de"] == pytest.approx((0.25 + 2.25) / 2)
    assert found["delta_pearson_de"] == 0  # predicted to change equally
    # Gene 3 falls and was predicted to rise, gene 0 rises as predicted.
    assert found["direction_accuracy_de"] == pytest.approx(0.5)


def test_a_prediction_that_says_nothing_has_the_score_of_chance(screen):
    scores = screen.scores(np.tile(screen.control, (7, 1)))
    assert (scores["delta_pearson"] == 0).all()
    assert (scores["direction_accuracy_de"] == 0.5).all()
    # Each truth has another rank among the distances to one prediction: 0, 1/6, ..., 1.
    np.testing.assert_allclose(np.sort(scores["discrimination"]), np.arange(7) / 6)


def test_discrimination_is_0_at_worst_and_a_tie_counts_half():
    values = np.array([[0.0], [1.0], [10.0]])
    screen = truth_of(values, [0.0])
    assert screen.scores(np.array([[10.0], [1.0], [0.0]]))["discrimination"].tolist() == [0, 1, 0]
    assert screen.scores(np.array([[0.5], [0.5], [5.5]]))["discrimination"].tolist() == [
        0.75,  # as close to the second
        0.75,
        0.75,  # as close to the second
    ]


def test_discrimination_does_not_look_at_the_perturbed_genes():
    values = np.array([[9.0, 0.0, 1.0], [0.0, 9.0, 2.0]])
    predicted = np.array([[9.0, 0.0, 2.0], [0.0, 9.0, 1.0]])  # right where the genes are, else not
    blind = truth_of(values, [0.0] * 3, perturbed=[np.array([0]), np.array([1])])
    assert truth_of(values, [0.0] * 3).scores(predicted)["discrimination"].tolist() == [1, 1]
    assert blind.scores(predicted)["discrimination"].tolist() == [1, 1]
    both = truth_of(values, [0.0] * 3, perturbed=[np.array([0, 1])] * 2)
    assert both.scores(predicted)["discrimination"].tolist() == [0, 0]


def test_what_is_not_defined_is_nan():
    values = np.array([[1.0, 1.0], [3.0, 1.0]])
    screen = truth_of(values, [1.0, 1.0], de_genes=[np.zeros(0, np.int64), np.array([0])])
    scores = screen.scores(values)
    assert np.isnan(scores["delta_pearson"]).tolist() == [True, False]  # no change, no direction
    assert np.isnan(scores["mae_de"]).tolist() == [True, False]
    assert np.isnan(scores["pearson_de"]).all()  # one gene has no correlation
    assert np.isnan(scores["direction_accuracy_de"]).tolist() == [True, False]


def test_t_is_that_of_welch():
    generator = np.random.default_rng(5)
    cells = generator.normal(1, 1, (30, 6)) + np.arange(30)[:, None] // 20
    groups = np.array(["c"] * 20 + ["p"] * 10)
    bulks = pseudobulk_of_values(cells, groups, log_base=None)
    expected = stats.ttest_ind(cells[20:], cells[:20], equal_var=False).statistic
    control, perturbed = bulks.row("c"), bulks.row("p")
    np.testing.assert_allclose(welch_t(perturbed, control)[0], expected, rtol=1e-9)
    order = np.argsort(-np.abs(expected))
    assert differential_genes(perturbed, control, num_genes=3)[0].tolist() == order[:3].tolist()


def test_genes_without_spread_are_certain_or_equal_and_one_cell_has_none():
    cells = np.array(
        [[1.0, 2.0, 0.0], [1.0, 2.0, 1.0], [1.0, 3.0, 1.0], [1.0, 3.0, 2.0], [9.0] * 3]
    )
    bulks = pseudobulk_of_values(cells, np.array(["c", "c", "p", "p", "q"]), log_base=None)
    control = bulks.row("c")
    t = welch_t(bulks.take(np.array([1, 2])), control)
    assert t[0].tolist() == [0.0, np.inf, pytest.approx(1 / np.sqrt(0.5))]
    assert np.isnan(t[1]).all()
    genes = differential_genes(bulks.take(np.array([1, 2])), control)
    assert [each.tolist() for each in genes] == [[1, 2], []]


def test_bounds_hold_what_the_metrics_can_be():
    assert metric_bounds("delta_pearson_de") == (-1, 1)
    assert metric_bounds("mse_de") == (0, np.inf)
    assert metric_bounds("discrimination") == (0, 1)


def test_bad_input_is_refused(screen):
    with pytest.raises(UsageError, match="one row a perturbation and one column a gene"):
        screen.scores(screen.values[:, :3])
    broken = screen.values.copy()
    broken[2, 1] = np.nan
    with pytest.raises(InputDataError, match=r"1 of 280 predicted values .* of 'p2'"):
        screen.scores(broken)
    with pytest.raises(InputDataError, match=r"1 perturbation to score \(p0\)"):
        truth_of([[1.0, 2.0]], [0.0, 0.0])
    with pytest.raises(InputDataError, match="measured cells hold values that are not finite"):
        truth_of([[1.0, np.nan], [0.0, 1.0]], [0.0, 0.0])
    with pytest.raises(UsageError, match="The control has 1 genes, the perturbations 2"):
        truth_of([[1.0, 2.0], [0.0, 1.0]], [0.0])
    with pytest.raises(UsageError, match="give one for each"):
        truth_of([[1.0, 2.0], [0.0, 1.0]], [0.0, 0.0], perturbed=[])
