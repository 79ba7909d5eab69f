"""Our block against the encoders of transformers: random weights, padded against flat."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from omics.models import ModelConfig, RaggedLayout
from omics.models.encoder import Encoder
from omics.models.model_config import FieldInput

LENGTHS = [37, 1, 60, 22]
WIDTH = 32


def config(**changes):
    settings = {
        "fields": (FieldInput(name="genes", encoder="embedding", vocabulary_size=9),),
        "hidden_size": WIDTH,
        "num_layers": 4,
        "num_heads": 4,
        "intermediate_size": 48,
        "dropout": 0.0,
        "layer_norm_eps": 1e-12,
    }
    return ModelConfig(**{**settings, **changes})


def randomize(module: nn.Module) -> None:
    """Give every parameter random values, norms and biases too, so that none is without effect."""
    torch.default_generator.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + ("norm" in name.lower()))


def inputs():
    torch.default_generator.manual_seed(1)
    flat = torch.randn(sum(LENGTHS), WIDTH)
    padded = torch.zeros(len(LENGTHS), max(LENGTHS), WIDTH)
    mask = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    for row, part in enumerate(flat.split(LENGTHS)):
        padded[row, : len(part)] = part
        mask[row, : len(part)] = 1
    offsets = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()])
    return flat, padded, mask, RaggedLayout.from_offsets(offsets)


def copy_parts(pairs):
    with torch.no_grad():
        for ours, theirs in pairs:
            ours.copy_(theirs)


def load_bert(encoder, bert) -> None:
    for block, layer in zip(encoder.layers, bert.encoder.layer, strict=True):
        attention = layer.attention.self
        for kind in ("weight", "bias"):
            projections = [attention.query, attention.key, attention.value]
            copy_parts(
                [
                    (getattr(block.qkv, kind), torch.cat([getattr(p, kind) for p in projections])),
                    (getattr(block.out, kind), getattr(layer.attention.output.dense, kind)),
                    (
                        getattr(block.attention_norm, kind),
                        getattr(layer.attention.output.LayerNorm, kind),
                    ),
                    (getattr(block.up, kind), getattr(layer.intermediate.dense, kind)),
                    (getattr(block.down, kind), getattr(layer.output.dense, kind)),
                    (getattr(block.mlp_norm, kind), getattr(layer.output.LayerNorm, kind)),
                ]
            )


def load_modernbert(encoder, modernbert) -> None:
    copy_parts([(encoder.norm.weight, modernbert.final_norm.weight)])
    for number, (block, layer) in enumerate(zip(encoder.layers, modernbert.layers, strict=True)):
        pairs = [
            (block.qkv.weight, layer.attn.Wqkv.weight),
            (block.out.weight, layer.attn.Wo.weight),
            (block.mlp_norm.weight, layer.mlp_norm.weight),
            (block.up.weight, layer.mlp.Wi.weight),
            (block.down.weight, layer.mlp.Wo.weight),
        ]
        if number:
            pairs.append((block.attention_norm.weight, layer.attn_norm.weight))
        copy_parts(pairs)


def load_llama(encoder, llama) -> None:
    copy_parts([(encoder.norm.weight, llama.norm.weight)])
    for block, layer in zip(encoder.layers, llama.layers, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        copy_parts(
            [
                (block.qkv.weight, torch.cat([p.weight for p in projections])),
                (block.out.weight, attention.o_proj.weight),
                (block.attention_norm.weight, layer.input_layernorm.weight),
                (block.mlp_norm.weight, layer.post_attention_layernorm.weight),
                (block.up.weight, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])),
                (block.down.weight, mlp.down_proj.weight),
            ]
        )


def agree(encoder, flat, layout, states, num_final_norms=0):
    """Compare every layer and the end; HF's list may hold the normed last state."""
    final, layers = encoder(flat, layout, kept=range(len(encoder.layers) + 1))
    for number, state in enumerate(states):
        ours = final if num_final_norms and number == len(encoder.layers) else layers[number]
        theirs = torch.cat([row[:n] for row, n in zip(state, LENGTHS, strict=True)])
        assert (ours - theirs).abs().max() < 1e-5, number
    return final


@pytest.mark.parametrize("backend", ["loop", "dense"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_bert(backend, activation):
    theirs = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=1,
            hidden_size=WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=48,
            hidden_act=activation,
            layer_norm_eps=1e-12,
        ),
        add_pooling_layer=False,
    ).eval()
    randomize(theirs)
    ours = Encoder(config(norm="post", final_norm=False, activation=activation), backend).eval()
    load_bert(ours, theirs)
    flat, padded, mask, layout = inputs()
    with torch.inference_mode():
        full = (1.0 - mask[:, None, None, :]) * torch.finfo(torch.float32).min
        states = [padded]
        for layer in theirs.encoder.layer:
            result = layer(states[-1], full)
            states.append(result[0] if isinstance(result, tuple) else result)
        agree(ours, flat, layout, states)


@pytest.mark.parametrize("backend", ["loop", "dense"])
@pytest.mark.parametrize("local_theta", [10_000.0, 160_000.0])
def test_modernbert_with_windows_and_two_rotary_bases(backend, local_theta):
    theirs = transformers.ModernBertModel(
        transformers.ModernBertConfig(
            vocab_size=2,
            pad_token_id=0,
            hidden_size=WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=48,
            local_attention=16,
            global_attn_every_n_layers=3,
            norm_eps=1e-12,
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 160_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
            },
            attn_implementation="eager",
        )
    ).eval()
    randomize(theirs)
    ours = Encoder(
        config(
            norm_bias=False,
            first_norm=False,
            glu=True,
            bias=False,
            positions="rope",
            rope_theta=160_000.0,
            local_rope_theta=local_theta,
            window=8,
        ),
        backend,
    ).eval()
    load_modernbert(ours, theirs)
    flat, padded, mask, layout = inputs()
    with torch.inference_mode():
        found = theirs(inputs_embeds=padded, attention_mask=mask, output_hidden_states=True)
        # Their embedding module normalises what it is given; ours starts behind it.
        start = torch.cat([row[:n] for row, n in zip(found.hidden_states[0], LENGTHS, strict=True)])
        final = agree(ours, start, layout, found.hidden_states[:-1])
        last = torch.cat([row[:n] for row, n in zip(found.last_hidden_state, LENGTHS, strict=True)])
        assert (final - last).abs().max() < 1e-5
    assert not torch.equal(flat, start)


def test_llama_in_both_directions():
    theirs = transformers.LlamaModel(
        transformers.LlamaConfig(
            vocab_size=1,
            hidden_size=WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=48,
            rms_norm_eps=1e-12,
            attn_implementation="sdpa",
        )
    ).eval()
    randomize(theirs)
    ours = Encoder(
        config(norm_kind="rms", glu=True, activation="silu", bias=False, positions="rope")
    ).eval()
    load_llama(ours, theirs)
    flat, padded, mask, layout = inputs()
    with torch.inference_mode():
        both = mask[:, None, None, :].bool().expand(-1, 1, max(LENGTHS), -1)
        found = theirs(inputs_embeds=padded, attention_mask=both).last_hidden_state
        final, _ = ours(flat, layout)
        theirs_flat = torch.cat([row[:n] for row, n in zip(found, LENGTHS, strict=True)])
        assert (final - theirs_flat).abs().max() < 1e-5
