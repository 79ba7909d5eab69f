"""Heads: what is read from hidden states, each on the rows it needs and no others.

- A field head sees only the tokens a loss asks for (masked ones); it is never run on all.
- The whole-cell decoder (WCED) and label heads see one pooled row per cell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
        self.dropout = nn.Dropout(config.dropout)
        self.decoder = nn.Linear(config.hidden_size, label.num_classes)

    def forward(self, pooled_nd: Tensor) -> Tensor:
        """Return [n, C].

        Args:
            pooled_nd: one row per cell.
        """
        return self.decoder(self.dropout(pooled_nd))
