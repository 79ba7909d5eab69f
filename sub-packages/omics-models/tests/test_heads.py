from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ragged_tokens import NUM_GENES, random_tokens, small_config, small_model

from omics.data.errors import ConfigError
from omics.models.model_config import FieldHeadConfig, LabelHeadConfig, WcedConfig
from omics.models.pooling import first_token
from omics.models.ragged_layout import RaggedLayout

VOCABULARY = NUM_GENES + 5
KINDS = ("regression", "is_zero", "mvc_regression", "mvc_is_zero")


def run(model, lengths=(4, 6), **asked):
    return model(random_tokens(list(lengths)).to_torch(), **asked)


def test_a_shared_transform_stands_before_all_decoders_of_fields_and_first_tokens():
    heads = tuple(FieldHeadConfig(field="expression", kind=kind) for kind in KINDS[:2])
    model = small_model(
        field_transform="shared",
        field_heads=heads,
        wced=(WcedConfig(field="expression", reads="first_token"),),
    )
    chosen = torch.tensor([1, 7])
    output = run(model, field_tokens={head.name: chosen for head in heads}, wced=["expression"])
    transform = model.field_transform
    rows = transform.norm(F.gelu(transform.dense(output.hidden[chosen])))
    for head in heads:
        decoder = model.field_heads[head.name].decoder
        assert torch.allclose(output.fields[head.name], decoder(rows), atol=1e-6)
    first = transform.norm(F.gelu(transform.dense(output.hidden[[0, 4]])))
    decoded = model.wced_heads["expression"].decoder(first).unflatten(1, (2, VOCABULARY))
    assert torch.allclose(output.wced["expression"], decoded.transpose(1, 2), atol=1e-6)


def test_a_shared_norm_has_no_linear_layer():
    head = FieldHeadConfig(field="genes", kind="token_scores")
    model = small_model(field_transform="shared_norm", field_heads=(head,))
    output = run(model, field_tokens={head.name: torch.tensor([2])})
    rows = model.field_transform.norm(F.gelu(output.hidden[[2]]))
    wanted = model.field_heads[head.name].decoder(rows)
    assert torch.allclose(output.fields[head.name], wanted, atol=1e-6)


def test_a_tied_decoder_is_the_input_table():
    head = FieldHeadConfig(field="genes", kind="token_scores", tied=True)
    model = small_model(field_transform="shared", field_heads=(head,))
    names = [name for name, _ in model.named_parameters() if "field_heads" in name]
    assert names == ["field_heads.genes_token_scores.bias"]
    output = run(model, field_tokens={head.name: torch.tensor([2])})
    rows = model.field_transform(output.hidden[[2]])
    table = model.embedding.fields["genes"].weight
    wanted = rows @ table.T + model.field_heads[head.name].bias
    assert torch.allclose(output.fields[head.name], wanted, atol=1e-5)
    output.fields[head.name].sum().backward()
    assert (table.grad.abs().sum(1) > 0).all()


def test_a_subset_of_genes_is_decoded_as_in_the_whole():
    model = small_model(wced=(WcedConfig(field="expression"),))
    genes = torch.tensor([7, 30, 8])
    whole = run(model, wced=["expression"]).wced["expression"]
    part = run(model, wced=["expression"], wced_genes=genes).wced["expression"]
    assert torch.allclose(part, whole[:, genes], atol=1e-6)


def test_an_mvc_head_reads_the_gene_and_the_pooled_row_alone():
    head = FieldHeadConfig(field="expression", kind="mvc_regression")
    model = small_model(field_heads=(head,), pooling="mean+first_token")
    tokens = random_tokens([4, 6])
    chosen = torch.tensor([1, 7, 9])
    output = model(tokens.to_torch(), field_tokens={head.name: chosen})
    module = model.field_heads[head.name]
    vectors = model.embedding.fields["genes"].weight[tokens.fields["genes"][chosen.numpy()]]
    query = module.projection(torch.sigmoid(module.query(vectors)))
    wanted = (query * output.pooled[[0, 1, 1]]).sum(-1, keepdim=True)
    assert output.fields[head.name].shape == (3, 1)
    assert torch.allclose(output.fields[head.name], wanted, atol=1e-6)


def test_a_label_head_may_be_deep_and_read_a_token_of_its_own():
    labels = (
        LabelHeadConfig(name="deep", num_classes=3, depth=2),
        LabelHeadConfig(name="second", num_classes=2, token=1),
        LabelHeadConfig(name="age", num_classes=1),
    )
    model = small_model(labels=labels)
    output = run(model, lengths=(4, 1, 6))
    deep, second = model.label_heads[0], model.label_heads[1]
    inner = deep.inner.norm(F.gelu(deep.inner.dense(output.pooled)))
    assert torch.allclose(output.labels["deep"], deep.decoder(inner), atol=1e-6)
    rows = torch.stack([output.hidden[1], torch.zeros(32), output.hidden[6]])
    assert torch.allclose(output.labels["second"], second.decoder(rows), atol=1e-6)
    assert output.labels["age"].shape == (3, 1)


@pytest.mark.parametrize("strength", [0.0, 1.0, 2.5])
def test_gradient_reversal_turns_the_gradient_into_the_encoder_and_no_output(strength):
    label = LabelHeadConfig(name="batch", num_classes=3, gradient_reversal=strength)
    reversed_, plain = (
        small_model(labels=(each,))
        for each in (label, LabelHeadConfig(name="batch", num_classes=3))
    )
    gradients = []
    for model in (reversed_.train(), plain.train()):
        logits = run(model).labels["batch"]
        logits.square().sum().backward()
        gradients.append((logits, model.encoder.layers[0].up.weight.grad, model))
    assert torch.equal(gradients[0][0], gradients[1][0])
    factor = -strength if strength else 1.0
    assert torch.allclose(gradients[0][1], factor * gradients[1][1], atol=1e-5)
    heads = [model.label_heads[0].decoder.weight.grad for _, _, model in gradients]
    assert torch.equal(*heads)


def test_in_evaluation_mode_a_gradient_is_that_of_the_logits():
    label = LabelHeadConfig(name="batch", num_classes=3, gradient_reversal=2.0)
    gradients = []
    for each in (label, LabelHeadConfig(name="batch", num_classes=3)):
        model = small_model(labels=(each,))
        run(model).labels["batch"].square().sum().backward()
        gradients.append(model.encoder.layers[0].up.weight.grad)
    assert torch.equal(*gradients)


def test_a_strength_set_for_a_step_counts_and_at_zero_the_encoder_gets_nothing():
    label = LabelHeadConfig(name="batch", num_classes=3, gradient_reversal=2.0)
    gradients = {}
    for strength in (2.0, 1.0, 0.0):
        model = small_model(labels=(label,)).train()
        model.label_heads[0].reversal_strength = strength
        run(model).labels["batch"].square().sum().backward()
        gradients[strength] = model.encoder.layers[0].up.weight.grad
    assert torch.allclose(gradients[2.0], 2 * gradients[1.0], atol=1e-5)
    assert float(gradients[0.0].abs().max()) == 0.0 < float(gradients[1.0].abs().max())


def test_a_dispersion_is_one_number_a_gene():
    model = small_model(
        field_heads=(FieldHeadConfig(field="expression", kind="log_dispersion"),),
        wced=(WcedConfig(field="expression", outputs=("mse", "log_dispersion")),),
    )
    tokens = {"expression_log_dispersion": torch.arange(3)}
    output = run(model, field_tokens=tokens, wced=["expression"])
    assert output.fields["expression_log_dispersion"].shape == (3, 1)
    assert output.wced["expression"].shape[2] == 2


@pytest.mark.parametrize(
    ("pooling", "rows"),
    [
        ("mean_after_first", lambda cell: cell[1:].mean(0)),
        ("token:2", lambda cell: cell[2]),
        ("token:1+mean", lambda cell: torch.cat([cell[1], cell.mean(0)])),
    ],
)
def test_poolings_side_by_side(pooling, rows):
    model = small_model(pooling=pooling, pooled_norm=False)
    output = run(model, lengths=(4, 6))
    wanted = torch.stack([rows(cell) for cell in output.hidden.split([4, 6])])
    assert torch.allclose(output.pooled, wanted, atol=1e-6)
    assert model.model_config.pooled_size == wanted.shape[1]


def test_the_pooler_is_that_of_bert():
    model = small_model(pooling="pooler", pooler=True, pooled_norm=False)
    output = run(model)
    first = first_token(output.hidden, RaggedLayout.from_offsets(torch.tensor([0, 4, 10])))
    assert torch.allclose(output.pooled, torch.tanh(model.pooler.dense(first)), atol=1e-6)
    mean = model.pool(
        output.hidden, RaggedLayout.from_offsets(torch.tensor([0, 4, 10])), "pooler_of_mean"
    )
    cells = torch.stack([cell.mean(0) for cell in output.hidden.split([4, 6])])
    assert torch.allclose(mean, torch.tanh(model.pooler.dense(cells)), atol=1e-6)


@pytest.mark.parametrize(("place", "lengths"), [(3, (2, 0, 5)), (0, (0, 0)), (9, (1,))])
def test_a_place_that_a_cell_lacks_gives_zeros(place, lengths):
    model = small_model(pooling=f"token:{place}", pooled_norm=False)
    output = run(model, lengths=lengths)
    there = torch.tensor([length > place for length in lengths])
    assert torch.equal(output.pooled.abs().sum(1) > 0, there)


def test_layers_are_kept_when_asked_for():
    model = small_model(num_layers=3)
    output = run(model, layers=[0, 3])
    assert sorted(output.layers) == [0, 3]
    tokens = random_tokens([4, 6]).to_torch()
    layout = RaggedLayout.from_offsets(tokens.offsets)
    assert torch.equal(output.layers[0], model.embedding(tokens.fields, layout))
    assert torch.equal(model.encoder.norm(output.layers[3]), output.hidden)
    assert run(model).layers == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "mean+token:x"}, r"holds 'token:x'; write token:0"),
        ({"pooling": "pooler"}, "needs model.pooler=true"),
        ({"embedding_pooling": "first"}, "Did you mean 'first_token'"),
        ({"embedding_layer": 3}, "has the layers 0 .its inputs. to 2"),
        ({"window": 0}, "window is 0"),
        ({"window": 4, "attention": "favor"}, "knows no window"),
        ({"conv_kernel": 4}, "conv_kernel is 4; it must be odd"),
        ({"activation": "gelo"}, "Did you mean 'gelu'"),
        (
            {"field_heads": (FieldHeadConfig(field="expression", kind="regression", tied=True),)},
            "no table to be tied to",
        ),
        ({"labels": (LabelHeadConfig(name="a", num_classes=2, depth=3),)}, "depth 3, not 1 or 2"),
        (
            {"field_heads": (FieldHeadConfig(field="expression", kind="regression", link="expp"),)},
            "Did you mean 'exp'",
        ),
        ({"wced": (WcedConfig(field="expression", link="log"),)}, "link of wced is 'log'"),
    ],
)
def test_a_head_or_switch_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        small_config(**changes)
