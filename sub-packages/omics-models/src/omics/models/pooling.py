"""One row per cell from the hidden states of its tokens.

- A pooling is a name, or several joined by `+`, whose rows stand side by side.
- `mean_after_first` leaves out the first token and nothing else: closing tokens count, as in the
  published models that are pooled like this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from omics.models.model_config import place_of, pooling_parts

if TYPE_CHECKING:
    from collections.abc import Callable

    from omics.models.ragged_layout import RaggedLayout


def token(hidden_Td: Tensor, layout: RaggedLayout, place: int) -> Tensor:
    """Return the token at one place of each cell, [n, d]; zeros for a cell without it.

    Args:
        hidden_Td: hidden states.
        layout: of the batch.
        place: position in the cell, from 0.
    """
    if not len(hidden_Td):
        return hidden_Td.new_zeros(len(layout), hidden_Td.shape[1])
    there = layout.lengths > place
    return hidden_Td[(layout.first + place) * there] * there[:, None]


def first_token(hidden_Td: Tensor, layout: RaggedLayout) -> Tensor:
    """Return the first token of each cell, [n, d]; zeros for an empty cell.

    Args:
        hidden_Td: hidden states.
        layout: of the batch.
    """
    return token(hidden_Td, layout, 0)


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


def mean_after_first(hidden_Td: Tensor, layout: RaggedLayout) -> Tensor:
    """Return the mean over all tokens of a cell but the first, [n, d]; zeros where there is none.

    Args:
        hidden_Td: hidden states.
        layout: of the batch.
    """
    total = hidden_Td.new_zeros(len(layout), hidden_Td.shape[1])
    kept = hidden_Td * (layout.position > 0)[:, None]
    total = total.index_add(0, layout.cell, kept)
    return total / (layout.lengths - 1).clamp(min=1)[:, None].to(total.dtype)


class Pooler(nn.Module):
    """The tanh of a linear layer, [n, d] to [n, d], as in BERT (Devlin et al. 2019)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, row_nd: Tensor) -> Tensor:
        """Return [n, d].

        Args:
            row_nd: one row per cell.
        """
        return torch.tanh(self.dense(row_nd))


_WITHOUT_WEIGHTS: dict[str, Callable[[Tensor, RaggedLayout], Tensor]] = {
    "first_token": first_token,
    "mean": mean,
    "mean_after_first": mean_after_first,
}
_BEHIND_POOLER = {"pooler": first_token, "pooler_of_mean": mean}


def pool(pooling: str, hidden_Td: Tensor, layout: RaggedLayout, pooler: Pooler | None) -> Tensor:
    """Return the rows of a pooling, [n, parts * d].

    Args:
        pooling: checked by the model's configuration.
        hidden_Td: hidden states.
        layout: of the batch.
        pooler: the weights of `pooler`; may be None without it.
    """
    rows = []
    for part in pooling_parts(pooling):
        if part in _WITHOUT_WEIGHTS:
            rows.append(_WITHOUT_WEIGHTS[part](hidden_Td, layout))
        elif part in _BEHIND_POOLER:
            assert pooler is not None
            rows.append(pooler(_BEHIND_POOLER[part](hidden_Td, layout)))
        else:
            place = place_of(part)
            assert place is not None
            rows.append(token(hidden_Td, layout, place))
    return rows[0] if len(rows) == 1 else torch.cat(rows, 1)
