"""Variable-length attention on flat tokens: a token sees its own cell and nothing else.

- `loop`: one SDPA call a cell; the fastest exact way on a CPU, and right on every device.
- `dense`: one call with a T x T block mask; the oracle of the tests.
- Shapes: T tokens, H heads, D values a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from omics.models.ragged_layout import RaggedLayout

Backend = Callable[[Tensor, Tensor, Tensor, RaggedLayout], Tensor]


def loop(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: RaggedLayout) -> Tensor:
    """Attend cell by cell.

    Args:
        q_THD: queries.
        k_THD: keys.
        v_THD: values.
        layout: of the batch.

    Returns:
        [T, H, D].
    """
    outputs = []
    for begin, end in zip(layout.bounds[:-1], layout.bounds[1:], strict=True):
        if begin < end:
            q, k, v = (x[begin:end].transpose(0, 1)[None] for x in (q_THD, k_THD, v_THD))
            outputs.append(F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1))
    return torch.cat(outputs) if outputs else torch.zeros_like(q_THD)


def dense(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: RaggedLayout) -> Tensor:
    """Attend under a block-diagonal mask; memory grows with T squared.

    Args:
        q_THD: queries.
        k_THD: keys.
        v_THD: values.
        layout: of the batch.

    Returns:
        [T, H, D].
    """
    mask = layout.cell[:, None] == layout.cell[None, :]
    q, k, v = (x.transpose(0, 1)[None] for x in (q_THD, k_THD, v_THD))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)


BACKENDS: dict[str, Backend] = {"loop": loop, "dense": dense}
