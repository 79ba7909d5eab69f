from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest
import torch
from run_parts import SMALL, compose

from omics.data.errors import ConfigError, InputDataError, MissingPathError
from omics.data.storage.store import open_store
from omics.eval.table_files import write_genes
from omics.models import Bundle, GeneEmbedding
from omics.models.gene_embedding import GeneNames
from omics.tokenizers import GeneTokenizer
from omics.train.gene_vectors import GeneVectorTable, match_vectors, read_gene_vectors
from omics.train.train_run import prepare_training, train

GENES = ["TP53", "BRCA1", "NAN", "NA", "7SK"]
VECTORS = (np.arange(15, dtype=np.float32).reshape(5, 3) - 7) / 8


def lines(between, *, end=""):
    rows = zip(GENES, VECTORS, strict=True)
    return [between.join([gene, *(f"{x:g}" for x in row)]) + end for gene, row in rows]


FILES = {
    "gene2vec.txt": ["5 3", *lines(" ", end=" ")],
    "plain.txt": lines(" "),
    "wide.txt": lines("   "),
    "tabs.tsv": lines("\t"),
    "header.tsv": ["gene\tdim 0\tdim 1\tdim 2", *lines("\t")],
    "plain.csv": lines(","),
    "header.csv": ["gene,a,b,c", *lines(",")],
    "marked.csv": ["\ufeffgene,a,b,c", *lines(",")],
    "zipped.txt.gz": ["5 3", *lines(" ")],
}


@pytest.mark.parametrize("name", FILES)
def test_text_of_every_form(tmp_path, name):
    text = "\n".join(FILES[name]) + "\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    table = read_gene_vectors(path)
    assert list(table.names) == GENES
    assert table.vectors.dtype == np.float32
    assert np.array_equal(table.vectors, VECTORS)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_vectors_that_a_model_gave_can_be_given_to_another(tmp_path, suffix):
    found = GeneEmbedding(
        genes=np.array(GENES),
        symbols=np.array([f"S{i}" for i in range(5)]),
        num_cells=np.arange(5),
        vectors=VECTORS,
    )
    path = tmp_path / f"genes.{suffix}"
    write_genes(path, found, {})
    table = read_gene_vectors(path)
    assert list(table.names) == GENES
    assert np.array_equal(table.vectors, VECTORS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A 1 2\nB 3\n", "number 2 of the gene 'B'. Every gene needs as many"),
        ("A 1 2\nB 3 x\n", "has 'x' as number 2 of the gene 'B'"),
        ("A 1 2\nB 3 nan\n", "number 2 of the gene 'B'"),
        ("A 1 2\nA 3 4\n", "names 1 genes more than once, first 'A'"),
        (
            "3 2\nA 1 2\nB 3 4\n",
            "begins with 3 genes and 2 numbers, and holds 2 and 2. The file is",
        ),
        ("A 1 2\nB 3 4 5\n", "is no table of vectors of genes"),
        ("", "is no table of vectors of genes"),
        ("A\nB\n", "holds 2 genes with 0 numbers each|is no table of vectors"),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path, text, message):
    path = tmp_path / "vectors.txt"
    path.write_text(text)
    with pytest.raises(InputDataError, match=message):
        read_gene_vectors(path)


def test_files_that_are_no_table_at_all_are_named(tmp_path):
    with pytest.raises(MissingPathError, match=r"There is no file .*absent"):
        read_gene_vectors(tmp_path / "absent.txt")
    (tmp_path / "x.parquet").write_bytes(b"no")
    with pytest.raises(InputDataError, match="is not a Parquet file"):
        read_gene_vectors(tmp_path / "x.parquet")
    (tmp_path / "x.txt").write_bytes(bytes(range(128, 256)))
    with pytest.raises(InputDataError, match="is no table of vectors of genes"):
        read_gene_vectors(tmp_path / "x.txt")


def matched(names, ids, symbols):
    tokenizer = GeneTokenizer.from_list(ids, symbols)
    table = GeneVectorTable(names, np.arange(len(names), dtype=np.float32)[:, None])
    return match_vectors(table, tokenizer, GeneNames.of(tokenizer), frozen=True)


def test_genes_are_matched_by_what_finds_more():
    found = matched(["S2", "G9", "S0"], ["G0", "G1", "G2"], ["S0", "S1", "S2"])
    assert (found.matched_by, found.tokens.tolist()) == ("symbol", [5, 7])
    assert found.vectors[:, 0].tolist() == [2.0, 0.0]
    assert str(found).startswith("2 of the vocabulary's 3 genes have pre-trained vectors of 1 num")
    found = matched(["G2", "S0", "G1"], ["G0", "G1", "G2"], ["S0", "S1", "S2"])
    assert (found.matched_by, found.tokens.tolist()) == ("id", [6, 7])


def test_versions_of_ids_do_not_matter_unless_there_are_two():
    ids = ["ENSG00000000001", "ENSG00000000002.4", "ENSG00000000003"]
    names = ["ENSG00000000001.7", "ENSG00000000002", "ENSG00000000003.1", "ENSG00000000003.2"]
    found = matched(names, ids, ids)
    assert found.tokens.tolist() == [5, 6]


def test_a_table_of_other_genes_is_refused_with_examples():
    with pytest.raises(InputDataError, match=r"genes like X, Y, the vocabulary genes like G0, G1"):
        matched(["X", "Y"], ["G0", "G1"], ["S0", "S1"])


@pytest.fixture
def vectors_file(atlas, tmp_path):
    """Vectors of every second gene of the atlas."""
    ids = open_store(atlas.store).genes.ids[::2]
    values = np.random.default_rng(0).normal(size=(len(ids), 6)).astype(np.float32)
    path = tmp_path / "vectors.tsv"
    pd.DataFrame(values, index=ids).to_csv(path, sep="\t", header=False)
    return path, ids, values


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_vectors_keep_every_bit_and_the_others_are_trained(
    atlas, vectors_file, tmp_path, frozen, capsys
):
    path, ids, values = vectors_file
    field = f"{{field_name: genes, encoder: embedding, vectors: {path}, freeze_vectors: {frozen}}}"
    value = "{field_name: expression, encoder: mlp, scaled_by: genes, is_masked: true}"
    settings = [
        *atlas.cells,
        f"working_dir={tmp_path}/r",
        *SMALL,
        f"fields=[{field},{value}]",
        "trainer.weight_decay=0.3",
        "trainer.accumulate_grad_batches=2",
    ]
    config = compose("pretrain", settings)
    start = prepare_training(config, open_store(atlas.store)).model.state_dict()
    train(config, tmp_path / "r")
    assert f"{len(ids)} of the vocabulary's 80 genes have pre-trained" in capsys.readouterr().out
    bundle = Bundle.load(tmp_path / "r/bundle")
    table = bundle.model.state_dict()["embedding.fields.genes.table.weight"]
    assert table.shape == (85, 6)
    assert bundle.model.model_config.field("genes").vector_size == 6
    tokens = torch.from_numpy(bundle.tokenizer.vocabulary.ids(ids).astype(np.int64))
    assert torch.equal(
        start["embedding.fields.genes.table.weight"][tokens], torch.from_numpy(values)
    )
    assert torch.equal(table[tokens], torch.from_numpy(values)) == frozen
    others = np.setdiff1d(np.arange(5, 85), tokens.numpy())
    changed = table[others] != start["embedding.fields.genes.table.weight"][others]
    assert changed.any(dim=1).float().mean() > 0.9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("[{field_name: genes, encoder: embedding, freeze_vectors: true}]", "and no vectors"),
        ("[{field_name: expression, encoder: mlp, vectors: V}]", "are for the field 'genes'"),
        ("[{field_name: expression, encoder: sinusoid, num_frequencies: 4}]", "differs from the"),
        ("[{field_name: genes, encoder: embedding, vectors: V}]", "the checkpoint has its own"),
    ],
)
def test_vectors_that_would_not_be_used_are_refused(atlas, pretrained, fields, message):
    start = [] if message.startswith(("and no", "are for")) else [f"checkpoint={pretrained}/bundle"]
    verb = "finetune" if start else "pretrain"
    more = ["label_columns=[cell_type]"] if start else SMALL
    config = compose(verb, [*atlas.cells, "working_dir=x", *start, *more, f"fields={fields}"])
    with pytest.raises(ConfigError, match=message):
        prepare_training(config, open_store(atlas.store))


def test_every_switch_of_a_field_reaches_the_model(atlas):
    value = (
        "{field_name: expression, encoder: sinusoid, num_frequencies: 7, frequency_scale: 0.5, "
        "zero_row: true, learned_frequencies: false}"
    )
    fields = f"fields=[{{field_name: genes, encoder: embedding}},{value}]"
    settings = [*atlas.cells, "working_dir=x", *SMALL, fields, "trainer.losses=LOSSES"]
    losses = "[{field_name: expression, name: mse, wced_target: all_genes}]"
    config = compose("pretrain", [each.replace("LOSSES", losses) for each in settings])
    model = prepare_training(config, open_store(atlas.store)).model
    field = model.model_config.field("expression")
    assert (field.num_frequencies, field.frequency_scale, field.zero_row) == (7, 0.5, True)
    assert not field.learned_frequencies
    frequencies = model.embedding.fields["expression"].frequencies
    assert (len(frequencies), frequencies.requires_grad) == (7, False)
    leaky = fields.replace(value, "{field_name: expression, encoder: leaky_mlp, inner_size: 9}")
    config = compose("pretrain", [*settings[:-2], leaky, f"trainer.losses={losses}"])
    model = prepare_training(config, open_store(atlas.store)).model
    assert model.embedding.fields["expression"].first.out_features == 9
