"""The key map of a BERT block and of stock BERT embeddings, as Hugging Face names them.

Geneformer, Bioformers and the multi-field BERT of BiomedSciAI have this block under their own
prefixes.
"""

from __future__ import annotations

from omics.models.published.weight_rows import (
    LeftOut,
    WeightRow,
    linear_rows,
    stacked,
    with_token_type,
)

# Transformers before 4.31 saved the numbers 0, 1, 2, ... as a buffer.
POSITION_IDS = LeftOut(r"(.*\.)?position_ids", "the numbers of positions, not weights")


def bert_block_rows(prefix: str, num_layers: int) -> list[WeightRow]:
    """Return the rows of all blocks.

    Args:
        prefix: what comes before `encoder.layer`.
        num_layers: blocks.
    """
    rows = []
    for layer in range(num_layers):
        ours, theirs = f"encoder.layers.{layer}", f"{prefix}encoder.layer.{layer}"
        inner = [f"{theirs}.attention.self.{name}" for name in ("query", "key", "value")]
        rows += [
            WeightRow(
                ours=f"{ours}.qkv.{part}",
                reference=tuple(f"{each}.{part}" for each in inner),
                join=stacked(3),
            )
            for part in ("weight", "bias")
        ]
        rows += linear_rows(f"{ours}.out", f"{theirs}.attention.output.dense")
        rows += linear_rows(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm")
        rows += linear_rows(f"{ours}.up", f"{theirs}.intermediate.dense")
        rows += linear_rows(f"{ours}.down", f"{theirs}.output.dense")
        rows += linear_rows(f"{ours}.mlp_norm", f"{theirs}.output.LayerNorm")
    return rows


def stock_embedding_rows(prefix: str, field: str, num_types: int) -> list[WeightRow]:
    """Return the rows of words, learned positions, token types and their norm.

    Args:
        prefix: what comes before `embeddings`.
        field: the one field of ours.
        num_types: rows of the table of token types.
    """
    theirs = f"{prefix}embeddings"
    return [
        WeightRow(
            ours=f"embedding.fields.{field}.weight", reference=(f"{theirs}.word_embeddings.weight",)
        ),
        WeightRow(
            ours="embedding.positions.weight",
            reference=(
                f"{theirs}.position_embeddings.weight",
                f"{theirs}.token_type_embeddings.weight",
            ),
            join=with_token_type(num_types),
        ),
        *linear_rows("embedding.norm", f"{theirs}.LayerNorm"),
    ]
