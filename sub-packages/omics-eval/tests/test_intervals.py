from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from omics.data.errors import UsageError
from omics.eval.intervals import bootstrap_interval, paired_difference, wilson_interval


def mean_of(values):
    return lambda weights: weights @ values / weights.sum(axis=1)


def test_wilson_of_90_in_100_is_the_published_interval():
    interval = wilson_interval(90, 100)
    assert interval.value == 0.9
    assert (interval.low, interval.high) == pytest.approx((0.8256, 0.9448), abs=5e-5)
    assert str(interval) == "0.900 [0.826, 0.945]"


@given(st.integers(1, 500), st.integers(0, 500), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_equals_scipy(total, successes, level):
    successes = min(successes, total)
    interval = wilson_interval(successes, total, level=level)
    expected = stats.binomtest(successes, total).proportion_ci(level, method="wilson")
    assert interval.low == pytest.approx(expected.low, abs=1e-12)
    assert interval.high == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_wilson_does_not_collapse_at_the_ends():
    assert wilson_interval(0, 10).low == 0
    assert wilson_interval(0, 10).high == pytest.approx(0.2775, abs=1e-4)
    assert wilson_interval(10, 10).high == 1


@pytest.mark.parametrize(("successes", "total"), [(1, 0), (5, 4), (-1, 4)])
def test_wilson_refuses_what_is_no_proportion(successes, total):
    with pytest.raises(UsageError, match=f"{successes} of {total} cells is not a proportion"):
        wilson_interval(successes, total)


def test_a_bad_level_is_named():
    with pytest.raises(UsageError, match=r"level 95 of an interval must lie between 0 and 1"):
        wilson_interval(1, 2, level=95)


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    interval = bootstrap_interval(mean_of(values), 400)
    half = 1.96 * values.std(ddof=1) / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    # 400 data sets of 80 cells: the share of 95 % intervals that hold the true 0.7 has a standard
    # error of 0.011; percentile intervals of a proportion are slightly short, hence 0.92.
    generator = np.random.default_rng(7)
    held = 0
    for repeat in range(400):
        right = (generator.random(80) < 0.7).astype(float)
        interval = bootstrap_interval(mean_of(right), 80, num_resamples=400, seed=repeat)
        held += interval.low <= 0.7 <= interval.high
    assert 0.92 <= held / 400 <= 0.98


def test_bootstrap_repeats_with_its_seed_and_differs_with_another():
    values = np.random.default_rng(0).random(50)
    first, second, other = (bootstrap_interval(mean_of(values), 50, seed=s) for s in (1, 1, 2))
    assert first == second
    assert first.low != other.low


def test_resamples_are_the_same_whatever_the_block(monkeypatch):
    values = np.random.default_rng(0).random(30)
    whole = bootstrap_interval(mean_of(values), 30, num_resamples=100)
    monkeypatch.setattr("omics.eval.intervals._BLOCK_ENTRIES", 30 * 7)
    blocks = []

    def metric(weights):
        blocks.append(len(weights))
        assert (weights.sum(axis=1) == 30).all()
        return mean_of(values)(weights)

    assert bootstrap_interval(metric, 30, num_resamples=100) == whole
    assert max(blocks) == 7


def test_pairing_removes_what_is_hard_for_both():
    generator = np.random.default_rng(3)
    hard = generator.random(300) < 0.4
    first = np.where(hard, 0.0, 1.0)
    second = first.copy()
    second[np.flatnonzero(~hard)[:15]] = 0.0
    paired = paired_difference(mean_of(first), mean_of(second), 300)
    alone = bootstrap_interval(mean_of(first), 300)
    assert paired.value == pytest.approx(0.05)
    assert paired.low > 0
    assert paired.high - paired.low < (alone.high - alone.low) / 2


def test_a_method_against_itself_differs_by_nothing():
    values = np.random.default_rng(0).random(20)
    interval = paired_difference(mean_of(values), mean_of(values), 20)
    assert (interval.value, interval.low, interval.high) == (0, 0, 0)


def test_an_undefined_metric_is_refused():
    def metric(weights):
        return np.where(weights[:, 0] == 0, np.nan, 1.0)

    with pytest.raises(UsageError, match=r"undefined on \d+ of 2000 resamples"):
        bootstrap_interval(metric, 5)


def test_nothing_to_draw_is_refused():
    with pytest.raises(UsageError, match="bootstrap of 0 cells"):
        bootstrap_interval(mean_of(np.zeros(0)), 0)
