"""Published BiomedSciAI models: our numbers are those of the reference, for every layout of heads.

Golden cases are read from $OMICS_PARITY, each by what its own configuration says; without it the
oracle of this folder stands alone, on weights made here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import bmfm_reference as reference
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from omics.models.model_config import ModelConfig
from omics.models.published.bmfm_keys import bmfm_key_map
from omics.models.published.bmfm_layouts import find_layout
from omics.models.published.bmfm_model import BmfmModelReader
from omics.models.published.checkpoint_opening import empty_model, fill_model
from omics.models.published.checkpoint_settings import Settings, plain_values, read_json
from omics.models.published.weight_files import read_weight_file
from omics.tokenizers import TokenBatch

PARITY = Path(os.environ["OMICS_PARITY"]) / "bmfm" if "OMICS_PARITY" in os.environ else None
CASES = sorted(PARITY.glob("*.config.json")) if PARITY else []
ARCHIVES = sorted(PARITY.glob("*.ckpt")) if PARITY else []
NAMED = [path.name.removesuffix(".config.json") for path in CASES]


class Case:
    """One checkpoint of the reference as our model."""

    def __init__(self, config, weights, where, only_label=None):
        self.settings = Settings(config, where)
        self.weights = weights
        self.layout = find_layout(
            weights.names, self.settings.text("model_type"), label=only_label, where=where
        )
        self.config = BmfmModelReader(self.settings, weights, self.layout).config()
        self.keys = bmfm_key_map(self.config, self.settings.text("model_type"), self.layout)
        self.model = fill_model(self.config, self.keys, weights)

    def run(self, ids, mask):
        """Return our outputs for real tokens alone, under the names of the golden files."""
        mask = np.asarray(mask, bool)
        ids = np.asarray(ids)
        fields = {
            each.name: ids[:, place][mask].astype(
                np.int32 if each.encoder == "embedding" else np.float32
            )
            for place, each in enumerate(self.config.fields)
        }
        offsets = np.concatenate([[0], np.cumsum(mask.sum(1))]).astype(np.int64)
        tokens = TokenBatch(fields=fields, offsets=offsets, rows=np.arange(len(mask))).to_torch()
        everywhere = torch.arange(int(offsets[-1]))
        layers = self.config.num_layers
        with torch.inference_mode():
            output = self.model(
                tokens,
                layers=range(layers + 1),
                field_tokens={head.name: everywhere for head in self.config.field_heads},
                wced=[wced.field for wced in self.config.wced],
            )
            last = output.layers[layers]
            rows = output.pooled
            if self.layout.name == "classifier":
                rows = self.model.label_heads[0].inner(rows)
            layout = self.model_layout(tokens)
            pools = {
                "first_token": self.model.pool(last, layout, "first_token"),
                "mean_pooling": self.model.pool(last, layout, "mean_after_first"),
                "pooling_layer": rows,
            }
        found = {
            "out/hidden_states": torch.stack([output.layers[k] for k in range(layers + 1)]),
            "out/embeddings": rows,
        }
        found |= {f"out/pool/{name}": each for name, each in pools.items()}
        for place in range(3):
            found[f"token {place}"] = self.model.pool(last, layout, f"token:{place}")
        found |= {f"out/logits/{name}": each for name, each in output.fields.items()}
        found |= {f"out/logits/{name}_wced": each for name, each in output.wced.items()}
        found |= {f"out/logits/{name}": each for name, each in output.labels.items()}
        return {name: each.numpy() for name, each in found.items()}

    def model_layout(self, tokens):
        from omics.models.ragged_layout import RaggedLayout

        return RaggedLayout.from_offsets(tokens.offsets)


def real_tokens(name, expected, mask):
    """Return what ours corresponds to: real tokens, and the first of them of a whole-cell decoder."""
    expected, mask = np.asarray(expected), np.asarray(mask, bool)
    if name == "out/hidden_states":
        return expected[:, mask]
    if name.endswith("_wced"):
        return expected[:, 0]
    return expected[mask] if expected.ndim > 2 else expected


def differences(case, io):
    mask = io["in/attention_mask"]
    found = case.run(io["in/input_ids"], mask)
    wanted = [name for name in io if name.startswith("out/")]
    for name in wanted:  # An embedding may be the token at a position.
        if name.rpartition("/")[2].isdecimal():
            found[name] = found[f"token {name.rpartition('/')[2]}"]
    found = {name: each for name, each in found.items() if not name.startswith("token ")}
    assert set(found) == set(wanted)
    return {
        name: float(np.abs(found[name] - real_tokens(name, io[name], mask)).max())
        for name in wanted
    }


def tolerance(config):
    return 1e-5 if config.get("attention") is None and "attention" in config else 2e-5


def only_label(config, names):
    """Return the name of a single classifier's label, which its keys do not say."""
    if not any(name.startswith("classifier.") for name in names):
        return None
    return config["label_columns"][0]["label_column_name"]


@pytest.mark.parametrize("path", CASES, ids=NAMED)
def test_every_golden_case_is_reproduced_and_goes_back_to_its_keys(path):
    config = read_json(path)
    base = str(path).removesuffix(".config.json")
    weights = read_weight_file(Path(f"{base}.safetensors")).weights
    case = Case(config, weights, path.name, only_label(config, weights.names))
    io = dict(np.load(f"{base}.io.npz"))
    worst = differences(case, io)
    assert max(worst.values()) < tolerance(config), worst

    back = case.keys.write(case.model.state_dict(), case.keys.extras(weights.names))
    listed = Path(f"{base}.keys.txt").read_text().splitlines()
    assert {f"{name}\t{tuple(each.shape)}" for name, each in back.items()} == set(listed)
    assert all(torch.equal(back[name], weights.load(name)) for name in back)


@pytest.mark.parametrize("path", ARCHIVES, ids=[path.name for path in ARCHIVES])
def test_an_archive_holds_what_its_safetensors_twin_holds(path):
    archive = read_weight_file(path)
    twin = read_weight_file(path.with_suffix(".safetensors")).weights
    assert archive.weights.prefix == "model."
    assert set(archive.weights.names) == set(twin.names)
    assert all(torch.equal(archive.weights.load(n), twin.load(n)) for n in twin.names)
    config = read_json(path.with_suffix(".config.json"))
    inside = plain_values(archive.beside["hyper_parameters"]["model_config"], "model_config")
    # The type is an attribute of the class, and what is spelled otherwise is of the library.
    inside["model_type"] = config["model_type"]
    label = only_label(config, twin.names)
    mine, theirs = (Case(each, twin, "case", label).config for each in (inside, config))
    assert mine == theirs
    assert all(
        inside[key] == config[key]
        for key in inside
        if key in config and key != "transformers_version"
    )


def small_values(**kinds):
    return reference.genes_and_values(**kinds)


OWN_CASES = {
    "bert mlm": ("scbert", "multitask", {}),
    "bert rda": (
        "scbert",
        "multitask",
        {
            "fields": [
                *small_values(**reference.WAVES, values=reference.MLM),
                reference.DEPTH_LABEL,
            ]
        },
    ),
    "bert wced": ("scbert", "multitask", {"fields": small_values(values=reference.WCED)}),
    "bert without zeros apart": (
        "scbert",
        "multitask",
        {"fields": small_values(zero_as_special_token=False, values=reference.MLM)},
    ),
    "bert old mlm": ("scbert", "mlm", {"label_columns": None}),
    "bert old classifier": ("scbert", "classifier", {"label_columns": reference.LABELS[:1]}),
    "bert old classifiers": ("scbert", "classifiers", {"label_columns": reference.LABELS[:2]}),
    "bert old deep classifiers": (
        "scbert",
        "classifiers",
        {"label_columns": [{**reference.LABELS[0], "classifier_depth": 2}, reference.LABELS[1]]},
    ),
    "modern": ("scmodernbert", "multitask", {}),
    "modern first token": ("scmodernbert", "multitask", {"classifier_pooling": "cls"}),
    "modern old mlm": ("scmodernbert", "mlm", {"label_columns": None}),
    "modern old classifier": (
        "scmodernbert",
        "classifier",
        {"label_columns": reference.LABELS[:1]},
    ),
    "modern old classifier with bias": (
        "scmodernbert",
        "classifier",
        {"label_columns": reference.LABELS[:1], "classifier_bias": True},
    ),
    "llama mlm": (
        "scllama",
        "multitask",
        {"fields": small_values(**reference.WAVES, trainable=False, values=reference.MLM)},
    ),
    "llama wced, a token for each label": (
        "scllama",
        "multitask",
        {
            "fields": [
                reference.genes_and_values()[0],
                {
                    **small_values(**reference.WAVES, trainable=False, values=reference.WCED)[1],
                    "num_special_tokens": 8,
                },
            ],
            "label_columns": [
                {**each, "decode_from": place, "gradient_reversal_coefficient": None}
                for place, each in enumerate(reference.LABELS, 1)
            ],
        },
    ),
}


def own_case(tmp_path, name):
    model_type, layout, changes = OWN_CASES[name]
    config = reference.settings(model_type, **changes)
    state = reference.make_state(config, layout)
    save_file(state, tmp_path / "model.safetensors")
    ids, mask = reference.random_input(config, (40, 27, 40) if "modern" in name else (12, 8, 12))
    outputs = reference.Forward(config, state, layout)(ids, mask)
    io = {"in/input_ids": ids, "in/attention_mask": mask, **outputs}
    return config, state, io, read_weight_file(tmp_path / "model.safetensors").weights


@pytest.mark.parametrize("name", OWN_CASES)
def test_every_layout_agrees_with_the_formulas_and_goes_back_to_its_keys(name, tmp_path):
    config, state, io, weights = own_case(tmp_path, name)
    case = Case(config, weights, name, only_label(config, weights.names))
    worst = differences(case, io)
    # Without a norm behind them, residual sums grow with the layers, and rounding with them.
    assert max(worst.values()) < (1e-5 if case.config.norm == "post" else 2e-5), worst
    back = case.keys.write(case.model.state_dict(), case.keys.extras(weights.names))
    assert set(back) == set(state)
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("path", CASES, ids=NAMED)
def test_the_oracle_of_this_folder_is_the_reference(path):
    config = read_json(path)
    base = str(path).removesuffix(".config.json")
    weights = read_weight_file(Path(f"{base}.safetensors")).weights
    state = {name: weights.load(name) for name in weights.names}
    layout = find_layout(
        weights.names, config["model_type"], label=only_label(config, weights.names), where=base
    )
    oracle = reference.Forward(config, state, layout.name)
    io = dict(np.load(f"{base}.io.npz"))
    ids, mask = (
        torch.from_numpy(io[name]).float() for name in ("in/input_ids", "in/attention_mask")
    )
    for name, made in oracle(ids, mask).items():
        expected = real_tokens(name, io[name], mask)
        assert np.abs(real_tokens(name, made, mask) - expected).max() < 2e-5, name


def test_fixed_frequencies_are_not_trained_and_learned_ones_are(tmp_path):
    *_, weights = own_case(tmp_path, "llama mlm")
    fixed = Case(reference.settings("scllama", **OWN_CASES["llama mlm"][2]), weights, "fixed")
    assert not fixed.model.embedding.fields["expressions"].frequencies.requires_grad
    learned = Case(
        reference.settings("scllama", fields=small_values(**reference.WAVES, values=reference.MLM)),
        weights,
        "learned",
    )
    assert learned.model.embedding.fields["expressions"].frequencies.requires_grad


REAL_SIZES = PARITY / "real_size_keys.json" if PARITY else None
SIZES = json.loads(REAL_SIZES.read_text()) if REAL_SIZES else {}


class Shapes:
    """The keys and shapes of a published checkpoint, without its numbers."""

    def __init__(self, shapes):
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.names = list(self.shapes)
        self.where = "published sizes"

    def shape(self, name):
        return self.shapes[name]


def published_settings(name, shapes):
    """Return the configuration of a published size (the tables of its publication)."""
    if name.startswith("scmodernbert"):
        values = {
            "num_hidden_layers": 22,
            "intermediate_size": 1152,
            "local_attention": 128,
            "fields": [
                reference.field("dna_chunks", vocab_size=4096, decode_modes={"token_scores": {}})
            ],
            "label_columns": [],
        }
        return reference.settings("scmodernbert", hidden_size=768, num_attention_heads=12, **values)
    waves = "rda" in name
    kind = {**reference.WAVES, "n_sin_basis": 48} if waves else {}
    genes = None if waves or "wced" in name else {"token_scores": {}}
    modes = reference.WCED if "wced" in name else reference.MLM
    fields = reference.genes_and_values(**kind, genes=genes, values=modes)
    fields[0]["vocab_size"] = shapes["scbert.embeddings.genes_embeddings.weight"][0]
    return reference.settings(
        "scbert",
        num_hidden_layers=12,
        hidden_size=768,
        num_attention_heads=12,
        intermediate_size=3072,
        fields=fields,
        label_columns=[reference.label("cell_type", 1)],
    )


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_have_exactly_the_published_keys_and_shapes(name):
    wanted = SIZES[name]["keys"]
    settings = Settings(published_settings(name, wanted), name)
    weights = Shapes(wanted)
    model_type = settings.text("model_type")
    layout = find_layout(weights.names, model_type, label=None, where=name)
    config = BmfmModelReader(settings, weights, layout).config()
    keys = bmfm_key_map(config, model_type, layout)
    written = keys.write(empty_model(config).state_dict(), [])
    assert {key: list(each.shape) for key, each in written.items()} == wanted
    assert sum(each.numel() for each in written.values()) == SIZES[name]["params"]


def test_a_configuration_of_this_size_survives_its_file():
    config = reference.settings("scllama", **OWN_CASES["llama mlm"][2])
    state = reference.make_state(config)
    weights = Shapes({name: tuple(each.shape) for name, each in state.items()})
    layout = find_layout(weights.names, "scllama", label=None, where="case")
    made = BmfmModelReader(Settings(config, "case"), weights, layout).config()
    assert ModelConfig.from_dict(made.to_dict()) == made
    assert (made.block_norm_eps, made.layer_norm_eps) == (1e-5, 1e-12)
    assert (made.activation, made.head_activation) == ("silu", "gelu")
