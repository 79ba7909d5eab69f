"""Loss terms of label columns: classes, several labels, numbers, nodes of a hierarchy.

- Only labelled cells enter a formula; which these are is found out on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from omics.tokenizers.fields import UNLABELLED
from omics.train import loss_formulas as formulas
from omics.train.losses import Examples, Term

if TYPE_CHECKING:
    from omics.models import ModelOutput
    from omics.train.loss_table import LossOptions
    from omics.train.training_batch import TrainingBatch

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTerm(Term):
    """What all losses of labels have.

    Attributes:
        label: the column.
        loss: its name in the table.
        options: of the loss.
    """

    label: str
    loss: str
    options: LossOptions

    def count(self, batch: TrainingBatch) -> float:
        """Return the number of labelled cells."""
        return float(len(batch.labelled[self.label]))

    def _pairs(self, output: ModelOutput, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Return the logits and labels of the labelled cells."""
        cells = batch.labelled[self.label]
        logits = output.labels[self.label].index_select(0, cells)
        return logits, batch.tokens.labels[self.label].index_select(0, cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassLoss(LabelTerm):
    """Weighted cross-entropy or focal loss; its count is the sum of class weights.

    Attributes:
        class_weight: float32 [C], mean 1 over the training cells.
    """

    class_weight: Tensor
    about: str = "classes"

    def count(self, batch: TrainingBatch) -> float:
        """Return the sum of the class weights of the labelled cells."""
        labels = np.asarray(batch.tokens.labels[self.label])[batch.labelled[self.label]]
        return float(self.class_weight.numpy()[labels].sum())

    def total(self, output: ModelOutput, batch: TrainingBatch) -> Tensor:
        """Return the weighted sum of the losses."""
        logits, labels = self._pairs(output, batch)
        if self.loss == "focal":
            losses = formulas.class_focal(
                logits, labels, gamma=self.options.gamma, weight=self.class_weight
            )
        else:
            losses = formulas.class_cross_entropy(
                logits,
                labels,
                weight=self.class_weight,
                label_smoothing=self.options.label_smoothing,
            )
        return losses.sum()

    def examples(self, output: ModelOutput, batch: TrainingBatch) -> Examples:
        """Return logits and class numbers."""
        logits, labels = self._pairs(output, batch)
        return Examples(predicted=logits.float(), truth=labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class HierarchyLoss(LabelTerm):
    """Cross-entropy of all classes below a label, against all classes.

    Attributes:
        below: bool [classes and nodes, C], the classes that each label stands for.
    """

    below: Tensor
    about: str = "classes"

    def total(self, output: ModelOutput, batch: TrainingBatch) -> Tensor:
        """Return the sum of the losses."""
        logits, labels = self._pairs(output, batch)
        return formulas.hierarchical_cross_entropy(logits, self.below[labels]).sum()

    def examples(self, output: ModelOutput, batch: TrainingBatch) -> Examples:
        """Return logits and classes: of those below a label the likeliest counts as the truth.

        So a prediction is right where it is below the label.
        """
        logits, labels = self._pairs(output, batch)
        logits = logits.float()
        inside = logits.masked_fill(~self.below[labels], -torch.inf)
        return Examples(predicted=logits, truth=inside.argmax(-1))


@dataclass(frozen=True, slots=True, kw_only=True)
class MultilabelLoss(LabelTerm):
    """Binary cross-entropy of each label, averaged over the labels of a cell."""

    about: str = "multilabel"

    def total(self, output: ModelOutput, batch: TrainingBatch) -> Tensor:
        """Return the sum of the losses."""
        return formulas.multilabel_cross_entropy(*self._pairs(output, batch)).sum()

    def examples(self, output: ModelOutput, batch: TrainingBatch) -> Examples:
        """Return logits and labels, both [L, C]."""
        logits, labels = self._pairs(output, batch)
        return Examples(predicted=logits.float(), truth=labels.long())


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberLoss(LabelTerm):
    """Squared or absolute error of a number."""

    about: str = "values"

    def total(self, output: ModelOutput, batch: TrainingBatch) -> Tensor:
        """Return the sum of the losses."""
        logits, labels = self._pairs(output, batch)
        formula = formulas.squared_error if self.loss == "mse" else formulas.absolute_error
        return formula(logits[:, 0], labels, shrinkage=self.options.shrinkage).sum()

    def examples(self, output: ModelOutput, batch: TrainingBatch) -> Examples:
        """Return predicted and true numbers."""
        logits, labels = self._pairs(output, batch)
        return Examples(predicted=logits[:, 0].float(), truth=labels)


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
