"""Batches for training: cells, tokenizer and objective joined into an iterable of epochs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omics.train.batch_window import with_totals

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from omics.data.cell_batch import CellBatch
    from omics.data.loading.loader import Loader
    from omics.tokenizers import BoundTokenizer
    from omics.train.objective import Objective
    from omics.train.training_batch import TrainingBatch

# Cells as the loader gives them and the epoch, to cells with the targets that losses ask for.
Completion = Callable[["CellBatch", int], "CellBatch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Epochs:
    """Epochs that read alike.

    Attributes:
        number: of epochs; None for all that follow.
        loader: of cells, this process's share.
        complete: what happens to cells before they become tokens; None for nothing.
    """

    number: int | None
    loader: Loader
    complete: Completion | None = None


@dataclass(kw_only=True)
class TrainingBatches:
    """An iterable of micro-batches; each pass is the next epoch.

    Attributes:
        epochs: how cells are read, stage after stage; the last goes on.
        tokenizer: fitted to the store.
        objective: that prepares tokens.
        window: micro-batches per optimiser step.
        world_size: processes that train together.
        fixed_epoch: the epoch of every pass, for validation; None counts up.
    """

    epochs: Sequence[Epochs]
    tokenizer: BoundTokenizer
    objective: Objective
    window: int = 1
    world_size: int = 1
    fixed_epoch: int | None = None
    epoch: int = -1

    def __len__(self) -> int:
        """Return the micro-batches of the next pass."""
        return len(self._stage(self._next).loader)

    def num_batches(self, num_epochs: int) -> int:
        """Return the micro-batches of the first passes.

        Args:
            num_epochs: passes.
        """
        return sum(len(self._stage(epoch).loader) for epoch in range(num_epochs))

    def num_steps(self, num_epochs: int) -> int:
        """Return the optimiser steps of the first passes.

        Args:
            num_epochs: passes.
        """
        return sum(-(-len(self._stage(epoch).loader) // self.window) for epoch in range(num_epochs))

    def __iter__(self) -> Iterator[TrainingBatch]:
        """Iterate over the next epoch, which begins when the first batch is asked for.

        Lightning may make an iterator that it never uses.
        """
        return with_totals(self._prepared(), window=self.window, world_size=self.world_size)

    def _prepared(self) -> Iterator[TrainingBatch]:
        self.epoch = epoch = self._next
        stage = self._stage(epoch)
        stage.loader.set_epoch(epoch)
        for read in stage.loader:
            cells = read if stage.complete is None else stage.complete(read, epoch)
            tokens = self.tokenizer.encode(cells)
            yield self.objective.prepare(tokens, epoch=epoch, training=self.fixed_epoch is None)

    @property
    def _next(self) -> int:
        return self.epoch + 1 if self.fixed_epoch is None else self.fixed_epoch

    def _stage(self, epoch: int) -> Epochs:
        if self.fixed_epoch is not None:
            return self.epochs[-1]
        for stage in self.epochs:
            if stage.number is None or epoch < stage.number:
                return stage
            epoch -= stage.number
        return self.epochs[-1]
