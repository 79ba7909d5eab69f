"""Fixed lists of genes, kept or taken away."""

from __future__ import annotations

import numpy as np

from omics.data import GeneTable
from omics.data.transforms import GenePanel, LogNormalize, MaskGenes


def test_a_panel_keeps_its_genes_in_the_order_of_the_cell(batch_of, cells_of, table):
    batch = batch_of([{1: 4, 3: 2, 8: 1}, {2: 5}, {}]).with_field("f", np.arange(4))
    full = batch.with_targets(batch)
    done = GenePanel(("g8", "g3", "not there")).bind(table)(full, seed=0, epoch=0)
    assert cells_of(done) == [{3: 2, 8: 1}, {}, {}]
    assert done.fields["f"].tolist() == [1, 2]
    assert done.targets is batch


def test_a_panel_of_symbols_is_found_where_ids_are_of_another_kind(batch_of, cells_of):
    ids = [f"ENSG{number:011d}" for number in range(100)]
    symbols = np.array([f"s{number}" for number in range(9)] + ["s8"] + [""] * 90, object)
    named = GeneTable(ids, {"symbol": symbols})
    batch = batch_of([{1: 4, 3: 2, 8: 1, 9: 1}])
    panel = GenePanel(("s3", "s1", "s8", ids[8]))
    # s8 names two genes and so none; the one id is fewer than the symbols that are found.
    assert cells_of(panel.bind(named)(batch, seed=0, epoch=0)) == [{1: 4, 3: 2}]
    by_id = GenePanel((ids[8], ids[9], "s1")).bind(named)(batch, seed=0, epoch=0)
    assert cells_of(by_id) == [{8: 1, 9: 1}]


def test_masked_genes_are_removed_or_zero(batch_of, cells_of, table):
    batch = LogNormalize()(batch_of([{1: 4, 3: 2}, {3: 5}]), seed=0, epoch=0)
    removed = MaskGenes(("g3",)).bind(table)(batch, seed=0, epoch=0)
    assert cells_of(removed) == [{1: 4}, {}]
    zero = MaskGenes(("g3",), how="zero").bind(table)(batch, seed=0, epoch=0)
    assert cells_of(zero) == [{1: 4, 3: 0}, {3: 0}]
    assert zero.fields["expression"].tolist() == [batch.fields["expression"][0], 0, 0]
    assert zero.fields["expression"].dtype == np.float32
