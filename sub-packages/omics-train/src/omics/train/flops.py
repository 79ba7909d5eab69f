"""How much work and memory a model needs, from its configuration and the lengths of cells alone.

- Useful work: matrix products over real tokens, forward and twice that backward. Padding, the
  recomputation of anything, norms and activations, and look-ups in tables do not count.
- For a BERT of L layers of width d with a masked head of V outputs on K tokens this is
  `3 [24 L d^2 sum(n) + 4 L d sum(n^2) + 2 K d (d + V)]` for cells of n tokens, less what the last
  block need not do where final hidden states are read of a of the n tokens:
  `3 [20 d^2 sum(n - a) + 4 d sum(n (n - a))]`. Queries are counted of these alone, too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.train.chunked_scores import CHUNK_SCORES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omics.models.model_config import FieldInput, ModelConfig

Array = np.ndarray[Any, np.dtype[Any]]

# A backward pass makes two products for each one of the forward pass.
TRAINING = 3
_PINV_STEPS = 6
_PINV_PRODUCTS = 4

# Dense bfloat16 matrix products in 10^12 operations a second, without sparsity, of the makers' data
# sheets; the first name that the device's name holds as a word counts.
DATASHEET_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a model is asked to do.

    Attributes:
        lengths: int64 [n], tokens of the cells.
        asked: `{field head: K}`, tokens that each head is run on.
        final: int64 [n], tokens of each cell whose final hidden states are read; None for all.
        decodes: whether whole-cell decoders run.
        decoded_genes: genes that they are run for; None for all.
    """

    lengths: Array
    asked: Mapping[str, int] = field(default_factory=dict)
    final: Array | None = None
    decodes: bool = True
    decoded_genes: int | None = None


def forward_flops(config: ModelConfig, work: Workload) -> int:
    """Return the operations of a forward pass; a product of two numbers and its sum are two.

    Args:
        config: of the model.
        work: cells and what is asked of them.
    """
    lengths = np.asarray(work.lengths, np.int64)
    d, tokens, cells = config.hidden_size, int(lengths.sum()), len(lengths)
    wide = config.intermediate_size * (3 if config.glu else 2)
    total = tokens * config.num_layers * 2 * d * (4 * d + wide)
    total += sum(_attention(config, layer, lengths) for layer in range(config.num_layers))
    total += tokens * sum(_input(each, d) for each in config.fields)
    if work.final is not None:
        unread = lengths - work.final
        total -= int(unread.sum()) * 2 * d * (2 * d + wide)
        if config.attention == "softmax" and config.window_of(config.num_layers - 1) is None:
            total -= 4 * d * int((lengths * unread).sum())
    return total + _field_heads(config, work.asked) + cells * _cell_heads(config, work)


def training_flops(config: ModelConfig, work: Workload) -> int:
    """Return the operations of a forward and a backward pass with nothing frozen.

    Args:
        config: of the model.
        work: cells and what is asked of them.
    """
    return TRAINING * forward_flops(config, work)


def _attention(config: ModelConfig, layer: int, lengths: Array) -> int:
    """Return the operations of scores and sums of one block; projections are counted elsewhere."""
    d = config.hidden_size
    if config.attention == "favor":
        # Features of queries and keys, sums over keys, and what queries read of them.
        return int(8 * config.num_features * d * lengths.sum())
    if config.attention == "nystrom":
        m = config.num_landmarks
        long = lengths[lengths > m]
        landmarks = 2 * m * m * d * 2 + config.num_heads * _PINV_STEPS * _PINV_PRODUCTS * 2 * m**3
        exact = 4 * d * int(np.square(lengths[lengths <= m]).sum())
        conv = 2 * config.conv_kernel * d * int(lengths.sum())
        return exact + 8 * m * d * int(long.sum()) + landmarks * len(long) + conv
    window = config.window_of(layer)
    pairs = np.square(lengths)
    if window is not None:
        pairs = np.where(
            lengths > window, lengths * (2 * window + 1) - window * (window + 1), pairs
        )
    return int(4 * d * pairs.sum())


def _input(each: FieldInput, d: int) -> int:
    """Return the operations of a token's input, beside looking it up."""
    networks = {
        "mlp": 2 * (d + d * d),
        "leaky_mlp": 2 * (each.inner_size + each.inner_size * d),
        "sinusoid": 4 * each.num_frequencies * d,
        "embedding": 2 * (each.vector_size or 0) * d,
    }
    return networks[each.encoder]


def _field_heads(config: ModelConfig, asked: Mapping[str, int]) -> int:
    d = config.hidden_size
    dense = 0 if config.field_transform == "shared_norm" else d
    total = 0
    for head in config.field_heads:
        if head.reads_pooled:
            each = d * d + d * config.pooled_size + config.pooled_size
        elif head.kind == "token_scores":
            each = d * (dense + config.field(head.field).vocabulary_size)
        else:
            each = d * (dense + 1)
        total += 2 * asked.get(head.name, 0) * each
    return total


def _cell_heads(config: ModelConfig, work: Workload) -> int:
    """Return the operations of the heads on one row of each cell, per cell."""
    d, total = config.hidden_size, 0
    for decoder in config.wced if work.decodes else ():
        width = config.pooled_size if decoder.reads == "pooled" else d
        genes = work.decoded_genes or config.gene_vocabulary_size
        total += 2 * width * genes * len(decoder.outputs)
        if decoder.reads == "first_token" and config.field_transform == "shared":
            total += 2 * d * d
    for label in config.labels:
        width = config.pooled_size if label.token is None else d
        total += 2 * width * (label.num_classes + (width if label.depth == 2 else 0))
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes that a training holds at the same time, estimated.

    Attributes:
        weights: of the model, float32.
        gradients: of what is trained.
        moments: both of AdamW.
        activations: what a forward pass keeps for the backward pass.
        outputs: of heads, with their logarithms and gradients.
    """

    weights: int
    gradients: int
    moments: int
    activations: int
    outputs: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.weights + self.gradients + self.moments + self.activations + self.outputs

    def in_shares(self, processes: int) -> Memory:
        """Return the memory of one of several processes that share the model, beside a block or two.

        Args:
            processes: that have a share.
        """
        return replace(
            self,
            weights=self.weights // processes,
            gradients=self.gradients // processes,
            moments=self.moments // processes,
        )


def training_memory(
    config: ModelConfig,
    work: Workload,
    *,
    parameters: int,
    trained: int,
    value_bytes: int = 4,
    cells: int | None = None,
    chunk_scores: int = CHUNK_SCORES,
) -> Memory:
    """Return an estimate of the memory of a training step.

    Args:
        config: of the model.
        work: of some cells.
        parameters: of the model.
        trained: those of them that are trained.
        value_bytes: of an activation: 4 in float32, 2 in bfloat16 or float16.
        cells: of a micro-batch, which are like those of `work`; None for those themselves.
        chunk_scores: scores of token ids that exist at once, see `chunked_scores`.
    """
    cells = len(work.lengths) if cells is None else cells
    times = cells / len(work.lengths)
    tokens = times * int(np.sum(work.lengths))
    outputs = 0
    for head in config.field_heads:
        if head.kind == "token_scores":
            ids = config.field(head.field).vocabulary_size
            rows = round(times * work.asked.get(head.name, 0))
            outputs += min(rows, max(1, chunk_scores // ids)) * ids
    if work.decodes:
        genes = work.decoded_genes or config.gene_vocabulary_size
        outputs += cells * genes * sum(len(each.outputs) for each in config.wced)
    d = config.hidden_size
    kept = tokens * (config.num_layers * kept_values(config) + 3 * d)
    if work.final is not None:
        # Of other tokens the last block keeps its input, keys and values.
        unread = times * int(np.sum(work.lengths - work.final))
        kept -= unread * (kept_values(config) - 3 * d)
    return Memory(
        weights=4 * parameters,
        gradients=4 * trained,
        moments=8 * trained,
        activations=round(kept * value_bytes),
        outputs=3 * 4 * outputs,
    )


def kept_values(config: ModelConfig) -> int:
    """Return how many numbers a block keeps of each token for its backward pass.

    Both norms and their inputs, queries, keys and values, the mixed values by cell and joined; the
    wide layer before and behind its activation, and where it is gated both halves and their product.

    Args:
        config: of the model.
    """
    return 9 * config.hidden_size + (4 if config.glu else 2) * config.intermediate_size


def datasheet_tflops(device_name: str) -> float | None:
    """Return the bfloat16 peak that the maker gives, in 10^12 operations a second; None if unknown.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it.
    """
    for name, peak in DATASHEET_TFLOPS.items():
        if all(re.search(rf"\b{word}\b", device_name, re.IGNORECASE) for word in name.split()):
            return peak
    return None
