"""Fixed lists of genes, kept or taken away."""

from __future__ import annotations

import numpy as np

from omics.data.transforms import GenePanel, LogNormalize, MaskGenes


def test_a_panel_keeps_its_genes_in_the_order_of_the_cell(batch_of, cells_of, table):
    batch = batch_of([{1: 4, 3: 2, 8: 1}, {2: 5}, {}]).with_field("f", np.arange(4))
    full = batch.with_targets(batch)
    done = GenePanel(("g8", "g3", "not there")).bind(table)(full, seed=0, epoch=0)
    assert cells_of(done) == [{3: 2, 8: 1}, {}, {}]
    assert done.fields["f"].tolist() == [1, 2]
    assert done.targets is batch


def test_masked_genes_are_removed_or_zero(batch_of, cells_of, table):
    batch = LogNormalize()(batch_of([{1: 4, 3: 2}, {3: 5}]), seed=0, epoch=0)
    removed = MaskGenes(("g3",)).bind(table)(batch, seed=0, epoch=0)
    assert cells_of(removed) == [{1: 4}, {}]
    zero = MaskGenes(("g3",), how="zero").bind(table)(batch, seed=0, epoch=0)
    assert cells_of(zero) == [{1: 4, 3: 0}, {3: 0}]
    assert zero.fields["expression"].tolist() == [batch.fields["expression"][0], 0, 0]
    assert zero.fields["expression"].dtype == np.float32
