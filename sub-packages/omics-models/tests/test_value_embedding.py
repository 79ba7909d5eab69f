from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from omics.models.input_embedding import ProjectedTable
from omics.models.model_config import FieldInput
from omics.models.value_embedding import VALUE_EMBEDDINGS


def embedding(encoder, **changes):
    torch.default_generator.manual_seed(0)
    field = FieldInput(name="expression", encoder=encoder, vocabulary_size=5, **changes)
    return VALUE_EMBEDDINGS[encoder](field, 12)


VALUES = torch.tensor([0.0, 0.7, 3.5, -1.0, -5.0])


def test_leaky_mlp_is_its_formula():
    module = embedding("leaky_mlp", inner_size=7, zero_row=True)
    rows = module.specials.weight
    assert rows.shape == (6, 7)
    inner = F.leaky_relu(module.first(VALUES[:, None]))
    inner[0], inner[3], inner[4] = rows[5], rows[0], rows[4]
    assert torch.allclose(module(VALUES), module.second(F.leaky_relu(inner)), atol=1e-6)


def test_without_a_row_of_its_own_zero_is_a_value():
    module = embedding("leaky_mlp", inner_size=7)
    assert module.specials.weight.shape == (5, 7)
    wanted = module.second(F.leaky_relu(F.leaky_relu(module.first(torch.zeros(1, 1)))))
    assert torch.allclose(module(VALUES)[:1], wanted, atol=1e-6)


def test_sinusoid_is_its_formula():
    module = embedding("sinusoid", num_frequencies=9, frequency_scale=0.2, zero_row=True)
    value = 0.7
    angle = value * module.frequencies
    wanted = module.combine(torch.cat([angle.sin(), angle.cos()]))
    found = module(VALUES)
    assert torch.allclose(found[1], wanted, atol=1e-6)
    assert torch.equal(found[[0, 3, 4]], module.specials.weight[[5, 0, 4]])
    assert module.combine.bias is None


def test_frequencies_are_drawn_as_wide_as_asked():
    module = embedding("sinusoid", num_frequencies=20_000, frequency_scale=1.5)
    assert abs(float(module.frequencies.detach().std()) / (2 * math.pi * 1.5) - 1) < 0.02


@pytest.mark.parametrize("encoder", sorted(VALUE_EMBEDDINGS))
def test_special_rows_get_gradients_from_special_tokens_alone(encoder):
    module = embedding(encoder)
    module(torch.tensor([0.3, 2.0, -3.0])).square().sum().backward()
    touched = module.specials.weight.grad.abs().sum(1) > 0
    assert touched.tolist() == [False, False, True, False, False]
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def test_a_projected_table_has_the_width_of_its_vectors():
    torch.default_generator.manual_seed(0)
    table = ProjectedTable(10, 200, 12)
    assert table.table.weight.shape == (10, 200)
    ids = torch.tensor([3, 3, 7])
    assert torch.equal(table(ids)[0], table(ids)[1])
    assert torch.allclose(table(ids), table.weight[ids], atol=1e-6)
