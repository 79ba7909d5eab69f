"""Loss terms: each is a sum on this device and a count, never a mean of its own.

The mean is taken once, over all tokens, cells or genes of the optimiser step (all micro-batches,
all processes): means of means weigh a short cell like a long one and depend on how cells fall
on devices.

- A term with nothing to predict sums over nothing: zero, with the graph attached.
- What a term predicted, beside what was true, is what its metrics see: `examples`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

from torch import Tensor

if TYPE_CHECKING:
    import torch

    from omics.models import ModelOutput
    from omics.train.training_batch import TrainingBatch


@dataclass(slots=True, kw_only=True)
class Examples:
    """Predictions of a term and the truth.

    Attributes:
        predicted: [K] values or logits, or [K, C] logits.
        truth: [K] values, bool or class numbers; [K, C] of several labels.
        genes: int64 [K], the token id of each prediction's gene; None for predictions of cells.
    """

    predicted: Tensor
    truth: Tensor
    genes: Tensor | None = None


class LossTerm(Protocol):
    """One term of an objective."""

    @property
    def name(self) -> str:
        """Unique within the objective."""
        ...

    @property
    def source(self) -> str:
        """What is predicted; several terms may have it in common."""
        ...

    @property
    def about(self) -> str:
        """The kind of prediction, which says what metrics it can have."""
        ...

    @property
    def weight(self) -> float:
        """The factor of the term."""
        ...

    @property
    def group(self) -> str | None:
        """Terms of a group are also reported together."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is measured in validation."""
        ...

    def count(self, batch: TrainingBatch) -> float:
        """Return what the term's mean is over in a numpy batch (a sum of weights)."""
        ...

    def total(self, output: ModelOutput, batch: TrainingBatch) -> Tensor:
        """Return the sum over the batch, a scalar in the graph."""
        ...

    def examples(self, output: ModelOutput, batch: TrainingBatch) -> Examples:
        """Return what was predicted and what was true."""
        ...

    def to(self, device: torch.device | str) -> LossTerm:
        """Return the term with its constants on a device, for `total`; `count` wants the host."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """What all terms have.

    Attributes:
        name: unique within the objective.
        source: what is predicted.
        weight: the factor of the term.
        group: terms of a group are also reported together.
        metrics: what is measured in validation.
    """

    name: str
    source: str
    weight: float = 1.0
    group: str | None = None
    metrics: tuple[str, ...] = ()

    def to(self, device: torch.device | str) -> Self:
        """Return the term with its constants on a device.

        Args:
            device: where the model is.
        """
        parts = {each.name: getattr(self, each.name) for each in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in parts.items() if isinstance(value, Tensor)
        }
        return replace(self, **moved) if moved else self
