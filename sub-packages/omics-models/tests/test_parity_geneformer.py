"""Geneformer: our numbers are those of transformers' BERT, and its published sizes have its keys."""

from __future__ import annotations

import pytest
import torch
from geneformer_files import bert, write_checkpoint, write_dictionaries
from transformers import BertConfig, BertForMaskedLM

from omics.models import RaggedLayout
from omics.models.published.checkpoint_conversion import convert_checkpoint, export_checkpoint
from omics.models.published.checkpoint_opening import empty_model
from omics.models.published.checkpoint_settings import Settings
from omics.models.published.geneformer_checkpoint import bert_config, geneformer_keys_of
from omics.models.published.weight_files import read_weight_file
from omics.tokenizers import TokenBatch

GENES = [f"ENSG{number:011d}" for number in range(60)]
LENGTHS = [37, 1, 60, 22]
# Layers, width, feed-forward, heads, context, tokens, parameters in millions (computed).
PUBLISHED = {
    "V1-10M": (6, 256, 512, 4, 2048, 25_426, 10.29),
    "12L-30M": (12, 512, 1024, 8, 2048, 25_426, None),
    "12L-95M": (12, 512, 1024, 8, 4096, 20_275, 38.0),
    "20L-95M": (20, 896, 1792, 14, 4096, 20_275, None),
    "V2-104M": (12, 768, 3072, 12, 4096, 20_275, 104.39),
    "V2-316M": (18, 1152, 4608, 18, 4096, 20_275, 316.35),
}


def compare(bundle, theirs):
    """Return the largest difference of hidden states and of logits, padded against flat."""
    num_ids = bundle.model.model_config.fields[0].vocabulary_size
    torch.default_generator.manual_seed(1)
    flat = torch.randint(0, num_ids, (sum(LENGTHS),))
    padded = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    mask = torch.zeros_like(padded)
    for row, part in enumerate(flat.split(LENGTHS)):
        padded[row, : len(part)] = part
        mask[row, : len(part)] = 1
    offsets = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()])
    tokens = TokenBatch(fields={"genes": flat}, offsets=offsets, rows=torch.arange(len(LENGTHS)))
    layers = range(bundle.model.model_config.num_layers + 1)
    with torch.inference_mode():
        expected = theirs(input_ids=padded, attention_mask=mask, output_hidden_states=True)
        ours = bundle.model(
            tokens,
            RaggedLayout.from_offsets(offsets),
            layers=layers,
            field_tokens={"genes_token_scores": torch.arange(len(flat))},
        )
    there = mask.bool()
    hidden = max(
        float((ours.layers[k] - expected.hidden_states[k][there]).abs().max()) for k in layers
    )
    logits = ours.fields["genes_token_scores"] - expected.logits[there]
    return hidden, float(logits.abs().max())


@pytest.mark.parametrize(("version", "act"), [("V1", "relu"), ("V2", "relu"), ("V2", "gelu")])
def test_a_checkpoint_of_transformers_gives_the_same_numbers(version, act, tmp_path):
    tokens = write_dictionaries(tmp_path / "geneformer", GENES, version)
    theirs = bert(len(tokens), act=act)
    bundle = convert_checkpoint(write_checkpoint(tmp_path / "model", theirs))
    hidden, logits = compare(bundle, theirs)
    assert hidden < 1e-5
    assert logits < 1e-5
    assert bundle.model.model_config.activation == act
    assert (bundle.tokenizer.prepend_cls, bundle.tokenizer.append_sep) == (version == "V2",) * 2


def test_what_goes_back_is_what_came_but_for_token_types_inside_the_positions(tmp_path):
    tokens = write_dictionaries(tmp_path / "geneformer", GENES)
    theirs = bert(len(tokens))
    bundle = convert_checkpoint(write_checkpoint(tmp_path / "model", theirs))
    export_checkpoint(bundle, tmp_path / "back")
    again = BertForMaskedLM.from_pretrained(tmp_path / "back").eval()
    hidden, logits = compare(bundle, again)
    assert max(hidden, logits) < 1e-5
    before = read_weight_file(tmp_path / "model" / "model.safetensors").weights
    after = read_weight_file(tmp_path / "back" / "model.safetensors").weights
    assert set(before.names) == set(after.names)
    changed = {
        name for name in before.names if not torch.equal(before.load(name), after.load(name))
    }
    table = "bert.embeddings.{}_embeddings.weight"
    assert changed == {table.format("position"), table.format("token_type")}
    assert not after.load(table.format("token_type")).any()


class Shapes:
    """The keys and shapes of a model without memory."""

    def __init__(self, model):
        self.shapes = {name: tuple(each.shape) for name, each in model.state_dict().items()}
        self.names = list(self.shapes)
        self.where = "published sizes"

    def shape(self, name):
        return self.shapes[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_exactly_the_keys_and_shapes_of_transformers(name):
    layers, width, inner, heads, context, num_ids, millions = PUBLISHED[name]
    config = BertConfig(
        vocab_size=num_ids,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        hidden_act="relu",
        max_position_embeddings=context,
    )
    with torch.device("meta"):
        theirs = BertForMaskedLM(config)
    weights = Shapes(theirs)
    ours = bert_config(Settings(config.to_dict(), name), weights, embedding_layer=-1)
    keys = geneformer_keys_of(ours, {"num_types": 2})
    written = keys.write(empty_model(ours).state_dict(), keys.extras(weights.names))
    assert {key: tuple(each.shape) for key, each in written.items()} == weights.shapes
    if millions is not None:
        count = sum(each.numel() for each in theirs.parameters())
        assert round(count / 1e6, 1 if millions == 38.0 else 2) == millions
