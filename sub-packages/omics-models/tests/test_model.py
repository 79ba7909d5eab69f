from __future__ import annotations

import numpy as np
import pytest
import torch
from ragged_tokens import NUM_GENES, heads, random_tokens, small_config, small_model
from transformers import AutoConfig, AutoModel

from omics.data.errors import ConfigError, InputDataError
from omics.models import ModelConfig, OmicsModel
from omics.models.model_config import FieldHeadConfig, FieldInput
from omics.models.pooling import first_token, mean
from omics.models.ragged_layout import RaggedLayout


@pytest.mark.parametrize("positions", ["none", "learned", "rope"])
@pytest.mark.parametrize("pooling", ["mean", "first_token"])
def test_changing_one_cell_leaves_every_other_output_bit_for_bit(positions, pooling):
    model = small_model(positions=positions, pooling=pooling, **heads())
    tokens = random_tokens([50, 37, 80])
    changed = random_tokens([50, 37, 80])
    changed.fields["expression"][50:87] += 1.0
    changed.fields["genes"][50:87] = 7
    with torch.inference_mode():
        before = model(tokens.to_torch(), wced=["expression"])
        after = model(changed.to_torch(), wced=["expression"])
    for a, b in [
        (before.pooled, after.pooled),
        (before.wced["expression"], after.wced["expression"]),
        (before.labels["cell.type"], after.labels["cell.type"]),
    ]:
        assert torch.equal(a[[0, 2]], b[[0, 2]])
        assert not torch.equal(a[1], b[1])
    assert torch.equal(before.hidden[:50], after.hidden[:50])
    assert torch.equal(before.hidden[87:], after.hidden[87:])


def test_gradients_of_one_cell_do_not_reach_another():
    model = small_model()
    x = torch.randn(30, 32, requires_grad=True)
    layout = RaggedLayout.from_offsets(torch.tensor([0, 12, 30]))
    model.encoder(x, layout)[0][:12].square().sum().backward()
    assert x.grad[:12].abs().min() > 0
    assert torch.equal(x.grad[12:], torch.zeros(18, 32))


def test_heads_run_on_the_rows_they_are_given():
    model = small_model(**heads())
    tokens = random_tokens([4, 0, 6]).to_torch()
    chosen = torch.tensor([1, 7])
    output = model(tokens, field_tokens={"expression_regression": chosen}, wced=["expression"])
    assert output.fields["expression_regression"].shape == (2, 1)
    assert output.wced["expression"].shape == (3, NUM_GENES + 5, 2)
    assert output.labels["cell.type"].shape == (3, 3)
    direct = model.field_heads["expression_regression"](output.hidden[chosen])
    assert torch.equal(direct, output.fields["expression_regression"])


def test_token_score_heads_cover_the_vocabulary_of_their_field():
    model = small_model(field_heads=(FieldHeadConfig(field="genes", kind="token_scores"),))
    output = model(
        random_tokens([3]).to_torch(), field_tokens={"genes_token_scores": torch.tensor([2])}
    )
    assert output.fields["genes_token_scores"].shape == (1, NUM_GENES + 5)


def test_no_cells_and_empty_cells_give_finite_rows():
    model = small_model(**heads())
    for lengths in ([], [0, 0], [0, 3]):
        output = model(random_tokens(lengths).to_torch(), wced=["expression"])
        assert output.pooled.shape == (len(lengths), 32)
        assert torch.isfinite(output.pooled).all()


def test_poolings_match_their_definitions():
    hidden = torch.randn(6, 4)
    layout = RaggedLayout.from_offsets(torch.tensor([0, 2, 2, 6]))
    expected = torch.stack([hidden[:2].mean(0), torch.zeros(4), hidden[2:].mean(0)])
    assert torch.allclose(mean(hidden, layout), expected, atol=1e-6)
    first = torch.stack([hidden[0], torch.zeros(4), hidden[2]])
    assert torch.equal(first_token(hidden, layout), first)


def test_a_special_value_takes_its_own_row_and_scales_nothing():
    model = small_model()
    tokens = random_tokens([3])
    tokens.fields["expression"][1] = -5.0
    layout = RaggedLayout.from_offsets(torch.tensor([0, 3]))
    fields = tokens.to_torch().fields
    embedded = model.embedding(fields, layout)[1]
    gene = model.embedding.fields["genes"](fields["genes"][1])
    special = model.embedding.fields["expression"].specials.weight[4]
    assert torch.allclose(embedded, gene + special, atol=1e-6)


def test_expression_enters_linearly_through_the_scaled_table():
    model = small_model()
    fields = random_tokens([2]).to_torch().fields
    layout = RaggedLayout.from_offsets(torch.tensor([0, 2]))
    scaled = model.embedding.scaled["expression"](fields["genes"])
    with torch.no_grad():
        model.embedding.fields["expression"].mlp[2].weight.zero_()
        model.embedding.fields["expression"].mlp[2].bias.zero_()
    total = model.embedding(fields, layout) - model.embedding.fields["genes"](fields["genes"])
    assert torch.allclose(total, scaled * fields["expression"][:, None], atol=1e-6)


@pytest.mark.parametrize("positions", ["none", "learned"])
def test_the_sum_of_the_parts_of_the_fields_is_the_input(positions):
    model = small_model(positions=positions, embedding_norm=True)
    batch = random_tokens([3, 5]).to_torch()
    parts = model.embedding.parts(batch.fields)
    assert list(parts) == ["genes", "expression"]
    value = batch.fields["expression"][:, None]
    scaled = model.embedding.scaled["expression"](batch.fields["genes"]) * value
    alone = model.embedding.fields["expression"](batch.fields["expression"])
    assert torch.equal(parts["expression"], alone + scaled)
    total = parts["genes"] + parts["expression"]
    assert torch.equal(model(batch, inputs=total).hidden, model(batch).hidden)
    assert not torch.equal(model(batch, inputs=0 * total).hidden, model(batch).hidden)


def test_a_cell_longer_than_the_learned_positions_is_refused():
    model = small_model(positions="learned", max_positions=8)
    with pytest.raises(InputDataError, match="has 9 tokens; this model has 8"):
        model(random_tokens([3, 9]).to_torch())


def test_the_same_seed_builds_the_same_weights_and_leaves_the_global_state_alone():
    state = torch.random.get_rng_state()
    first, second, other = small_model(1), small_model(1), small_model(2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert not torch.equal(first.encoder.layers[0].qkv.weight, other.encoder.layers[0].qkv.weight)


def test_hugging_face_round_trip_is_exact(tmp_path):
    model = small_model(**heads())
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).checked == model.model_config
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    tokens = random_tokens([5, 9]).to_torch()
    with torch.inference_mode():
        assert torch.equal(model(tokens).pooled, loaded(tokens).pooled)


def test_a_key_missing_from_a_checkpoint_is_initialised_not_garbage(tmp_path):
    from safetensors.torch import load_file, save_file

    small_model(**heads()).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    removed = [
        "embedding.scaled.expression.weight",
        "pooled_norm.weight",
        "pooled_norm.bias",
        "label_heads.0.center",
        "label_heads.0.scale",
    ]
    save_file(
        {k: v for k, v in weights.items() if k not in removed},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    loaded = OmicsModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.pooled_norm.weight, torch.ones(32))
    assert torch.equal(loaded.pooled_norm.bias, torch.zeros(32))
    assert torch.equal(loaded.label_heads[0].center, torch.zeros(32))
    assert torch.equal(loaded.label_heads[0].scale, torch.ones(32))
    scaled = loaded.embedding.scaled["expression"].weight.detach()
    assert torch.isfinite(scaled).all()
    assert 0.4 < float(scaled.std()) < 0.6


def test_a_fine_tuning_takes_the_encoder_and_keeps_new_heads():
    pretrained = small_model(0, field_heads=heads()["field_heads"])
    model = small_model(1, labels=heads()["labels"])
    kept = model.load_matching(pretrained.state_dict())
    assert kept == [
        f"label_heads.0.{name}" for name in ("center", "scale", "decoder.weight", "decoder.bias")
    ]
    assert torch.equal(model.encoder.layers[1].up.weight, pretrained.encoder.layers[1].up.weight)
    with pytest.raises(ValueError, match="does not fit this model: e"):
        small_model(hidden_size=64).load_matching(pretrained.state_dict())


def test_a_label_head_sees_rows_standardised_by_its_training_cells():
    head = small_model(**heads()).label_heads[0]
    rows = torch.randn(50, 32) * torch.arange(32) + 100.0
    head.standardize(rows)
    seen = (rows - head.center) * head.scale
    assert seen.mean(0).abs().max() < 1e-3
    assert torch.allclose(seen[:, 1:].std(0, correction=0), torch.ones(31), atol=1e-3)
    assert seen[:, 0].abs().max() == 0
    assert torch.allclose(head(rows), head.decoder(seen))
    assert not head.center.requires_grad


def test_configuration_round_trip_and_refusals():
    config = small_config(**heads())
    assert ModelConfig.from_dict(config.to_dict()) == config
    value = config.to_dict()
    with pytest.raises(ConfigError, match=r"no key 'hiden_size'\. Did you mean 'hidden_size'"):
        ModelConfig.from_dict({**value, "hiden_size": 3})
    with pytest.raises(ConfigError, match=r"model\.hidden_size is '32'; expected int"):
        ModelConfig.from_dict({**value, "hidden_size": "32"})
    with pytest.raises(ConfigError, match="lacks the key 'fields'"):
        ModelConfig.from_dict({})
    with pytest.raises(ConfigError, match="expected bool"):
        ModelConfig.from_dict({**value, "glu": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "maen"}, "Did you mean 'mean'"),
        ({"norm": "mid"}, "norm is 'mid'"),
        ({"hidden_size": 33}, "not a multiple"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"num_layers": -1}, "num_layers is -1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"fields": ()}, "at least one field"),
        ({"positions": "rope", "hidden_size": 6, "num_heads": 2}, "even"),
        ({"field_heads": (FieldHeadConfig(field="gene", kind="token_scores"),)}, "field of a head"),
        (
            {"fields": (FieldInput(name="e", encoder="mlp", vocabulary_size=5, scaled_by="g"),)},
            "scaled by 'g'",
        ),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        small_config(**changes)


@pytest.mark.gpu
def test_cuda_agrees_with_float64_on_the_cpu():
    model = small_model(positions="rope", **heads())
    tokens = random_tokens([37, 1, 300, 122])
    exact = small_model(positions="rope", **heads()).double()
    reference = tokens.to_torch()
    reference.fields["expression"] = reference.fields["expression"].double()
    with torch.inference_mode():
        wanted = exact(reference, wced=["expression"])
        found = model.cuda()(tokens.to_torch("cuda"), wced=["expression"])
    assert np.abs(found.hidden.cpu().double() - wanted.hidden).max() < 1e-4
    assert np.abs(found.pooled.cpu().double() - wanted.pooled).max() < 1e-4
