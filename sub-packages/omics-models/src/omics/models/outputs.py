"""`ModelOutput`: what a forward pass gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class ModelOutput:
    """Outputs for `n` cells with `T` flat tokens.

    Attributes:
        hidden: [T, d], last hidden states.
        pooled: [n, d], one row per cell.
        layers: `{layer: [T, d]}`, hidden states of the layers that were asked for.
        fields: `{"<field>_<kind>": [K, width]}`, field heads on the chosen tokens.
        wced: `{field: [n, V, outputs]}`.
        labels: `{label: [n, C]}` logits.
    """

    hidden: Tensor
    pooled: Tensor
    layers: dict[int, Tensor] = field(default_factory=dict)
    fields: dict[str, Tensor] = field(default_factory=dict)
    wced: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, Tensor] = field(default_factory=dict)
