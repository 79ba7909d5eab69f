"""`Checkpoints`: when a run is saved, when it stops to go on later, and which validation was best.

A run is saved between optimiser steps only, and never between the last step of an epoch and the end
of that epoch, unless a validation lies between them: it is then saved with the validation still due.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint

from omics.data.errors import StoppedError
from omics.train.checkpointing.checkpoint_folder import (
    BEST,
    MODEL,
    Checkpoint,
    checkpoint_path,
    keep_newest,
    write_checkpoint,
)
from omics.train.checkpointing.run_state import Progress, gather_state, restore_state
from omics.train.lightning_module import TrainingModule
from omics.train.metric_table import lower_is_better
from omics.train.sharding import whole_tensors

if TYPE_CHECKING:
    from pathlib import Path

    import lightning as L

    from omics.train.batch_window import Window
    from omics.train.early_stopping import EarlyStopping
    from omics.train.processes import Place
    from omics.train.run_config import CheckpointConfig
    from omics.train.stop_signals import StopSignals


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best validation so far.

    Attributes:
        step: after which it was run.
        value: of the monitored term.
    """

    step: int
    value: float


class Checkpoints(LightningCheckpoint):  # type: ignore[misc]
    """Saves a run, and puts it back before its first step.

    As Lightning's checkpoint callbacks it is called after all others and after the module's epoch.

    Attributes:
        best: the best validation so far; None without validation.

    Args:
        run: the run folder.
        config: when to save, and what is best.
        place: of this process; the first one writes.
        signals: that ask to stop.
        facts: of the run, which every checkpoint holds.
        stopping: the early stopping of the run, or None.
        start: the checkpoint to go on from, or None.
        begins_with_save: whether the state before the first step is saved.
    """

    def __init__(
        self,
        run: Path,
        config: CheckpointConfig,
        *,
        place: Place,
        signals: StopSignals,
        facts: dict[str, Any],
        stopping: EarlyStopping | None,
        start: Checkpoint | None,
        begins_with_save: bool,
    ) -> None:
        self.run = run
        self.config = config
        self.place = place
        self.signals = signals
        self.facts = facts
        self.stopping = stopping
        self.start = start
        self.begins_with_save = begins_with_save
        self.best: Best | None = None
        self._monitor = config.best or "loss"
        self._sign = -1.0 if lower_is_better(self._monitor) else 1.0
        self._progress = Progress()
        self._saved: Progress | None = None
        if start is not None:
            best = start.state["best"]
            self.best = None if best is None else Best(**best)
            self._progress = Progress.of(start.state)
            self._saved = self._progress

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the run back where it was, and listen to signals."""
        assert isinstance(pl_module, TrainingModule)
        if self.start is not None:
            restore_state(trainer, pl_module, self.start, self.place)
            if self.stopping is not None:
                self.stopping.load_state_dict(self.start.state["early_stopping"])
        elif self.begins_with_save:
            self._save(trainer, pl_module, Progress())
        self.signals.listen()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Window,
        batch_idx: int,
    ) -> None:
        """Save after so many steps, and before the run stops."""
        del outputs
        validates = self._validates(trainer, batch_idx)
        self._progress = Progress(
            step=trainer.global_step,
            epoch=batch.epoch,
            steps_of_epoch=batch_idx + 1,
            loader=batch.position,
            validation_due=validates,
        )
        if self._is_last_step(trainer):
            return  # What is left is a last validation and the bundle.
        if not validates and batch_idx + 1 == trainer.num_training_batches:
            return  # The end of the epoch follows at once.
        every = self.config.every_steps
        if every is not None and trainer.global_step % every == 0:
            self._save(trainer, pl_module, self._progress)
        self._stop_if_asked(trainer, pl_module, stops=batch.stops)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Stop within a validation, which is then begun anew."""
        del args
        if not self._is_last_step(trainer):
            self._stop_if_asked(trainer, pl_module, stops=self._asked_all())

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the weights of the best validation."""
        assert isinstance(pl_module, TrainingModule)
        self._progress = replace(self._progress, validation_due=False)
        value = pl_module.validated.get(self._monitor)
        if value is None:
            return
        if self.best is not None and self._sign * (value - self.best.value) <= 0:
            return
        self.best = Best(step=trainer.global_step, value=value)
        weights = whole_tensors(pl_module.model.state_dict(), keeps=self.place.is_first)
        if self.place.is_first:
            state = {"step": self.best.step, "monitor": self._monitor, "value": value}
            path = checkpoint_path(self.run, self.best.step, kind=BEST)
            write_checkpoint(path, state, {MODEL: weights})

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save at the end of an epoch, and at that of the run."""
        step, every = trainer.global_step, self.config.every_steps
        progress = self._progress
        if progress.steps_of_epoch == trainer.num_training_batches:
            progress = Progress(step=step, epoch=progress.epoch + 1)
        ends = trainer.should_stop or self._is_last_step(trainer)
        if every is None or ends or step % every == 0:
            self._save(trainer, pl_module, progress, ended=ends)
        self._progress = progress
        if not ends:
            self._stop_if_asked(trainer, pl_module, stops=self._asked_all())

    def _is_last_step(self, trainer: L.Trainer) -> bool:
        return bool(trainer.global_step >= self.facts["num_steps"])

    def _asked_all(self) -> bool:
        if self.place.world_size == 1:
            return self.signals.asked
        asked = torch.tensor(float(self.signals.asked))
        dist.all_reduce(asked)
        return bool(asked > 0)

    def _validates(self, trainer: L.Trainer, batch_idx: int) -> bool:
        """Return whether a validation follows this step."""
        if not trainer.limit_val_batches:
            return False
        return (batch_idx + 1) % int(trainer.val_check_batch) == 0

    def _stop_if_asked(self, trainer: L.Trainer, module: L.LightningModule, *, stops: bool) -> None:
        if self.place.world_size == 1:
            stops = self.signals.asked
        if not stops:
            return
        self._save(trainer, module, self._progress)
        raise StoppedError(
            f"Stopped by {self.signals.name or 'a signal to another process'} after step "
            f"{self._progress.step}; saved in "
            f"{checkpoint_path(self.run, self._progress.step)}. Run the same command with "
            "resume=true to go on."
        )

    def _save(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        progress: Progress,
        *,
        ended: bool = False,
    ) -> None:
        """Save unless this very state was saved; every process takes part, the first one writes."""
        if progress == self._saved and not ended:
            return
        assert isinstance(module, TrainingModule)
        module.refuse_non_finite()
        gathered, tensors = gather_state(trainer, module, self.place)
        self._saved = progress
        if self.place.is_first:
            self._write(trainer, progress, gathered, tensors, ended=ended)
        # Who goes back to this checkpoint must find it, whichever process it is.
        trainer.strategy.barrier()

    def _write(
        self,
        trainer: L.Trainer,
        progress: Progress,
        gathered: dict[str, Any],
        tensors: dict[str, dict[str, torch.Tensor]],
        *,
        ended: bool,
    ) -> None:
        best = self.best
        state = {
            **self.facts,
            **gathered,
            "step": progress.step,
            "progress": asdict(progress),
            "best": None if best is None else asdict(best),
            "early_stopping": None if self.stopping is None else self.stopping.state_dict(),
            "ended": ended,
            "ended_early": bool(trainer.should_stop),
        }
        write_checkpoint(checkpoint_path(self.run, progress.step), state, tensors)
        keep_newest(self.run, self.config.keep, best=None if best is None else best.step)
