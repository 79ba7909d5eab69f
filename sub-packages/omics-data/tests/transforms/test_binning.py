"""Bins against a straightforward numpy version, a cell at a time, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omics.data.keyed_random import keyed_uniform
from omics.data.transforms import (
    EqualWidthBins,
    IntegerBins,
    LinearBins,
    LogBins,
    LogNormalize,
    PercentileBins,
    QuantileBins,
    RandomZeros,
)

COUNTS = st.sampled_from([0, 1, 1, 1, 1, 2, 2, 3, 4, 7, 8, 9, 10, 100, 4095])
LARGE = st.one_of(COUNTS, st.integers(4096, 2**32 - 1))
FLOATS = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-100, 100, width=32))


def cells_of_values(values):
    return st.lists(st.lists(values, max_size=60), min_size=1, max_size=3)


def by_numpy(transform, values, draws):
    """Return the bins of one cell's values."""
    values = np.asarray(values, np.float64)
    bins = np.zeros(len(values), np.int64)
    nonzero = values != 0
    present, draws = values[nonzero], draws[nonzero]
    if len(present) == 0:
        return bins
    if transform.name == "bin_quantile":
        edges = np.quantile(present, np.linspace(0, 1, transform.num_bins - 1))
        upper, lower = np.digitize(present, edges), np.digitize(present, edges, right=True)
        bins[nonzero] = np.ceil(draws * (lower - upper) + upper)
    if transform.name == "bin_percentile":
        edges = np.percentile(present, np.linspace(0, 100, transform.num_bins + 1))
        bins[nonzero] = np.clip(np.digitize(present, edges), 1, transform.num_bins)
    if transform.name == "bin_equal_width":
        low = present.min() if transform.low is None else transform.low
        high = present.max() if transform.high is None else transform.high
        width = (high - low) / transform.num_bins
        steps = np.floor((present - low) / width) if width > 0 else np.zeros(len(present))
        bins[nonzero] = np.clip(1 + steps, 1, transform.num_bins)
    return bins


def compare(batch_of, transform, cells, dtype):
    cells = [dict(enumerate(cell)) for cell in cells]
    batch = batch_of(cells, dtype=dtype, rows=[7 * row + 3 for row in range(len(cells))])
    done = transform(batch, seed=5, epoch=1).fields["bin"]
    assert done.dtype == np.int32
    draws = keyed_uniform(
        batch.rows[batch.cell_of_entry()], batch.genes, seed=5, epoch=1, stream="bin_quantile"
    )
    expected = [
        by_numpy(transform, batch.counts[a:b], draws[a:b])
        for a, b in zip(batch.indptr[:-1], batch.indptr[1:], strict=True)
    ]
    assert done.tolist() == np.concatenate(expected).tolist()


METHODS = [
    QuantileBins(num_bins=51),
    QuantileBins(num_bins=6),
    PercentileBins(num_bins=10),
    PercentileBins(num_bins=1),
    EqualWidthBins(10),
    EqualWidthBins(7, low=1.5, high=50.0),
]


@pytest.mark.parametrize("transform", METHODS)
@given(cells=cells_of_values(COUNTS))
@settings(max_examples=30)
def test_bins_of_small_counts_equal_numpy(transform, batch_of, cells):
    compare(batch_of, transform, cells, np.uint32)


@pytest.mark.parametrize("transform", METHODS)
@given(cells=cells_of_values(LARGE))
@settings(max_examples=30)
def test_bins_of_any_counts_equal_numpy(transform, batch_of, cells):
    compare(batch_of, transform, cells, np.uint32)


@pytest.mark.parametrize("transform", METHODS)
@given(cells=cells_of_values(FLOATS))
@settings(max_examples=30)
def test_bins_of_floats_equal_numpy(transform, batch_of, cells):
    compare(batch_of, transform, cells, np.float32)


def test_bins_of_realistic_cells_equal_numpy(batch_of):
    rng = np.random.default_rng(0)
    cells = [(np.floor(rng.lognormal(0.3, 1.2, 2000)) + 1).tolist() for _ in range(4)]
    for transform in METHODS:
        indexed = [dict(enumerate(cell)) for cell in cells]
        batch = batch_of(indexed, num_genes=2000)
        assert transform(batch, seed=0, epoch=0).fields["bin"].max() <= transform.num_bins
        compare(
            lambda cells, **given: batch_of(cells, num_genes=2000, **given),
            transform,
            cells,
            np.uint32,
        )


def test_ties_are_spread_over_the_bins_they_fill(batch_of):
    cells = [dict.fromkeys(range(60), 1) | dict.fromkeys(range(60, 100), 2)] * 200
    bins = QuantileBins(num_bins=11)(batch_of(cells), seed=0, epoch=0).fields["bin"]
    ones, twos = bins.reshape(200, 100)[:, :60].ravel(), bins.reshape(200, 100)[:, 60:].ravel()
    assert set(ones.tolist()) == set(range(1, 7))
    assert set(twos.tolist()) == set(range(7, 11))
    counts = np.bincount(ones)[1:]
    assert abs(counts / counts.mean() - 1).max() < 0.1


def test_zeros_have_their_own_bin_and_no_part_in_the_edges(batch_of, table):
    batch = batch_of([{1: 1, 2: 5, 3: 9, 4: 30}, {}])
    filled = RandomZeros(fill_to=50).bind(table)(batch, seed=0, epoch=0)
    for transform in (*METHODS, LogBins(), IntegerBins()):
        plain = transform(batch, seed=0, epoch=0).fields["bin"]
        more = transform(filled, seed=0, epoch=0).fields["bin"]
        assert more[:4].tolist() == plain.tolist()
        assert not more[4:].any()
        assert plain.min() > 0


def test_quantiles_of_expression_equal_those_of_counts_but_for_the_edges_between(batch_of):
    rng = np.random.default_rng(1)
    batch = batch_of([dict(enumerate(rng.integers(1, 30, 100).tolist()))])
    batch = LogNormalize()(batch, seed=0, epoch=0)
    of_counts = PercentileBins(num_bins=9)(batch, seed=0, epoch=0).fields["bin"]
    of_values = PercentileBins(num_bins=9, source="expression")(batch, seed=0, epoch=0)
    assert of_values.fields["bin"].tolist() == of_counts.tolist()


@given(values=st.lists(st.one_of(LARGE, st.integers(0, 40)), max_size=40))
def test_log_bins_equal_the_formula(batch_of, values):
    batch = batch_of([dict(enumerate(values))])
    bins = LogBins(num_bins=200)(batch, seed=0, epoch=0).fields["bin"].tolist()
    expected = [
        v if v <= 8 else 8 + int(np.ceil((np.log2(float(v)) - 3) / (1 / 3))) for v in values
    ]
    assert bins == expected


def test_log_bins_by_hand(batch_of):
    counts = [1, 2, 7, 8, 9, 10, 11, 12, 13, 16, 17, 32, 64, 65, 2**21, 2**32 - 1]
    bins = LogBins()(batch_of([dict(enumerate(counts))]), seed=0, epoch=0).fields["bin"]
    # 10.08 and 12.70 are the thirds of the doubling from 8 to 16; doublings themselves are exact.
    expected = [1, 2, 7, 8, 9, 9, 10, 10, 11, 11, 12, 14, 17, 18, 62, 63]
    assert bins.tolist() == expected
    floats = batch_of([{1: 0.2, 2: 7.5, 3: 8.0, 4: 8.01, 5: -3.0}], dtype=np.float32)
    assert LogBins()(floats, seed=0, epoch=0).fields["bin"].tolist() == [1, 8, 8, 9, 0]
    other = LogBins(num_bins=10, cutoff=2, bin_size=1.0)
    counts = batch_of([dict(enumerate([1, 2, 3, 4, 5, 1000]))])
    assert other(counts, seed=0, epoch=0).fields["bin"].tolist() == [1, 2, 3, 3, 4, 9]


@given(values=st.lists(st.floats(0, 60, width=32), max_size=40))
def test_linear_bins_equal_the_formula(batch_of, values):
    batch = batch_of([dict(enumerate(values))], dtype=np.float32)
    for size, num_bins in ((1 / 3, 64), (2.5, 1000)):
        bins = LinearBins(num_bins=num_bins, bin_size=size)(batch, seed=0, epoch=0).fields["bin"]
        expected = [min(int(np.float64(v) // size), num_bins - 1) for v in batch.counts]
        exact = [min(int(np.floor(np.float64(v) / size)), num_bins - 1) for v in batch.counts]
        assert bins.tolist() == exact
        assert all(abs(a - b) <= 1 for a, b in zip(exact, expected, strict=True))


def test_linear_bins_by_hand(batch_of):
    values = batch_of([{1: 0.0, 2: 0.3, 3: 0.5, 4: 1.0, 5: 2.0, 6: 90.0}], dtype=np.float32)
    assert LinearBins()(values, seed=0, epoch=0).fields["bin"].tolist() == [0, 0, 1, 3, 6, 63]


@pytest.mark.parametrize("transform", [*METHODS, LogBins(), LinearBins(), IntegerBins()])
def test_values_that_are_no_numbers_get_a_bin_like_any_other(transform, batch_of):
    cell = dict(enumerate([1.0, np.nan, np.inf, -np.inf, 0.0, 3.0]))
    with np.errstate(invalid="ignore"):
        bins = transform(batch_of([cell], dtype=np.float32), seed=0, epoch=0).fields["bin"]
    assert bins.min() >= 0
    assert bins.max() <= transform.num_bins


def test_integer_bins_by_hand(batch_of):
    values = batch_of([{1: 0.0, 2: 0.3, 3: 1.0, 4: 3.1, 5: 99.0, 6: -2.5}], dtype=np.float32)
    bins = IntegerBins(num_bins=10)(values, seed=0, epoch=0).fields["bin"]
    assert bins.tolist() == [0, 1, 1, 4, 9, 0]
