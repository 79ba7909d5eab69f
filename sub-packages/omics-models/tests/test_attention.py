from __future__ import annotations

import pytest
import torch

from omics.data.errors import UsageError
from omics.models import RaggedLayout
from omics.models.attention import BACKENDS, attention_weights, backend_of, dense


def qkv(total, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(total, 3, 8, generator=generator, dtype=dtype) for _ in range(3)]


def layout_of(lengths):
    return RaggedLayout.from_offsets(torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()]))


FLOAT32 = sorted(BACKENDS.keys() - {"varlen", "flex"})
LENGTHS = [[1], [5, 1, 9, 2], [0, 4, 0, 0, 3, 0], [37, 1, 300, 122]]


def in_float64(q, k, v, lengths, window):
    """Softmax attention written out, one cell at a time."""
    parts = []
    start = 0
    for n in lengths:
        qi, ki, vi = (x[start : start + n] for x in (q, k, v))
        scores = torch.einsum("ihd,jhd->hij", qi, ki) / q.shape[-1] ** 0.5
        if window is not None:
            place = torch.arange(n)
            scores = scores.masked_fill((place[:, None] - place).abs() > window, -torch.inf)
        parts.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), vi))
        start += n
    return torch.cat(parts)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", FLOAT32)
def test_backends_agree_with_one_cell_at_a_time_in_float64(name, lengths, window):
    q, k, v = qkv(sum(lengths))
    q.requires_grad_()
    mixed = BACKENDS[name](q, k, v, layout_of(lengths), window)
    (gradient,) = torch.autograd.grad(mixed.square().sum(), q)
    exact_q = q.detach().double().requires_grad_()
    exact = in_float64(exact_q, k.double(), v.double(), lengths, window)
    (exact_gradient,) = torch.autograd.grad(exact.square().sum(), exact_q)
    assert (mixed - exact).abs().max() < 1e-5
    assert (gradient - exact_gradient).abs().max() < 1e-4


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("lengths", LENGTHS)
# On a CPU torch says that it runs uncompiled.
@pytest.mark.filterwarnings("default:flex_attention called without torch.compile")
def test_flex_agrees_with_one_cell_at_a_time_in_float64(lengths, window):
    q, k, v = qkv(sum(lengths))
    layout = layout_of(lengths)
    mixed = BACKENDS["flex"](q, k, v, layout, window)
    exact = in_float64(*(x.double() for x in (q, k, v)), lengths, window)
    assert (mixed - exact).abs().max() < 1e-5
    mask = layout.masks[window]
    BACKENDS["flex"](q, k, v, layout, window)
    assert layout.masks[window] is mask, "the mask is made once for all blocks"


def test_flex_has_no_gradient_on_a_cpu_and_says_so():
    q, k, v = qkv(4)
    with pytest.raises(UsageError, match="'flex' has no gradient on a CPU"):
        BACKENDS["flex"](q.requires_grad_(), k, v, layout_of([4]))


def test_a_misspelt_backend_names_the_nearest():
    with pytest.raises(UsageError, match=r"no attention backend 'paded'\. Did you mean 'padded'"):
        backend_of("paded")


def test_varlen_says_what_it_needs():
    q, k, v = qkv(4)
    with pytest.raises(UsageError, match="'varlen' needs a CUDA device and bfloat16"):
        BACKENDS["varlen"](q, k, v, layout_of([4]))


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize("lengths", [[37, 1, 300, 122], [1000, 2048, 3, 512]])
@pytest.mark.parametrize("name", ["varlen", "flex"])
def test_bfloat16_backends_agree_with_float64_on_cuda(name, lengths, window):
    generator = torch.Generator().manual_seed(0)
    total = sum(lengths)
    flat = [torch.randn(total, 12, 64, generator=generator).bfloat16() for _ in range(4)]
    q, k, v = (x.cuda().requires_grad_() for x in flat[:3])
    layout = RaggedLayout.from_offsets(layout_of(lengths).offsets.long(), "cuda")
    mixed = BACKENDS[name](q, k, v, layout, window)
    gradients = torch.autograd.grad(mixed, (q, k, v), flat[3].cuda())
    exact_in = [x.double().requires_grad_() for x in flat[:3]]
    exact = in_float64(*exact_in, lengths, window)
    exact_gradients = torch.autograd.grad(exact, exact_in, flat[3].double())
    assert (mixed.cpu().double() - exact).norm() < 2e-3 * exact.norm()
    for found, wanted in zip(gradients, exact_gradients, strict=True):
        assert (found.cpu().double() - wanted).norm() < 3e-3 * wanted.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", FLOAT32)
def test_float32_backends_agree_with_float64_on_cuda(name, lengths, window):
    q, k, v = qkv(sum(lengths))
    exact = in_float64(q.double(), k.double(), v.double(), lengths, window)
    layout = RaggedLayout.from_offsets(layout_of(lengths).offsets.long(), "cuda")
    mixed = BACKENDS[name](q.cuda(), k.cuda(), v.cuda(), layout, window)
    assert (mixed.cpu() - exact).abs().max() < 1e-5


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


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_weights_times_values_are_the_attention(lengths, window):
    q, k, v = qkv(sum(lengths))
    layout = layout_of(lengths)
    weights = attention_weights(q, k, layout, window)
    assert weights.shape == (3, sum(lengths), sum(lengths))
    assert torch.allclose(weights.sum(-1), torch.ones(3, sum(lengths)))
    assert not weights[:, layout.cell[:, None] != layout.cell].any()
    mixed = torch.einsum("hts,shd->thd", weights, v)
    assert torch.allclose(mixed, dense(q, k, v, layout, window), atol=1e-5)


def test_memory_of_a_gradient_does_not_grow_with_the_number_of_cells():
    """A slice of each cell would give a gradient of the size of all."""

    def allocated(num_cells):
        layout = layout_of([960 // num_cells] * num_cells)
        q, k, v = (x.requires_grad_() for x in qkv(960))
        mixed = BACKENDS["loop"](q, k, v, layout, None)
        with torch.profiler.profile(profile_memory=True) as seen:
            mixed.sum().backward()
        return sum(max(event.self_cpu_memory_usage, 0) for event in seen.events())

    assert allocated(96) < 2 * allocated(6)
