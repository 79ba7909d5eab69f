"""`TrainingModule`: Lightning around the plain training step, and the callback that reports.

- A batch of Lightning is all of one optimiser step (`Window`), which the module takes by itself
  ("manual optimisation"): it can be taken again with smaller micro-batches, or left out, and a run
  is stopped between steps only.
- Nothing is read from the device inside a step: sums stay there until the end of the epoch, and the
  number of the first step that was not finite until the next look.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import warnings
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.strategies import ParallelStrategy

from omics.data.command_line import say
from omics.data.errors import InputDataError, ResourceError
from omics.train.batch_window import Window
from omics.train.finite_watch import FiniteWatch, NonFiniteError
from omics.train.history import HISTORY, History, RunningMeans, history_rows
from omics.train.memory_backoff import with_memory_backoff
from omics.train.nan_batches import FOLDER, not_finite, write_nan_batch
from omics.train.optimizer import build_optimizer, build_schedule
from omics.train.quick_hooks import QuickNames, signed
from omics.train.reversal_schedule import set_reversal
from omics.train.reversed_heads import ReversedHeads
from omics.train.sharding import FSDP, shard, whole
from omics.train.throughput import THROUGHPUT
from omics.train.training_step import training_step, validation_step
from omics.train.validation_metrics import Confusion, ValidationMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from omics.models import OmicsModel
    from omics.train.data_module import TrainingBatches
    from omics.train.objective import Objective
    from omics.train.run_config import RunConfig
    from omics.train.throughput import ThroughputMeter
    from omics.train.training_batch import TrainingBatch
    from omics.train.training_step import Sums


# After so many skipped steps in a row a run ends.
MOST_SKIPPED = 20


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide four notices that no user can act on, and nothing else.

    Lightning's own use of a deprecated torch class; that a run without a split has no validation
    cells; that outputs of a model in shares must not be changed in place, which no loss does; that
    the compiler looks at the gradient of a gathered weight.
    """
    hidden = (
        r".*LeafSpec.* is deprecated",
        r".*have no `val_dataloader`",
        r"FSDP2-wrapped module .* returned a view",
        r"The \.grad attribute of a Tensor that is not a leaf Tensor is being accessed",
    )
    with warnings.catch_warnings():
        for message in hidden:
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


class TrainingModule(QuickNames, L.LightningModule):  # type: ignore[misc]
    """One module for every objective.

    Attributes:
        model: that is trained.
        history: of the run.
        metrics: of validation.
        validated: what the newest validation reported.
        confusions: confusion matrices of the newest validation.
        means: `{train or validation: running means of the terms}`.
        excluded: steps that are left out, from 1: those that a run went back for.
        skipped: how many steps changed nothing as their gradient was not finite.

    Args:
        model: that is trained.
        objective: of the run.
        config: of the run.
        batches: of training.
        num_steps: optimiser steps of the whole run.
        folder: of the run, for batches that were not finite.
        reversal: `{label: schedule of its gradient reversal}`.
        head_steps: `{label: steps of its reversed head for each step of the encoder}`.
        undecayed: names of parameters without weight decay.
    """

    def __init__(
        self,
        model: OmicsModel,
        objective: Objective,
        config: RunConfig,
        *,
        batches: TrainingBatches,
        num_steps: int,
        folder: Path,
        reversal: Mapping[str, str] | None = None,
        head_steps: Mapping[str, int] | None = None,
        undecayed: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.objective = objective
        self.config = config.trainer
        self.is_sharded = config.trainer.strategy == FSDP
        self.seed = config.seed
        self.batches = batches
        self.num_steps = num_steps
        self.folder = folder
        self.undecayed = undecayed
        self.reversal = dict(reversal or {})
        self.reversed_heads = ReversedHeads.of(
            model, head_steps or {}, self.config.gradient_clip_norm
        )
        self.history = History()
        self.metrics = ValidationMetrics(
            objective.terms,
            num_ids=objective.masks.genes.vocabulary_size,
            sizes=objective.class_counts,
            tracked=[term.name for term in objective.tracked_terms.values()],
        )
        self.validated: dict[str, float] = {}
        self.confusions: list[Confusion] = []
        self.means = {"train": RunningMeans(), "validation": RunningMeans()}
        self.excluded: set[int] = set()
        self.skipped = 0
        self._skipped_in_a_row = 0
        self._watch = FiniteWatch()
        # Steps that the watch has not been asked about: number, rows and epoch.
        self._unread: deque[tuple[int, Window]] = deque()

    def configure_model(self) -> None:
        """Leave this process its share of the model, where it is in shares."""
        if self.is_sharded:
            shard(self.model, self.device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        """Take the constants of the losses to the device once; the loader keeps those it has."""
        self.objective = self.objective.to(self.device)

    def on_train_batch_start(self, batch: Window, batch_idx: int) -> None:
        """Set the strength of gradient reversal."""
        del batch, batch_idx
        if self.reversal:
            set_reversal(self.model, self.reversal, self.global_step / max(self.num_steps, 1))

    def on_fit_end(self) -> None:
        """Leave gradient reversal at its full strength."""
        set_reversal(self.model, {}, 1.0)
        self.reversed_heads.remove()

    def transfer_batch_to_device(
        self, batch: Window | TrainingBatch, device: torch.device, dataloader_idx: int
    ) -> Window | TrainingBatch:
        """Move a batch of validation; micro-batches of a step move one after the other in it."""
        del dataloader_idx
        return batch if isinstance(batch, Window) else batch.to(device)

    @signed
    def training_step(self, window: Window, batch_idx: int) -> None:
        """Take one optimiser step."""
        del batch_idx
        step = self.global_step + 1
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        found: list[Sums] = []
        if step in self.excluded:
            # Without gradients the step leaves every parameter as it is.
            optimizer.zero_grad()
        else:
            attempt = self._gathered_gradients if self.is_sharded else self._gradients
            found = with_memory_backoff(self.batches, window, attempt)
        skipped = self.skipped
        optimizer.step()
        schedule.step()
        if found and self.skipped == skipped:
            self.reversed_heads.learn(optimizer.optimizer, self.objective.terms)
            for sums in found:
                self.means["train"].add(sums)
        self._unread.append((step, replace(window, batches=())))
        if self._watch.is_due:
            self.refuse_non_finite()

    def _gradients(self, window: Window) -> list[Sums]:
        """Add up the gradients of a window, and return the sums of its micro-batches."""
        self.optimizers().zero_grad()
        self.reversed_heads.forget()
        found = []
        for number, batch in enumerate(window.batches, 1):
            counts = bool(len(batch.tokens)) or not self.is_sharded
            moved = (batch if counts else self._stand_in(window)).to(self.device)
            loss, sums = training_step(self.model, moved, self.objective)
            self.reversed_heads.keep(moved)
            self._differentiate(loss, is_last=number == len(window.batches))
            if counts:
                found.append(sums)
        return found

    def _gathered_gradients(self, window: Window) -> list[Sums]:
        """Do the same where blocks are gathered from all processes, who must do so equally often."""
        try:
            return self._gradients(window)
        except torch.OutOfMemoryError as error:
            raise _out_of_memory("the model was in shares", error) from error

    def _stand_in(self, window: Window) -> TrainingBatch:
        """Return one cell whose loss counts nothing, for a process that has none left."""
        (batch,) = self.batches.read([np.array([self.batches.first_row])], window.epoch, pieces=1)
        batch.totals, batch.scale = window.batches[0].totals, 0.0
        return batch

    def _differentiate(self, loss: Tensor, *, is_last: bool) -> None:
        """Add to the gradients; processes exchange theirs with the last micro-batch."""
        strategy = self.trainer.strategy
        if not isinstance(strategy, ParallelStrategy):
            # Without a scale there is nothing that Lightning would do around it.
            backward = torch.Tensor.backward if self._scaler is None else self.manual_backward
            backward(loss)
        elif is_last:
            try:
                self.manual_backward(loss)
            except torch.OutOfMemoryError as error:
                raise _out_of_memory("gradients were exchanged between processes", error) from error
        else:
            with strategy.block_backward_sync():
                self.manual_backward(loss)

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:
        """The scale of the loss, in float16."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient, and see whether it is finite."""
        parameters = [
            each
            for group in optimizer.param_groups
            for each in group["params"]
            if each.grad is not None
        ]
        if not parameters:
            return
        norm = whole(torch.nn.utils.get_total_norm([each.grad for each in parameters]))
        if self.config.gradient_clip_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.gradient_clip_norm, norm)
        if self._scaler is not None:
            return  # Gradients of float16 overflow now and then; the scaler leaves those steps out.
        if self.config.on_nan == "skip":
            self._skip_unless_finite(norm, parameters)
        else:
            self._watch.see(norm, self.global_step + 1)

    def _skip_unless_finite(self, norm: Tensor, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Leave a step without gradients, which changes neither weights nor moments."""
        if bool(torch.isfinite(norm)):
            self._skipped_in_a_row = 0
            return
        for each in parameters:
            each.grad = None
        self.skipped += 1
        self._skipped_in_a_row += 1
        say(f"Step {self.global_step + 1} changes nothing: its gradient is not finite.")
        if self._skipped_in_a_row == MOST_SKIPPED:
            raise NonFiniteError(
                f"The gradient of {MOST_SKIPPED} steps in a row, up to {self.global_step + 1}, was "
                "not finite: it is not a matter of single cells. Lower trainer.learning_rate or "
                "check the counts for extreme values (omics-data check).",
                self.global_step + 1,
            )

    def refuse_non_finite(self) -> None:
        """Stop if a step since the last look was not finite; waits for the device.

        Raises:
            NonFiniteError: naming the first such step; its batch is in `nan_batches`.
        """
        step = self._watch.read()
        seen = {number: window for number, window in self._unread if number == step}
        self._unread.clear()
        if step is None:
            return
        terms = not_finite(self.means["train"].sums)
        what = f"loss {terms[0]}" if terms else "gradient"
        path = self.folder / FOLDER / f"step-{step:08d}"
        if self.trainer.world_size > 1:
            path = path.with_name(f"{path.name}-rank-{self.global_rank}")
        for window in seen.values():
            batches = self.batches.read(window.rows, window.epoch)
            facts = {"step": step, "epoch": window.epoch, "seed": self.seed, "not_finite": what}
            write_nan_batch(path, batches, window.rows, facts)
        raise NonFiniteError(
            f"The {what} became NaN or infinite in step {step} (epoch {self.current_epoch + 1}). "
            f"Its batch is in {path}.safetensors. Lower trainer.learning_rate, check the counts "
            "for extreme values (omics-data check), or go on without such steps: "
            "trainer.on_nan=skip or roll_back.",
            step,
        )

    def validation_step(self, batch: TrainingBatch, batch_idx: int) -> None:
        """Add up the terms and metrics of one micro-batch."""
        del batch_idx
        sums = validation_step(self.model, batch, self.objective, self.metrics)
        self.means["validation"].add(sums)

    def on_validation_start(self) -> None:
        """Start the tables of genes again; those of the last validation stay until then."""
        self.refuse_non_finite()
        # A run that was stopped within a validation begins it anew.
        self.means["validation"] = RunningMeans()
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
        self.refuse_non_finite()
        self._record("train", {})
        # A run that went on behind the last step of the epoch has not asked for any batch of it.
        self.batches.set_epoch(self.current_epoch + 1)

    def _record(self, phase: str, numbers: Mapping[str, float]) -> dict[str, float]:
        means = self.means[phase].read()
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


def _out_of_memory(when: str, error: torch.OutOfMemoryError) -> ResourceError:
    return ResourceError(
        f"Out of memory while {when} ({error}), where a step cannot be taken again. Lower "
        "data_module.batch_size, raise trainer.accumulate_grad_batches by as much, and go on with "
        "resume=true."
    )


class RunReporter(LightningCheckpoint):  # type: ignore[misc]
    """Writes the history and the throughput after each epoch, and moves the progress bar.

    As Lightning's checkpoint callbacks it is called after the module has read its means.
    """

    def __init__(
        self, folder: Path, advance: Callable[[int], None], meter: ThroughputMeter
    ) -> None:
        self.folder = folder
        self.advance = advance
        self.meter = meter

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Advance to where the run goes on."""
        del args
        if trainer.is_global_zero:
            self.advance(trainer.global_step)

    def on_train_epoch_start(self, *args: Any) -> None:
        """Let the clock run."""
        del args
        self.meter.start()

    def on_validation_start(self, *args: Any) -> None:
        """Let the clock stand still."""
        del args
        self.meter.pause()

    def on_validation_end(self, *args: Any) -> None:
        """Let the clock run again."""
        del args
        self.meter.start()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Window,
        *args: Any,
    ) -> None:
        """Count the work of one step and advance by it."""
        del pl_module, outputs, args
        if trainer.is_global_zero:
            self.meter.add(batch.batches)
            self.advance(1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what there is so far, so that a stopped run shows its curve."""
        if trainer.is_global_zero and isinstance(pl_module, TrainingModule):
            self.meter.end_epoch(trainer.global_step, trainer.current_epoch + 1)
            self.meter.write(self.folder / THROUGHPUT)
            pl_module.history.write(self.folder / HISTORY)
