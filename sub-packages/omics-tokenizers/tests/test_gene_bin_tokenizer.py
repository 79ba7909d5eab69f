"""Genes and bins as one token: every gene of a panel, in its order, for every cell."""

from __future__ import annotations

import numpy as np
import pytest

from omics.data import CellBatch, GeneTable
from omics.data.errors import ConfigError, InputDataError, UnknownNameError
from omics.tokenizers import (
    GeneBinTokenizer,
    LabelSpec,
    load_tokenizer,
    reads_cells,
    save_tokenizer,
)

PANEL = ["c", "a", "z", "b"]


def batch(bins=(1, 3, 2, 4), **more):
    return CellBatch(
        indptr=np.array([0, 3, 3, 4]),
        genes=np.array([0, 1, 3, 2], np.uint16),
        counts=np.array([5, 6, 7, 8], np.uint16),
        rows=np.arange(3),
        num_genes=4,
        fields={"bin": np.array(bins, np.int32)},
        **more,
    )


def bound(**options):
    return GeneBinTokenizer(PANEL, 5).bind(GeneTable(["a", "b", "c", "d"]), **options)


def test_every_cell_has_every_gene_of_the_panel_in_its_order():
    tokens = bound().encode(batch())
    # Panel c, a, z, b; store a, b, c, d: z is not measured and d is not in the panel.
    assert tokens.fields["gene_bins"].reshape(3, 4).tolist() == [
        [0, 5 + 1, 10, 15 + 3],
        [0, 5, 10, 15],
        [4, 5, 10, 15],
    ]
    assert tokens.fields["gene_bins"].dtype == np.int32
    assert tokens.offsets.tolist() == [0, 4, 8, 12]


def test_the_vocabulary_is_genes_times_bins_and_a_mask():
    tokenizer = GeneBinTokenizer(PANEL, 5)
    (spec,) = tokenizer.fields
    assert (spec.vocabulary_size, spec.special_ids, spec.mask_id) == (21, (20,), 20)
    assert spec.token_values[:20] == (0.0, 1.0, 2.0, 3.0, 4.0) * 4
    assert np.isnan(spec.token_values[20])
    assert tokenizer.vocabulary.names == tuple(PANEL)
    assert tokenizer.num_bins == 5
    one = bound()
    assert one.num_special == 0
    assert one.measured_tokens().tolist() == [*range(10), *range(15, 20)]
    assert one.coverage.num_known == 3


def test_labels_and_targets_are_encoded_too():
    label = LabelSpec(name="kind", classes=("x", "y"))
    obs = {"kind": np.array(["y", "x", "?"], object)}
    tokens = bound(labels=[label]).encode(batch(obs=obs).with_targets(batch((2, 0, 0, 0))))
    assert tokens.labels["kind"].tolist() == [1, 0, -100]
    assert tokens.targets.fields["gene_bins"][:4].tolist() == [0, 7, 10, 15]


def test_it_is_saved_as_data(tmp_path):
    tokenizer = GeneBinTokenizer(PANEL, 5, ["C", "A", "Z", "B"], aliases={"old": "c"})
    save_tokenizer(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert reads_cells(loaded)
    assert loaded.to_dict() == tokenizer.to_dict()
    by_alias = loaded.bind(GeneTable(["old", "B"], {"symbol": np.array(["old", "B"], object)}))
    assert by_alias.table.tolist() == [0, 3]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="repeats 1 tokens, first 'a'"):
        GeneBinTokenizer(["a", "a"], 5)
    with pytest.raises(ConfigError, match="must be named 0 to"):
        GeneBinTokenizer(["a"], 0)
    with pytest.raises(InputDataError, match="Only 0 of the vocabulary's 4 genes"):
        GeneBinTokenizer(PANEL, 5).bind(GeneTable(["x", "y"]))
    with pytest.raises(InputDataError, match=r"holds the bin 5; .* the bins 0 to 4"):
        bound().encode(batch((1, 5, 0, 0)))
    plain = CellBatch(
        indptr=np.array([0, 0]), genes=np.array([], np.uint16), counts=np.array([], np.uint16),
        rows=np.arange(1), num_genes=4,
    )  # fmt: skip
    with pytest.raises(UnknownNameError, match="add the transform that makes it"):
        bound().encode(plain)
