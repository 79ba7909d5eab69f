"""Values of a field to vectors, special tokens from a table: three ways.

- A special token travels in the same array as -(id + 1); it takes a row of a table. With
  `zero_row` the value 0 has the last row of that table: not expressed is not a little expressed.
- `mlp`: a linear layer, GELU, a linear layer; special rows stand beside the network.
- `leaky_mlp`: the same with leaky ReLU twice in between; special rows enter before the second
  linear layer, as the published multi-field BERT of BiomedSciAI computes it.
- `sinusoid`: sines and cosines of the value at frequencies that may be learned, then a linear
  layer: near values stay apart on every scale.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from omics.models.model_config import FieldInput


class ValueEmbedding(nn.Module):
    """What the three share: which tokens are special, and the table of their rows."""

    def __init__(self, field: FieldInput, width: int) -> None:
        super().__init__()
        self.zero_row = field.zero_row
        self.specials = nn.Embedding(field.vocabulary_size + int(field.zero_row), width)

    def split(self, value_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (values [T, 1], whether special [T, 1], rows of special tokens [T, width]).

        Args:
            value_T: float32; -(id + 1) for a special token.
        """
        is_special = value_T < 0
        row = (-value_T - 1).clamp(min=0).long()
        if self.zero_row:
            is_zero = value_T == 0
            row = row.masked_fill(is_zero, self.specials.num_embeddings - 1)
            is_special = is_special | is_zero
        value = value_T.clamp(min=0)[:, None].to(self.specials.weight.dtype)
        return value, is_special[:, None], self.specials(row)

    @torch.no_grad()
    def reset_frequencies(self) -> None:
        """Draw what is a bare parameter; nothing here."""


class MlpEmbedding(ValueEmbedding):
    """`mlp`: the network of a value beside the table of special tokens."""

    def __init__(self, field: FieldInput, hidden_size: int) -> None:
        super().__init__(field, hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(1, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, value_T: Tensor) -> Tensor:
        """Return [T, d]; see `split`."""
        value, is_special, special = self.split(value_T)
        return torch.where(is_special, special, self.mlp(value))


class LeakyMlpEmbedding(ValueEmbedding):
    """`leaky_mlp`: value and special rows through one last layer."""

    def __init__(self, field: FieldInput, hidden_size: int) -> None:
        super().__init__(field, field.inner_size)
        self.first = nn.Linear(1, field.inner_size)
        self.second = nn.Linear(field.inner_size, hidden_size)

    def forward(self, value_T: Tensor) -> Tensor:
        """Return [T, d]; see `split`."""
        value, is_special, special = self.split(value_T)
        inner = torch.where(is_special, special, F.leaky_relu(self.first(value)))
        return self.second(F.leaky_relu(inner))


class SinusoidEmbedding(ValueEmbedding):
    """`sinusoid`: a linear layer over sines and cosines of some frequencies."""

    def __init__(self, field: FieldInput, hidden_size: int) -> None:
        super().__init__(field, hidden_size)
        self.scale = field.frequency_scale
        self.frequencies = nn.Parameter(
            torch.empty(field.num_frequencies), requires_grad=field.learned_frequencies
        )
        self.combine = nn.Linear(2 * field.num_frequencies, hidden_size, bias=False)
        self.reset_frequencies()

    @torch.no_grad()
    def reset_frequencies(self) -> None:
        """Draw the frequencies from N(0, (2 pi scale)^2)."""
        nn.init.normal_(self.frequencies, std=2 * math.pi * self.scale)

    def forward(self, value_T: Tensor) -> Tensor:
        """Return [T, d]; see `split`."""
        value, is_special, special = self.split(value_T)
        angle = value * self.frequencies
        waves = torch.cat((angle.sin(), angle.cos()), -1)
        return torch.where(is_special, special, self.combine(waves))


VALUE_EMBEDDINGS: dict[str, Callable[[FieldInput, int], ValueEmbedding]] = {
    "mlp": MlpEmbedding,
    "leaky_mlp": LeakyMlpEmbedding,
    "sinusoid": SinusoidEmbedding,
}
