"""Loss terms of whole-cell decoders: the values of all genes of a cell, from one row.

- The decoder is read where the ragged target has entries, and at sums over all genes: a zero costs
  f(p, 0), so the sum over all genes is that of f(p, 0) over everything plus f(p, y) - f(p, 0) over
  the expressed ones. No dense target is built in training.
- Genes that the store does not measure are no targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from omics.models.predicted_values import predicted_values
from omics.train.losses import Examples, Term

if TYPE_CHECKING:
    from collections.abc import Callable

    from omics.models import ModelOutput
    from omics.train.loss_table import FieldLoss, LossOptions
    from omics.train.training_batch import CellGenes, TrainingBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeCellLoss(Term):
    """A loss of a whole-cell decoder.

    Attributes:
        field: that is decoded.
        outputs: places of the decoder's outputs that the formula takes.
        row: of the table of losses.
        options: of the loss.
        wced_target: of which genes: `all_genes`, `input_genes` or `non_input_genes`.
        measured: int64 [M], token ids of the genes that the store measures.
        columns: int64 [M], the columns of the decoder's output that belong to them.
        gene_of_column: int64 [G], the token id of each column.
        zero_output: the place of the output that says whether a value is 0, where there is one: it
            decides about predicted values.
    """

    field: str
    outputs: tuple[int, ...]
    row: FieldLoss
    options: LossOptions
    wced_target: str
    measured: Tensor
    columns: Tensor
    gene_of_column: Tensor
    zero_output: int | None = None

    @property
    def about(self) -> str:
        """`values` or `zeros`."""
        return self.row.about

    def count(self, batch: TrainingBatch) -> float:
        """Return the number of genes of all cells that count."""
        if self.options.ignore_zero:
            return float(len(self._expressed(batch)))
        everything = len(batch.tokens) * len(self.measured)
        if self.wced_target == "all_genes":
            return float(everything)
        num_input = len(self._input(batch))
        return float(num_input if self.wced_target == "input_genes" else everything - num_input)

    def total(self, output: ModelOutput, batch: TrainingBatch) -> Tensor:
        """Return the sum of the losses."""
        decoded = output.wced[self.field]
        expressed = self._expressed(batch)
        at_expressed = _at(decoded, self.outputs, expressed)
        if self.options.ignore_zero:
            return self._loss(at_expressed, expressed.value).sum()
        if self.wced_target == "input_genes":
            shown = self._input(batch)
            return self._loss(_at(decoded, self.outputs, shown), shown.value).sum()
        everything = tuple(
            decoded[:, :, place].index_select(1, self.columns) for place in self.outputs
        )
        total = self._loss(everything, None).sum()
        if self.wced_target == "non_input_genes":
            shown = self._input(batch)
            total = total - self._loss(_at(decoded, self.outputs, shown), None).sum()
        if self.row.beyond_zero is not None:
            return total + self.row.beyond_zero(at_expressed, expressed.value).sum()
        error = self._loss(at_expressed, expressed.value).sum()
        return error + total - self._loss(at_expressed, None).sum()

    def examples(self, output: ModelOutput, batch: TrainingBatch) -> Examples:
        """Return predicted values or logits of zero for every gene that counts, zeros included."""
        decoded = output.wced[self.field]
        if self.wced_target == "input_genes":
            shown = self._input(batch)
            predicted = self._predicted(lambda place: decoded[shown.cell, shown.gene, place])
            truth, genes = shown.value, self.gene_of_column[shown.gene]
        else:
            cells = batch.whole_cells[self.field].expressed
            dense = decoded.new_zeros(decoded.shape[:2], dtype=torch.float32)
            dense[cells.cell, cells.gene] = cells.value
            truth = dense.index_select(1, self.columns).flatten()
            predicted = self._predicted(
                lambda place: decoded[:, :, place].index_select(1, self.columns).flatten()
            )
            genes = self.measured.repeat(len(decoded))
            if self.wced_target == "non_input_genes":
                shown = self._input(batch)
                other = torch.ones_like(dense, dtype=torch.bool)
                other[shown.cell, shown.gene] = False
                keep = other.index_select(1, self.columns).flatten()
                predicted, truth, genes = predicted[keep], truth[keep], genes[keep]
        return Examples(
            predicted=predicted, truth=truth == 0 if self.about == "zeros" else truth, genes=genes
        )

    def _predicted(self, output_at: Callable[[int], Tensor]) -> Tensor:
        predicted = output_at(self.outputs[0]).float()
        link = self.row.link(self.options)
        if link is None:
            return predicted
        zero = None if self.zero_output is None else output_at(self.zero_output)
        return predicted_values(predicted, link=link, zero_logit=zero)

    def _loss(self, outputs: tuple[Tensor, ...], truth: Tensor | None) -> Tensor:
        """Return the losses; without truth, of zeros."""
        zero = outputs[0].new_zeros((), dtype=torch.float32)
        return self.row.formula(outputs, zero if truth is None else truth, self.options)

    def _expressed(self, batch: TrainingBatch) -> CellGenes:
        cells = batch.whole_cells[self.field]
        return {
            "all_genes": cells.expressed,
            "input_genes": cells.expressed_input,
            "non_input_genes": cells.expressed_other,
        }[self.wced_target]

    def _input(self, batch: TrainingBatch) -> CellGenes:
        shown = batch.whole_cells[self.field].input
        assert shown is not None
        return shown


def _at(decoded: Tensor, places: tuple[int, ...], genes: CellGenes) -> tuple[Tensor, ...]:
    return tuple(decoded[:, :, place][genes.cell, genes.gene] for place in places)
