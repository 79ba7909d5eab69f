"""`ModelOutput`: what a forward pass gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ScoreRows:
    """Scores of all token ids that are not computed yet: a row of them may be long.

    Attributes:
        hidden: [K, d], rows behind everything but the last layer.
        weight: [V, d], of the last layer.
        bias: [V].
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor

    def scores(self) -> Tensor:
        """Return [K, V]."""
        return F.linear(self.hidden, self.weight, self.bias)


@dataclass(slots=True)
class ModelOutput:
    """Outputs for `n` cells with `T` flat tokens.

    Attributes:
        hidden: [T, d], last hidden states; of the tokens that were asked for alone, where some were.
        pooled: [n, d], one row per cell, pooled over the same tokens.
        layers: `{layer: [T, d]}`, hidden states of the layers that were asked for.
        fields: `{"<field>_<kind>": [K, width]}`, field heads on the chosen tokens.
        scored: `{"<field>_token_scores": rows}`, those of them whose scores are left to the caller.
        wced: `{field: [n, V, outputs]}`.
        labels: `{label: [n, C]}` logits.
    """

    hidden: Tensor
    pooled: Tensor
    layers: dict[int, Tensor] = field(default_factory=dict)
    fields: dict[str, Tensor] = field(default_factory=dict)
    scored: dict[str, ScoreRows] = field(default_factory=dict)
    wced: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, Tensor] = field(default_factory=dict)
