"""Loss terms on tokens: hidden values and ids of fields, and values that another cell holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from omics.models.predicted_values import predicted_values
from omics.train.chunked_scores import summed_loss
from omics.train.losses import Examples, Term

if TYPE_CHECKING:
    from torch import Tensor

    from omics.models import ModelOutput
    from omics.train.loss_table import FieldLoss, LossOptions
    from omics.train.training_batch import TrainingBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLoss(Term):
    """A loss of heads on the tokens that were asked about.

    Attributes:
        field: that is asked about.
        heads: names of the heads that the formula takes.
        row: of the table of losses.
        options: of the loss.
        zero_head: the head that says whether the value is 0, where there is one: it decides about
            predicted values.
        token_values: float32 [V], what each id stands for, for losses that need it.
    """

    field: str
    heads: tuple[str, ...]
    row: FieldLoss
    options: LossOptions
    zero_head: str | None = None
    token_values: Tensor | None = None

    @property
    def about(self) -> str:
        """`values`, `zeros` or `tokens`."""
        return self.row.about

    def count(self, batch: TrainingBatch) -> float:
        """Return the number of tokens asked about; without zeros if these are ignored."""
        values = batch.questions[self.field].values
        return float(np.count_nonzero(values) if self.options.ignore_zero else len(values))

    def total(self, output: ModelOutput, batch: TrainingBatch) -> Tensor:
        """Return the sum of the losses."""
        truth = batch.questions[self.field].values
        if self.heads[0] in output.scored:
            return summed_loss(output.scored[self.heads[0]], truth, self._losses_of_scores)
        outputs = [self._output(name, output) for name in self.heads]
        if self.token_values is not None:
            outputs.append(self.token_values)
        losses = self.row.formula(tuple(outputs), truth, self.options)
        if self.options.ignore_zero:
            losses = losses.masked_fill(truth == 0, 0.0)
        return losses.sum()

    def examples(self, output: ModelOutput, batch: TrainingBatch) -> Examples:
        """Return predicted values, logits of zero or scores of tokens, with the truth."""
        asked = batch.questions[self.field]
        predicted = self._output(self.heads[0], output).float()
        if self.about == "values":
            link = self.row.link(self.options)
            assert link is not None
            zero = None if self.zero_head is None else self._output(self.zero_head, output)
            predicted = predicted_values(predicted, link=link, zero_logit=zero)
            return Examples(predicted=predicted, truth=asked.values, genes=asked.genes)
        truth = asked.values == 0 if self.about == "zeros" else asked.values.long()
        return Examples(predicted=predicted, truth=truth, genes=asked.genes)

    def _losses_of_scores(self, scores: Tensor, truth: Tensor) -> Tensor:
        values = () if self.token_values is None else (self.token_values,)
        return self.row.formula((scores, *values), truth, self.options)

    def _output(self, head: str, output: ModelOutput) -> Tensor:
        if head in output.scored:
            return output.scored[head].scores()
        values = output.fields[head]
        return values if self.about == "tokens" else values[:, 0]
