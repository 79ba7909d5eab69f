"""`TrainingBatch`: tokens with everything a loss needs, prepared on the host."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omics.models.filler_cells import with_filler
from omics.models.ragged_layout import AskedTokens, RaggedLayout
from omics.tokenizers.device_copies import on_device

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omics.tokenizers import TokenBatch

Array = np.ndarray[Any, np.dtype[Any]]

_FEWEST_CELLS = 64
_SHAPES = 8
# Beyond this share of asked tokens all are computed: picking them out would save little.
MOST_ASKED = 0.5
# They are filled up to one of two shares, each of which is compiled once. 15 % of the tokens and the
# first of each cell are less than the smaller one.
_ASKED_SHARES = (3 / 16, MOST_ASKED)
# numpy arrays before `to`, torch tensors after it, as in TokenBatch.
Values = Any


@dataclass(slots=True, kw_only=True)
class Questions:
    """Tokens whose value a loss asks for.

    Attributes:
        positions: int64 [K], flat positions of the tokens.
        genes: int64 [K], token ids of their genes, before any was hidden.
        values: [K], the answers.
    """

    positions: Values
    genes: Values
    values: Values


@dataclass(slots=True, kw_only=True)
class CellGenes:
    """Genes of whole cells.

    Attributes:
        cell: int64 [E], positions of the cells in the batch.
        gene: int64 [E], columns of the decoder.
        value: float32 [E], the answers.
    """

    cell: Values
    gene: Values
    value: Values

    def __len__(self) -> int:
        """Return their number."""
        return len(self.cell)


@dataclass(slots=True, kw_only=True)
class WholeCells:
    """What a whole-cell decoder is asked about one field.

    Attributes:
        expressed: genes with a value above 0.
        expressed_input: those of them that are among the cell's input tokens.
        expressed_other: those that are not.
        input: all genes among the input tokens, once each; None where no loss asks for them.
    """

    expressed: CellGenes
    expressed_input: CellGenes
    expressed_other: CellGenes
    input: CellGenes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedShape:
    """A shape that does not depend on the batch, so that code is compiled once for it.

    Attributes:
        num_tokens: of every batch.
        longest: tokens of a cell at most.
    """

    num_tokens: int
    longest: int

    def filled(self, num_tokens: int) -> int:
        """Return the tokens of a filled batch.

        Args:
            num_tokens: of the batch.
        """
        step = -(-self.num_tokens // _SHAPES)
        excess = max(0, num_tokens - self.num_tokens)
        return self.num_tokens + -(-excess // step) * step

    def fill(self, tokens: TokenBatch) -> TokenBatch:
        """Return tokens with filler cells behind them; the number of cells is a power of two.

        Args:
            tokens: numpy tokens. What exceeds the shape is filled up to one of few larger ones.
        """
        num_tokens = self.filled(tokens.num_tokens)
        num_cells = max(_FEWEST_CELLS, 1 << len(tokens).bit_length())
        return with_filler(tokens, num_tokens=num_tokens, num_cells=num_cells, longest=self.longest)

    @staticmethod
    def asked_sizes(num_tokens: int) -> list[int]:
        """Return the numbers of asked tokens that there are, ascending.

        Args:
            num_tokens: of the filled batch.
        """
        return [math.ceil(share * num_tokens) for share in _ASKED_SHARES]

    def fill_asked(self, asked: Array, num_tokens: int) -> tuple[Array, int]:
        """Return asked tokens filled up with the last one, and how many a cell has at most.

        Args:
            asked: int64 [A], flat positions; at most half of the tokens.
            num_tokens: of the filled batch.
        """
        sizes = [0, *self.asked_sizes(num_tokens)]
        place = max(1, int(np.searchsorted(sizes, len(asked))))
        extra = np.full(sizes[place] - len(asked), num_tokens - 1)
        return np.append(asked, extra), self.longest + sizes[place] - sizes[place - 1]


@dataclass(slots=True, kw_only=True)
class TrainingBatch:
    """A micro-batch.

    Attributes:
        tokens: the (masked) input, with labels.
        questions: `{field: tokens that heads on tokens are asked about}`.
        whole_cells: `{field: genes that its whole-cell decoder is asked about}`.
        labelled: `{label: int64 [L]}`, positions of the cells that have the label.
        asked: int64 [A], ascending flat positions of the tokens whose final hidden states are read;
            None for all. `AskedTokens` after `to`.
        counts: `{term: number}`, what each loss term of this micro-batch is a mean over.
        totals: `{term: number}`, the same over all micro-batches and processes of the optimiser
            step; filled in by the window of the loader.
        scale: undoes the division by processes and micro-batches that the trainer will do.
        shape: that the device sees the tokens in; None for their own.
        layout: of the tokens, None before `to`.
    """

    tokens: TokenBatch
    questions: Mapping[str, Questions]
    whole_cells: Mapping[str, WholeCells]
    labelled: Mapping[str, Values]
    asked: Values | None = None
    counts: dict[str, float] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)
    scale: float = 1.0
    shape: FixedShape | None = None
    layout: RaggedLayout | None = None

    def to(self, device: torch.device | str) -> TrainingBatch:
        """Return the batch as tensors on a device; copies do not block.

        Args:
            device: where the model is.
        """
        if self.layout is not None:
            return self
        tokens, asked = self.tokens, self.asked
        longest = longest_asked = None
        if self.shape is not None:
            filled, longest = self.shape.fill(tokens), self.shape.longest
            tokens = replace(filled, labels=tokens.labels)
            if asked is not None:
                asked, longest_asked = self.shape.fill_asked(asked, tokens.num_tokens)
        offsets, num_cells = torch.from_numpy(tokens.offsets), len(self.tokens)
        if asked is not None:
            asked = AskedTokens.of(
                torch.from_numpy(asked),
                offsets,
                device,
                longest=longest_asked,
                num_cells=num_cells,
            )
        return replace(
            self,
            tokens=tokens.to_torch(device),
            asked=asked,
            questions=_moved(self.questions, device),
            whole_cells=_moved(self.whole_cells, device),
            labelled=_moved(self.labelled, device),
            layout=RaggedLayout.from_offsets(offsets, device, longest=longest, num_cells=num_cells),
        )


def _moved(value: Any, device: torch.device | str) -> Any:
    """Return arrays as tensors on a device, within mappings and records."""
    if value is None:
        return None
    if isinstance(value, dict):
        return {name: _moved(each, device) for name, each in value.items()}
    if dataclasses.is_dataclass(value):
        parts = {f.name: _moved(getattr(value, f.name), device) for f in dataclasses.fields(value)}
        return replace(value, **parts)  # type: ignore[type-var]
    return on_device(value, device)
