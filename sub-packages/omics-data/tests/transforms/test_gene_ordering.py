"""Orders of the entries of a cell against sorting by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omics.data.genes import GeneTable
from omics.data.transforms import (
    ChromosomeOrder,
    ExpressionOrder,
    GenePropertyOrder,
    LogNormalize,
    RandomOrder,
)
from omics.data.transforms.entry_values import order_keys
from omics.data.transforms.ordering_loops import order_rows

FLOATS = st.floats(width=32, allow_nan=False)


@given(rows=st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=40), max_size=4))
def test_rows_are_sorted_as_a_stable_sort_does(rows):
    rows = [row + [value & 0xFFF for value in row] + row[:3] for row in rows]
    keys = np.array([value for row in rows for value in row], np.uint32)
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    order = np.empty(len(keys), np.int64)
    order_rows(indptr, keys, order)
    expected = [
        begin + np.argsort(keys[begin:end], kind="stable") for begin, end in pairwise(indptr)
    ]
    assert order.tolist() == np.concatenate([*expected, np.empty(0, int)]).tolist()


@given(values=st.lists(FLOATS, max_size=30))
def test_keys_sort_as_floats_do(values):
    values = np.array(values, np.float32)
    by_key = np.argsort(order_keys(values), kind="stable")
    assert by_key.tolist() == np.argsort(values, kind="stable").tolist()


@pytest.mark.parametrize("dtype", [np.uint32, np.float32])
@given(
    cells=st.lists(
        st.dictionaries(st.integers(0, 99), st.sampled_from([1, 1, 2, 3, 900, 70_000])), max_size=4
    )
)
def test_expression_descends_and_ties_are_by_gene(dtype, batch_of, genes_of, cells):
    cells = [dict(sorted(cell.items())) for cell in cells]
    done = ExpressionOrder()(batch_of(cells, dtype=dtype), seed=0, epoch=0)
    expected = [sorted(cell, key=lambda gene: (-cell[gene], gene)) for cell in cells]
    assert genes_of(done)[: len(cells)] == expected
    assert done.counts.tolist() == [
        cell[gene] for cell, order in zip(cells, expected, strict=True) for gene in order
    ]


def test_a_field_can_be_ordered_by_and_all_fields_move_along(batch_of, genes_of):
    batch = batch_of([{1: 3, 2: 9, 5: 4}]).with_field("f", np.array([0.5, -1, 2.0]))
    done = ExpressionOrder("f")(LogNormalize()(batch, seed=0, epoch=0), seed=0, epoch=0)
    assert genes_of(done) == [[5, 1, 2]]
    assert done.counts.tolist() == [4, 3, 9]
    assert done.fields["f"].tolist() == [2, 0.5, -1]
    assert np.argsort(done.fields["expression"]).tolist() == [1, 0, 2]


def test_random_orders_are_permutations_and_every_place_is_alike(batch_of, genes_of):
    batch = batch_of([{1: 1, 2: 1, 3: 1, 4: 1}] * 4000)
    done = np.array(genes_of(RandomOrder()(batch, seed=0, epoch=0)))
    assert (np.sort(done, axis=1) == [1, 2, 3, 4]).all()
    seen, counts = np.unique(done, axis=0, return_counts=True)
    assert len(seen) == 24
    expected = 4000 / 24
    # Chi-square with 23 degrees of freedom: 60 is beyond its 99.99 % quantile.
    assert ((counts - expected) ** 2 / expected).sum() < 60


def test_a_gene_property_orders_and_genes_without_one_come_last(batch_of, genes_of, table):
    batch = batch_of([{1: 1, 2: 1, 5: 1, 9: 1}, {2: 1, 9: 1}])
    values = {"g9": 1.0, "g1": 5.0, "g5": 5.0, "elsewhere": 0.0}
    up = GenePropertyOrder(values).bind(table)(batch, seed=0, epoch=0)
    assert genes_of(up) == [[9, 1, 5, 2], [9, 2]]
    down = GenePropertyOrder(values, descending=True).bind(table)(batch, seed=0, epoch=0)
    assert genes_of(down) == [[1, 5, 9, 2], [9, 2]]


def test_chromosomes_stand_together_in_random_order_and_starts_ascend(batch_of, genes_of, table):
    transform = ChromosomeOrder(chromosome_column="chromosome", start_column="start").bind(table)
    batch = batch_of([dict.fromkeys(range(60), 1)] * 600)
    orders = []
    for genes in genes_of(transform(batch, seed=0, epoch=0)):
        assert sorted(genes) == list(range(60))
        chromosomes = [gene % 4 for gene in genes]
        order = list(dict.fromkeys(chromosomes))
        assert chromosomes == [number for number in order for _ in range(15)]
        for number in range(4):
            starts = [gene * 37 % 100 for gene in genes if gene % 4 == number]
            assert starts == sorted(starts)
        orders.append(tuple(order))
    seen, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(seen) == 24
    assert ((counts - 25) ** 2 / 25).sum() < 60


def test_places_may_be_tables_and_genes_without_them_stand_together(batch_of, genes_of):
    table = GeneTable([f"g{gene}" for gene in range(100)])
    chromosomes = {"g1": "X", "g2": "X", "g7": "Y"}
    transform = ChromosomeOrder(chromosomes, {"g1": 50.0, "g2": 8.0}).bind(table)
    done = genes_of(transform(batch_of([dict.fromkeys(range(9), 1)] * 50), seed=0, epoch=0))
    for genes in done:
        assert genes.index(1) == genes.index(2) + 1
        elsewhere = [gene for gene in genes if gene not in {1, 2, 7}]
        assert elsewhere == [0, 3, 4, 5, 6, 8]
        begin = genes.index(0)
        assert genes[begin : begin + 6] == elsewhere
    assert len({tuple(genes) for genes in done}) == 6


def test_a_sample_is_in_proportion_to_log_counts(batch_of, genes_of, table):
    transform = ChromosomeOrder(
        chromosome_column="chromosome", start_column="start", sample=20
    ).bind(table)
    counts = {0: 1, 1: 3, 2: 15, 3: 255}
    batch = batch_of([counts, {}] * 1500).with_field("f", np.tile([0, 1, 2, 3], 1500))
    done = transform(batch, seed=0, epoch=0)
    assert done.lengths.tolist() == [20, 0] * 1500
    assert done.fields["f"].tolist() == done.genes.tolist()
    shares = np.bincount(done.genes) / 30_000
    np.testing.assert_allclose(shares, np.array([1, 2, 4, 8]) / 15, atol=0.012)
    first = genes_of(done)[0]
    assert len(set(first)) == 1 + sum(a != b for a, b in pairwise(first))
    weightless = batch_of([{5: 0, 6: 0}, {5: 0, 6: 2}])
    assert genes_of(transform(weightless, seed=0, epoch=0)) == [[], [6] * 20]
