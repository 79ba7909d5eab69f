from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from ragged_tokens import random_tokens, small_model

from omics.models import RaggedLayout
from omics.models.attention import dense, loop
from omics.models.favor_attention import FavorAttention
from omics.models.nystrom_attention import NystromAttention, iterative_pinv, segment_means


def qkv(lengths, heads=2, size=8, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    return [torch.randn(total, heads, size, generator=generator) * scale for _ in range(3)]


def layout_of(lengths):
    return RaggedLayout.from_offsets(torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()]))


# --- windows -------------------------------------------------------------------------------------


def test_a_window_shows_near_tokens_of_the_same_cell_only():
    lengths = [30, 1, 0, 9]
    q, k, v = qkv(lengths)
    layout = layout_of(lengths)
    near = loop(q, k, v, layout, 4)
    assert (near - dense(q, k, v, layout, 4)).abs().max() < 1e-6
    v[10] += 100.0
    moved = (loop(q, k, v, layout, 4) - near).abs().amax((1, 2)) > 0
    assert moved.nonzero()[:, 0].tolist() == list(range(6, 15))


# --- FAVOR+ --------------------------------------------------------------------------------------


def exact(q, k, v):
    return F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v))).transpose(0, 1)


def estimates(num_features, draws, seed=0):
    """Estimate the exponential of scores, not their quotient: the estimate has no bias."""
    q, k, _ = qkv([6], heads=1, size=4, seed=1, scale=0.35)
    attention = FavorAttention(4, num_features * draws).double()
    attention.redraw(torch.Generator().manual_seed(seed))
    queries, keys = (attention._exponents(x.double().transpose(0, 1))[0].exp() for x in (q, k))
    queries, keys = (x.unflatten(1, (draws, num_features)).transpose(0, 1) for x in (queries, keys))
    wanted = (q[:, 0].double() @ k[:, 0].double().T / math.sqrt(4)).exp()
    return queries @ keys.mT / num_features, wanted


def test_random_features_estimate_the_kernel_without_bias():
    found, wanted = estimates(16, 4000)
    error = found.mean(0) - wanted
    spread = found.std(0) / math.sqrt(len(found))
    assert (error.abs() / spread).max() < 4.5
    # The test would see a bias: a kernel without the norms is far outside.
    assert ((found.mean(0) * 1.05 - wanted).abs() / spread).max() > 4.5


def test_the_error_of_random_features_falls_with_the_root_of_their_number():
    sizes = [16, 64, 256]
    errors = []
    for size in sizes:
        found, wanted = estimates(size, 1000, seed=size)
        errors.append(float((found - wanted).square().mean().sqrt()))
    slopes = [math.log(a / b) / math.log(4) for a, b in itertools.pairwise(errors)]
    assert all(0.4 < slope < 0.6 for slope in slopes), errors


def test_attention_by_many_random_features_comes_close_to_softmax_attention():
    lengths = [40, 3]
    q, k, v = qkv(lengths, scale=0.7)
    layout = layout_of(lengths)
    wanted = loop(q, k, v, layout)
    torch.default_generator.manual_seed(0)
    coarse, fine = FavorAttention(8, 32), FavorAttention(8, 8192)
    errors = [float((each(q, k, v, layout) - wanted).abs().mean()) for each in (coarse, fine)]
    assert errors[1] < 0.02 < errors[0]


def test_large_scores_stay_finite_and_cells_stay_apart():
    lengths = [20, 5]
    q, k, v = qkv(lengths, scale=30.0)
    layout = layout_of(lengths)
    torch.default_generator.manual_seed(0)
    attention = FavorAttention(8, 64)
    before = attention(q, k, v, layout)
    assert torch.isfinite(before).all()
    k[:20] *= -2
    after = attention(q, k, v, layout)
    assert torch.equal(before[20:], after[20:])
    assert not torch.equal(before[:20], after[:20])


def test_features_are_orthogonal_and_as_long_as_gaussian_vectors():
    torch.default_generator.manual_seed(3)
    features = FavorAttention(16, 1024).features
    first = features[:16]
    cosines = F.normalize(first) @ F.normalize(first).T
    assert (cosines - torch.eye(16)).abs().max() < 1e-5
    lengths = features.norm(dim=1).square()
    assert abs(float(lengths.mean()) - 16) < 1.0
    assert not features.requires_grad


# --- Nyström -------------------------------------------------------------------------------------


def test_with_tokens_as_landmarks_it_is_softmax_attention():
    lengths = [12, 0, 1, 7]
    q, k, v = qkv(lengths)
    layout = layout_of(lengths)
    assert torch.equal(NystromAttention(2, 12)(q, k, v, layout), loop(q, k, v, layout))


def test_the_factors_alone_give_softmax_attention_when_landmarks_are_the_tokens():
    # The shortcut for short cells does not hide the formula: with segments of one token the three
    # factors are one matrix, and A pinv(A) A = A.
    q, k, v = (x.double().transpose(0, 1) for x in qkv([10], scale=0.5))
    assert torch.equal(segment_means(q, 10), q)
    matrix = (q @ k.transpose(-2, -1) / math.sqrt(8)).softmax(-1)
    product = matrix @ (iterative_pinv(matrix, steps=30) @ (matrix @ v))
    assert (product - matrix @ v).abs().max() < 1e-6


def test_more_landmarks_come_closer():
    q, k, v = qkv([200], scale=0.5)
    layout = layout_of([200])
    wanted = loop(q, k, v, layout)
    errors = [
        float((NystromAttention(2, m)(q, k, v, layout) - wanted).abs().mean())
        for m in (4, 16, 64, 200)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0


def test_segments_differ_by_one_token_at_most():
    x = torch.arange(10.0)[None, :, None]
    assert segment_means(x, 4)[0, :, 0].tolist() == [1.0, 3.5, 6.0, 8.5]


@pytest.mark.parametrize("num_landmarks", [3, 64])
def test_the_convolution_is_added_inside_each_cell(num_landmarks):
    lengths = [9, 6]
    q, k, v = qkv(lengths)
    layout = layout_of(lengths)
    torch.default_generator.manual_seed(0)
    attention = NystromAttention(2, num_landmarks, conv_kernel=5)
    plain = NystromAttention(2, num_landmarks)
    added = attention(q, k, v, layout) - plain(q, k, v, layout)
    weight = attention.conv.weight[:, 0, :, 0]
    for begin, end in [(0, 9), (9, 15)]:
        cell = F.pad(v[begin:end], (0, 0, 0, 0, 2, 2))
        wanted = sum(cell[i : i + end - begin] * weight[:, i, None] for i in range(5))
        assert (added[begin:end] - wanted).abs().max() < 1e-5


# --- both, in a model ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "favor", "num_features": 16},
        {"attention": "nystrom", "num_landmarks": 8, "conv_kernel": 3},
        {"window": 3, "positions": "rope"},
        {"norm_kind": "rms", "activation": "silu", "glu": True},
    ],
    ids=["favor", "nystrom", "window", "rms"],
)
def test_every_kind_keeps_cells_apart_and_has_gradients(changes, tmp_path):
    model = small_model(**changes)
    tokens = random_tokens([50, 37, 80])
    changed = random_tokens([50, 37, 80])
    changed.fields["expression"][50:87] += 1.0
    with torch.inference_mode():
        before, after = model(tokens.to_torch()), model(changed.to_torch())
    assert torch.equal(before.hidden[:50], after.hidden[:50])
    assert torch.equal(before.hidden[87:], after.hidden[87:])
    assert not torch.equal(before.hidden[50:87], after.hidden[50:87])
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        assert torch.equal(loaded(tokens.to_torch()).pooled, before.pooled)
    model(tokens.to_torch()).pooled.square().sum().backward()
    trained = [p for p in model.encoder.parameters() if p.requires_grad]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)
