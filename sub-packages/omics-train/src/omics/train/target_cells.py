"""What a cell is compared with: itself as it was before it was thinned, sampled or cut.

- Targets are batches of cells with genes of their own; they pass through the tokenizer beside the
  input, and losses match them to it by gene.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from omics.data.cell_batch import CellBatch
from omics.data.transforms import bind_transforms
from omics.data.transforms.transform_registry import LIMITS, MASKS, NORMALISES, TransformRecord
from omics.tokenizers import GeneTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omics.data.genes import GeneTable
    from omics.data.transforms import Transform
    from omics.tokenizers import BoundTokenizer, CellTokenizer

Array = np.ndarray[Any, np.dtype[Any]]

EXPRESSION = "expression"
LABEL_EXPRESSION = "label_expression"


@dataclass(frozen=True, slots=True)
class KeepTargets(TransformRecord):
    """Puts the batch as it is in `targets`, unless it has targets already; a step of training."""

    name: ClassVar[str] = "keep_targets"
    training_only: ClassVar[bool] = True

    def __call__(self, batch: CellBatch, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch with targets; see `Transform`."""
        return batch if batch.targets is not None else batch.with_targets(batch)


def value_steps(steps: Sequence[Transform]) -> list[Transform]:
    """Return the steps that make the values of genes: up to the last that normalises.

    Args:
        steps: preprocessing, in order.
    """
    return list(steps[: _after_values(steps)])


def cutting_steps(steps: Sequence[Transform]) -> list[Transform]:
    """Return the steps that choose and order genes whose values are made: all others.

    Args:
        steps: preprocessing, in order.
    """
    return list(steps[_after_values(steps) :])


def keep_whole_cells(steps: Sequence[Transform]) -> list[Transform]:
    """Return the steps of training with whole cells kept before any gene is left out.

    Without it, whole-cell targets would lack the genes that were cut, and these would be learnt as
    zeros.

    Args:
        steps: of training, in order.
    """
    first = _after_values(steps)
    return [*steps[:first], KeepTargets(), *steps[first:]]


def denoised(cells: CellBatch) -> CellBatch:
    """Return cells whose targets hold the values they had before they were thinned.

    Args:
        cells: with the field `label_expression`, in their targets or of their own; cells that were
            not thinned stay as they are.
    """
    whole = cells
    if cells.targets is not None and LABEL_EXPRESSION in cells.targets.fields:
        whole = cells.targets
    if LABEL_EXPRESSION not in whole.fields:
        return cells
    fields = {**whole.fields, EXPRESSION: whole.fields[LABEL_EXPRESSION]}
    return cells.with_targets(replace(whole, fields=fields, targets=None))


def measured_tokens(
    tokenizer: CellTokenizer, bound: BoundTokenizer, genes: GeneTable, steps: Sequence[Transform]
) -> Array:
    """Return int64, sorted: token ids of the genes that cells can have when their values are made.

    Args:
        tokenizer: of the cells.
        bound: to the store.
        genes: of the store.
        steps: preprocessing; those that keep or leave out fixed genes before the last that
            normalises count: what they leave out is unknown and no zero.
    """
    fixed = [step for step in value_steps(steps) if {LIMITS, MASKS} & step.kinds()]
    measured = bound.measured_tokens()
    if not fixed or not isinstance(tokenizer, GeneTokenizer):
        return measured
    batch = CellBatch(
        indptr=np.array([0, len(genes)]),
        genes=np.arange(len(genes), dtype=np.uint32),
        counts=np.ones(len(genes), np.uint32),
        rows=np.zeros(1, np.int64),
        num_genes=len(genes),
    )
    for step in bind_transforms(fixed, genes):
        batch = step(batch, seed=0, epoch=0)
    return np.intersect1d(measured, tokenizer.token_of_gene(genes)[0][batch.genes])


def _after_values(steps: Sequence[Transform]) -> int:
    normalising = [place for place, step in enumerate(steps) if NORMALISES in step.kinds()]
    return max(normalising, default=-1) + 1
