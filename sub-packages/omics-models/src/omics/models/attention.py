"""Variable-length softmax attention on flat tokens: a token sees its own cell and nothing else.

- `loop`: one SDPA call a cell; the fastest exact way on a CPU, and right on every device.
- `dense`: one call with a T x T block mask; the oracle of the tests.
- With a window a token sees those at most so far away in its cell.
- Shapes: T tokens, H heads, D values a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from omics.models.ragged_layout import RaggedLayout

Backend = Callable[[Tensor, Tensor, Tensor, RaggedLayout, int | None], Tensor]
CellAttention = Callable[[Tensor, Tensor, Tensor], Tensor]


def attend_cells(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: RaggedLayout, attend: CellAttention
) -> Tensor:
    """Run an attention of one cell over all cells.

    Args:
        q_THD: queries.
        k_THD: keys.
        v_THD: values.
        layout: of the batch.
        attend: from queries, keys and values [H, n, D] of a cell to [H, n, D].

    Returns:
        [T, H, D].
    """
    outputs = []
    for begin, end in zip(layout.bounds[:-1], layout.bounds[1:], strict=True):
        if begin < end:
            q, k, v = (x[begin:end].transpose(0, 1) for x in (q_THD, k_THD, v_THD))
            outputs.append(attend(q, k, v).transpose(0, 1))
    return torch.cat(outputs) if outputs else torch.zeros_like(q_THD)


def loop(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: RaggedLayout, window: int | None = None
) -> Tensor:
    """Attend cell by cell.

    Args:
        q_THD: queries.
        k_THD: keys.
        v_THD: values.
        layout: of the batch.
        window: how far a token sees; None for its whole cell.

    Returns:
        [T, H, D].
    """

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = None
        if window is not None and q.shape[1] > window + 1:
            place = torch.arange(q.shape[1], device=q.device)
            mask = (place[:, None] - place).abs() <= window
        return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask)[0]

    return attend_cells(q_THD, k_THD, v_THD, layout, attend)


def dense(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: RaggedLayout, window: int | None = None
) -> Tensor:
    """Attend under a block-diagonal mask; memory grows with T squared.

    Args:
        q_THD: queries.
        k_THD: keys.
        v_THD: values.
        layout: of the batch.
        window: how far a token sees; None for its whole cell.

    Returns:
        [T, H, D].
    """
    mask = layout.cell[:, None] == layout.cell[None, :]
    if window is not None:
        mask = mask & ((layout.position[:, None] - layout.position).abs() <= window)
    q, k, v = (x.transpose(0, 1)[None] for x in (q_THD, k_THD, v_THD))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)


BACKENDS: dict[str, Backend] = {"loop": loop, "dense": dense}
