"""Tokens to vectors: the sum of what each field contributes.

- `embedding`: a table of ids.
- `mlp`: a small network of the value; the specials of a continuous field (values below 0) come
  from a table of their own and pass no network.
- `scaled_by`: the value times a second table of the gene: a linear path from expression to the
  pooled row, as principal components have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from omics.data.errors import InputDataError

if TYPE_CHECKING:
    from omics.models.model_config import FieldInput, ModelConfig
    from omics.models.ragged_layout import RaggedLayout


class ContinuousEmbedding(nn.Module):
    """Values >= 0 through an MLP, special values from a table."""

    def __init__(self, field: FieldInput, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(1, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
        )
        self.specials = nn.Embedding(field.vocabulary_size, hidden_size)

    def forward(self, value_T: Tensor) -> Tensor:
        """Return [T, d].

        Args:
            value_T: float32; -(id + 1) for a special token.
        """
        is_special = value_T < 0
        special_id = (-value_T - 1).clamp(min=0).long()
        value = value_T.clamp(min=0)[:, None].to(self.specials.weight.dtype)
        return torch.where(is_special[:, None], self.specials(special_id), self.mlp(value))


class InputEmbedding(nn.Module):
    """The sum of the fields' embeddings, and of learned positions if there are any."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.max_positions = config.max_positions
        self.scaled_by = {f.name: f.scaled_by for f in config.fields if f.scaled_by is not None}
        self.fields = nn.ModuleDict(
            {
                f.name: nn.Embedding(f.vocabulary_size, d)
                if f.encoder == "embedding"
                else ContinuousEmbedding(f, d)
                for f in config.fields
            }
        )
        self.scaled = nn.ModuleDict(
            {
                name: nn.Embedding(config.field(by).vocabulary_size, d)
                for name, by in self.scaled_by.items()
            }
        )
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.max_positions, d) if learned else None

    def forward(self, fields: dict[str, Tensor], layout: RaggedLayout) -> Tensor:
        """Return [T, d].

        Args:
            fields: `{name: [T]}`.
            layout: of the batch.

        Raises:
            InputDataError: a cell is longer than the table of learned positions.
        """
        total = None
        for name, module in self.fields.items():
            part = module(fields[name])
            if name in self.scaled_by:
                # Special values are negative; clamped, they scale by zero and add nothing.
                value = fields[name].clamp(min=0)[:, None]
                part = part + self.scaled[name](fields[self.scaled_by[name]]) * value
            total = part if total is None else total + part
        assert total is not None
        if self.positions is not None:
            longest = max(
                (b - a for a, b in zip(layout.bounds[:-1], layout.bounds[1:], strict=True)),
                default=0,
            )
            if longest > self.max_positions:
                raise InputDataError(
                    f"A cell or window has {longest} tokens; this model has "
                    f"{self.max_positions} learned positions. Use shorter input."
                )
            total = total + self.positions(layout.position)
        return total
