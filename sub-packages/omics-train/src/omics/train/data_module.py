"""Batches for training: cells, tokenizer and objective joined into an iterable of epochs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

from omics.train.batch_window import Window, fill_totals

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from omics.data.cell_batch import CellBatch
    from omics.data.loading.loader import Loader
    from omics.tokenizers import BoundTokenizer
    from omics.train.batch_window import Array
    from omics.train.objective import Objective
    from omics.train.training_batch import FixedShape, TrainingBatch

# Cells as the loader gives them and the epoch, to cells with the targets that losses ask for.
Completion = Callable[["CellBatch", int], "CellBatch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Epochs:
    """Epochs that read alike.

    Attributes:
        number: of epochs; None for all that follow.
        loader: of cells, this process's share.
        complete: what happens to cells before they become tokens; None for nothing.
        shape: that batches are filled up to on the device; None for their own.
    """

    number: int | None
    loader: Loader
    complete: Completion | None = None
    shape: FixedShape | None = None


@dataclass(kw_only=True)
class TrainingBatches:
    """An iterable of windows, one for each optimiser step; each pass is the next epoch.

    Attributes:
        epochs: how cells are read, stage after stage; the last goes on.
        tokenizer: fitted to the store.
        objective: that prepares tokens.
        window: batches of the loader per optimiser step.
        world_size: processes that train together.
        epoch: of the last pass that was begun.
        pieces: micro-batches into which each batch of the loader is cut, so that they fit into
            the memory of the device.
        wants_stop: whether this process was asked to stop.
    """

    epochs: Sequence[Epochs]
    tokenizer: BoundTokenizer
    objective: Objective
    window: int = 1
    world_size: int = 1
    epoch: int = -1
    pieces: int = 1
    wants_stop: Callable[[], bool] = bool
    _steps_before: int = 0

    def __len__(self) -> int:
        """Return the steps of the next pass, with those that were taken before it was left."""
        loader = self._stage(self.epoch + 1).loader
        left = loader.batches_left if self._steps_before else loader.num_batches(self.epoch + 1)
        return self._steps_before + -(-left // self.window)

    @property
    def first_row(self) -> int:
        """A cell of the training, the same on every process."""
        return self.epochs[0].loader.first_row

    def num_steps(self, num_epochs: int) -> int:
        """Return the optimiser steps of the first passes.

        Args:
            num_epochs: passes.
        """
        numbers = (self._stage(epoch).loader.num_batches(epoch) for epoch in range(num_epochs))
        return sum(-(-number // self.window) for number in numbers)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; without it that is the one after the last.

        Args:
            epoch: from 0.
        """
        self.epoch, self._steps_before = epoch - 1, 0

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass be the rest of an epoch.

        Args:
            state: `epoch`; `steps` of it that were taken; `loader`, the position of the last window
                that was trained on, or None where no step of the epoch was taken.

        Raises:
            ConfigError: the loader reads other cells, or in another order.
        """
        self.epoch, self._steps_before = state["epoch"] - 1, state["steps"]
        if state["loader"] is not None:
            self._stage(state["epoch"]).loader.load_state_dict(state["loader"])

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the next pass: what is read ahead is not known to be trained on.

        Where a run is within a pass is known to the windows.
        """
        return {"epoch": self.epoch + 1, "steps": 0, "loader": None}

    def __iter__(self) -> Iterator[Window]:
        """Iterate over the next epoch, which begins when the first window is asked for.

        Lightning may make an iterator that it never uses.
        """
        self.epoch = epoch = self.epoch + 1
        self._steps_before = 0
        stage = self._stage(epoch)
        stage.loader.set_epoch(epoch)
        reads = iter(stage.loader)
        while cells := list(islice(reads, self.window)):
            position = stage.loader.state_dict()
            pieces = self.pieces
            batches = [self._prepared(part, epoch) for each in cells for part in _cut(each, pieces)]
            if pieces == 1:
                for batch in batches:
                    batch.shape = stage.shape
            stops = fill_totals(batches, world_size=self.world_size, wants_stop=self.wants_stop())
            yield Window(
                batches=batches,
                rows=[each.rows for each in cells],
                epoch=epoch,
                pieces=pieces,
                position=position,
                stops=stops,
            )

    def read_again(self, window: Window) -> Window:
        """Return a window with its cells read anew, cut into as many pieces as there are now.

        Args:
            window: of this run.
        """
        batches = self.read(window.rows, window.epoch)
        for batch in batches:
            batch.totals, batch.scale = window.batches[0].totals, window.batches[0].scale
        return replace(window, batches=batches, pieces=self.pieces)

    def read(
        self, rows: Sequence[Array], epoch: int, *, pieces: int | None = None
    ) -> list[TrainingBatch]:
        """Return micro-batches of chosen cells, as they are in an epoch.

        What is hidden, sampled and asked depends on the cell and the epoch: it is the same again.

        Args:
            rows: int64 rows of the store, of each batch of the loader.
            epoch: of what is random.
            pieces: micro-batches of each; None for as many as there are now.
        """
        loader = self._stage(epoch).loader
        return [
            self._prepared(part, epoch)
            for each in rows
            for part in _cut(loader.read(each, epoch=epoch), pieces or self.pieces)
        ]

    def _prepared(self, cells: CellBatch, epoch: int) -> TrainingBatch:
        complete = self._stage(epoch).complete
        tokens = self.tokenizer.encode(cells if complete is None else complete(cells, epoch))
        return self.objective.prepare(tokens, epoch=epoch, training=True)

    def _stage(self, epoch: int) -> Epochs:
        for stage in self.epochs:
            if stage.number is None or epoch < stage.number:
                return stage
            epoch -= stage.number
        return self.epochs[-1]


@dataclass(frozen=True, kw_only=True)
class ValidationBatches:
    """An iterable of batches, the same in every pass: those of epoch 0.

    Attributes:
        cells: how they are read.
        tokenizer: fitted to the store.
        objective: that prepares tokens.
    """

    cells: Epochs
    tokenizer: BoundTokenizer
    objective: Objective

    def __len__(self) -> int:
        """Return the batches of a pass."""
        return len(self.cells.loader)

    def __iter__(self) -> Iterator[TrainingBatch]:
        """Iterate over the batches of a pass."""
        complete = self.cells.complete
        for cells in self.cells.loader:
            tokens = self.tokenizer.encode(cells if complete is None else complete(cells, 0))
            batch = self.objective.prepare(tokens, epoch=0, training=False)
            batch.shape = self.cells.shape
            yield batch


def _cut(cells: CellBatch, pieces: int) -> list[CellBatch]:
    """Return the parts of a batch, as even as possible; none of them is empty but an empty batch."""
    number = max(min(pieces, len(cells)), 1)
    edges = [len(cells) * part // number for part in range(number + 1)]
    return [cells[begin:end] for begin, end in pairwise(edges)]
