"""Attention roll-out beside the definition, matrix by matrix and cell by cell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribution_parts import bundle_of

from omics.data.errors import ConfigError
from omics.eval.attention_rollout import attention_rollout
from omics.models.model_config import LabelHeadConfig
from omics.tokenizers import LabelSpec, TokenBatch

GENES = [f"g{i}" for i in range(9)]
KIND = LabelSpec(name="kind", classes=("x", "y"))
LENGTHS = (4, 6, 0, 3)


def batch_of(lengths=LENGTHS):
    generator = np.random.default_rng(1)
    total = sum(lengths)
    return TokenBatch(
        fields={
            "genes": generator.integers(5, 14, total).astype(np.int32),
            "expression": generator.gamma(2.0, size=total).astype(np.float32),
        },
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        rows=np.arange(len(lengths)),
    )


def by_definition(model, cell, row_weights):
    """Roll out one cell: attention from the weights of each block, then a product of matrices."""
    hidden = sum(model.embedding.parts(cell.to_torch().fields).values())
    rolled = torch.eye(len(hidden))
    for block in model.encoder.layers:
        q, k, v = block.qkv(block.attention_norm(hidden)).unflatten(1, (3, 2, -1)).unbind(1)
        heads = []
        for head in range(2):
            scores = q[:, head] @ k[:, head].T / q.shape[-1] ** 0.5
            if block.window is not None:
                place = torch.arange(len(hidden))
                scores[(place[:, None] - place).abs() > block.window] = -torch.inf
            heads.append(scores.softmax(1))
        mixed = torch.stack([heads[h] @ v[:, h] for h in range(2)], 1).flatten(1)
        hidden = hidden + block.out(mixed)
        hidden = hidden + block.feed_forward(block.mlp_norm(hidden))
        rolled = (0.5 * sum(heads) / 2 + 0.5 * torch.eye(len(hidden))) @ rolled
    return (row_weights @ rolled).detach().numpy()


@pytest.mark.parametrize("pooling", ["mean", "first_token", "mean_after_first", "mean+token:1"])
@pytest.mark.parametrize("window", [None, 1])
def test_it_is_the_product_of_the_definition(pooling, window):
    settings = {"window": window, "global_every": 2} if window else {}
    bundle = bundle_of(GENES, [KIND], num_layers=3, pooling=pooling, **settings)
    batch = batch_of()
    found = attention_rollout(bundle.model, batch, label="kind")
    for cell, length in enumerate(LENGTHS):
        if not length:
            continue
        first = int(batch.offsets[cell])
        alone = TokenBatch(
            fields={name: v[first : first + length] for name, v in batch.fields.items()},
            offsets=np.array([0, length]),
            rows=np.array([0]),
        )
        row = {
            "mean": torch.full((length,), 1 / length),
            "first_token": torch.eye(length)[0],
            "mean_after_first": torch.cat(
                [torch.zeros(1), torch.full((length - 1,), 1 / (length - 1))]
            ),
            "mean+token:1": 0.5 / length + 0.5 * torch.eye(length)[1],
        }[pooling]
        expected = by_definition(bundle.model, alone, row)
        np.testing.assert_allclose(found[first : first + length], expected, atol=1e-6)
        assert found[first : first + length].sum() == pytest.approx(1)


def test_the_model_is_as_before_and_another_cell_changes_nothing():
    bundle = bundle_of(GENES, [KIND], num_layers=2)
    backends = [block.backend for block in bundle.model.encoder.layers]
    batch = batch_of()
    first = attention_rollout(bundle.model, batch, label="kind")
    changed = batch.with_fields(expression=batch.fields["expression"].copy())
    changed.fields["expression"][4:10] += 1
    second = attention_rollout(bundle.model, changed, label="kind")
    assert np.array_equal(first[:4], second[:4])
    assert np.array_equal(first[10:], second[10:])
    assert not np.array_equal(first[4:10], second[4:10])
    assert [block.backend for block in bundle.model.encoder.layers] == backends


def test_a_head_that_reads_its_own_token_is_followed_from_there():
    bundle = bundle_of(GENES, [KIND], num_layers=1)
    model = bundle.model
    object.__setattr__(
        model.model_config, "labels", (LabelHeadConfig(name="kind", num_classes=2, token=1),)
    )
    batch = batch_of((4,))
    expected = by_definition(model, batch, torch.eye(4)[1])
    np.testing.assert_allclose(attention_rollout(model, batch, label="kind"), expected, atol=1e-6)


def test_an_approximation_has_no_matrix_to_roll_out():
    bundle = bundle_of(GENES, [KIND], attention="favor")
    with pytest.raises(
        ConfigError, match=r"approximates attention \(favor\).*integrated_gradients"
    ):
        attention_rollout(bundle.model, batch_of(), label="kind")
