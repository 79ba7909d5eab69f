"""The key map of BiomedSciAI checkpoints, for every model type and layout of heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omics.models.published.hf_bert_rows import POSITION_IDS, bert_block_rows
from omics.models.published.weight_rows import (
    KeyMap,
    LeftOut,
    WeightRow,
    gene_major,
    linear_rows,
    stacked,
)

if TYPE_CHECKING:
    from omics.models.model_config import FieldInput, LabelHeadConfig, ModelConfig
    from omics.models.published.bmfm_layouts import BmfmLayout

_COPY_OF_ENCODER = LeftOut(
    r"(embeddings|layers|final_norm|pooler)\..*",
    "early versions saved a second encoder beside the one in use, which nothing reads",
)
_UNUSED_TRANSFORM = LeftOut(
    r"cls\.predictions\.predictions\.transform\..*", "a transform behind which no decoder stands"
)


def bmfm_key_map(config: ModelConfig, model_type: str, layout: BmfmLayout) -> KeyMap:
    """Return the map of a checkpoint.

    Args:
        config: of the model.
        model_type: `scbert`, `scmodernbert` or `scllama`.
        layout: of the keys.
    """
    left_out = [POSITION_IDS]
    if model_type == "scmodernbert" and layout.name == "multitask":
        left_out.append(_COPY_OF_ENCODER)
    if not config.field_heads and not config.wced:
        left_out.append(_UNUSED_TRANSFORM)
    inner = "encoder." if model_type == "scllama" else ""
    rows = [
        row
        for field in config.fields
        for row in _field_rows(field, f"{layout.body}{inner}embeddings.{field.name}_embeddings")
    ]
    rows += linear_rows("embedding.norm", f"{layout.body}{inner}embeddings.LayerNorm")
    blocks = {"scbert": _bert_rows, "scmodernbert": _modern_rows, "scllama": _llama_rows}
    rows += blocks[model_type](config, layout.body)
    if config.pooler:
        rows += linear_rows("pooler.dense", f"{layout.body}pooler.dense")
    if layout.fields:
        rows += _decoder_rows(config, layout.fields)
    for index, label in enumerate(config.labels):
        prefix = layout.label_prefix(label.name)
        rows += _label_rows(f"label_heads.{index}", prefix, label, norm_bias=config.norm_bias)
    return KeyMap(rows, left_out)


def _field_rows(field: FieldInput, theirs: str) -> list[WeightRow]:
    ours = f"embedding.fields.{field.name}"
    if field.encoder == "leaky_mlp":
        return [
            *linear_rows(f"{ours}.first", f"{theirs}.dense_1"),
            *linear_rows(f"{ours}.second", f"{theirs}.dense_2"),
            *linear_rows(f"{ours}.specials", f"{theirs}.special_token_embeddings", bias=False),
        ]
    if field.encoder == "sinusoid":
        return [
            WeightRow(ours=f"{ours}.frequencies", reference=(f"{theirs}.basis",)),
            *linear_rows(f"{ours}.combine", f"{theirs}.dense", bias=False),
            *linear_rows(f"{ours}.specials", f"{theirs}.special_token_embeddings", bias=False),
        ]
    if field.vector_size is None:
        return linear_rows(ours, theirs, bias=False)
    return [
        *linear_rows(f"{ours}.table", theirs, bias=False),
        *linear_rows(f"{ours}.projection", f"{theirs}_projection"),
    ]


def _bert_rows(config: ModelConfig, body: str) -> list[WeightRow]:
    return bert_block_rows(body, config.num_layers)


def _modern_rows(config: ModelConfig, body: str) -> list[WeightRow]:
    rows = []
    for layer in range(config.num_layers):
        ours, theirs = f"encoder.layers.{layer}", f"{body}layers.{layer}"
        if layer:
            rows += linear_rows(
                f"{ours}.attention_norm", f"{theirs}.attn_norm", bias=config.norm_bias
            )
        rows += linear_rows(f"{ours}.mlp_norm", f"{theirs}.mlp_norm", bias=config.norm_bias)
        rows += linear_rows(f"{ours}.qkv", f"{theirs}.attn.Wqkv", bias=config.bias)
        rows += linear_rows(f"{ours}.out", f"{theirs}.attn.Wo", bias=config.bias)
        rows += linear_rows(f"{ours}.up", f"{theirs}.mlp.Wi", bias=config.bias)
        rows += linear_rows(f"{ours}.down", f"{theirs}.mlp.Wo", bias=config.bias)
    return [*rows, *linear_rows("encoder.norm", f"{body}final_norm", bias=config.norm_bias)]


def _llama_rows(config: ModelConfig, body: str) -> list[WeightRow]:
    rows = []
    for layer in range(config.num_layers):
        ours, theirs = f"encoder.layers.{layer}", f"{body}encoder.blocks.{layer}"
        norms = {"attention_norm": "rms_1", "mlp_norm": "rms_2"}
        for name, norm in norms.items() if layer else [("mlp_norm", "rms_2")]:
            rows.append(
                WeightRow(ours=f"{ours}.{name}.weight", reference=(f"{theirs}.{norm}.scale",))
            )
        rows += linear_rows(f"{ours}.qkv", f"{theirs}.attn.c_attn", bias=False)
        rows += linear_rows(f"{ours}.out", f"{theirs}.attn.proj", bias=False)
        gated = tuple(f"{theirs}.mlp.{name}.weight" for name in ("c_fc1", "c_fc2"))
        rows.append(WeightRow(ours=f"{ours}.up.weight", reference=gated, join=stacked(2)))
        rows += linear_rows(f"{ours}.down", f"{theirs}.mlp.c_proj", bias=False)
    return rows


def _decoder_rows(config: ModelConfig, prefix: str) -> list[WeightRow]:
    if not config.field_heads and not config.wced:
        return []
    rows = linear_rows("field_transform.dense", f"{prefix}transform.dense")
    rows += linear_rows("field_transform.norm", f"{prefix}transform.LayerNorm")
    decoders = f"{prefix}decoder.field_decoders"
    for head in config.field_heads:
        rows += linear_rows(f"field_heads.{head.name}.decoder", f"{decoders}.{head.name}")
    for wced in config.wced:
        join = gene_major(len(wced.outputs))
        for part in ("weight", "bias"):
            rows.append(
                WeightRow(
                    ours=f"wced_heads.{wced.field}.decoder.{part}",
                    reference=(f"{decoders}.{wced.field}_wced.{part}",),
                    join=join,
                )
            )
    return rows


def _label_rows(
    ours: str, prefix: str, label: LabelHeadConfig, *, norm_bias: bool
) -> list[WeightRow]:
    # The reference standardises nothing.
    rows = [
        WeightRow(ours=f"{ours}.center", constant=0.0),
        WeightRow(ours=f"{ours}.scale", constant=1.0),
    ]
    # A gradient reversal before the decoder makes it the second of two modules.
    last = f"{prefix}1" if label.gradient_reversal else prefix.removesuffix(".")
    if label.depth == 2 and not label.norm:
        rows += linear_rows(f"{ours}.inner.dense", f"{prefix}dense")
        last = f"{prefix}out_proj"
    elif label.depth == 2:
        rows += linear_rows(f"{ours}.inner.dense", "head.dense", bias=False)
        bias = ("head.dense.bias",)
        rows.append(WeightRow(ours=f"{ours}.inner.dense.bias", reference=bias, optional=True))
        rows += linear_rows(f"{ours}.inner.norm", "head.norm", bias=norm_bias)
    return [*rows, *linear_rows(f"{ours}.decoder", last)]
