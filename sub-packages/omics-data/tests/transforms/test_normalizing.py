"""Normalisations against hand-computed values and scanpy's formula."""

from __future__ import annotations

import math

import numpy as np
import pytest

from omics.data.transforms import LogNormalize, MedianNormalize


def test_log_normalisation_by_hand(batch_of):
    batch = batch_of([{1: 1, 5: 3}, {}, {2: 7}])
    done = LogNormalize(target_sum=8, field_name="x")(batch, seed=0, epoch=0)
    assert done.fields["x"].dtype == np.float32
    expected = [math.log1p(2), math.log1p(6), math.log1p(8)]
    np.testing.assert_allclose(done.fields["x"], expected, rtol=1e-6)
    assert done.counts is batch.counts
    assert batch.fields == {}
    added = LogNormalize(target_sum=8, added_total=1)(batch, seed=0, epoch=0)
    expected = [math.log1p(8 / 5), math.log1p(24 / 5), math.log1p(7)]
    np.testing.assert_allclose(added.fields["expression"], expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.float32])
def test_log_normalised_cells_sum_to_the_target(dtype, batch_of):
    batch = batch_of([{1: 10, 2: 30}, {3: 200}], dtype=dtype)
    values = LogNormalize()(batch, seed=0, epoch=0).fields["expression"]
    np.testing.assert_allclose(np.expm1(values[:2]).sum(), 1e4, rtol=1e-5)
    np.testing.assert_allclose(np.expm1(values[2:]).sum(), 1e4, rtol=1e-5)


def test_totals_of_huge_counts_do_not_overflow(batch_of):
    batch = batch_of([dict.fromkeys(range(4), 2**32 - 1)])
    values = LogNormalize()(batch, seed=0, epoch=0).fields["expression"]
    np.testing.assert_allclose(values, math.log1p(2500), rtol=1e-6)


def test_counts_and_the_same_values_as_floats_agree_bit_for_bit(batch_of):
    rng = np.random.default_rng(0)
    cells = [dict(enumerate(rng.integers(1, 150, size).tolist())) for size in (3, 70, 100)]
    whole = LogNormalize()(batch_of(cells), seed=0, epoch=0).fields["expression"]
    floats = LogNormalize()(batch_of(cells, dtype=np.float64), seed=0, epoch=0)
    assert whole.tobytes() == floats.fields["expression"].tobytes()
    totals = [sum(cell.values()) for cell in cells]
    expected = [
        np.log1p(v / t * 1e4) for c, t in zip(cells, totals, strict=True) for v in c.values()
    ]
    np.testing.assert_allclose(whole, expected, rtol=1e-6)


def test_medians_divide_and_genes_without_one_are_dropped_or_kept(batch_of, cells_of, table):
    batch = batch_of([{1: 1, 5: 3}, {5: 2, 7: 2}, {}])
    transform = MedianNormalize({"g1": 2.0, "g7": 0.5, "elsewhere": 9.0}, target_sum=8)
    dropped = transform.bind(table)(batch, seed=0, epoch=0)
    # The total is that of all genes of the cell, g5 included.
    assert cells_of(dropped, "expression") == [{1: 1.0}, {7: 8.0}, {}]
    kept = MedianNormalize(transform.medians, target_sum=8, missing="keep").bind(table)
    done = kept(batch, seed=0, epoch=0)
    assert cells_of(done, "expression") == [{1: 1.0, 5: 6.0}, {5: 4.0, 7: 8.0}, {}]
    assert done.fields["expression"].dtype == np.float32
