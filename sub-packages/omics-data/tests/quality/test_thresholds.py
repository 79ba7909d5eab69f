"""Rules: what they leave out, within which bounds, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import iqr, median_abs_deviation

from omics.data.errors import InputDataError, UsageError
from omics.data.quality import Thresholds
from omics.data.quality.thresholds import Batches, apply_thresholds


def make_cells(counts, genes=None, mito=None):
    cells = {
        "total_counts": np.asarray(counts, np.float64),
        "n_genes_by_counts": np.asarray(counts if genes is None else genes, np.int32),
    }
    return cells if mito is None else {**cells, "pct_counts_mt": np.asarray(mito, np.float64)}


def together(number):
    return Batches(column=None, names=("all",), codes=np.zeros(number, np.int64))


def outcomes_of(cells, batches=None, **limits):
    batches = batches or together(len(cells["total_counts"]))
    found, remarks = apply_thresholds(cells, Thresholds(**limits), batches)
    return {each.name: each for each in found}, remarks


def test_fixed_limits_keep_what_lies_on_them():
    cells = make_cells([10, 20, 30, 40], genes=[1, 2, 3, 4], mito=[0, 5, 5.01, np.nan])
    found, _ = outcomes_of(
        cells, min_counts=20, max_counts=30, min_genes=2, max_genes=3, max_mito=5
    )
    assert found["min_counts"].fails.tolist() == [True, False, False, False]
    assert found["max_counts"].fails.tolist() == [False, False, False, True]
    assert found["min_genes"].fails.tolist() == [True, False, False, False]
    assert found["max_genes"].fails.tolist() == [False, False, False, True]
    # The last cell is empty: its share is unknown.
    assert found["max_mito"].fails.tolist() == [False, False, True, True]
    assert found["max_mito"].bounds == ({"batch": None, "low": None, "high": 5},)


def test_no_limit_is_no_rule():
    found, remarks = outcomes_of(make_cells([1, 2]))
    assert found == {}
    assert remarks == []


@given(st.lists(st.integers(0, 10_000), min_size=4, max_size=60), st.floats(0.5, 6))
def test_mads_and_tukey_agree_with_scipy(counts, scale):
    cells = make_cells(counts)
    found, _ = outcomes_of(cells, mads=scale, iqr=scale)
    logged = np.log1p(np.asarray(counts, np.float64))
    deviation = median_abs_deviation(logged)
    far = np.abs(logged - np.median(logged)) > scale * deviation + 1e-9
    near = np.abs(logged - np.median(logged)) < scale * deviation - 1e-9
    fails = found["mad_counts"].fails
    if deviation == 0:
        assert not fails.any()
    else:
        assert fails[far].all()
        assert not fails[near].any()
    low, high = np.percentile(logged, (25, 75))
    spread = iqr(logged)
    inside = (logged >= low - scale * spread - 1e-9) & (logged <= high + scale * spread + 1e-9)
    fails = found["iqr_counts"].fails
    assert fails[~inside].all() or spread == 0
    assert not (fails & (logged > low) & (logged < high)).any()


def test_bounds_are_those_of_each_batch_in_the_units_of_the_metric():
    few, many = np.array([90, 100, 110, 100, 900]), np.array([900, 1000, 1100, 1000, 100])
    batches = Batches(column="b", names=("few", "many"), codes=np.repeat([0, 1], 5))
    found, remarks = outcomes_of(make_cells(np.concatenate([few, many])), batches, mads=10)
    outcome = found["mad_counts"]
    assert np.flatnonzero(outcome.fails).tolist() == [4, 9]
    first, second = outcome.bounds
    assert (first["batch"], second["batch"]) == ("few", "many")
    assert 90 > first["low"] > 10
    assert 110 < first["high"] < 900
    assert 100 < second["low"] < 900
    assert remarks == ["2 batch(es) have fewer than 20 cells: their medians say little"]


def test_mito_by_mads_is_bounded_above_only_and_by_tukey_on_the_log():
    mito = np.array([2.0, 3, 4, 3, 2, 4, 3, 0, 40])
    found, _ = outcomes_of(make_cells(np.full(9, 5), mito=mito), mads=3, iqr=1.5)
    assert np.flatnonzero(found["mad_mito"].fails).tolist() == [8]
    assert found["mad_mito"].bounds[0]["low"] is None
    assert np.flatnonzero(found["iqr_mito"].fails).tolist() == [7, 8]


def test_equal_cells_are_no_outliers_and_that_is_said():
    found, remarks = outcomes_of(make_cells([7, 7, 7, 7, 900]), mads=5)
    assert not found["mad_counts"].fails.any()
    assert any(
        "at least half of their cells have the same total_counts" in each for each in remarks
    )


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_genes": -1}, "min_genes is -1"),
        ({"mads": float("nan")}, "mads is nan"),
        ({"min_counts": 10, "max_counts": 5}, "min_counts is 10 and max_counts 5: no cell can"),
        ({"max_mito": 101}, "max_mito is 101; it is a percentage"),
    ],
)
def test_impossible_limits_are_refused(limits, message):
    with pytest.raises(UsageError, match=message):
        Thresholds(**limits)


def test_a_mito_limit_without_mito_genes_is_refused():
    with pytest.raises(InputDataError, match="no gene symbol begins with MT-"):
        outcomes_of(make_cells([1]), max_mito=5)
