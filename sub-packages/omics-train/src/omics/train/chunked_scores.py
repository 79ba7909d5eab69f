"""Losses of scores of all token ids, some rows at a time: the scores of a batch never exist at once.

10,000 hidden tokens and 60,000 genes are 2.4 GB of scores in float32, and as much again for their
softmax and its gradient. The gradient of a sum over rows is known as soon as a row is, so each chunk
is differentiated where it is computed, and nothing is computed twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from omics.models.outputs import ScoreRows

    RowLoss = Callable[[Tensor, Tensor], Tensor]

# Scores of a chunk: 256 MB in float32. On a CPU fewer, which are still near when they are read again:
# a fifth faster than all at once.
CHUNK_SCORES = 1 << 26
CHUNK_SCORES_ON_CPU = 1 << 23


def usual_chunk(device: str) -> int:
    """Return how many scores exist at once.

    Args:
        device: the type of a device.
    """
    return CHUNK_SCORES_ON_CPU if device == "cpu" else CHUNK_SCORES


def summed_loss(
    rows: ScoreRows, truth: Tensor, loss: RowLoss, *, chunk_scores: int | None = None
) -> Tensor:
    """Return the sum of a loss over rows.

    Args:
        rows: what is scored.
        truth: [K], of each row.
        loss: from scores [k, V] and truth [k] to losses [k].
        chunk_scores: scores that exist at once; None takes what suits the device.

    Returns:
        A scalar, with the gradient of rows, weight and bias; not differentiable twice.
    """
    usual = usual_chunk(rows.hidden.device.type)
    num_rows = max(1, (chunk_scores or usual) // len(rows.weight))
    if len(truth) <= num_rows:
        return loss(rows.scores(), truth).sum()
    layer = (rows.hidden, rows.weight, rows.bias)
    total: Tensor = _SummedLoss.apply(loss, num_rows, truth, *layer)  # type: ignore[no-untyped-call]
    return total


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: RowLoss, num_rows: int, truth: Tensor, *layer: Tensor) -> Tensor:
        hidden, *constants = layer
        table, shift = (each.detach().requires_grad_() for each in constants)
        total = hidden.new_zeros((), dtype=torch.float32)
        found: list[Tensor] = []
        for some, known in zip(
            _split(hidden.detach(), num_rows), _split(truth, num_rows), strict=True
        ):
            leaf = some.requires_grad_()
            with torch.enable_grad():
                part = loss(F.linear(leaf, table, shift), known).sum()
            # Gradients of weight and bias add up in `grad`.
            part.backward()  # type: ignore[no-untyped-call]
            total += part.detach()
            assert leaf.grad is not None
            found.append(leaf.grad)
        ctx.save_for_backward(torch.cat(found), table.grad, shift.grad)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        return None, None, None, *(each * gradients[0] for each in ctx.saved_tensors)


def _split(values: Tensor, num_rows: int) -> Sequence[Tensor]:
    parts: Sequence[Tensor] = values.split(num_rows)  # type: ignore[no-untyped-call]
    return parts
