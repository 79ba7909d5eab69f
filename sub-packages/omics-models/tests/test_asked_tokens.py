"""The last block for some tokens alone: the same numbers and gradients as for all of them."""

from __future__ import annotations

import pytest
import torch
from ragged_tokens import heads, random_tokens, small_config, small_model

from omics.models import AskedTokens, RaggedLayout
from omics.models.attention import BACKENDS
from omics.models.model_config import FieldHeadConfig, LabelHeadConfig, WcedConfig

LENGTHS = [9, 0, 37, 1, 5]
OFFSETS = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()])
# The first token of each cell, none at all of some, and the last one three times.
CHOSEN = torch.tensor([0, 3, 4, 9, 11, 45, 46, 47, 51, 51, 51])


def asked_of(tokens=CHOSEN):
    return AskedTokens.of(tokens, OFFSETS)


def test_the_layout_of_asked_tokens_is_that_of_the_cells_they_lie_in():
    asked = asked_of(torch.tensor([3, 4, 11, 51]))
    assert asked.layout.bounds == [0, 2, 2, 3, 3, 4]
    assert asked.layout.cell.tolist() == [0, 0, 2, 4]
    assert asked.layout.longest == 2
    assert asked.rows(torch.tensor([51, 4])).tolist() == [3, 1]


@pytest.mark.parametrize("name", sorted(BACKENDS.keys() - {"varlen"}))
@pytest.mark.filterwarnings("default:flex_attention called without torch.compile")
def test_some_queries_mix_what_all_queries_mix(name):
    total = sum(LENGTHS)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(total, 3, 8, generator=generator) for _ in range(3))
    layout, asked = RaggedLayout.from_offsets(OFFSETS), asked_of()
    if name != "flex":
        for each in (q, k, v):
            each.requires_grad_()
    all_rows = BACKENDS["dense"](q, k, v, layout)[CHOSEN]
    some_rows = BACKENDS[name](q[CHOSEN], k, v, layout, queries=asked.layout)
    assert (some_rows - all_rows).abs().max() < 1e-6
    if name != "flex":
        wanted = torch.autograd.grad(all_rows.square().sum(), (q, k, v))
        found = torch.autograd.grad(some_rows.square().sum(), (q, k, v))
        for ours, theirs in zip(found, wanted, strict=True):
            assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["varlen", "flex", "padded"])
def test_some_queries_mix_what_all_queries_mix_on_cuda(name):
    total = sum(LENGTHS)
    generator = torch.Generator().manual_seed(0)
    flat = [torch.randn(total, 3, 64, generator=generator).bfloat16() for _ in range(3)]
    exact_in = [x.double().requires_grad_() for x in flat]
    exact = BACKENDS["dense"](*exact_in, RaggedLayout.from_offsets(OFFSETS))[CHOSEN]
    q, k, v = (x.cuda().requires_grad_() for x in flat)
    layout = RaggedLayout.from_offsets(OFFSETS, "cuda")
    asked = AskedTokens.of(CHOSEN, OFFSETS, "cuda")
    mixed = BACKENDS[name](q[asked.tokens], k, v, layout, queries=asked.layout)
    assert (mixed.cpu().double() - exact).norm() < 3e-3 * exact.norm()
    wanted = torch.autograd.grad(exact.sum(), exact_in)
    found = torch.autograd.grad(mixed.sum(), (q, k, v))
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.cpu().double() - theirs).norm() < 1e-2 * theirs.norm()


MODELS = {
    "pre-norm, rotary": {"positions": "rope"},
    "post-norm": {"norm": "post", "final_norm": False},
    "one block": {"num_layers": 1},
    "window in the last block": {"window": 4, "global_every": 2},
    "window in the first block alone": {"num_layers": 3, "window": 4, "global_every": 2},
    "random features": {"attention": "favor", "num_features": 8},
    "landmarks": {"attention": "nystrom", "num_landmarks": 4},
    "gated": {"glu": True, "bias": False},
}


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_heads_and_gradients_are_those_of_all_tokens(changes, recomputes):
    parts = {
        "pooling": "first_token",
        "field_heads": heads()["field_heads"],
        "wced": (WcedConfig(field="expression", reads="first_token"),),
        "labels": (LabelHeadConfig(name="cell_type", num_classes=3),),
    }
    model = small_model(**{**changes, **parts})
    model.encoder.recomputes = recomputes
    tokens = random_tokens(LENGTHS).to_torch()

    def results(asked):
        output = model(
            tokens,
            asked=asked,
            field_tokens={"expression_regression": torch.tensor([4, 11, 47])},
            wced=["expression"],
        )
        found = [
            output.fields["expression_regression"],
            output.wced["expression"],
            output.labels["cell_type"],
            output.pooled,
        ]
        loss = sum(each.square().sum() for each in found)
        trained = [each for each in model.parameters() if each.requires_grad]
        return [*found, *torch.autograd.grad(loss, trained, allow_unused=True)]

    # Of every cell the first token, so that rows of cells are the same, too.
    for ours, theirs in zip(results(asked_of()), results(None), strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.allclose(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_last_hidden_states_are_those_of_the_asked_tokens():
    model = small_model()
    tokens = random_tokens(LENGTHS).to_torch()
    with torch.inference_mode():
        some = model(tokens, asked=asked_of(), layers=[1, 2])
        every = model(tokens, layers=[1, 2])
    assert torch.allclose(some.hidden, every.hidden[CHOSEN], atol=1e-6)
    assert torch.equal(some.layers[1], every.layers[1])
    assert torch.allclose(some.layers[2], every.layers[2][CHOSEN], atol=1e-6)


MVC = FieldHeadConfig(field="expression", kind="mvc_regression")
LABEL = LabelHeadConfig(name="cell_type", num_classes=3)
BEHIND = LabelHeadConfig(name="batch", num_classes=3, token=2)


@pytest.mark.parametrize(
    ("changes", "pooling", "number"),
    [
        ({}, None, 0),
        ({}, "mean", None),
        ({}, "first_token", 1),
        ({}, "first_token+token:3", 4),
        ({"labels": (LABEL,)}, None, None),
        ({"labels": (LABEL,)}, "first_token", None),
        ({"labels": (LABEL,), "pooling": "first_token"}, None, 1),
        ({"labels": (LABEL,), "pooling": "pooler", "pooler": True}, None, 1),
        ({"labels": (LABEL,), "pooling": "pooler_of_mean", "pooler": True}, None, None),
        ({"labels": (LABEL,), "pooling": "first_token+mean_after_first"}, None, None),
        ({"labels": (BEHIND,)}, None, 3),
        ({"field_heads": (MVC,)}, None, None),
        ({"field_heads": (MVC,), "pooling": "token:1"}, None, 2),
        ({"field_heads": heads()["field_heads"]}, None, 0),
        ({"wced": (WcedConfig(field="expression", reads="first_token"),)}, None, 1),
        ({"wced": (WcedConfig(field="expression"),)}, None, None),
    ],
)
def test_how_many_leading_tokens_the_heads_of_cells_read(changes, pooling, number):
    assert small_config(**changes).leading_tokens(pooling) == number
