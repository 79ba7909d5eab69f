from __future__ import annotations

import numpy as np
import pytest
from integration_cells import golden
from scipy.stats import norm

from omics.eval.intervals import joint_draws, mean_metric
from omics.eval.many_comparisons import holm, normal_interval, p_value


def test_holm_is_the_step_down_method_written_out():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.005])
    expected = [0.03, np.nan, 0.06, 0.06, 0.02]  # (0.005 * 4, 0.01 * 3, 0.03 * 2, max(.06, .04))
    np.testing.assert_allclose(holm(p), expected)
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


def test_holm_is_that_of_statsmodels():
    theirs = golden()["holm"]
    np.testing.assert_allclose(holm(np.array(theirs["p"])), theirs["corrected"])


def test_interval_and_p_value_of_a_mean_are_those_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(0.1, 1, 400)
    drawn = joint_draws([mean_metric(values)], num_resamples=4000, seed=1)[0]
    error = values.std() / 20
    found = normal_interval(values.mean(), drawn)
    assert found.value - found.low == pytest.approx(1.96 * error, rel=0.05)
    assert found.high - found.value == pytest.approx(found.value - found.low)
    expected = 2 * norm.sf(abs(values.mean()) / error)
    assert p_value(values.mean(), drawn) == pytest.approx(expected, rel=0.3)
    cut = normal_interval(values.mean(), drawn, bounds=(values.mean() - 0.01, 0.11))
    assert (cut.low, cut.high) == (values.mean() - 0.01, 0.11)


def test_what_no_resample_changes_is_not_tested():
    assert p_value(0.0, np.zeros(10)) == 1
    assert np.isnan(p_value(0.3, np.full(10, 0.3)))


def test_normal_intervals_cover_and_p_values_reject_as_often_as_they_say():
    rng = np.random.default_rng(3)
    covered, rejected = 0, 0
    for trial in range(400):
        values = rng.normal(0, 1, 100)
        drawn = joint_draws([mean_metric(values)], num_resamples=200, seed=trial)[0]
        interval = normal_interval(values.mean(), drawn)
        covered += interval.low <= 0 <= interval.high
        rejected += p_value(values.mean(), drawn) < 0.05
    assert 0.92 <= covered / 400 <= 0.97
    assert rejected == 400 - covered
