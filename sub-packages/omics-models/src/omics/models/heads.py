"""Heads: what is read from hidden states, each on the rows it needs and no others.

- A field head sees only the tokens a loss asks for (masked ones); it is never run on all.
- The whole-cell decoder (WCED) and label heads see one pooled row per cell.
- A label head standardises the row by the means and deviations of its training cells: what all
  cells share would otherwise drown what tells them apart, dropout above all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from omics.models.model_config import FieldHeadConfig, LabelHeadConfig, ModelConfig, WcedConfig


class FieldHead(nn.Module):
    """Hidden states of chosen tokens [K, d] to outputs [K, width]."""

    def __init__(self, config: ModelConfig, head: FieldHeadConfig) -> None:
        super().__init__()
        d = config.hidden_size
        is_scores = head.kind == "token_scores"
        width = config.field(head.field).vocabulary_size if is_scores else 1
        self.transform = nn.Linear(d, d)
        self.activation = nn.GELU()
        self.decoder = nn.Linear(d, width)

    def forward(self, hidden_Kd: Tensor) -> Tensor:
        """Return [K, width].

        Args:
            hidden_Kd: chosen rows of the hidden states.
        """
        return self.decoder(self.activation(self.transform(hidden_Kd)))


class WcedHead(nn.Module):
    """Pooled rows [n, d] to outputs of every gene, [n, V, number of outputs]."""

    def __init__(self, config: ModelConfig, wced: WcedConfig) -> None:
        super().__init__()
        self.num_outputs = len(wced.outputs)
        self.decoder = nn.Linear(config.hidden_size, config.gene_vocabulary_size * self.num_outputs)

    def forward(self, pooled_nd: Tensor) -> Tensor:
        """Return [n, V, number of outputs].

        Args:
            pooled_nd: one row per cell.
        """
        return self.decoder(pooled_nd).unflatten(1, (self.num_outputs, -1)).transpose(1, 2)


class LabelHead(nn.Module):
    """Pooled rows [n, d] to class logits [n, C]."""

    def __init__(self, config: ModelConfig, label: LabelHeadConfig) -> None:
        super().__init__()
        # Constants of the head, set once; parameters, because those are what checkpoints keep.
        d = config.hidden_size
        self.center = nn.Parameter(torch.zeros(d), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(d), requires_grad=False)
        self.dropout = nn.Dropout(config.dropout)
        self.decoder = nn.Linear(d, label.num_classes)

    @torch.no_grad()
    def standardize(self, pooled_nd: Tensor) -> None:
        """Take means and deviations from the rows of the training cells.

        Args:
            pooled_nd: one row per training cell.
        """
        self.center.copy_(pooled_nd.mean(0))
        deviation = pooled_nd.std(0, correction=0)
        self.scale.copy_(1 / deviation.clamp(min=1e-6))

    def forward(self, pooled_nd: Tensor) -> Tensor:
        """Return [n, C].

        Args:
            pooled_nd: one row per cell.
        """
        return self.decoder(self.dropout((pooled_nd - self.center) * self.scale))
