"""Runs with tokenizers other than genes and continuous values."""

from __future__ import annotations

import numpy as np
import pytest
from run_parts import SMALL, compose

from omics.data.errors import ConfigError
from omics.data.storage.store import open_store
from omics.models import Bundle, embed_cells
from omics.tokenizers import corpus_medians, write_gene_tokens
from omics.tokenizers.gene_medians import median_tokens
from omics.train.train_run import train

MASKED_GENES = [
    "tokenizer.kind=geneformer",
    "data_module.transforms=[]",
    "data_module.augmentations=[]",
    "fields=[{field_name: genes, encoder: embedding, is_masked: true}]",
    "trainer.losses=[{field_name: genes, name: cross_entropy}]",
]
BINS = [
    "tokenizer.num_bins=8",
    "tokenizer.append_sep=true",
    "tokenizer.max_length=20",
    "data_module.transforms=[{name: bin_quantile, num_bins: 8}]",
    "data_module.augmentations=[]",
    (
        "fields=[{field_name: genes, encoder: embedding},"
        "{field_name: expression, encoder: embedding, is_masked: true}]"
    ),
    "trainer.losses=[{field_name: expression, name: cross_entropy}]",
]
DEPTHS = [
    "tokenizer.depth_tokens=true",
    "data_module.transforms=[{name: read_depth_downsample, mode: equal}]",
    "data_module.augmentations=[]",
]


@pytest.fixture(scope="module")
def table(atlas):
    """Return the path of a table of gene tokens with the medians of the atlas."""
    store = open_store(atlas.store)
    path = atlas.folder / "medians.tsv"
    write_gene_tokens(path, median_tokens(store.genes, corpus_medians(store)))
    return path


def pretrained_with(atlas, folder, overrides):
    config = compose("pretrain", [*atlas.cells, f"working_dir={folder}", *SMALL, *overrides])
    train(config, folder)
    return Bundle.load(folder / "bundle")


def last_losses(folder):
    lines = (folder / "history.csv").read_text().splitlines()[1:]
    return [float(line.rsplit(",", 1)[1]) for line in lines if ",train," in line]


def test_a_rank_value_encoder_learns_hidden_genes_and_then_cell_types(atlas, table, tmp_path):
    overrides = [*MASKED_GENES, f"tokenizer.table={table}", "trainer.max_epochs=6"]
    bundle = pretrained_with(atlas, tmp_path / "pretrain", overrides)
    assert bundle.tokenizer.kind == "rank_value"
    losses = last_losses(tmp_path / "pretrain")
    assert losses[-1] < losses[0]
    overrides = [
        *atlas.cells,
        f"working_dir={tmp_path}/finetune",
        f"checkpoint={tmp_path}/pretrain/bundle",
        "label_columns=[cell_type]",
        "trainer.max_epochs=2",
    ]
    tuned = train(compose("finetune", overrides), tmp_path / "finetune")
    store = open_store(atlas.store)
    rows = np.arange(5)
    assert np.array_equal(embed_cells(tuned, store, rows=rows), embed_cells(tuned, store)[rows])


def test_an_encoder_of_bins_learns_hidden_bins(atlas, tmp_path):
    bundle = pretrained_with(atlas, tmp_path, BINS)
    expression = bundle.tokenizer.fields[1]
    assert (expression.kind, expression.vocabulary_size) == ("discrete", 13)
    assert bundle.tokenizer.max_length == 20
    losses = last_losses(tmp_path)
    assert losses[-1] < losses[0]


def test_an_encoder_with_depth_tokens_trains(atlas, tmp_path):
    bundle = pretrained_with(atlas, tmp_path, DEPTHS)
    assert bundle.tokenizer.vocabulary.tokens[5:7] == ("[S]", "[T]")
    assert bundle.tokenizer.num_special == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tokenizer.kind=geneformr"], "Did you mean 'geneformer'"),
        (["tokenizer.kind=geneformer"], "set tokenizer.table"),
        (["tokenizer.table=x.tsv"], "takes its vocabulary from the store"),
        (
            ["tokenizer.kind=geneformer", "tokenizer.table=x", "tokenizer.num_bins=3"],
            "tokenizer.num_bins is for the kind 'gene'",
        ),
        (
            [*BINS, "trainer.losses=[{field_name: genes, name: mse, wced_target: all_genes}]"],
            "'genes', which holds no values",
        ),
    ],
)
def test_choices_that_do_not_go_together_are_refused(atlas, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        pretrained_with(atlas, tmp_path / "r", overrides)
    assert not (tmp_path / "r").exists()
