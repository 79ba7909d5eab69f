"""One row per cell from the hidden states of its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from omics.models.ragged_layout import RaggedLayout


def first_token(hidden_Td: Tensor, layout: RaggedLayout) -> Tensor:
    """Return the first token of each cell, [n, d]; zeros for an empty cell.

    Args:
        hidden_Td: hidden states.
        layout: of the batch.
    """
    if not len(hidden_Td):
        return hidden_Td.new_zeros(len(layout), hidden_Td.shape[1])
    return hidden_Td[layout.first] * (layout.lengths > 0)[:, None]


def mean(hidden_Td: Tensor, layout: RaggedLayout) -> Tensor:
    """Return the mean over the tokens of each cell, [n, d]; zeros for an empty cell.

    Tokens are added in order, one cell independent of the others: on a CPU the sum is the same
    bit for bit in whatever batch.

    Args:
        hidden_Td: hidden states.
        layout: of the batch.
    """
    total = hidden_Td.new_zeros(len(layout), hidden_Td.shape[1])
    total = total.index_add(0, layout.cell, hidden_Td)
    return total / layout.lengths.clamp(min=1)[:, None].to(total.dtype)


POOLINGS: dict[str, Callable[[Tensor, RaggedLayout], Tensor]] = {
    "first_token": first_token,
    "mean": mean,
}
