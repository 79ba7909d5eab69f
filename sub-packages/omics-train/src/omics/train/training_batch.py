"""`TrainingBatch`: tokens with everything a loss needs, prepared on the host."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omics.models.ragged_layout import RaggedLayout

if TYPE_CHECKING:
    from omics.tokenizers import TokenBatch

# numpy arrays before `to`, torch tensors after it, as in TokenBatch.
Values = Any


@dataclass(slots=True, kw_only=True)
class TrainingBatch:
    """A micro-batch.

    Attributes:
        tokens: the (masked) input, with labels and targets.
        hidden_positions: `{field: int64 [K]}`, flat positions of the masked tokens.
        hidden_values: `{field: [K]}`, what they held.
        target_cell: int64 [E], the cell of each entry of `tokens.targets`.
        counts: `{term: number}`, what each loss term of this micro-batch is a mean over.
        totals: `{term: number}`, the same over all micro-batches and processes of the optimiser
            step; filled in by the window of the loader.
        scale: undoes the division by processes and micro-batches that the trainer will do.
        layout: of the tokens, None before `to`.
    """

    tokens: TokenBatch
    hidden_positions: dict[str, Values]
    hidden_values: dict[str, Values]
    target_cell: Values
    counts: dict[str, float]
    totals: dict[str, float] = field(default_factory=dict)
    scale: float = 1.0
    layout: RaggedLayout | None = None

    def to(self, device: torch.device | str) -> TrainingBatch:
        """Return the batch as tensors on a device; copies do not block.

        Args:
            device: where the model is.
        """
        if self.layout is not None:
            return self

        def convert(values: Values) -> Tensor:
            return torch.from_numpy(values).to(device, non_blocking=True)

        return replace(
            self,
            tokens=self.tokens.to_torch(device),
            hidden_positions={k: convert(v) for k, v in self.hidden_positions.items()},
            hidden_values={k: convert(v) for k, v in self.hidden_values.items()},
            target_cell=convert(self.target_cell),
            layout=RaggedLayout.from_offsets(torch.from_numpy(self.tokens.offsets), device),
        )
