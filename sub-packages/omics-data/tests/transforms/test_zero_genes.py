"""Genes that a cell does not express."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omics.data.errors import ConfigError
from omics.data.transforms import (
    AllGenes,
    BatchZeros,
    InterleaveZeros,
    LogNormalize,
    MaskGenes,
    RandomOrder,
    RandomZeros,
)

CELLS = st.lists(st.dictionaries(st.integers(0, 99), st.integers(1, 5)), min_size=1, max_size=4)


@given(cells=CELLS, fill_to=st.integers(1, 120), seed=st.integers(0, 3))
def test_random_zeros_fill_up_with_other_genes(batch_of, genes_of, table, cells, fill_to, seed):
    batch = LogNormalize()(batch_of(cells), seed=0, epoch=0)
    done = RandomZeros(fill_to=fill_to).bind(table)(batch, seed=seed, epoch=0)
    for row, (cell, genes) in enumerate(zip(cells, genes_of(done), strict=True)):
        assert len(genes) == max(len(cell), min(fill_to, 100))
        assert len(set(genes)) == len(genes)
        assert genes[: len(cell)] == list(cell)
        part = done[row : row + 1]
        assert part.counts[: len(cell)].tolist() == list(cell.values())
        assert not part.counts[len(cell) :].any()
        assert not part.fields["expression"][len(cell) :].any()
    kept = done.counts != 0
    assert done.fields["expression"][kept].tobytes() == batch.fields["expression"].tobytes()


@given(cells=CELLS)
def test_all_genes_are_the_dense_cells(batch_of, table, cells):
    batch = LogNormalize()(batch_of(cells), seed=0, epoch=0)
    done = AllGenes().bind(table)(batch, seed=0, epoch=0)
    dense = np.zeros((len(cells), 100))
    for row, cell in enumerate(cells):
        dense[row, list(cell)] = list(cell.values())
    assert done.genes.reshape(len(cells), 100).tolist() == [list(range(100))] * len(cells)
    assert (done.counts.reshape(dense.shape) == dense).all()
    total = np.maximum(dense.sum(1, keepdims=True), 1)
    expected = np.log1p(1e4 * dense / total)
    assert np.allclose(done.fields["expression"].reshape(dense.shape), expected, rtol=1e-5)


def test_all_genes_of_a_panel_are_the_panel_in_the_order_of_the_store(batch_of, cells_of, table):
    shown = AllGenes(("g7", "g2", "elsewhere")).bind(table)
    done = shown(batch_of([{9: 4, 7: 3}, {}, {2: 1}]), seed=0, epoch=0)
    assert cells_of(done) == [{2: 0, 7: 3}, {2: 0, 7: 0}, {2: 1, 7: 0}]
    assert done.genes.tolist() == [2, 7] * 3
    with pytest.raises(ConfigError, match=r"all_genes\.panel is 'g7'; it must be a list"):
        AllGenes("g7")
    with pytest.raises(ConfigError, match=r"None of the 1 genes of all_genes .such as 'x'. is"):
        AllGenes(("x",)).bind(table)


def test_every_gene_is_as_likely_to_be_filled_in(batch_of, table):
    batch = batch_of([dict.fromkeys(range(10), 1)] * 4000)
    done = RandomZeros(fill_to=25).bind(table)(batch, seed=0, epoch=0)
    counts = np.bincount(done.genes[done.counts == 0], minlength=100)
    assert not counts[:10].any()
    expected = 4000 * 15 / 90
    # Chi-square with 89 degrees of freedom, its terms made smaller by drawing without replacement.
    assert 40 < ((counts[10:] - expected) ** 2 / expected).sum() < 150


def test_a_panel_limits_what_is_filled_in(batch_of, genes_of, table):
    transform = RandomZeros(fill_to=9, panel=("g5", "g6", "g7", "elsewhere")).bind(table)
    done = genes_of(transform(batch_of([{5: 1, 50: 2}, {}]), seed=0, epoch=0))
    assert [sorted(genes) for genes in done] == [[5, 6, 7, 50], [5, 6, 7]]


def test_the_share_of_expressed_genes_is_met(batch_of, table):
    cells = [dict.fromkeys(range(18), 1), dict.fromkeys(range(20), 1), {}, {3: 1}]
    done = RandomZeros(expressed_share=0.9).bind(table)(batch_of(cells), seed=0, epoch=0)
    assert done.lengths.tolist() == [20, 22, 0, 1]
    again = RandomZeros(expressed_share=0.5).bind(table)(done, seed=0, epoch=0)
    # Zeros that are there already count.
    assert again.lengths.tolist() == [36, 40, 0, 2]
    eighty = RandomZeros(expressed_share=0.8).bind(table)(batch_of(cells), seed=0, epoch=0)
    assert eighty.lengths.tolist() == [22, 25, 0, 1]


def test_genes_that_are_there_with_count_zero_are_not_filled_in_twice(batch_of, genes_of, table):
    zeroed = MaskGenes(("g1",), how="zero").bind(table)(batch_of([{1: 3, 2: 1}]), seed=0, epoch=0)
    done = genes_of(RandomZeros(fill_to=100).bind(table)(zeroed, seed=0, epoch=0))[0]
    assert sorted(done) == list(range(100))


def test_some_cells_are_left_untouched(batch_of, table):
    batch = batch_of([{1: 1}] * 2000)
    for transform in (RandomZeros(fill_to=3, untouched_share=0.2).bind(table),):
        lengths = transform(batch, seed=0, epoch=0).lengths
        assert set(lengths.tolist()) == {1, 3}
        assert abs(np.mean(lengths == 1) - 0.2) < 0.03


def test_batch_zeros_are_expressed_in_another_cell(batch_of, genes_of):
    batch = batch_of([{1: 1, 2: 1}, {2: 1, 3: 1, 4: 1}, {}, {9: 0}])
    done = genes_of(BatchZeros(fill_to=10)(batch, seed=0, epoch=0))
    assert [sorted(genes) for genes in done] == [
        [1, 2, 3, 4],
        [1, 2, 3, 4],
        [1, 2, 3, 4],
        [1, 2, 3, 4, 9],
    ]
    assert done[0][:2] == [1, 2]
    alone = BatchZeros(fill_to=10)(batch_of([{1: 1, 2: 1}]), seed=0, epoch=0)
    assert genes_of(alone) == [[1, 2]]
    assert BatchZeros.training_only


def test_batch_zeros_then_random_zeros_fill_the_rest(batch_of, genes_of, table):
    batch = batch_of([{1: 1}, {2: 1}])
    near = BatchZeros(fill_to=6)(batch, seed=0, epoch=0)
    done = genes_of(RandomZeros(fill_to=6).bind(table)(near, seed=0, epoch=0))
    assert [genes[:2] for genes in done] == [[1, 2], [2, 1]]
    assert [len(set(genes)) for genes in done] == [6, 6]


def test_interleaving_nine_to_one(batch_of, table):
    batch = batch_of([dict.fromkeys(range(36), 1)])
    filled = RandomZeros(expressed_share=0.9).bind(table)(batch, seed=0, epoch=0)
    done = InterleaveZeros(0.9)(filled, seed=0, epoch=0)
    assert done.counts.tolist() == ([1] * 9 + [0]) * 4
    assert done.genes[done.counts == 1].tolist() == list(range(36))
    assert done.genes[done.counts == 0].tolist() == filled.genes[36:].tolist()
    # Eight to two, not eight to one: no share is cut to a whole number of genes.
    filled = RandomZeros(expressed_share=0.8).bind(table)(batch, seed=0, epoch=0)
    done = InterleaveZeros(0.8)(filled, seed=0, epoch=0)
    assert done.counts.tolist() == ([1] * 4 + [0]) * 9


@given(
    cells=st.lists(st.lists(st.integers(0, 1), max_size=30), min_size=1, max_size=3),
    percent=st.integers(1, 99),
)
def test_every_beginning_of_a_cell_has_the_share(batch_of, genes_of, cells, percent):
    batch = batch_of([dict(enumerate(counts)) for counts in cells])
    done = InterleaveZeros(percent / 100)(batch, seed=0, epoch=0)
    for row, counts in enumerate(cells):
        part = done[row : row + 1]
        for kind in (0, 1):
            expected = [gene for gene, count in enumerate(counts) if count == kind]
            assert part.genes[part.counts == kind].tolist() == expected
        mixed = part.counts.tolist()
        length = next(
            (i for i in range(len(mixed)) if len(set(mixed[i:])) == 1), len(mixed)
        )  # Up to where one kind has run out.
        for end in range(length + 1):
            assert abs(sum(mixed[:end]) - end * percent / 100) < 1 + 1e-9
    assert genes_of(RandomOrder()(done, seed=0, epoch=0)) is not None
