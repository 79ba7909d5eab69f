"""Every figure over hidden values in closed form, on predictions made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from omics.data.errors import InputDataError, UnknownNameError, UsageError
from omics.eval import HiddenScores, bin_figures
from omics.eval.intervals import wilson_interval
from omics.eval.results import read_results, rows_of_figures, write_results

#                 cell 0 ........  cell 1 .............  cell 3
TRUTH = np.array([0, 0, 1, 1, 2, 0, 1, 5, 9, 12, 10, 0, 30])
MODEL = np.array([0, 1, 1, 0, 4, 0, 7, 6, 9, 10, 13, 3, 30])
CELL = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 3, 3, 3])
EXPECTED = {
    "exact": (5, 13),
    "within_1": (8, 13),
    "zeros_as_zero": (2, 4),
    "zeros_as_nonzero": (2, 4),
    "ones_as_one": (1, 3),
    "ones_as_zero": (1, 3),
    "ones_as_other": (1, 3),
    "nonzeros_exact": (3, 9),
    "nonzeros_within_1": (5, 9),
    "nonzeros_within_2": (7, 9),
    "high_exact": (2, 4),
    "high_within_1": (2, 4),
    "high_within_2": (3, 4),
}


def scores_of(truth=TRUTH, predicted=MODEL, *, kind="bins", **options):
    """Return scores of the cells 0 to 3, added in two batches."""
    scores = HiddenScores(kind=kind, **options)
    first = CELL < 2
    scores.add(CELL[first], 2, truth=truth[first], predicted=predicted[first])
    scores.add(CELL[~first] - 2, 2, truth=truth[~first], predicted=predicted[~first])
    return scores


def by_name(scores, **options):
    return {figure.name: figure for figure in scores.figures(num_resamples=200, **options)}


def test_every_figure_is_its_share_and_says_of_how_many():
    found = by_name(scores_of())
    assert list(found) == list(EXPECTED)
    for name, (right, among) in EXPECTED.items():
        figure = found[name]
        assert figure.interval.value == pytest.approx(right / among), name
        assert figure.num_tokens == among, name
        assert 0 <= figure.interval.low <= figure.interval.value <= figure.interval.high <= 1


def test_what_is_counted_fits_together():
    figures = bin_figures(TRUTH, MODEL)
    counted = {name: int((among & right).sum()) for name, (among, right) in figures.items()}
    groups = {name: int(among.sum()) for name, (among, _) in figures.items()}
    assert counted == {name: right for name, (right, _) in EXPECTED.items()}
    assert counted["zeros_as_zero"] + counted["zeros_as_nonzero"] == groups["zeros_as_zero"]
    ones = ("ones_as_one", "ones_as_zero", "ones_as_other")
    assert sum(counted[name] for name in ones) == groups["ones_as_one"]
    assert counted["exact"] == counted["zeros_as_zero"] + counted["nonzeros_exact"]
    assert groups["exact"] == len(TRUTH)


def test_the_limit_of_highly_expressed_bins_is_exclusive_and_can_be_moved():
    assert by_name(scores_of(high_bin=9))["high_exact"].num_tokens == 3
    assert by_name(scores_of(high_bin=8))["high_exact"].num_tokens == 4
    assert not {name for name in by_name(scores_of(high_bin=30)) if name.startswith("high")}


def test_figures_are_over_the_cells_that_have_such_tokens():
    found = by_name(scores_of())
    assert found["exact"].num_cells == 3
    assert found["ones_as_one"].num_cells == 2
    assert found["high_exact"].num_cells == 2


def test_intervals_resample_cells_and_not_tokens():
    rng = np.random.default_rng(0)
    # Half of the cells are all right, the others all wrong: 40 observations, not 4,000.
    cell = np.repeat(np.arange(40), 100)
    truth = np.zeros(4000, int)
    clustered = HiddenScores(kind="bins")
    clustered.add(cell, 40, truth=truth, predicted=np.repeat(rng.permutation(40) % 2, 100))
    interval = by_name(clustered)["exact"].interval
    of_tokens, of_cells = wilson_interval(2000, 4000), wilson_interval(20, 40)
    width = interval.high - interval.low
    assert width > 5 * (of_tokens.high - of_tokens.low)
    assert width == pytest.approx(of_cells.high - of_cells.low, rel=0.15)
    spread = HiddenScores(kind="bins")
    spread.add(cell, 40, truth=truth, predicted=rng.integers(0, 2, 4000))
    interval = by_name(spread)["exact"].interval
    assert interval.high - interval.low == pytest.approx(of_tokens.high - of_tokens.low, rel=0.35)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_tokens_that_are_all_right_or_all_wrong_have_an_interval_of_as_many_cells(share):
    cell = np.repeat(np.arange(5), 4)
    truth = np.zeros(20, int)
    predicted = np.full(20, int(not share))
    scores = HiddenScores(kind="bins")
    scores.add(cell, 5, truth=truth, predicted=predicted)
    assert by_name(scores)["exact"].interval == wilson_interval(int(5 * share), 5)
    alone = HiddenScores(kind="bins")
    alone.add(cell[:4], 1, truth=truth[:4], predicted=predicted[:4])
    assert by_name(alone)["exact"].interval == wilson_interval(int(share), 1)


def test_of_a_single_cell_nothing_is_known_and_of_equal_ones_there_is_no_spread():
    cell = np.repeat(np.arange(5), 4)
    truth, predicted = np.zeros(20, int), np.tile([0, 0, 0, 1], 5)
    alone, equal = HiddenScores(kind="bins"), HiddenScores(kind="bins")
    alone.add(cell[:4], 1, truth=truth[:4], predicted=predicted[:4])
    found = by_name(alone)["exact"].interval
    assert (found.value, found.low, found.high) == (0.75, 0.0, 1.0)
    equal.add(cell, 5, truth=truth, predicted=predicted)
    found = by_name(equal)["exact"].interval
    assert (found.value, found.low, found.high) == (0.75, 0.75, 0.75)


def test_batches_do_not_matter():
    whole = HiddenScores(kind="bins")
    whole.add(CELL, 4, truth=TRUTH, predicted=MODEL)
    assert by_name(whole) == by_name(scores_of())
    assert by_name(whole, seed=1)["exact"].interval.value == by_name(whole)["exact"].interval.value


def test_numbers_have_their_error_and_correlation():
    truth = np.array([0.0, 1.0, 2.5, 0.5, 0.0, 3.0, 1.5, 0.0, 2.0, 0.0, 1.0, 0.0, 4.0])
    predicted = truth + np.linspace(-1, 2, 13)
    found = by_name(scores_of(truth, predicted, kind="numbers"))
    assert list(found) == ["mae", "mae_nonzeros", "pcc"]
    error = np.abs(predicted - truth)
    assert found["mae"].interval.value == pytest.approx(error.mean())
    assert found["mae_nonzeros"].interval.value == pytest.approx(error[truth != 0].mean())
    assert found["pcc"].interval.value == pytest.approx(np.corrcoef(truth, predicted)[0, 1])
    assert [figure.num_tokens for figure in found.values()] == [13, 8, 13]
    assert found["pcc"].interval.low <= found["pcc"].interval.value <= 1
    constant = by_name(scores_of(truth, np.full(13, 0.1), kind="numbers"))
    assert list(constant) == ["mae", "mae_nonzeros"]
    alone = HiddenScores(kind="numbers")
    alone.add(np.zeros(2, int), 1, truth=truth[:2], predicted=predicted[:2])
    for method in (None, "bootstrap_t"):
        one = by_name(alone, ci_method=method)
        assert (one["mae"].interval.low, one["mae"].interval.high) == (0, np.inf)
        assert (one["pcc"].interval.low, one["pcc"].interval.high) == (-1, 1)


def test_ids_without_an_order_are_right_or_wrong():
    found = by_name(scores_of(kind="ids"))
    assert list(found) == ["exact"]
    assert found["exact"].interval.value == pytest.approx(5 / 13)


def test_two_methods_are_compared_over_the_same_cells():
    zeros = scores_of(predicted=np.zeros(13, int))
    figure = scores_of().difference(zeros, num_resamples=200)
    assert figure.name == "exact_difference"
    assert figure.interval.value == pytest.approx((5 - 4) / 13)
    assert scores_of().difference(scores_of(), num_resamples=50).interval.low == 0
    numbers = [scores_of(TRUTH * 1.0, each * 1.0, kind="numbers") for each in (MODEL, TRUTH)]
    apart = numbers[0].difference(numbers[1], num_resamples=50)
    assert apart.name == "mae_difference"
    assert apart.interval.value == pytest.approx(np.abs(TRUTH - MODEL).mean())


def test_rows_say_what_was_measured(tmp_path):
    rows = rows_of_figures(
        scores_of().figures(num_resamples=50),
        task="hidden:expression",
        dataset="cells",
        method="field head",
        bundle="abc",
    )
    write_results(tmp_path / "r.parquet", rows)
    read = read_results(tmp_path / "r.parquet")
    assert read == rows
    assert {(row.metric, row.n) for row in read} == {(k, n) for k, (_, n) in EXPECTED.items()}


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(UnknownNameError, match=r"no kind of hidden values 'bin'.* mean 'bins'"):
        HiddenScores(kind="bin")
    empty = HiddenScores(kind="bins")
    with pytest.raises(InputDataError, match=r"No value was hidden .* data_module\.change_ratio"):
        empty.figures()
    empty.add(np.zeros(0, int), 3, truth=np.zeros(0, int), predicted=np.zeros(0, int))
    with pytest.raises(InputDataError, match="No value was hidden"):
        empty.figures()
    with pytest.raises(UsageError, match="2 tokens come with 1 true and 2 predicted"):
        empty.add(np.zeros(2, int), 1, truth=np.zeros(1, int), predicted=np.zeros(2, int))
    numbers = HiddenScores(kind="numbers")
    with pytest.raises(InputDataError, match="1 of 2 predicted values are not finite"):
        numbers.add(np.zeros(2, int), 1, truth=np.ones(2), predicted=np.array([1.0, np.nan]))
    few = HiddenScores(kind="bins")
    few.add(CELL[:5], 1, truth=TRUTH[:5], predicted=MODEL[:5])
    with pytest.raises(UsageError, match="are not over the same cells"):
        scores_of().difference(few)
