"""Loss terms: each is a sum on this device and a count, never a mean of its own.

The mean is taken once, over all tokens, cells or genes of the optimiser step (all micro-batches,
all processes): means of means weigh a short cell like a long one and depend on how cells fall
on devices.

- A term with nothing to predict sums over nothing: zero, with the graph attached.
- Whole-cell terms read the decoder only where the ragged target has entries and at sums over all
  genes: no dense target is built.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omics.tokenizers.fields import UNLABELLED

if TYPE_CHECKING:
    from omics.models import ModelOutput
    from omics.train.training_batch import TrainingBatch

Array = np.ndarray[Any, np.dtype[Any]]


class LossTerm(Protocol):
    """One term of an objective."""

    @property
    def name(self) -> str:
        """Unique within the objective."""
        ...

    @property
    def weight(self) -> float:
        """The factor of the term."""
        ...

    def count(self, batch: TrainingBatch) -> float:
        """Return what the term's mean is over in a numpy batch (a sum of weights)."""
        ...

    def total(self, output: ModelOutput, batch: TrainingBatch) -> Tensor:
        """Return the sum over the batch, a scalar in the graph."""
        ...

    def to(self, device: torch.device | str) -> LossTerm:
        """Return the term with its constants on a device, for `total`; `count` wants the host."""
        ...


class _OnDevice:
    """Moves the tensors among a term's fields."""

    __slots__ = ()

    def to(self, device: torch.device | str) -> Self:
        """Return the term with its constants on a device.

        Args:
            device: where the model is.
        """
        parts = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        moved = {n: v.to(device) for n, v in parts.items() if isinstance(v, Tensor)}
        return replace(self, **moved) if moved else self  # type: ignore[type-var]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedMse(_OnDevice):
    """Squared error of hidden values of a continuous field."""

    name: str
    weight: float
    field: str

    def count(self, batch: TrainingBatch) -> float:
        """Return the number of hidden tokens."""
        return float(len(batch.hidden_positions[self.field]))

    def total(self, output: ModelOutput, batch: TrainingBatch) -> Tensor:
        """Return the sum of squared errors."""
        predicted = output.fields[f"{self.field}_regression"][:, 0]
        return F.mse_loss(predicted, batch.hidden_values[self.field], reduction="sum")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedCrossEntropy(_OnDevice):
    """Cross-entropy of hidden ids of a discrete field."""

    name: str
    weight: float
    field: str

    def count(self, batch: TrainingBatch) -> float:
        """Return the number of hidden tokens."""
        return float(len(batch.hidden_positions[self.field]))

    def total(self, output: ModelOutput, batch: TrainingBatch) -> Tensor:
        """Return the sum of cross-entropies."""
        scores = output.fields[f"{self.field}_token_scores"]
        return F.cross_entropy(scores, batch.hidden_values[self.field].long(), reduction="sum")


@dataclass(frozen=True, slots=True, kw_only=True)
class WcedIsZero(_OnDevice):
    """Binary cross-entropy of 'this gene is not expressed' over all measured genes of a cell.

    Attributes:
        measured: int64, token ids of the genes that the store measures.
    """

    name: str
    weight: float
    field: str
    output: int
    measured: Tensor

    def count(self, batch: TrainingBatch) -> float:
        """Return cells times measured genes."""
        return float(len(batch.tokens) * len(self.measured))

    def total(self, output: ModelOutput, batch: TrainingBatch) -> Tensor:
        """Return the sum of cross-entropies.

        With z the logit of 'zero': a zero gene costs softplus(-z), an expressed one softplus(z) =
        softplus(-z) + z. So the sum over all genes of softplus(-z), plus z at expressed ones.
        """
        logits = output.wced[self.field][:, :, self.output]
        targets = batch.tokens.targets
        assert targets is not None
        expressed = logits[batch.target_cell, targets.fields["genes"].long()]
        all_genes = logits.index_select(1, self.measured)
        return F.softplus(-all_genes).sum() + expressed.sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class WcedMse(_OnDevice):
    """Squared error of the values of a whole cell, decoded from its pooled row.

    Attributes:
        ignore_zero: only expressed genes count; else zeros are targets too.
        measured: int64, token ids of the genes that the store measures.
    """

    name: str
    weight: float
    field: str
    output: int
    ignore_zero: bool
    measured: Tensor

    def count(self, batch: TrainingBatch) -> float:
        """Return the expressed genes of the cells, or cells times measured genes."""
        if self.ignore_zero:
            return float(len(batch.target_cell))
        return float(len(batch.tokens) * len(self.measured))

    def total(self, output: ModelOutput, batch: TrainingBatch) -> Tensor:
        """Return the sum of squared errors."""
        decoded = output.wced[self.field][:, :, self.output]
        targets = batch.tokens.targets
        assert targets is not None
        at_expressed = decoded[batch.target_cell, targets.fields["genes"].long()]
        values = targets.fields[self.field]
        error = F.mse_loss(at_expressed, values, reduction="sum")
        if self.ignore_zero:
            return error
        measured = decoded.index_select(1, self.measured)
        return error + measured.square().sum() - at_expressed.square().sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCrossEntropy(_OnDevice):
    """Weighted cross-entropy of a label column; its count is the sum of class weights.

    Attributes:
        class_weight: float32 [C], mean 1 over the training cells.
    """

    name: str
    weight: float
    label: str
    class_weight: Tensor
    label_smoothing: float = 0.0

    def count(self, batch: TrainingBatch) -> float:
        """Return the sum of the class weights of the labelled cells."""
        labels = np.asarray(batch.tokens.labels[self.label])
        return float(self.class_weight.numpy()[labels[labels != UNLABELLED]].sum())

    def total(self, output: ModelOutput, batch: TrainingBatch) -> Tensor:
        """Return the weighted sum of cross-entropies."""
        logits = output.labels[self.label]
        labels = batch.tokens.labels[self.label]
        return F.cross_entropy(
            logits,
            labels,
            weight=self.class_weight,
            ignore_index=UNLABELLED,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )


def class_weights(labels: Array, num_classes: int, exponent: float) -> Tensor:
    """Return float32 [C] class weights 1 / n ** exponent, scaled to a mean of 1 over the cells.

    Args:
        labels: int64 [n] of the training cells; -100 is left out.
        num_classes: C.
        exponent: 0 for no weighting, 1 for balanced classes.
    """
    count = np.bincount(labels[labels != UNLABELLED], minlength=num_classes).astype(np.float64)
    weight = np.zeros(num_classes)
    seen = count > 0
    weight[seen] = count[seen] ** -exponent
    weight *= count.sum() / max((weight * count).sum(), 1e-12)
    return torch.tensor(weight, dtype=torch.float32)
