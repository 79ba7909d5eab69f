from __future__ import annotations

import pytest
import torch

from omics.models import RaggedLayout
from omics.models.attention import BACKENDS, dense


def qkv(total, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(total, 3, 8, generator=generator, dtype=dtype) for _ in range(3)]


def layout_of(lengths):
    return RaggedLayout.from_offsets(torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()]))


@pytest.mark.parametrize("lengths", [[1], [5, 1, 9, 2], [0, 4, 0, 0, 3, 0], [37, 1, 300, 122]])
@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_backends_agree_with_one_cell_at_a_time_in_float64(name, lengths):
    q, k, v = qkv(sum(lengths))
    q.requires_grad_()
    mixed = BACKENDS[name](q, k, v, layout_of(lengths))
    (gradient,) = torch.autograd.grad(mixed.square().sum(), q)
    exact_q = q.detach().double().requires_grad_()
    parts = []
    start = 0
    for n in lengths:
        qi, ki, vi = (x[start : start + n].double() for x in (exact_q, k, v))
        scores = torch.einsum("ihd,jhd->hij", qi, ki) / 8**0.5
        parts.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), vi))
        start += n
    exact = torch.cat(parts)
    (exact_gradient,) = torch.autograd.grad(exact.square().sum(), exact_q)
    assert (mixed - exact).abs().max() < 1e-5
    assert (gradient - exact_gradient).abs().max() < 1e-4


def test_no_tokens_give_no_output():
    q, k, v = qkv(0)
    assert BACKENDS["loop"](q, k, v, layout_of([0, 0])).shape == (0, 3, 8)


def test_the_dense_oracle_hides_other_cells():
    q, k, v = qkv(6)
    alone = dense(q[:3], k[:3], v[:3], layout_of([3]))
    assert torch.allclose(dense(q, k, v, layout_of([3, 3]))[:3], alone, atol=1e-6)


def test_layout_positions_restart_in_every_cell():
    layout = layout_of([2, 0, 3])
    assert layout.position.tolist() == [0, 1, 0, 1, 2]
    assert layout.cell.tolist() == [0, 0, 2, 2, 2]
    assert layout.bounds == [0, 2, 2, 5]
    assert len(layout) == 3
