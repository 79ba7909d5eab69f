"""Attention roll-out: how much of the row that a label head reads comes from each token.

- The attention of each block, its mean over heads and half of it the residual, is multiplied through
  all blocks (Abnar & Zuidema 2020, Quantifying Attention Flow in Transformers).
- Only the row that is read is followed, from the last block to the first: a vector is multiplied, not
  a matrix. The relevance of the tokens of a cell adds up to 1.
- It needs the attention itself, which no fast kernel gives: blocks of T tokens are computed densely,
  at a cost of heads x T x T numbers a block and T x T numbers kept for each layer.
- It knows neither values of attention nor the label head, so it is the same for every class; the
  check with a shuffled label head shows it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omics.data.errors import ConfigError
from omics.models.attention import attention_weights
from omics.models.encoder import Block
from omics.models.model_config import PLACE_PREFIX, pooling_parts
from omics.models.ragged_layout import RaggedLayout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from omics.models.model import OmicsModel
    from omics.tokenizers import TokenBatch

Array = np.ndarray[Any, np.dtype[Any]]


def check_rollout(model: OmicsModel) -> None:
    """Refuse a model whose attention is no matrix.

    Args:
        model: to be explained.

    Raises:
        ConfigError: its attention is approximated.
    """
    kind = model.model_config.attention
    if kind != "softmax":
        raise ConfigError(
            f"Attention roll-out multiplies attention matrices, and this model approximates "
            f"attention ({kind}) without making them. Take method=integrated_gradients."
        )


def attention_rollout(
    model: OmicsModel, batch: TokenBatch, *, label: str, device: torch.device | str = "cpu"
) -> Array:
    """Return the relevance of each token to the row that a label head reads.

    Args:
        model: in evaluation mode, on the device, with softmax attention.
        batch: numpy tokens.
        label: whose head.
        device: of the model.

    Returns:
        float64 [T]; the tokens of a cell that has any add up to 1.

    Raises:
        ConfigError: its attention is approximated.
    """
    check_rollout(model)
    layout = RaggedLayout.from_offsets(torch.from_numpy(np.asarray(batch.offsets)), device)
    with torch.inference_mode(), _recorded(model) as weights:
        model(batch.to_torch(device), layout)
        # Blocks of the matrices belong to cells, so one vector follows the rows of all of them.
        relevance = _read_row(model, layout, label)
        for weights_TT in reversed(weights):
            relevance = 0.5 * relevance + 0.5 * relevance @ weights_TT.cpu().double()
    return relevance.numpy()


def _read_row(model: OmicsModel, layout: RaggedLayout, label: str) -> Tensor:
    """Return float64 [T], the share of each token in the row that the head of a label reads."""
    (head,) = [each for each in model.model_config.labels if each.name == label]
    pooling = model.model_config.pooling if head.token is None else f"{PLACE_PREFIX}{head.token}"
    parts = pooling_parts(pooling)
    shares = []
    for part in parts:
        if part in ("mean", "pooler_of_mean"):
            taken = torch.ones_like(layout.position, dtype=torch.bool)
        elif part == "mean_after_first":
            taken = layout.position > 0
        else:
            place = int(part.removeprefix(PLACE_PREFIX)) if part.startswith(PLACE_PREFIX) else 0
            taken = layout.position == place
        number = torch.zeros(len(layout), dtype=torch.int64, device=taken.device)
        number = number.index_add(0, layout.cell, taken.long()).clamp(min=1)
        shares.append(taken.cpu().double() / number[layout.cell].cpu())
    return torch.stack(shares).mean(0)


@contextlib.contextmanager
def _recorded(model: OmicsModel) -> Iterator[list[Tensor]]:
    """Let the blocks leave their attention, the mean over heads [T, T], in a list."""
    weights: list[Tensor] = []

    def attend(
        q_THD: Tensor,
        k_THD: Tensor,
        v_THD: Tensor,
        layout: RaggedLayout,
        window: int | None = None,
        *,
        queries: RaggedLayout | None = None,
    ) -> Tensor:
        assert queries is None, "rollout multiplies the weights of all tokens"
        weights_HTT = attention_weights(q_THD, k_THD, layout, window)
        weights.append(weights_HTT.mean(0))
        return torch.einsum("hts,shd->thd", weights_HTT, v_THD)

    blocks = [block for block in model.encoder.layers if isinstance(block, Block)]
    usual = [block.backend for block in blocks]
    try:
        for block in blocks:
            block.backend = attend
        yield weights
    finally:
        for block, backend in zip(blocks, usual, strict=True):
            block.backend = backend
