from __future__ import annotations

import pytest
import torch
from ragged_tokens import small_config
from torch import nn

from omics.models import RaggedLayout
from omics.models.encoder import Encoder, rotary_table, rotate


def copy_layer(block, layer):
    """Copy torch's own encoder layer into one of our blocks."""
    pairs = [
        (block.qkv.weight, layer.self_attn.in_proj_weight),
        (block.qkv.bias, layer.self_attn.in_proj_bias),
        (block.out.weight, layer.self_attn.out_proj.weight),
        (block.out.bias, layer.self_attn.out_proj.bias),
        (block.attention_norm.weight, layer.norm1.weight),
        (block.attention_norm.bias, layer.norm1.bias),
        (block.mlp_norm.weight, layer.norm2.weight),
        (block.mlp_norm.bias, layer.norm2.bias),
        (block.up.weight, layer.linear1.weight),
        (block.up.bias, layer.linear1.bias),
        (block.down.weight, layer.linear2.weight),
        (block.down.bias, layer.linear2.bias),
    ]
    with torch.no_grad():
        for ours, theirs in pairs:
            theirs.copy_(torch.randn_like(theirs) * 0.2)
            ours.copy_(theirs)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_blocks_compute_what_torchs_own_layer_computes_on_padded_input(norm):
    torch.default_generator.manual_seed(0)
    encoder = Encoder(small_config(norm=norm, final_norm=False)).eval()
    layers = [
        nn.TransformerEncoderLayer(
            32, 2, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm == "pre"
        )
        for _ in range(2)
    ]
    for block, layer in zip(encoder.layers, layers, strict=True):
        copy_layer(
            block, layer.train()
        )  # train: eval would take a fused path with its own rounding
    lengths = [5, 1, 12]
    x = torch.randn(sum(lengths), 32)
    offsets = torch.tensor([0, 5, 6, 18])
    flat, _ = encoder(x, RaggedLayout.from_offsets(offsets))
    padded = torch.zeros(3, 12, 32)
    hidden = torch.ones(3, 12, dtype=torch.bool)
    for i, n in enumerate(lengths):
        padded[i, :n] = x[offsets[i] : offsets[i] + n]
        hidden[i, :n] = False
    for layer in layers:
        padded = layer(padded, src_key_padding_mask=hidden)
    for i, n in enumerate(lengths):
        assert (flat[offsets[i] : offsets[i] + n] - padded[i, :n]).abs().max() < 1e-5


def test_rotation_keeps_lengths_and_depends_on_distance_only():
    table = rotary_table(torch.arange(50), 8, 10_000.0)
    torch.default_generator.manual_seed(1)
    q, k = torch.randn(8), torch.randn(8)
    turned_q, turned_k = (rotate(x.expand(50, 1, 8), table)[:, 0] for x in (q, k))
    assert torch.allclose(turned_q.norm(dim=-1), q.norm().expand(50), atol=1e-5)
    scores = turned_q @ turned_k.T
    assert torch.allclose(scores[10, 7], scores[40, 37], atol=1e-5)
    assert not torch.allclose(scores[10, 7], scores[10, 2], atol=1e-3)


def test_rotary_positions_restart_so_a_cell_far_along_a_pack_is_exact():
    torch.default_generator.manual_seed(2)
    encoder = Encoder(small_config(positions="rope")).eval()
    x = torch.randn(66_100, 32)
    pack = [0, *range(100, 66_100, 100), 66_100]
    with torch.inference_mode():
        far = encoder(x, RaggedLayout.from_offsets(torch.tensor(pack)))[0][-100:]
        alone = encoder(x[-100:], RaggedLayout.from_offsets(torch.tensor([0, 100])))[0]
    assert torch.equal(far, alone)


def test_gated_feed_forward_halves_its_projection():
    encoder = Encoder(small_config(glu=True, bias=False))
    assert encoder.layers[0].up.weight.shape == (96, 32)
    assert encoder.layers[0].qkv.bias is None
    out, _ = encoder(torch.randn(4, 32), RaggedLayout.from_offsets(torch.tensor([0, 4])))
    assert out.shape == (4, 32)


def test_recomputed_blocks_give_the_same_gradients_and_keep_less():
    found = {}
    for recomputes in (False, True):
        torch.manual_seed(0)
        encoder = Encoder(small_config(num_layers=3, dropout=0.3)).train()
        encoder.recomputes = recomputes
        width = encoder.layers[0].out.in_features
        x = torch.randn(9, width, generator=torch.Generator().manual_seed(1), requires_grad=True)
        kept = []

        def keep(tensor, kept=kept):
            kept.append(tensor.numel())
            return tensor

        torch.manual_seed(2)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden, _ = encoder(x, RaggedLayout.from_offsets(torch.tensor([0, 4, 9])))
        forward = sum(kept)
        hidden.square().sum().backward()
        found[recomputes] = (x.grad, encoder.layers[0].up.weight.grad, forward)
    for plain, again in zip(found[False][:2], found[True][:2], strict=True):
        assert torch.equal(plain, again), "dropout must be drawn as in the forward pass"
    assert found[True][2] < found[False][2] / 3
