"""Transforms against hand-computed values, and a cell's result is its own."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omics.data.cell_batch import CellBatch
from omics.data.errors import ConfigError
from omics.data.transforms import (
    LogNormalize,
    SampleGenes,
    TopGenes,
    apply_transforms,
    check_transforms,
    transform_from_dict,
)


def _batch(cells, rows=None, dtype=np.uint32):
    """Make a batch of cells given as {gene: count}."""
    lengths = [len(cell) for cell in cells]
    return CellBatch(
        indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        genes=np.array([gene for cell in cells for gene in cell], np.uint16),
        counts=np.array([count for cell in cells for count in cell.values()], dtype),
        rows=np.arange(len(cells)) if rows is None else np.array(rows, np.int64),
        num_genes=100,
    )


def _cells(batch):
    return [
        dict(zip(part.genes.tolist(), part.counts.tolist(), strict=True))
        for part in (batch[i : i + 1] for i in range(len(batch)))
    ]


CELLS = st.lists(
    st.dictionaries(st.integers(0, 99), st.integers(1, 500), max_size=12).map(
        lambda cell: dict(sorted(cell.items()))
    ),
    min_size=1,
    max_size=5,
)


def test_log_normalisation_by_hand():
    batch = _batch([{1: 1, 5: 3}, {}, {2: 7}])
    done = LogNormalize(target_sum=8, field_name="x")(batch, seed=0, epoch=0)
    assert done.fields["x"].dtype == np.float32
    expected = [math.log1p(2), math.log1p(6), math.log1p(8)]
    np.testing.assert_allclose(done.fields["x"], expected, rtol=1e-6)
    assert done.counts is batch.counts
    assert batch.fields == {}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.float32])
def test_log_normalised_cells_sum_to_the_target(dtype):
    batch = _batch([{1: 10, 2: 30}, {3: 200}], dtype=dtype)
    values = LogNormalize()(batch, seed=0, epoch=0).fields["expression"]
    np.testing.assert_allclose(np.expm1(values[:2]).sum(), 1e4, rtol=1e-5)
    np.testing.assert_allclose(np.expm1(values[2:]).sum(), 1e4, rtol=1e-5)


def test_totals_of_huge_counts_do_not_overflow():
    batch = _batch([dict.fromkeys(range(4), 2**32 - 1)])
    values = LogNormalize()(batch, seed=0, epoch=0).fields["expression"]
    np.testing.assert_allclose(values, math.log1p(2500), rtol=1e-6)


def test_top_genes_by_hand():
    batch = _batch([{0: 5, 1: 9, 2: 5, 7: 5, 9: 1}, {3: 1}, {}])
    batch = batch.with_field("f", np.arange(6.0))
    done = TopGenes(max_genes=3)(batch, seed=0, epoch=0)
    assert _cells(done) == [{0: 5, 1: 9, 2: 5}, {3: 1}, {}]
    assert done.fields["f"].tolist() == [0, 1, 2, 5]


@given(CELLS, st.integers(1, 8))
def test_top_genes_keeps_the_highest_counts_in_the_order_of_genes(cells, limit):
    done = _cells(TopGenes(max_genes=limit)(_batch(cells), seed=0, epoch=0))
    for cell, kept in zip(cells, done, strict=True):
        by_count = sorted(cell, key=lambda gene: (-cell[gene], gene))[:limit]
        assert kept == {gene: cell[gene] for gene in sorted(by_count)}


@given(CELLS, st.integers(0, 3), st.integers(0, 3))
def test_sampling_keeps_some_of_every_cell_unchanged(cells, seed, epoch):
    batch = _batch(cells)
    sampled = SampleGenes(0.0, 0.6, keep_targets=True)(batch, seed=seed, epoch=epoch)
    for cell, kept in zip(cells, _cells(sampled), strict=True):
        assert kept.items() <= cell.items()
        assert bool(kept) == bool(cell)
    assert sampled.targets is batch


def test_sampling_share_is_uniform_between_its_limits():
    batch = _batch([dict.fromkeys(range(100), 1)] * 2000)
    shares = SampleGenes(0.4, 0.8)(batch, seed=1, epoch=0).lengths / 100
    assert abs(shares.mean() - 0.6) < 0.01
    assert 0.05 < np.mean(shares < 0.45) < 0.2
    assert shares.min() > 0.2
    assert shares.max() < 0.97


def test_sampling_everything_or_nothing():
    batch = _batch([{1: 1, 2: 5, 3: 1}, {}, {9: 4}])
    assert _cells(SampleGenes(1, 1)(batch, seed=0, epoch=0)) == _cells(batch)
    assert SampleGenes(0, 0)(batch, seed=0, epoch=0).lengths.tolist() == [1, 0, 1]


def test_sampling_differs_between_epochs_seeds_and_cells():
    batch = _batch([dict.fromkeys(range(60), 1)] * 2)
    sample = SampleGenes(0.5, 0.5)
    first = sample(batch, seed=0, epoch=0)
    assert _cells(first)[0] != _cells(first)[1]
    assert _cells(first) == _cells(sample(batch, seed=0, epoch=0))
    assert _cells(first) != _cells(sample(batch, seed=0, epoch=1))
    assert _cells(first) != _cells(sample(batch, seed=1, epoch=0))


def test_sampling_keeps_targets_it_finds():
    full = _batch([{1: 1, 2: 2}])
    done = SampleGenes(0.5, 0.5, keep_targets=True)(full.with_targets(full), seed=0, epoch=0)
    assert done.targets is full
    assert SampleGenes(0.5, 0.5)(full, seed=0, epoch=0).targets is None


@given(CELLS, st.permutations(range(5)), st.integers(0, 3))
def test_what_a_cell_becomes_does_not_depend_on_its_batch(cells, order, seed):
    transforms = [LogNormalize(), SampleGenes(0.2, 0.9), TopGenes(4)]

    def run(batch):
        return apply_transforms(batch, transforms, seed=seed, epoch=2, training=True)

    batch = _batch(cells)
    together = run(batch)
    chosen = [index for index in order if index < len(cells)]
    other = run(_batch([cells[index] for index in chosen], rows=chosen))
    for place, index in enumerate(chosen):
        one, two = together[index : index + 1], other[place : place + 1]
        assert one.genes.tolist() == two.genes.tolist()
        assert one.fields["expression"].tobytes() == two.fields["expression"].tobytes()


def test_training_transforms_are_left_out_of_inference():
    batch = _batch([{1: 1, 2: 5, 3: 1}])
    transforms = [LogNormalize(), SampleGenes(0, 0)]
    trained = apply_transforms(batch, transforms, seed=0, epoch=0, training=True)
    applied = apply_transforms(batch, transforms, seed=0, epoch=0, training=False)
    assert trained.lengths.tolist() == [1]
    assert applied.lengths.tolist() == [3]
    assert "expression" in applied.fields


def test_empty_batch_passes_through():
    transforms = [LogNormalize(), SampleGenes(0.1, 0.2, keep_targets=True), TopGenes(1)]
    done = apply_transforms(_batch([]), transforms, seed=0, epoch=0, training=True)
    assert len(done) == 0


@pytest.mark.parametrize(
    "transform",
    [
        LogNormalize(),
        LogNormalize(target_sum=5.5, field_name="x"),
        TopGenes(7),
        SampleGenes(0.1, 0.9, keep_targets=True),
    ],
)
def test_transforms_survive_json(transform):
    record = json.loads(json.dumps(transform.to_dict()))
    assert transform_from_dict(record) == transform


def test_names_and_parameters_of_transforms():
    assert TopGenes(7).to_dict() == {"name": "top_genes", "max_genes": 7}
    assert transform_from_dict({"name": "log_normalize", "target_sum": 3}) == LogNormalize(3.0)
    assert [each.training_only for each in (LogNormalize, TopGenes, SampleGenes)] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"name": "topgenes", "max_genes": 3}, r"no transform 'topgenes'\. Did you mean 'top_g"),
        ({}, "no transform None"),
        ({"name": ["top_genes"]}, "no transform"),
        ({"name": "top_genes", "max_gene": 3}, r"no parameter 'max_gene'\. Did you mean 'max_ge"),
        ({"name": "top_genes", "max_genes": 3.0}, "max_genes is 3.0; it must be of type int"),
        ({"name": "top_genes", "max_genes": True}, "must be of type int"),
        ({"name": "top_genes"}, "top_genes needs a value for max_genes"),
        ({"name": "top_genes", "max_genes": 0}, "max_genes is 0"),
        ({"name": "log_normalize", "target_sum": "1e4"}, "target_sum is '1e4'; .* type float"),
        ({"name": "log_normalize", "target_sum": -1}, "target_sum is -1.0"),
        ({"name": "log_normalize", "target_sum": math.nan}, "target_sum is nan"),
        ({"name": "sample_genes", "keep_low": 0.5, "keep_high": 0.4}, "keep_low is 0.5"),
        ({"name": "sample_genes", "keep_low": 0.5, "keep_high": 1.4}, "keep_high 1.4"),
    ],
)
def test_bad_records_are_refused(record, found):
    with pytest.raises(ConfigError, match=found):
        transform_from_dict(record)


@pytest.mark.parametrize(
    ("transforms", "found"),
    [
        ([LogNormalize(), LogNormalize()], "given twice"),
        ([SampleGenes(0.5, 0.5), LogNormalize()], "sample_genes comes before log_normalize"),
        ([TopGenes(5), LogNormalize()], "top_genes comes before log_normalize"),
    ],
)
def test_transforms_that_do_not_fit_are_refused(transforms, found):
    with pytest.raises(ConfigError, match=found):
        check_transforms(transforms)


def test_transforms_that_fit_are_accepted():
    check_transforms([])
    check_transforms([LogNormalize(), SampleGenes(0.5, 0.5), TopGenes(5)])
    check_transforms([SampleGenes(0.5, 0.5), TopGenes(5)])
