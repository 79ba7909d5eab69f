"""`TrainingModule`: Lightning around the plain training step, and the callback that reports.

- Nothing is read from the device inside a step: sums stay there until the end of the epoch.
- A NaN or infinite loss stops the run at the end of the epoch with the term's name.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import warnings
from typing import TYPE_CHECKING, Any

import lightning as L

from omics.data.errors import InputDataError
from omics.train.history import History, RunningMeans, history_rows
from omics.train.optimizer import build_optimizer, build_schedule
from omics.train.reversal_schedule import set_reversal
from omics.train.training_step import training_step, validation_step
from omics.train.validation_metrics import Confusion, ValidationMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

    import torch
    from torch import Tensor

    from omics.models import OmicsModel
    from omics.train.objective import Objective
    from omics.train.run_config import TrainerConfig
    from omics.train.training_batch import TrainingBatch


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide two notices that no user can act on, and nothing else.

    Lightning's own use of a deprecated torch class, and that a run without a split has no
    validation cells.
    """
    with warnings.catch_warnings():
        for message in (r".*LeafSpec.* is deprecated", r".*have no `val_dataloader`"):
            warnings.filterwarnings("ignore", message=message)  # noqa: TID251
        yield


@contextlib.contextmanager
def interrupts_as_usual(trainer: L.Trainer) -> Iterator[None]:
    """Let Ctrl-C be the KeyboardInterrupt it is everywhere else.

    Lightning would end the process with code 1 and leave it deaf to further interrupts.

    Args:
        trainer: whose `fit` runs in the block.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


class TrainingModule(L.LightningModule):  # type: ignore[misc]
    """One module for every objective.

    Attributes:
        model: that is trained.
        history: of the run.
        metrics: of validation.
        validated: what the newest validation reported.
        confusions: confusion matrices of the newest validation.

    Args:
        model: that is trained.
        objective: of the run.
        config: how it is optimised.
        num_steps: optimiser steps of the whole run.
        reversal: `{label: schedule of its gradient reversal}`.
    """

    def __init__(
        self,
        model: OmicsModel,
        objective: Objective,
        config: TrainerConfig,
        num_steps: int,
        reversal: Mapping[str, str] | None = None,
        *,
        undecayed: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.config = config
        self.num_steps = num_steps
        self.undecayed = undecayed
        self.reversal = dict(reversal or {})
        self.history = History()
        self.metrics = ValidationMetrics(
            objective.terms,
            num_ids=objective.masks.genes.vocabulary_size,
            sizes=objective.class_counts,
            tracked=[term.name for term in objective.tracked_terms.values()],
        )
        self.validated: dict[str, float] = {}
        self.confusions: list[Confusion] = []
        self._means = {"train": RunningMeans(), "validation": RunningMeans()}

    def on_fit_start(self) -> None:
        """Take the constants of the losses to the device once; the loader keeps those it has."""
        self.objective = self.objective.to(self.device)

    def on_train_batch_start(self, batch: TrainingBatch, batch_idx: int) -> None:
        """Set the strength of gradient reversal."""
        del batch, batch_idx
        set_reversal(self.model, self.reversal, self.global_step / max(self.num_steps, 1))

    def on_fit_end(self) -> None:
        """Leave gradient reversal at its full strength."""
        set_reversal(self.model, {}, 1.0)

    def transfer_batch_to_device(
        self, batch: TrainingBatch, device: torch.device, dataloader_idx: int
    ) -> TrainingBatch:
        """Move a batch, with its layout made on the host."""
        del dataloader_idx
        return batch.to(device)

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        """Return the loss of one micro-batch."""
        del batch_idx
        loss, sums = training_step(self.model, batch, self.objective)
        self._means["train"].add(sums)
        return loss

    def validation_step(self, batch: TrainingBatch, batch_idx: int) -> None:
        """Add up the terms and metrics of one micro-batch."""
        del batch_idx
        sums = validation_step(self.model, batch, self.objective, self.metrics)
        self._means["validation"].add(sums)

    def on_validation_start(self) -> None:
        """Start the tables of genes again; those of the last validation stay until then."""
        for errors in self.metrics.gene_errors.values():
            errors.reset()

    def on_validation_epoch_end(self) -> None:
        """Read what validation found; training means are read after it, at the epoch's end."""
        numbers, self.confusions = self.metrics.read()
        self.validated = self._record("validation", numbers)
        adaptive = self.objective.masks.adaptive
        for name, term in self.objective.tracked_terms.items():
            assert adaptive is not None
            adaptive.update(name, self.metrics.gene_errors[term.name].means())

    def on_train_epoch_end(self) -> None:
        """Read the training means."""
        self._record("train", {})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the weights of adaptive masking."""
        if self.objective.masks.adaptive is not None:
            checkpoint["adaptive_masking"] = self.objective.masks.adaptive.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them up again."""
        if self.objective.masks.adaptive is not None:
            self.objective.masks.adaptive.load_state_dict(checkpoint["adaptive_masking"])

    def _record(self, phase: str, numbers: Mapping[str, float]) -> dict[str, float]:
        means = self._means[phase].read()
        for term, value in means.items():
            if not math.isfinite(value):
                raise InputDataError(
                    f"The {phase} loss {term} became {value} in epoch {self.current_epoch + 1}. "
                    "Lower trainer.learning_rate or check the counts for extreme values "
                    "(omics-data check); the last saved bundle is untouched."
                )
        rows = history_rows({**means, **numbers}, self.objective.terms)
        self.history.add(self.global_step, self.current_epoch + 1, phase, rows)
        return rows

    def configure_optimizers(self) -> Any:
        """Return AdamW and its schedule, stepped after every optimiser step."""
        optimizer = build_optimizer(self.model, self.config, undecayed=self.undecayed)
        schedule = build_schedule(optimizer, self.config, self.num_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "frequency": 1},
        }


class RunReporter(L.Callback):  # type: ignore[misc]
    """Writes the history and moves the progress bar."""

    def __init__(self, folder: Path, advance: Callable[[int], None]) -> None:
        self.folder = folder
        self.advance = advance

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Advance by one micro-batch."""
        del args
        if trainer.is_global_zero:
            self.advance(1)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the whole history."""
        self._write(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what there is so far, so that a stopped run shows its curve."""
        self._write(trainer, pl_module)

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and isinstance(pl_module, TrainingModule):
            pl_module.history.write(self.folder / "history.csv")
