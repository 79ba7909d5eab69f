"""Batches for training: loader, tokenizer and objective joined into an iterable of epochs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from omics.train.batch_window import with_totals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omics.data.loading.loader import Loader
    from omics.tokenizers import BoundTokenizer
    from omics.train.objective import Objective
    from omics.train.training_batch import TrainingBatch


@dataclass(kw_only=True)
class TrainingBatches:
    """An iterable of micro-batches; each pass is the next epoch.

    Attributes:
        loader: of cells, this process's share.
        tokenizer: fitted to the store.
        objective: that prepares tokens.
        window: micro-batches per optimiser step.
        world_size: processes that train together.
        fixed_epoch: the epoch of every pass, for validation; None counts up.
    """

    loader: Loader
    tokenizer: BoundTokenizer
    objective: Objective
    window: int = 1
    world_size: int = 1
    fixed_epoch: int | None = None
    epoch: int = -1

    def __len__(self) -> int:
        """Return the micro-batches of one pass."""
        return len(self.loader)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass."""
        return -(-len(self.loader) // self.window)

    def __iter__(self) -> Iterator[TrainingBatch]:
        """Iterate over the next epoch."""
        self.epoch = self.epoch + 1 if self.fixed_epoch is None else self.fixed_epoch
        self.loader.set_epoch(self.epoch)
        prepared = (
            self.objective.prepare(self.tokenizer.encode(cells), epoch=self.epoch)
            for cells in self.loader
        )
        return with_totals(prepared, window=self.window, world_size=self.world_size)
