"""Which genes are left out: by counts, by place, by chance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omics.data.keyed_random import keyed_uniform
from omics.data.transforms import (
    ChunkDropout,
    Dropout,
    ExpressionOrder,
    FirstGenes,
    GenePropertyOrder,
    RandomOrder,
    SampleGenes,
    SelectiveDropout,
    TopGenes,
)

CELLS = st.lists(
    st.dictionaries(st.integers(0, 99), st.integers(1, 500), max_size=12).map(
        lambda cell: dict(sorted(cell.items()))
    ),
    min_size=1,
    max_size=5,
)


def test_top_genes_by_hand(batch_of, cells_of):
    batch = batch_of([{0: 5, 1: 9, 2: 5, 7: 5, 9: 1}, {3: 1}, {}])
    batch = batch.with_field("f", np.arange(6.0))
    done = TopGenes(max_genes=3)(batch, seed=0, epoch=0)
    assert cells_of(done) == [{0: 5, 1: 9, 2: 5}, {3: 1}, {}]
    assert done.fields["f"].tolist() == [0, 1, 2, 5]


@given(cells=CELLS, limit=st.integers(1, 8))
def test_top_genes_keeps_the_highest_counts_in_the_order_of_genes(batch_of, cells_of, cells, limit):
    done = cells_of(TopGenes(max_genes=limit)(batch_of(cells), seed=0, epoch=0))
    for cell, kept in zip(cells, done, strict=True):
        by_count = sorted(cell, key=lambda gene: (-cell[gene], gene))[:limit]
        assert kept == {gene: cell[gene] for gene in sorted(by_count)}


@given(cells=CELLS, limit=st.integers(1, 8), seed=st.integers(0, 3))
def test_dropping_keeps_the_order_of_reordered_cells(batch_of, genes_of, cells, limit, seed):
    mixed = RandomOrder()(batch_of(cells), seed=seed, epoch=0)
    plain = batch_of(cells)
    for transform in (TopGenes(limit), SampleGenes(0.2, 0.9), Dropout(0.5)):
        done = genes_of(transform(mixed, seed=seed, epoch=1))
        straight = genes_of(transform(plain, seed=seed, epoch=1))
        for kept, same, before in zip(done, straight, genes_of(mixed), strict=True):
            assert kept == [gene for gene in before if gene in kept]
            assert len(kept) == len(same)
            if transform.name != "top_genes":  # Draws belong to genes, wherever they stand.
                assert sorted(kept) == same


def test_top_genes_of_a_reordered_cell_are_those_with_the_highest_counts(batch_of, genes_of):
    cells = [{gene: gene * 7 % 50 + 1 for gene in range(50)}]
    mixed = RandomOrder()(batch_of(cells), seed=1, epoch=0)
    done = genes_of(TopGenes(10)(mixed, seed=0, epoch=0))[0]
    assert {cells[0][gene] for gene in done} == set(range(41, 51))


def test_first_genes_cut_an_order(batch_of, genes_of, table):
    batch = batch_of([{1: 3, 2: 9, 5: 4, 70: 1}, {3: 1}, {}])
    by_count = ExpressionOrder()(batch, seed=0, epoch=0)
    assert genes_of(FirstGenes(2)(by_count, seed=0, epoch=0)) == [[2, 5], [3], []]
    by_length = GenePropertyOrder(column="length").bind(table)(batch, seed=0, epoch=0)
    assert genes_of(FirstGenes(3)(by_length, seed=0, epoch=0)) == [[70, 5, 2], [3], []]


@given(cells=CELLS, seed=st.integers(0, 3), epoch=st.integers(0, 3))
def test_sampling_keeps_some_of_every_cell_unchanged(batch_of, cells_of, cells, seed, epoch):
    batch = batch_of(cells)
    sampled = SampleGenes(0.0, 0.6, keep_targets=True)(batch, seed=seed, epoch=epoch)
    for cell, kept in zip(cells, cells_of(sampled), strict=True):
        assert kept.items() <= cell.items()
        assert bool(kept) == bool(cell)
    assert sampled.targets is batch


@given(cells=CELLS, seed=st.integers(0, 3))
def test_sampling_draws_are_those_of_keyed_uniform(batch_of, genes_of, cells, seed):
    batch = batch_of(cells)
    keys = {"seed": seed, "epoch": 4}
    shares = 0.1 + 0.5 * keyed_uniform(batch.rows, stream="sample_genes.share", **keys)
    for row, genes in enumerate(genes_of(batch)):
        draws = keyed_uniform(
            np.full(len(genes), row), np.array(genes, int), stream="sample_genes.entry", **keys
        )
        expected = [g for g, draw in zip(genes, draws, strict=True) if draw < shares[row]]
        if genes and not expected:
            expected = [genes[int(np.argmin(draws))]]
        assert genes_of(SampleGenes(0.1, 0.6)(batch, **keys))[row] == expected


def test_sampling_share_is_uniform_between_its_limits(batch_of):
    batch = batch_of([dict.fromkeys(range(100), 1)] * 2000)
    shares = SampleGenes(0.4, 0.8)(batch, seed=1, epoch=0).lengths / 100
    assert abs(shares.mean() - 0.6) < 0.01
    assert 0.05 < np.mean(shares < 0.45) < 0.2
    assert shares.min() > 0.2
    assert shares.max() < 0.97


def test_sampling_everything_or_nothing(batch_of, cells_of):
    batch = batch_of([{1: 1, 2: 5, 3: 1}, {}, {9: 4}])
    assert cells_of(SampleGenes(1, 1)(batch, seed=0, epoch=0)) == cells_of(batch)
    assert SampleGenes(0, 0)(batch, seed=0, epoch=0).lengths.tolist() == [1, 0, 1]


def test_sampling_keeps_targets_it_finds(batch_of):
    full = batch_of([{1: 1, 2: 2}])
    done = SampleGenes(0.5, 0.5, keep_targets=True)(full.with_targets(full), seed=0, epoch=0)
    assert done.targets is full
    assert SampleGenes(0.5, 0.5)(full, seed=0, epoch=0).targets is None


def test_dropout_leaves_out_the_given_share(batch_of):
    batch = batch_of([dict.fromkeys(range(100), 1)] * 500)
    kept = Dropout(0.3)(batch, seed=0, epoch=0)
    assert abs(len(kept.genes) / 50_000 - 0.7) < 0.01
    assert Dropout(0.0)(batch, seed=0, epoch=0).lengths.tolist() == [100] * 500
    nearly_all = Dropout(0.999)(batch, seed=0, epoch=0)
    assert nearly_all.lengths.min() == 1


@pytest.mark.parametrize("dtype", [np.uint32])
def test_a_chunk_is_one_run_and_its_length_keeps_to_its_range(dtype, batch_of, genes_of):
    batch = batch_of([dict.fromkeys(range(100), 1)] * 1000, dtype=dtype)
    done = genes_of(ChunkDropout(5, 20)(batch, seed=3, epoch=0))
    lengths, starts = [], []
    for kept in done:
        gone = sorted(set(range(100)) - set(kept))
        assert gone == list(range(gone[0], gone[-1] + 1))
        lengths.append(len(gone))
        starts.append(gone[0])
    # The ends of the range occur: its beginning is not ignored.
    assert (min(lengths), max(lengths)) == (5, 20)
    assert abs(np.mean(lengths) - 12.5) < 0.6
    assert min(starts) < 3
    assert max(np.add(starts, lengths)) > 97


def test_a_chunk_leaves_at_least_one_gene(batch_of):
    batch = batch_of([{1: 1}, {2: 1, 3: 1}, {}, dict.fromkeys(range(9), 1)])
    done = ChunkDropout(50, 60)(batch, seed=0, epoch=0)
    assert done.lengths.tolist() == [1, 1, 0, 1]


def test_selective_dropout_follows_its_formula(batch_of, table):
    weights = {"g0": 0.0, "g1": 1.0, "g2": 3.0, "elsewhere": 4.0}  # The mean is 2.
    batch = batch_of([dict.fromkeys(range(10), 1)] * 20_000)
    done = SelectiveDropout(weights, 0.4).bind(table)(batch, seed=0, epoch=0)
    kept = np.bincount(done.genes, minlength=10) / 20_000

    def expected(relative):
        return 0.4 * relative / (1 + 0.4 * (relative - 1))

    assert kept[0] == 1
    for gene, relative in [(1, 0.5), (2, 1.5), (3, 1.0), (9, 1.0)]:
        assert abs(1 - kept[gene] - expected(relative)) < 0.015
    assert expected(1.0) == 0.4
