from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from omics.data.errors import UnknownNameError, UsageError
from omics.eval.classification import accuracy_metric, code_labels, macro_f1_metric, score
from omics.eval.intervals import (
    METHODS,
    CellMetric,
    bootstrap_interval,
    bootstrap_t_interval,
    clopper_pearson_interval,
    confidence_interval,
    joint_draws,
    mean_metric,
    method_for,
    over_groups,
    paired_difference,
    wilson_interval,
)

ALL_METHODS = sorted(METHODS)
CLOSED_FORMS = {"wilson": wilson_interval, "clopper_pearson": clopper_pearson_interval}


def share_of(successes, total):
    """The metric of `successes` right cells among `total`."""
    return mean_metric(np.arange(total) < successes, name="share")


def correlation(first, second):
    """A metric that is no mean over cells: Pearson's r."""

    def values(weights):
        total = weights.sum(axis=1)
        means = [weights @ x / total for x in (first, second)]
        products = weights @ (first * second) / total - means[0] * means[1]
        variances = [
            weights @ x**2 / total - m**2 for x, m in zip((first, second), means, strict=True)
        ]
        return products / np.sqrt(variances[0] * variances[1])

    return CellMetric("correlation", len(first), values, bounds=(-1, 1))


# Proportions


def test_wilson_of_90_in_100_is_the_published_interval():
    interval = wilson_interval(90, 100)
    assert interval.value == 0.9
    assert (interval.low, interval.high) == pytest.approx((0.8256, 0.9448), abs=5e-5)
    assert str(interval) == "0.900 [0.826, 0.945]"


@pytest.mark.parametrize(("name", "in_scipy"), [("wilson", "wilson"), ("clopper_pearson", "exact")])
@given(st.integers(1, 500), st.integers(0, 500), st.sampled_from([0.8, 0.95, 0.99]))
def test_closed_forms_equal_scipy(name, in_scipy, total, successes, level):
    successes = min(successes, total)
    interval = CLOSED_FORMS[name](successes, total, level=level)
    expected = stats.binomtest(successes, total).proportion_ci(level, method=in_scipy)
    assert interval.low == pytest.approx(expected.low, abs=1e-9)
    assert interval.high == pytest.approx(expected.high, abs=1e-9)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_clopper_pearson_at_the_ends_has_a_closed_form():
    # No success in n: the upper end p solves (1 - p)^n = 0.025.
    assert clopper_pearson_interval(0, 10).low == 0
    assert clopper_pearson_interval(0, 10).high == pytest.approx(1 - 0.025**0.1, abs=1e-12)
    assert clopper_pearson_interval(10, 10).low == pytest.approx(0.025**0.1, abs=1e-12)
    assert clopper_pearson_interval(10, 10).high == 1


def test_wilson_does_not_collapse_at_the_ends():
    assert wilson_interval(0, 10).low == 0
    assert wilson_interval(0, 10).high == pytest.approx(0.2775, abs=1e-4)
    assert wilson_interval(10, 10).high == 1


@pytest.mark.parametrize("name", sorted(CLOSED_FORMS))
@pytest.mark.parametrize(("successes", "total"), [(1, 0), (5, 4), (-1, 4)])
def test_what_is_no_proportion_is_refused(name, successes, total):
    with pytest.raises(UsageError, match=f"{successes} of {total} cells is not a proportion"):
        CLOSED_FORMS[name](successes, total)


def test_a_bad_level_is_named():
    with pytest.raises(UsageError, match=r"level 95 of an interval must lie between 0 and 1"):
        wilson_interval(1, 2, level=95)


# Coverage: how often the interval of a new data set holds the truth


def coverage_of_a_share(name, truth, total):
    """The exact coverage: the chance of every count, times whether its interval holds the truth."""
    held = 0.0
    for successes, chance in enumerate(stats.binom.pmf(np.arange(total + 1), total, truth)):
        if chance < 1e-6:
            continue
        interval = confidence_interval(share_of(successes, total), method=name, num_resamples=1000)
        held += chance * (interval.low <= truth <= interval.high)
    return held


@pytest.mark.parametrize(
    ("name", "truth", "least", "most"),
    [
        # Computed over all counts of 100 cells, so nothing here is chance but the draws: within
        # 0.03 of 0.95, and Clopper-Pearson never below it.
        ("wilson", 0.5, 0.92, 0.98),
        ("wilson", 0.95, 0.92, 0.98),
        ("clopper_pearson", 0.5, 0.95, 0.98),
        ("clopper_pearson", 0.95, 0.95, 0.99),
        ("bootstrap", 0.5, 0.92, 0.98),
        ("bootstrap", 0.95, 0.92, 0.98),
        ("bootstrap_t", 0.5, 0.92, 0.98),
        ("bootstrap_t", 0.95, 0.92, 0.98),
    ],
)
def test_intervals_of_a_share_cover_what_they_say(name, truth, least, most):
    assert least <= coverage_of_a_share(name, truth, 100) <= most


def coverage(make, truth, name, repeats, num_resamples=300):
    held = 0
    for repeat in range(repeats):
        interval = confidence_interval(
            make(np.random.default_rng([11, repeat])),
            method=name,
            num_resamples=num_resamples,
            seed=repeat,
        )
        held += interval.low <= truth <= interval.high
    return held / repeats


def test_bootstrap_t_covers_skewed_means_where_percentiles_do_not():
    # Log-normal, 30 cells. 500 repeats: the standard error of a coverage of 0.95 is 0.010.
    def make(generator):
        return mean_metric(generator.lognormal(size=30))

    studentised = coverage(make, np.exp(0.5), "bootstrap_t", 500)
    percentiles = coverage(make, np.exp(0.5), "bootstrap", 500)
    assert studentised >= 0.91
    assert percentiles <= studentised - 0.03


CLASS_SHARES = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
CONFUSION = 0.8 * np.eye(6) + 0.2 / 6
TRUE_MACRO_F1 = float(
    np.mean(
        2 * CLASS_SHARES * np.diag(CONFUSION) / (CLASS_SHARES + (CLASS_SHARES @ CONFUSION)),
    )
)


def labelled_cells(generator):
    truth = generator.choice(6, size=200, p=CLASS_SHARES)
    chosen = generator.random(200)[:, None]
    return truth, (np.cumsum(CONFUSION, axis=1)[truth] < chosen).sum(axis=1)


@pytest.mark.parametrize("name", ["bootstrap", "bootstrap_t"])
def test_intervals_of_macro_f1_cover_what_they_say(name):
    # 160 repeats: the standard error of a coverage of 0.95 is 0.017.
    def make(generator):
        return macro_f1_metric(code_labels(*labelled_cells(generator)))

    assert 0.90 <= coverage(make, TRUE_MACRO_F1, name, 160, num_resamples=200) <= 0.995


def test_bootstrap_t_covers_a_metric_that_is_no_mean():
    # 200 repeats of 60 cells whose numbers correlate by 0.6.
    def make(generator):
        first = generator.normal(size=60)
        return correlation(first, 0.6 * first + 0.8 * generator.normal(size=60))

    assert 0.91 <= coverage(make, 0.6, "bootstrap_t", 200) <= 0.99


# The two bootstraps


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    half = 1.96 * values.std(ddof=1) / 20
    for compute in (bootstrap_interval, bootstrap_t_interval):
        interval = compute(mean_metric(values))
        assert interval.value == pytest.approx(values.mean())
        assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
        assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_bootstrap_t_of_a_mean_is_that_of_a_plain_loop():
    values = np.random.default_rng(5).exponential(size=25)
    interval = bootstrap_t_interval(mean_metric(values), num_resamples=200, seed=3)
    draws = np.random.default_rng(3).integers(0, 25, size=(200, 25))
    error = stats.sem(values)
    t = np.sort([(values[d].mean() - values.mean()) / stats.sem(values[d]) for d in draws])
    assert interval.low == pytest.approx(values.mean() - t[195] * error)
    assert interval.high == pytest.approx(values.mean() - t[4] * error)


def test_the_jackknife_agrees_with_the_closed_form_of_a_mean():
    values = np.random.default_rng(2).exponential(size=120)
    mean = mean_metric(values)
    by_groups = CellMetric("mean", 120, mean.values)
    closed, jackknifed = bootstrap_t_interval(mean), bootstrap_t_interval(by_groups)
    assert jackknifed.low == pytest.approx(closed.low, abs=0.06)
    assert jackknifed.high == pytest.approx(closed.high, abs=0.06)


def test_cells_in_the_order_of_their_classes_change_nothing_but_chance():
    truth, prediction = labelled_cells(np.random.default_rng(4))
    order = np.argsort(truth, kind="stable")
    mixed = bootstrap_t_interval(macro_f1_metric(code_labels(truth, prediction)))
    ordered = bootstrap_t_interval(macro_f1_metric(code_labels(truth[order], prediction[order])))
    assert ordered.high - ordered.low == pytest.approx(mixed.high - mixed.low, rel=0.4)


@pytest.mark.parametrize("compute", [bootstrap_interval, bootstrap_t_interval])
def test_a_bootstrap_repeats_with_its_seed_and_differs_with_another(compute):
    metric = mean_metric(np.random.default_rng(0).random(50))
    first, second, other = (compute(metric, seed=s) for s in (1, 1, 2))
    assert first == second
    assert first.low != other.low


@pytest.mark.parametrize("compute", [bootstrap_interval, bootstrap_t_interval])
def test_resamples_are_the_same_whatever_the_block(compute, monkeypatch):
    mean = mean_metric(np.random.default_rng(0).random(30))
    blocks = []

    def values(weights):
        blocks.append(len(weights))
        return mean(weights)

    metric = CellMetric("mean", 30, values)
    whole = compute(metric, num_resamples=100)
    monkeypatch.setattr("omics.eval.intervals._BLOCK_ENTRIES", 30 * 7)
    blocks.clear()
    cut = compute(metric, num_resamples=100)
    # A matrix product of other shape may differ in its last bit; the draws may not.
    assert (cut.low, cut.high) == pytest.approx((whole.low, whole.high), rel=1e-12)
    assert max(blocks) == 7


def test_ends_of_bootstrap_t_are_cut_to_what_the_metric_can_be():
    interval = bootstrap_t_interval(share_of(29, 30))
    assert interval.low >= 0
    assert interval.high <= 1


def test_resamples_without_spread_leave_bootstrap_t_without_an_end():
    values = np.zeros(20)
    values[0] = 5.0
    with pytest.raises(UsageError, match=r"\d+ of 2000 resamples drew cells without any spread"):
        bootstrap_t_interval(mean_metric(values))


def test_cells_that_all_say_the_same_have_a_point():
    interval = bootstrap_t_interval(mean_metric(np.full(8, 2.5)))
    assert (interval.value, interval.low, interval.high) == (2.5, 2.5, 2.5)


def test_an_undefined_metric_is_refused():
    def values(weights):
        return np.where(weights[:, 0] == 0, np.nan, 1.0)

    metric = CellMetric("ratio", 5, values)
    for compute in (bootstrap_interval, bootstrap_t_interval):
        with pytest.raises(UsageError, match=r"ratio is undefined on \d+ of 2000 resamples"):
            compute(metric)


def test_a_metric_undefined_on_the_cells_themselves_is_refused():
    metric = CellMetric("ratio", 5, lambda w: np.where((w == 1).all(axis=1), np.nan, 1.0))
    with pytest.raises(UsageError, match="ratio is undefined on the test cells, so it has no"):
        bootstrap_interval(metric, num_resamples=20)


def test_nothing_to_draw_is_refused():
    with pytest.raises(UsageError, match="bootstrap of 0 cells"):
        bootstrap_interval(mean_metric(np.zeros(0)))


# Pairs


@pytest.mark.parametrize("method", ["bootstrap", "bootstrap_t"])
def test_pairing_removes_what_is_hard_for_both(method):
    generator = np.random.default_rng(3)
    hard = generator.random(300) < 0.4
    first = ~hard
    second = first.copy()
    second[np.flatnonzero(~hard)[:15]] = False
    paired = paired_difference(mean_metric(first), mean_metric(second), method=method)
    alone = bootstrap_interval(mean_metric(first))
    assert paired.value == pytest.approx(0.05)
    assert paired.low > 0
    assert paired.high - paired.low < (alone.high - alone.low) / 2


def test_a_method_against_itself_differs_by_nothing():
    metric = macro_f1_metric(code_labels(*labelled_cells(np.random.default_rng(0))))
    for method in ("bootstrap", "bootstrap_t"):
        interval = paired_difference(metric, metric, method=method, num_resamples=50)
        assert (interval.value, interval.low, interval.high) == (0, 0, 0)


def test_a_difference_is_no_proportion():
    with pytest.raises(UsageError, match="wilson is for proportions, and share difference is none"):
        paired_difference(share_of(5, 10), share_of(6, 10), method="wilson")


def test_metrics_of_other_cells_cannot_be_compared():
    with pytest.raises(UsageError, match=r"share of 10 cells and share of 11 are not over"):
        paired_difference(share_of(5, 10), share_of(6, 11))


# The table of methods


@pytest.mark.parametrize(
    ("metric", "wanted", "chosen"),
    [
        (share_of(3, 9), None, "wilson"),
        (share_of(3, 9), "clopper_pearson", "clopper_pearson"),
        (share_of(3, 9), "bootstrap", "bootstrap"),
        (mean_metric(np.arange(9)), None, "bootstrap_t"),
        (mean_metric(np.arange(9)), "wilson", "bootstrap_t"),
        (CellMetric("other", 9, lambda w: w[:, 0]), None, "bootstrap"),
        (CellMetric("other", 9, lambda w: w[:, 0]), "clopper_pearson", "bootstrap"),
        (CellMetric("other", 9, lambda w: w[:, 0]), "bootstrap_t", "bootstrap_t"),
    ],
)
def test_each_metric_gets_the_method_that_serves_it(metric, wanted, chosen):
    assert method_for(metric, wanted) == chosen


@pytest.mark.parametrize("name", ALL_METHODS)
def test_every_method_serves_a_proportion_by_its_name(name):
    interval = confidence_interval(share_of(45, 60), method=name)
    assert interval.value == 0.75
    assert 0.55 < interval.low < 0.75 < interval.high < 0.9
    assert METHODS[name].summary


def test_an_unknown_method_is_named_with_the_nearest():
    with pytest.raises(
        UnknownNameError, match=r"no interval method 'wilsn'. Did you mean 'wilson'"
    ):
        confidence_interval(share_of(1, 2), method="wilsn")
    with pytest.raises(UnknownNameError, match="no interval method 'binomial'"):
        method_for(share_of(1, 2), "binomial")


def test_scores_take_a_method_for_both_metrics():
    truth, prediction = labelled_cells(np.random.default_rng(1))
    plain = score(truth, prediction)
    exact = score(truth, prediction, ci_method="clopper_pearson")
    studentised = score(truth, prediction, ci_method="bootstrap_t")
    right = int((truth == prediction).sum())
    assert plain.accuracy == wilson_interval(right, 200)
    assert exact.accuracy == clopper_pearson_interval(right, 200)
    assert exact.macro_f1 == plain.macro_f1
    assert studentised.accuracy == bootstrap_t_interval(
        accuracy_metric(code_labels(truth, prediction))
    )
    assert studentised.macro_f1 != plain.macro_f1


# Faults of a reference system that must not come back


@pytest.mark.parametrize("name", ALL_METHODS)
@pytest.mark.parametrize(("successes", "total"), [(9, 10), (10, 10), (1, 10), (0, 10), (2, 2)])
def test_no_end_lies_outside_what_a_share_can_be(name, successes, total):
    # The normal approximation gives [0.714, 1.086] for 0.9 of 10, and its ends were not cut.
    interval = confidence_interval(share_of(successes, total), method=name)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


@pytest.mark.parametrize("name", ["wilson", "clopper_pearson"])
def test_the_size_of_a_closed_form_is_the_test_cells_never_the_resamples(name):
    few, many = (
        confidence_interval(share_of(900, 1000), method=name, num_resamples=n) for n in (10, 5000)
    )
    assert few == many == CLOSED_FORMS[name](900, 1000)


@pytest.mark.parametrize("compute", [bootstrap_interval, bootstrap_t_interval])
def test_more_resamples_do_not_narrow_a_bootstrap(compute):
    metric = share_of(140, 200)
    few, many = (compute(metric, num_resamples=n) for n in (400, 4000))
    assert many.high - many.low == pytest.approx(few.high - few.low, rel=0.2)


def test_bootstrap_t_is_scaled_by_the_standard_error_not_the_spread_of_one_cell():
    values = np.random.default_rng(9).normal(size=1600)
    whole, quarter = (bootstrap_t_interval(mean_metric(values[:n])) for n in (1600, 400))
    ratio = (quarter.high - quarter.low) / (whole.high - whole.low)
    assert ratio == pytest.approx(2.0, rel=0.15)


@pytest.mark.parametrize("name", ["wilson", "clopper_pearson", "bootstrap"])
def test_one_cell_has_a_finite_interval(name):
    interval = confidence_interval(share_of(1, 1), method=name)
    assert np.isfinite([interval.low, interval.high]).all()
    assert interval.low <= interval.value <= interval.high


def test_bootstrap_t_of_one_cell_is_refused_not_nan():
    with pytest.raises(UsageError, match=r"share needs a standard error, and one test cell has"):
        confidence_interval(share_of(1, 1), method="bootstrap_t")


@pytest.mark.parametrize("name", ["wilson", "clopper_pearson"])
def test_macro_f1_is_no_proportion(name):
    metric = macro_f1_metric(code_labels(*labelled_cells(np.random.default_rng(0))))
    with pytest.raises(UsageError, match=f"{name} is for proportions, and macro-F1 is none"):
        confidence_interval(metric, method=name)


def test_predictions_are_resampled_and_the_metric_is_not_run_once_per_resample():
    calls = []

    def values(weights):
        calls.append(len(weights))
        return weights[:, 0] / weights.sum(axis=1)

    bootstrap_interval(CellMetric("share", 100, values), num_resamples=2000)
    assert calls == [1, 2000]


# Several metrics on the same resamples


def test_joint_draws_are_those_of_each_metric_alone():
    rng = np.random.default_rng(0)
    first, second = mean_metric(rng.normal(size=50)), mean_metric(rng.normal(size=50))
    both = joint_draws([first, second], num_resamples=300, seed=4)
    alone = joint_draws([second], num_resamples=300, seed=4)
    assert both.shape == (2, 300)
    assert np.array_equal(both[1], alone[0])
    found = paired_difference(first, second, num_resamples=300, seed=4)
    assert found.low == pytest.approx(np.quantile(both[0] - both[1], 0.025))
    assert joint_draws([], num_resamples=7).shape == (0, 7)


def test_joint_draws_refuse_metrics_over_other_cells():
    with pytest.raises(UsageError, match="over 3 and 4 cells are not over the same cells"):
        joint_draws([mean_metric(np.zeros(3)), mean_metric(np.zeros(4))])


def test_groups_are_drawn_whole():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(8), 25)
    # All cells of a group are alike, so 200 cells say no more than eight.
    right = (groups < 5).astype(bool)
    metric = over_groups(mean_metric(right, name="accuracy"), groups)
    assert (metric.num_cells, metric.value) == (8, 5 / 8)
    assert not metric.is_proportion
    grouped = bootstrap_interval(metric, seed=1)
    eight = bootstrap_interval(mean_metric(np.arange(8) < 5), seed=1)
    assert (grouped.low, grouped.high) == (eight.low, eight.high)
    cells = bootstrap_interval(mean_metric(right), seed=1)
    assert cells.high - cells.low < 0.4 * (grouped.high - grouped.low)
    # A group that is drawn twice counts twice, whatever the metric.
    numbers = generator.random(200)
    weights = np.array([[2.0, 0, 1, 1, 0, 3, 1, 0]])
    of_groups = over_groups(mean_metric(numbers), groups)
    assert of_groups(weights)[0] == pytest.approx(mean_metric(numbers)(weights[:, groups])[0])


def test_groups_that_are_none_change_nothing(monkeypatch):
    metric = mean_metric(np.arange(6) < 4)
    assert over_groups(metric, None) is metric
    assert over_groups(metric, np.zeros(6)) is metric
    with pytest.raises(UsageError, match="5 groups do not fit 6 cells of mean"):
        over_groups(metric, np.zeros(5))
    groups = np.array([0, 0, 1, 1, 2, 2])
    expected = bootstrap_interval(over_groups(metric, groups))
    monkeypatch.setattr("omics.eval.intervals._BLOCK_ENTRIES", 20)
    assert np.isclose(over_groups(metric, groups)(np.ones((50, 3))), 4 / 6).all()
    assert over_groups(metric, groups).value == expected.value
