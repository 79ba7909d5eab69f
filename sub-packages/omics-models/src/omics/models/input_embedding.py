"""Tokens to vectors: the sum of what each field contributes.

- `embedding`: a table of ids, or a table of another width (pre-trained gene vectors) and a
  projection of it.
- Any other encoder: a value to a vector (`value_embedding`).
- `scaled_by`: the value times a second table of the gene: a linear path from expression to the
  pooled row, as principal components have.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from torch import Tensor, nn

from omics.data.errors import InputDataError
from omics.models.value_embedding import VALUE_EMBEDDINGS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omics.models.model_config import FieldInput, ModelConfig
    from omics.models.ragged_layout import RaggedLayout


class ProjectedTable(nn.Module):
    """A table of vectors of their own width, projected to the width of the model."""

    def __init__(self, num_ids: int, vector_size: int, hidden_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_ids, vector_size)
        self.projection = nn.Linear(vector_size, hidden_size)

    @property
    def weight(self) -> Tensor:
        """[ids, hidden_size], the projected table: what a tied decoder reads."""
        return self.projection(self.table.weight)

    def forward(self, id_T: Tensor) -> Tensor:
        """Return [T, d].

        Args:
            id_T: ids of tokens.
        """
        return self.projection(self.table(id_T))


class InputEmbedding(nn.Module):
    """The sum of the fields' embeddings, and of learned positions if there are any."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.max_positions = config.max_positions
        self.scaled_by = {f.name: f.scaled_by for f in config.fields if f.scaled_by is not None}
        self.fields = nn.ModuleDict({f.name: _field_module(f, d) for f in config.fields})
        self.scaled = nn.ModuleDict(
            {
                name: nn.Embedding(config.field(by).vocabulary_size, d)
                for name, by in self.scaled_by.items()
            }
        )
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.max_positions, d) if learned else None
        self.norm: nn.Module = nn.Identity()
        self.dropout: nn.Module = nn.Identity()
        if config.embedding_norm:
            self.norm = nn.LayerNorm(d, config.layer_norm_eps, bias=config.embedding_norm_bias)
            self.dropout = nn.Dropout(config.dropout)

    def forward(self, fields: Mapping[str, Tensor], layout: RaggedLayout) -> Tensor:
        """Return [T, d].

        Args:
            fields: `{name: [T]}`.
            layout: of the batch.

        Raises:
            InputDataError: a cell is longer than the table of learned positions.
        """
        return self.finish(reduce(add, self.parts(fields).values()), layout)

    def parts(self, fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what each field contributes, `{name: [T, d]}`; the input is their sum.

        Args:
            fields: `{name: [T]}`.
        """
        parts = {}
        for name, module in self.fields.items():
            part = module(fields[name])
            if name in self.scaled_by:
                # Special values are negative; clamped, they scale by zero and add nothing.
                value = fields[name].clamp(min=0)[:, None]
                part = part + self.scaled[name](fields[self.scaled_by[name]]) * value
            parts[name] = part
        return parts

    def finish(self, total: Tensor, layout: RaggedLayout) -> Tensor:
        """Return the input of the encoder, [T, d], from the sum of the fields.

        Args:
            total: [T, d], the sum of `parts`.
            layout: of the batch.

        Raises:
            InputDataError: a cell is longer than the table of learned positions.
        """
        if self.positions is not None:
            if layout.longest > self.max_positions:
                raise InputDataError(
                    f"A cell or window has {layout.longest} tokens; this model has "
                    f"{self.max_positions} learned positions. Use shorter input."
                )
            total = total + self.positions(layout.position)
        normed: Tensor = self.dropout(self.norm(total))
        return normed


def _field_module(field: FieldInput, hidden_size: int) -> nn.Module:
    if field.encoder != "embedding":
        return VALUE_EMBEDDINGS[field.encoder](field, hidden_size)
    if field.vector_size is None:
        return nn.Embedding(field.vocabulary_size, hidden_size)
    return ProjectedTable(field.vocabulary_size, field.vector_size, hidden_size)
