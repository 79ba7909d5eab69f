"""From a published checkpoint to a bundle that embeds cells, and back; and what is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import bmfm_reference as reference
import numpy as np
import pytest
import torch
from bmfm_files import write_archive, write_vocabularies
from geneformer_files import bert, write_checkpoint, write_dictionaries
from safetensors.torch import load_file, save_file
from test_parity_bmfm import OWN_CASES

from omics.data import convert, open_store, synthesize
from omics.data.errors import ExistingPathError, InputDataError, MissingPathError, UsageError
from omics.models import (
    Bundle,
    ConversionOptions,
    UnsafeCheckpointError,
    convert_checkpoint,
    embed_cells,
    export_checkpoint,
)
from omics.models.ragged_layout import RaggedLayout
from omics.tokenizers import GeneBinTokenizer, bind_store
from omics.tokenizers.gene_bin_tokenizer import GENE_BINS

REAL = sorted(Path(os.environ.get("OMICS_REAL_DATA") or os.devnull).glob("**/*.h5ad"))
NUM_CELLS = 12
# Layouts whose inputs are genes and expressions: those of cells.
CELLS = [name for name, (model_type, *_) in OWN_CASES.items() if model_type != "scmodernbert"]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    synthesize(NUM_CELLS, 60, seed=3).write_h5ad(folder / "cells.h5ad")
    return convert(folder / "cells.h5ad", folder / "cells.store")


def write_bmfm(folder, name, genes, **changes):
    """Write a checkpoint folder of one of the layouts; return its configuration and weights."""
    model_type, layout, settings = OWN_CASES[name]
    config = reference.settings(model_type, **{**settings, **changes})
    state = reference.make_state(config, layout)
    folder.mkdir(parents=True, exist_ok=True)
    write_archive(folder / "last.ckpt", config, state)
    depth = ("[S]", "[T]") if "rda" in name else ()
    tokens = [f"[CLS_{n}]" for n in range(3)] if "token for each" in name else ()
    write_vocabularies(folder, genes, extra=depth, more_specials=tokens)
    return config, state


def options_for(name):
    only = reference.LABELS[0]["label_column_name"] if name.endswith("old classifier") else None
    return ConversionOptions(label=only)


def tokens_of(bundle, store):
    reader, bound = bind_store(bundle.tokenizer, store)
    from omics.data import Loader

    batches = Loader(reader, batch_size=NUM_CELLS, transforms=bundle.transforms)
    (batch,) = batches
    return bound.encode(batch)


def padded(tokens, config):
    """Return what the reference would read: ids [B, fields, L] and a mask."""
    columns = []
    for each in reference.input_fields(config):
        pad = 2.0 if each["tokenization_strategy"] == "tokenize" else -3.0
        values, mask = tokens.padded(each["field_name"], pad_value=pad)
        columns.append(torch.from_numpy(values.astype(np.float32)))
    return torch.stack(columns, 1), torch.from_numpy(mask).float()


@pytest.mark.parametrize("name", CELLS)
def test_every_layout_becomes_a_bundle_that_embeds_raw_counts(name, cells, tmp_path):
    config, state = write_bmfm(tmp_path / "source", name, cells.genes.ids.tolist())
    bundle = convert_checkpoint(tmp_path / "source", options=options_for(name))
    bundle = Bundle.load(bundle.save(tmp_path / "bundle").path)
    vectors = embed_cells(bundle, cells)
    assert vectors.shape == (NUM_CELLS, reference.HIDDEN)
    assert np.isfinite(vectors).all()

    # The whole way agrees with the formulas: counts, tokens, model, labels.
    tokens = tokens_of(bundle, cells)
    ids, mask = padded(tokens, config)
    expected = reference.Forward(config, state, OWN_CASES[name][1])(ids, mask)
    flat = tokens.to_torch()
    layers = bundle.model.model_config.num_layers
    with torch.inference_mode():
        output = bundle.model(flat, layers=[layers])
        layout = RaggedLayout.from_offsets(flat.offsets)
        first = bundle.model.pool(output.layers[layers], layout, "first_token")
    assert (first - expected["out/pool/first_token"]).abs().max() < 1e-5
    for label, classes in bundle.labels.items():
        assert (output.labels[label] - expected[f"out/logits/{label}"]).abs().max() < 1e-5
        assert classes[0] == f"{label} 0"


def test_the_contract_of_preprocessing_is_that_of_the_reference(cells, tmp_path):
    genes = cells.genes.ids.tolist()
    write_bmfm(tmp_path / "source", "bert mlm", genes)
    bundle = convert_checkpoint(tmp_path / "source")
    panel = genes[:36]
    assert [step.to_dict() for step in bundle.transforms] == [
        {"name": "gene_panel", "genes": panel},
        {
            "name": "log_normalize",
            "target_sum": 1e4,
            "field_name": "expression",
            "added_total": 1.0,
        },
    ]
    assert bundle.tokenizer.max_length == 1024
    tokens = tokens_of(bundle, cells)
    counts = cells.take([0]).to_csr().toarray()[0][:36].astype(np.float64)
    expected = np.log1p(1e4 * counts / (counts.sum() + 1))
    begin, end = tokens.offsets[:2]
    ids, values = (tokens.fields[each][begin:end] for each in ("genes", "expressions"))
    # [CLS] and [SEP] with their ids of the vocabulary, -(id + 1) among the values.
    assert (ids[0], ids[-1], values[0], values[-1]) == (3, 1, -4, -2)
    assert ids[1:-1].tolist() == (np.flatnonzero(counts) + 5).tolist()
    assert np.allclose(values[1:-1], expected[counts > 0], rtol=1e-6)


def test_a_read_depth_aware_checkpoint_is_told_two_depths(cells, tmp_path):
    genes = cells.genes.ids.tolist()
    write_bmfm(tmp_path / "source", "bert rda", genes)
    bundle = convert_checkpoint(tmp_path / "source", options=ConversionOptions(read_depth=5000))
    assert bundle.transforms[1].to_dict()["name"] == "read_depth_downsample"
    assert bundle.tokenizer.max_length == 4096
    tokens = tokens_of(bundle, cells)
    counts = cells.take([0]).to_csr().toarray()[0][:34].astype(np.float64)
    values = tokens.fields["expressions"][: tokens.offsets[1]]
    assert tokens.fields["genes"][:3].tolist() == [3, 39, 40]
    assert np.allclose(values[1:3], np.log1p([counts.sum(), 5000]))
    wanted = np.log1p(1e4 * counts[counts > 0] / counts.sum())
    assert np.allclose(values[3:-1], wanted, rtol=1e-6)


def test_labels_that_read_a_token_of_their_own_get_one(cells, tmp_path):
    genes = cells.genes.ids.tolist()
    config, state = write_bmfm(tmp_path / "source", "llama wced, a token for each label", genes)
    bundle = convert_checkpoint(tmp_path / "source")
    assert bundle.tokenizer.prepend == ("[CLS]", "[CLS_0]", "[CLS_1]", "[CLS_2]")
    assert [label.token for label in bundle.model.model_config.labels] == [1, 2, 3]

    # Their rows must be in the table of special values.
    table = "core.encoder.embeddings.expressions_embeddings.special_token_embeddings.weight"
    state[table] = state[table][:6]
    config["fields"][1]["num_special_tokens"] = 5
    write_archive(tmp_path / "source" / "last.ckpt", config, state)
    with pytest.raises(
        InputDataError, match="has special tokens up to 7, and the field 'expressions'"
    ):
        convert_checkpoint(tmp_path / "source")


@pytest.mark.parametrize(
    ("method", "pooling", "layer"),
    [
        ("first_token", "first_token", 2),
        ("mean_pooling", "mean_after_first", 2),
        ("pooling_layer", None, None),
        ([1, 2], "token:1+token:2", 2),
        (1, "token:1", 2),
        (None, "first_token", 2),
    ],
)
def test_the_embedding_is_what_the_checkpoint_says(method, pooling, layer, cells, tmp_path):
    config, state = write_bmfm(tmp_path, "bert mlm", cells.genes.ids.tolist())
    write_archive(tmp_path / "last.ckpt", config, state, pooling=method)
    made = convert_checkpoint(tmp_path).model.model_config
    assert (made.embedding_pooling, made.embedding_layer) == (pooling, layer)


def test_the_catalogue_says_how_a_known_checkpoint_is_used(cells, tmp_path):
    write_bmfm(tmp_path, "bert mlm", cells.genes.ids.tolist())
    bundle = convert_checkpoint(tmp_path, known_as="bmfm-rna-bert-mlm-multitask")
    assert bundle.tokenizer.max_length == 4096
    assert bundle.model.model_config.embedding_pooling is None
    assert bundle.provenance["published"]["name"] == "bmfm-rna-bert-mlm-multitask"


def test_cells_may_be_limited_to_fewer_genes(cells, tmp_path):
    genes = cells.genes.ids.tolist()
    write_bmfm(tmp_path, "bert mlm", genes)
    (tmp_path / "panel.txt").write_text("\n".join([genes[4], genes[2], "unheard of"]))
    options = ConversionOptions(genes=tmp_path / "panel.txt")
    bundle = convert_checkpoint(tmp_path, options=options)
    assert bundle.transforms[0].to_dict()["genes"] == [genes[2], genes[4]]
    (tmp_path / "panel.txt").write_text("nothing\nknown\n")
    with pytest.raises(InputDataError, match=r"None of the 2 genes of .* Give gene symbols"):
        convert_checkpoint(tmp_path, options=options)


@pytest.mark.parametrize("name", CELLS)
def test_what_is_exported_is_what_came(name, cells, tmp_path):
    config, state = write_bmfm(tmp_path / "source", name, cells.genes.ids.tolist())
    bundle = convert_checkpoint(tmp_path / "source", options=options_for(name))
    bundle = Bundle.load(bundle.save(tmp_path / "bundle").path)
    folder = export_checkpoint(bundle, tmp_path / "back")
    found = load_file(folder / "model.safetensors")
    assert set(found) == {f"model.{key}" for key in state}
    assert all(torch.equal(found[f"model.{key}"], state[key]) for key in state)
    assert len((folder / "keys.txt").read_text().splitlines()) == len(state)
    written = json.loads((folder / "config.json").read_text())
    del config["auto_map"]  # Nothing that names code is kept.
    assert written == json.loads(json.dumps(config))

    # What was exported can be converted again, to the same model.
    (tmp_path / "source" / "tokenizers").rename(folder / "tokenizers")
    again = convert_checkpoint(folder, options=options_for(name))
    assert again.model.model_config == bundle.model.model_config
    mine, theirs = bundle.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    with pytest.raises(ExistingPathError):
        export_checkpoint(bundle, folder)


def test_the_origin_is_written_down(cells, tmp_path):
    import hashlib

    write_bmfm(tmp_path, "bert mlm", cells.genes.ids.tolist())
    record = convert_checkpoint(tmp_path).provenance["published"]
    raw = (tmp_path / "last.ckpt").read_bytes()
    assert record["sha256"] == hashlib.sha256(raw).hexdigest()
    assert (record["kind"], record["file"], record["prefix"]) == ("bmfm", "last.ckpt", "model.")
    assert record["layout"]["name"] == "multitask"
    assert record["left_out"] == {}


def test_safetensors_with_their_metadata_are_read_like_the_archive(cells, tmp_path):
    config, state = write_bmfm(tmp_path / "ckpt", "llama mlm", cells.genes.ids.tolist())
    folder = tmp_path / "safe"
    folder.mkdir()
    save_file({f"model.{key}": each for key, each in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    labels = {each["label_column_name"]: {f"c{n}": n for n in range(each["n_unique_values"])}
              for each in config["label_columns"]}  # fmt: skip
    metadata = {"hyper_parameters": {"label_dict": labels, "model_config": "a text"}}
    (folder / "checkpoint_metadata.json").write_text(json.dumps(metadata))
    (tmp_path / "ckpt" / "tokenizers").rename(folder / "tokenizers")
    bundle = convert_checkpoint(folder)
    assert bundle.labels["tissue"] == ["c0", "c1", "c2"]
    assert not bundle.model.embedding.fields["expressions"].frequencies.requires_grad


def test_keys_that_are_left_out_have_a_reason(cells, tmp_path):
    config, state = write_bmfm(tmp_path, "bert mlm", cells.genes.ids.tolist())
    state["scbert.embeddings.position_ids"] = torch.arange(4)
    write_archive(tmp_path / "last.ckpt", config, state)
    bundle = convert_checkpoint(tmp_path)
    left_out = bundle.provenance["published"]["left_out"]
    assert left_out == {"scbert.embeddings.position_ids": "the numbers of positions, not weights"}


# Geneformer and Bioformers


def test_a_geneformer_bundle_ranks_and_embeds_raw_counts(cells, tmp_path):
    genes = cells.genes.ids.tolist()
    tokens = write_dictionaries(tmp_path / "geneformer", genes, retired={"OLD1": genes[0]})
    source = write_checkpoint(tmp_path / "Geneformer-V2", bert(len(tokens)))
    bundle = convert_checkpoint(source, known_as="geneformer-v2-104m")
    bundle = Bundle.load(bundle.save(tmp_path / "bundle").path)
    assert embed_cells(bundle, cells).shape == (NUM_CELLS, 32)
    assert bundle.tokenizer.lookup.aliases == (("OLD1", genes[0]),)
    assert bundle.tokenizer.lookup.symbols[0] == "s0"
    assert bundle.tokenizer.max_length == 64  # Not more than the checkpoint has positions.
    counts = cells.take([0]).to_csr().toarray()[0].astype(np.float64)
    order = np.argsort(-counts / (0.5 + np.arange(60) % 7), kind="stable")
    wanted = [index + 4 for index in order if counts[index]][:62]
    begin, end = tokens_of(bundle, cells).offsets[:2]
    found = tokens_of(bundle, cells).fields["genes"][begin:end].tolist()
    assert found == [2, *wanted, 3]


def test_a_table_of_tokens_does_as_well_as_dictionaries(cells, tmp_path):
    genes = cells.genes.ids.tolist()
    rows = [("<pad>", ""), ("<mask>", ""), *((gene, "1.5") for gene in genes)]
    lines = [f"{gene}\t{gene}\t{number}\t{median}" for number, (gene, median) in enumerate(rows)]
    table = tmp_path / "genes.tsv"
    table.write_text("\n".join(["ensembl_id\tsymbol\ttoken_id\tmedian", *lines]))
    source = write_checkpoint(tmp_path / "model", bert(len(rows)))
    with pytest.raises(MissingPathError, match=r"no dictionaries of gene tokens .* with --table"):
        convert_checkpoint(source)
    bundle = convert_checkpoint(source, options=ConversionOptions(table=table))
    assert not bundle.tokenizer.prepend_cls
    assert np.isfinite(embed_cells(bundle, cells)).all()


def test_dictionaries_of_another_version_are_refused(cells, tmp_path):
    genes = cells.genes.ids.tolist()
    write_dictionaries(tmp_path / "geneformer", genes, "V1", tag="_gc30M")
    source = write_checkpoint(tmp_path / "model", bert(len(genes) + 4))
    with pytest.raises(
        InputDataError, match=r"does not belong to the checkpoint: .*_gc30M\.pkl has 62"
    ):
        convert_checkpoint(source)
    # Of several versions the one that fits is taken.
    write_dictionaries(tmp_path / "geneformer", genes, "V2", tag="_gc104M")
    assert convert_checkpoint(source).tokenizer.prepend_cls


def test_hostile_and_wrong_dictionaries_are_refused(cells, tmp_path):
    genes = cells.genes.ids.tolist()
    tokens = write_dictionaries(tmp_path / "geneformer", genes)
    source = write_checkpoint(tmp_path / "model", bert(len(tokens)))
    path = tmp_path / "geneformer" / "token_dictionary_gc104M.pkl"

    class Call:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'canary'}",))

    cases = [
        (pickle.dumps(Call()), UnsafeCheckpointError, r"names '(posix|nt)\.system'"),
        (pickle.dumps([1]), InputDataError, "holds no dictionary of names"),
        (pickle.dumps({"a": "b"}), InputDataError, "gives 'a' a value of type str; int"),
        (pickle.dumps({"a": 0, "b": 2}), InputDataError, "does not number its 2 tokens"),
    ]
    for raw, kind, message in cases:
        path.write_bytes(raw)
        with pytest.raises(kind, match=message):
            convert_checkpoint(source)
    assert not (tmp_path / "canary").exists()
    path.unlink()
    write_dictionaries(tmp_path / "geneformer", genes)
    (tmp_path / "geneformer" / "gene_median_dictionary_gc104M.pkl").unlink()
    with pytest.raises(MissingPathError, match="which belongs to the token dictionary"):
        convert_checkpoint(source)


def test_other_berts_are_refused_by_what_differs(cells, tmp_path):
    genes = cells.genes.ids.tolist()
    tokens = write_dictionaries(tmp_path / "geneformer", genes)
    source = write_checkpoint(tmp_path / "model", bert(len(tokens)))
    good = json.loads((source / "config.json").read_text())
    changes = {
        "position_embedding_type": ("relative_key", "positions are relative"),
        "is_decoder": (True, "only those before it"),
        "model_type": ("roberta", "another architecture"),
        "hidden_act": ("mish", "hidden_act = 'mish'"),
        "num_hidden_layers": (10**9, "1000000000 layers"),
        "num_attention_heads": (5, "not a multiple of"),
    }
    for key, (value, message) in changes.items():
        (source / "config.json").write_text(json.dumps({**good, key: value}))
        with pytest.raises(InputDataError, match=message):
            convert_checkpoint(source)
    (source / "config.json").write_text(json.dumps({**good, "num_hidden_layers": 2}))
    with pytest.raises(InputDataError, match=r"it also has: bert\.encoder\.layer\.2"):
        convert_checkpoint(source)
    (source / "config.json").write_text(json.dumps(good))
    state = load_file(source / "model.safetensors")
    state["cls.predictions.decoder.weight"] = torch.zeros(len(tokens), 32)
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputDataError, match=r"differs from bert.embeddings.word_embeddings"):
        convert_checkpoint(source)
    (source / "config.json").unlink()
    with pytest.raises(MissingPathError, match=r"no config\.json beside"):
        convert_checkpoint(source)


NUM_BINS = 5


def write_bioformers(folder, num_genes, *, pooler=True):
    """Write a bare state dict, as published, of BERT and a head of its own."""
    from transformers import BertModel

    num_ids = num_genes * NUM_BINS + 1
    body = bert(num_ids, act="gelu", positions=num_genes, hidden_size=64, num_attention_heads=1)
    model = torch.nn.Module()
    model.Bert = BertModel(body.config, add_pooling_layer=pooler)
    model.Bert.load_state_dict(body.bert.state_dict(), strict=False)
    model.ClassificationHead = torch.nn.Sequential(
        torch.nn.GELU(),
        torch.nn.LayerNorm(64, eps=1e-12),
        torch.nn.Dropout(0.1),
        torch.nn.Linear(64, num_ids),
    )
    torch.save(model.state_dict(), folder / "bioformers.pt")
    return model.eval()


@pytest.mark.parametrize(("name", "edge"), [("bioformers-log", 5), ("bioformers-linear", 9)])
def test_a_bioformers_bundle_bins_embeds_and_scores_raw_counts(name, edge, cells, tmp_path):
    theirs = write_bioformers(tmp_path, 40)
    genes = cells.genes.ids.tolist()[5:45]
    (tmp_path / "genes.txt").write_text("\n".join(genes))
    options = ConversionOptions(genes=tmp_path / "genes.txt", num_bins=NUM_BINS)
    bundle = convert_checkpoint(tmp_path / "bioformers.pt", known_as=name, options=options)
    bundle = Bundle.load(bundle.save(tmp_path / "bundle").path)
    assert isinstance(bundle.tokenizer, GeneBinTokenizer)
    assert embed_cells(bundle, cells).shape == (NUM_CELLS, 64)

    tokens = tokens_of(bundle, cells)
    counts = cells.take(np.arange(NUM_CELLS)).to_csr().toarray()[:, 5:45]
    bins = np.minimum(counts if name == "bioformers-log" else counts * 3, NUM_BINS - 1)
    ids = np.arange(40) * NUM_BINS + bins
    assert np.array_equal(tokens.fields[GENE_BINS].reshape(NUM_CELLS, 40), ids)

    with torch.inference_mode():
        hidden = theirs.Bert(torch.from_numpy(ids.astype(np.int64))).last_hidden_state
        expected = theirs.ClassificationHead(hidden)
        output = bundle.model(
            tokens.to_torch(), field_tokens={"gene_bins_token_scores": torch.arange(NUM_CELLS * 40)}
        )
    assert (output.hidden - hidden.flatten(0, 1)).abs().max() < 1e-5
    scores = output.fields["gene_bins_token_scores"]
    assert (scores - expected.flatten(0, 1)).abs().max() < 1e-5

    back = load_file(export_checkpoint(bundle, tmp_path / "back") / "model.safetensors")
    assert set(back) == set(theirs.state_dict())


def test_bioformers_without_its_genes_or_with_others_is_refused(cells, tmp_path):
    write_bioformers(tmp_path, 40, pooler=False)
    path = tmp_path / "bioformers.pt"
    with pytest.raises(UsageError, match="--genes FILE and the number of bins"):
        convert_checkpoint(path)
    (tmp_path / "genes.txt").write_text("\n".join(f"g{n}" for n in range(39)))
    options = ConversionOptions(genes=tmp_path / "genes.txt", num_bins=NUM_BINS)
    with pytest.raises(InputDataError, match="39 genes x 5 bins and a mask are 196 tokens"):
        convert_checkpoint(path, options=options)
    (tmp_path / "genes.txt").write_text("\n".join(f"g{n}" for n in range(50)))
    options = ConversionOptions(genes=tmp_path / "genes.txt", num_bins=4)
    with pytest.raises(InputDataError, match="50 genes, and the checkpoint has 40 positions"):
        convert_checkpoint(path, options=options)


# What does not belong together


def test_a_vocabulary_that_does_not_belong_to_the_checkpoint_is_refused(cells, tmp_path):
    config, state = write_bmfm(tmp_path, "bert mlm", cells.genes.ids.tolist())
    other = tmp_path / "other"
    other.mkdir()
    write_archive(other / "last.ckpt", config, state)
    with pytest.raises(MissingPathError, match="put it beside it"):
        convert_checkpoint(other)
    options = ConversionOptions(vocabulary=tmp_path / "tokenizers")
    assert len(convert_checkpoint(other, options=options).tokenizer.vocabulary) == 41
    write_vocabularies(other, cells.genes.ids.tolist(), size=40)
    with pytest.raises(
        InputDataError, match="does not belong to the checkpoint: it has 40 tokens"
    ) as e:
        convert_checkpoint(other)
    assert "41 rows" in str(e.value)
    assert e.value.exit_code == 3


def test_label_names_that_do_not_belong_to_the_checkpoint_are_refused(cells, tmp_path):
    config, state = write_bmfm(tmp_path, "bert mlm", cells.genes.ids.tolist())
    wrong = ({"a": 0, "b": 1}, {f"c{n}": n + 1 for n in range(7)}, {"a": "x"}, [1], {"a": [1]})
    for numbers in wrong:
        write_archive(tmp_path / "last.ckpt", config, state, labels={"cell_type": numbers})
        with pytest.raises(InputDataError, match="does not number the 7 classes of 'cell_type'"):
            convert_checkpoint(tmp_path)
    evil = {"cell_type": {f"\x1b[31m{n}": n for n in range(7)}}
    write_archive(tmp_path / "last.ckpt", config, state, labels=evil)
    with pytest.raises(InputDataError, match="by control characters"):
        convert_checkpoint(tmp_path)
    records = [{"label_name": "tissue", "label_values": {"z": 0, "y": 2, "x": 1}}]
    write_archive(tmp_path / "last.ckpt", config, state, labels=records)
    assert convert_checkpoint(tmp_path).labels["tissue"] == ["z", "x", "y"]
    write_archive(tmp_path / "last.ckpt", config, state, labels={})
    assert convert_checkpoint(tmp_path).labels["tissue"] == ["0", "1", "2"]


def field_changed(config, place, **changes):
    fields = [dict(each) for each in config["fields"]]
    fields[place].update(changes)
    return {"fields": fields}


VALUES = {"kind": "scale_adapt", "n_sin_basis": 6}
REFUSED = {
    "positions": (lambda c: {"position_embedding_type": "absolute"}, "positions are added"),
    "an activation": (lambda c: {"hidden_act": "swiglu"}, "hidden_act = 'swiglu'"),
    "a model": (lambda c: {"hidden_size": "a lot"}, "it must be a whole number"),
    "a text for a terminal": (
        lambda c: {"hidden_act": "\x1b[31mgelu"},
        "it must be a plain text",
    ),
    "no size": (lambda c: {"hidden_size": None}, "lacks 'hidden_size'"),
    "too many layers": (lambda c: {"num_hidden_layers": 10**9}, "1,000,000,000 layers"),
    "heads": (lambda c: {"num_attention_heads": 5}, "not a multiple of"),
    "another width": (lambda c: {"hidden_size": 64}, "does not make the"),
    "an enormous width": (
        lambda c: {"intermediate_size": 2**62},
        "There is no model of these sizes",
    ),
    "more layers": (lambda c: {"num_hidden_layers": 3}, r"it lacks: .*layer\.2"),
    "fewer layers": (lambda c: {"num_hidden_layers": 1}, r"it also has: .*layer\.1"),
    "another vocabulary": (lambda c: field_changed(c, 0, vocab_size=50), "its table has 41 rows"),
    "a store of values": (
        lambda c: field_changed(c, 0, datastore_config={"a": 1}),
        "a store of their own",
    ),
    "a strategy": (lambda c: field_changed(c, 0, tokenization_strategy="gene2vec"), "are known"),
    "an encoder": (lambda c: field_changed(c, 1, encoder_kwargs={"kind": "mlp"}), "kind = 'mlp'"),
    "shifted waves": (
        lambda c: field_changed(c, 1, encoder_kwargs={**VALUES, "shift": 1.0}),
        "values are shifted",
    ),
    "sigmoids": (
        lambda c: field_changed(c, 1, encoder_kwargs={**VALUES, "sigmoid_centers": [1.0]}),
        "sigmoids stand beside",
    ),
    "a decoder": (
        lambda c: field_changed(c, 1, decode_modes={"mvc_regression": {}}),
        "decoded by 'mvc_regression'",
    ),
    "decoders of no form": (
        lambda c: field_changed(c, 1, decode_modes="all"),
        "no list and no table",
    ),
    "other genes": (
        lambda c: field_changed(c, 1, decode_modes={"wced": {"vocab_field": "x"}}),
        "a field other than the first",
    ),
    "no outputs": (
        lambda c: field_changed(c, 1, decode_modes={"wced": {}}),
        "no list of logit_outputs",
    ),
    "an output": (
        lambda c: field_changed(c, 1, decode_modes={"wced": {"logit_outputs": ["mae"]}}),
        "describes no model",
    ),
    "a position": (
        lambda c: {"label_columns": [{**reference.LABELS[0], "decode_from": -1}]},
        "not a position",
    ),
    "fields of no form": (lambda c: {"fields": [1]}, "a list of tables"),
    "a third field": (
        lambda c: {
            "fields": [*c["fields"], reference.field("perturbations", vocab_size=NUM_CELLS)],
        },
        "lacks scbert.embeddings.perturbations_embeddings.weight",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_is_refused_by_name(name, cells, tmp_path):
    config, state = write_bmfm(tmp_path, "bert mlm", cells.genes.ids.tolist())
    change, message = REFUSED[name]
    write_archive(tmp_path / "last.ckpt", {**config, **change(config)}, state)
    with pytest.raises(InputDataError, match=message) as caught:
        convert_checkpoint(tmp_path)
    assert caught.value.exit_code == 3


def changed_state(name, change):
    config = reference.settings(*OWN_CASES[name][:1], **OWN_CASES[name][2])
    state = reference.make_state(config, OWN_CASES[name][1])
    change(state)
    return config, state


KEYS = {
    "adapters": (
        lambda s: s.update(
            {"scbert.encoder.layer.0.attention.self.query.lora_A.default.weight": torch.ones(2, 2)}
        ),
        "(?s)tensors of adapters .*merge_and_unload",
    ),
    "a shared layer": (
        lambda s: s.update({"shared_latents.a.weight": torch.ones(2, 2)}),
        "layers that several labels share",
    ),
    "a tensor more": (
        lambda s: s.update({"evil.weight": torch.ones(2)}),
        "it also has: evil.weight",
    ),
    "a tensor less": (
        lambda s: s.pop("scbert.pooler.dense.bias"),
        "it lacks: scbert.pooler.dense.bias",
    ),
    "many tensors less": (
        lambda s: [s.pop(key) for key in list(s) if "layer.1" in key],
        "and 11 more",
    ),
    "no encoder": (
        lambda s: [s.pop(key) for key in list(s) if key.startswith("scbert")],
        "no key that begins with 'scbert.'",
    ),
    "another shape": (
        lambda s: s.update({"scbert.pooler.dense.weight": torch.ones(32, 31)}),
        r"does not make the \[32, 32\] of pooler.dense.weight",
    ),
    "too few dimensions": (
        lambda s: s.update({"scbert.embeddings.genes_embeddings.weight": torch.ones(41)}),
        "does not make the",
    ),
}


@pytest.mark.parametrize("name", KEYS)
def test_every_tensor_is_accounted_for(name, cells, tmp_path):
    change, message = KEYS[name]
    config, state = changed_state("bert mlm", change)
    write_archive(tmp_path / "last.ckpt", config, state)
    write_vocabularies(tmp_path, cells.genes.ids.tolist())
    with pytest.raises(InputDataError, match=message):
        convert_checkpoint(tmp_path)


def test_a_label_name_is_asked_for_and_refused_where_it_has_no_use(cells, tmp_path):
    write_bmfm(tmp_path / "old", "bert old classifier", cells.genes.ids.tolist())
    with pytest.raises(UsageError, match="one classifier and does not say what it predicts"):
        convert_checkpoint(tmp_path / "old")
    write_bmfm(tmp_path / "new", "bert mlm", cells.genes.ids.tolist())
    with pytest.raises(UsageError, match="Leave out --label"):
        convert_checkpoint(tmp_path / "new", options=ConversionOptions(label="x"))


def test_options_that_a_checkpoint_has_no_use_for_are_refused(cells, tmp_path):
    genes = cells.genes.ids.tolist()
    write_bmfm(tmp_path / "bmfm", "bert mlm", genes)
    for option in ({"table": tmp_path / "t"}, {"num_bins": 3}):
        with pytest.raises(
            UsageError, match=r"has no use for .* takes --genes, --label, --read-depth, --"
        ):
            convert_checkpoint(tmp_path / "bmfm", options=ConversionOptions(**option))
    with pytest.raises(UsageError, match="Leave out --read-depth"):
        convert_checkpoint(tmp_path / "bmfm", options=ConversionOptions(read_depth=5))
    tokens = write_dictionaries(tmp_path / "geneformer", genes)
    source = write_checkpoint(tmp_path / "model", bert(len(tokens)))
    with pytest.raises(UsageError, match=r"--label has no use for .*, which takes --table"):
        convert_checkpoint(source, options=ConversionOptions(label="x"))


def test_weights_that_are_not_finite_are_refused(cells, tmp_path):
    config, state = changed_state(
        "bert mlm", lambda s: s["scbert.pooler.dense.bias"].__setitem__(3, float("nan"))
    )
    write_archive(tmp_path / "last.ckpt", config, state)
    write_vocabularies(tmp_path, cells.genes.ids.tolist())
    with pytest.raises(
        InputDataError, match=r"scbert\.pooler\.dense\.bias holds numbers .* not finite"
    ):
        convert_checkpoint(tmp_path)


def test_unknown_models_and_kinds_are_refused(cells, tmp_path):
    config, state = write_bmfm(tmp_path, "bert mlm", cells.genes.ids.tolist())
    save_file(state, tmp_path / "model.safetensors")
    bare = tmp_path / "model.safetensors"
    with pytest.raises(InputDataError, match=r"does not say what model it holds"):
        convert_checkpoint(bare)
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "scperformer"}))
    with pytest.raises(InputDataError, match="of model_type 'scperformer'"):
        convert_checkpoint(bare)
    with pytest.raises(InputDataError, match="not a checkpoint of the kind 'geneformer'"):
        convert_checkpoint(bare, known_as="geneformer-v2-104m")
    for raw in ("[1]", "{", "[" * 100_000, '{"hidden_size": NaN}'):
        (tmp_path / "config.json").write_text(raw)
        with pytest.raises(InputDataError, match=r"holds no JSON"):
            convert_checkpoint(bare)


def test_models_of_dna_are_refused_where_bundles_are_of_cells(tmp_path):
    config = reference.settings("scmodernbert")
    write_archive(tmp_path / "last.ckpt", config, reference.make_state(config))
    with pytest.raises(InputDataError, match="has the input fields dna_chunks"):
        convert_checkpoint(tmp_path)


def test_only_converted_bundles_have_a_layout_to_go_back_to(tmp_path):
    from test_bundle import make_bundle

    with pytest.raises(UsageError, match="was not converted from a published checkpoint"):
        export_checkpoint(make_bundle(), tmp_path / "out")


@pytest.mark.parametrize("path", REAL, ids=[path.name for path in REAL])
def test_real_files_are_embedded_by_a_converted_model(path, tmp_path):
    store = convert(path, tmp_path / "cells.store")
    symbols = sorted(set(store.genes.symbols.tolist()) - {""})
    config, state = None, None
    config = reference.settings("scbert", **OWN_CASES["bert wced"][2])
    size = len(symbols) + 5
    config["fields"][0]["vocab_size"] = size
    state = reference.make_state(config)
    head = "cls.predictions.predictions.decoder.field_decoders.expressions_wced"
    state[f"{head}.weight"], state[f"{head}.bias"] = (
        torch.zeros(2 * size, 32),
        torch.zeros(2 * size),
    )
    write_archive(tmp_path / "last.ckpt", config, state)
    write_vocabularies(tmp_path, symbols, size=size)
    bundle = convert_checkpoint(tmp_path)
    vectors = embed_cells(bundle, open_store(tmp_path / "cells.store"))
    assert vectors.shape == (len(store), 32)
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors, axis=0)) > len(store) // 2
