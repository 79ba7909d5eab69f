"""The training step: a plain function of model, batch and objective; Lightning wraps it.

`loss = sum over terms of weight * local sum / global count * scale`, where the count is over all
micro-batches and processes of the optimiser step and `scale` undoes the divisions by their
numbers that the trainer (DDP, gradient accumulation) will do. The gradient is then that of the
mean over everything in the step, however the cells fall on devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from omics.models import OmicsModel
    from omics.train.objective import Objective
    from omics.train.training_batch import TrainingBatch
    from omics.train.validation_metrics import ValidationMetrics

Sums = dict[str, tuple[Tensor, Tensor | float]]


def training_step(
    model: OmicsModel, batch: TrainingBatch, objective: Objective
) -> tuple[Tensor, Sums]:
    """Return the loss to differentiate and what to record.

    Args:
        model: in training mode.
        batch: on the model's device, with its totals.
        objective: of the run.

    Returns:
        The scaled loss, and `{term: (local sum, local count)}` without gradients, with the
        accuracy of labels among them.
    """
    output = objective.forward(model, batch)
    loss = output.pooled.sum() * 0.0
    if not len(batch.tokens):
        # A process with no cell left: without tokens some layers have no part in the loss, and the
        # others would wait for their gradients.
        loss = loss + sum(each.sum() for each in model.parameters() if each.requires_grad) * 0.0
    sums: Sums = {}
    for term in objective.terms:
        total = term.total(output, batch)
        over = batch.totals[term.name]
        # Without anything to predict the sum is zero; it stays in the graph all the same.
        loss = loss + term.weight * total / (over if over > 0 else 1.0)
        sums[term.name] = (total.detach(), batch.counts[term.name])
        if term.about == "classes":
            examples = term.examples(output, batch)
            right = (examples.predicted.argmax(-1) == examples.truth).sum()
            sums[f"{term.source}_accuracy"] = (right, float(len(examples.truth)))
    return loss * batch.scale, sums


@torch.no_grad()
def validation_step(
    model: OmicsModel, batch: TrainingBatch, objective: Objective, metrics: ValidationMetrics
) -> Sums:
    """Return the sums of the loss terms, and add a batch to the metrics.

    Args:
        model: in evaluation mode.
        batch: on the model's device.
        objective: of the run.
        metrics: of the objective.
    """
    output = objective.forward(model, batch)
    metrics.update(objective.terms, output, batch)
    return {
        term.name: (term.total(output, batch), batch.counts[term.name]) for term in objective.terms
    }
