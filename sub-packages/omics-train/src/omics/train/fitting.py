"""The optimiser steps of a run: Lightning as the outer loop, begun, gone on with or rolled back."""

from __future__ import annotations

import contextlib
import copy
import logging
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy

from omics.data.atomic_files import writer_lock
from omics.data.command_line import progress, say
from omics.train.batch_window import fill_totals
from omics.train.checkpointing.checkpoint_callback import Best, Checkpoints
from omics.train.checkpointing.checkpoint_folder import (
    FOLDER,
    forget_later,
    newest_checkpoint,
)
from omics.train.checkpointing.loop_counters import set_counters
from omics.train.checkpointing.run_state import Progress, restore_results
from omics.train.checkpointing.same_configuration import size_of_step
from omics.train.compiled_blocks import blocks_in_training
from omics.train.early_stopping import EarlyStopping, ValidationWatch
from omics.train.finite_watch import NonFiniteError
from omics.train.history import HISTORY
from omics.train.lightning_module import (
    RunReporter,
    TrainingModule,
    interrupts_as_usual,
    quiet_lightning,
)
from omics.train.processes import Place
from omics.train.quick_hooks import NoProfiler
from omics.train.run_files import plain, versions
from omics.train.run_plan import plan_run
from omics.train.sharding import FSDP, whole_tensors
from omics.train.stop_signals import StopSignals
from omics.train.throughput import THROUGHPUT, ThroughputMeter
from omics.train.tracking.run_trackers import RunTrackers, tracked
from omics.train.trainer_settings import compiles, tf32, validation_interval
from omics.train.training_curves import write_curves
from omics.train.training_step import training_step
from omics.train.validation_files import write_validation_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from omics.train.checkpointing.checkpoint_folder import Checkpoint
    from omics.train.history import History
    from omics.train.run_config import RunConfig, TrainerConfig
    from omics.train.run_plan import RunPlan
    from omics.train.train_run import Training

# A run that goes back so often has another trouble than a bad batch.
MOST_ROLL_BACKS = 5
# Processes must not draw the same dropout; the first draws what a process alone would.
_SEED_STRIDE = 1_000_003


def num_steps(training: Training, trainer: TrainerConfig) -> int:
    """Return the optimiser steps of the whole run.

    Args:
        training: with its batches.
        trainer: with its limits.
    """
    steps = training.batches.num_steps(trainer.max_epochs)
    return steps if trainer.max_steps is None else min(steps, trainer.max_steps)


def is_over(checkpoint: Checkpoint, steps: int) -> bool:
    """Return whether no step is left to take after a checkpoint.

    Args:
        checkpoint: of the run.
        steps: of the whole run.
    """
    state = checkpoint.state
    return bool(state["ended"] and (state["ended_early"] or checkpoint.step >= steps))


def fit(
    training: Training,
    config: RunConfig,
    folder: Path,
    *,
    start: Checkpoint | None = None,
    watch: Callable[[History], bool] | None = None,
) -> Best | None:
    """Run the optimiser steps; the model is trained in place.

    Args:
        training: the checked parts.
        config: with its trainer section.
        folder: where checkpoints, the history and tables of validation go.
        start: the checkpoint to go on from; None begins.
        watch: is shown the history after each validation, and says whether the run ends there.

    Returns:
        The best validation, if there is one.

    Raises:
        StoppedError: a signal asked to stop; the run can go on later.
        NonFiniteError: a gradient was not finite, and the policy is to stop, or going back did not
            help.
        ResourceError: out of disk or memory.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    place, signals = Place.of(config.trainer), StopSignals()
    training.batches.wants_stop = lambda: signals.asked
    excluded: set[int] = set()
    with contextlib.ExitStack() as stack:
        if place.is_first:
            (folder / FOLDER).mkdir(parents=True, exist_ok=True)
            stack.enter_context(writer_lock(folder / FOLDER))
            forget_later(folder, -1 if start is None else start.step)
        plan = plan_run(training, config, steps=num_steps(training, config.trainer))
        say(f"{plan}")
        while True:
            attempt = _Attempt(
                training, config, folder, place=place, signals=signals, start=start, plan=plan
            )
            attempt.module.excluded |= excluded
            attempt.watch = watch
            try:
                attempt.run()
                break
            except NonFiniteError as error:
                if config.trainer.on_nan != "roll_back" or len(excluded) == MOST_ROLL_BACKS:
                    raise
                start = newest_checkpoint(folder)
                assert start is not None
                excluded.add(error.step)
                say(f"{error} Going back to step {start.step}, and step {error.step} is left out.")
    attempt.finish()
    return attempt.best


class _Attempt:
    """One call of Lightning's `fit`."""

    def __init__(
        self,
        training: Training,
        config: RunConfig,
        folder: Path,
        *,
        place: Place,
        signals: StopSignals,
        start: Checkpoint | None,
        plan: RunPlan,
    ) -> None:
        self.training, self.config, self.folder = training, config, folder
        self.place, self.signals, self.start = place, signals, start
        self.steps = num_steps(training, config.trainer)
        self.is_sharded = config.trainer.strategy == FSDP
        self.module = TrainingModule(
            # Shares are made in place; the model itself is needed whole in the end.
            copy.deepcopy(training.model) if self.is_sharded else training.model,
            training.objective,
            config,
            batches=training.batches,
            num_steps=self.steps,
            folder=folder,
            reversal=training.reversal,
            head_steps=training.head_steps,
            undecayed=training.undecayed,
        )
        self.plan = plan
        self.best: Best | None = None
        self.watch: Callable[[History], bool] | None = None

    def run(self) -> None:
        """Take the steps that are left."""
        start, settings = self.start, self.config.trainer
        if start is not None:
            say(f"Going on from {start.path}, after step {start.step} of {self.steps}.")
            if is_over(start, self.steps):
                restore_results(self.module, start)
                self.best = Best(**start.state["best"]) if start.state["best"] else None
                return
        L.seed_everything(self.config.seed + _SEED_STRIDE * self.place.rank, verbose=False)
        stopping = None
        if settings.early_stopping.patience is not None:
            stopping = EarlyStopping(settings.early_stopping)
        checkpoints = Checkpoints(
            self.folder,
            settings.checkpoint,
            place=self.place,
            signals=self.signals,
            facts=self._facts(),
            stopping=stopping,
            start=start,
            begins_with_save=settings.on_nan == "roll_back",
        )
        meter = self._meter()
        verb = "fine-tuning" if self.training.labels else "pretraining"
        with (
            quiet_lightning(),
            tf32(settings),
            progress(verb, self.steps, unit="steps", detail=meter.line) as advance,
            tracked(self._trackers(meter)) as trackers,
        ):
            callbacks = [RunReporter(self.folder, advance, meter), *trackers, checkpoints]
            if self.watch is not None:
                callbacks.append(ValidationWatch(self.watch))
            trainer = L.Trainer(
                max_epochs=settings.max_epochs,
                max_steps=-1 if settings.max_steps is None else settings.max_steps,
                accelerator=settings.accelerator,
                precision=settings.precision,
                reload_dataloaders_every_n_epochs=1 if self._epochs_differ() else 0,
                val_check_interval=validation_interval(settings),
                callbacks=[*([] if stopping is None else [stopping]), *callbacks],
                logger=False,
                profiler=NoProfiler(),
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                limit_val_batches=1.0 if self.training.validation is not None else 0,
                default_root_dir=self.folder,
                **self._processes(),
            )
            if start is not None:
                where = Progress.of(start.state)
                self.training.batches.load_state_dict(
                    {"epoch": where.epoch, "steps": where.steps_of_epoch, "loader": where.loader}
                )
                set_counters(
                    trainer,
                    step=where.step,
                    epoch=where.epoch,
                    steps_of_epoch=where.steps_of_epoch,
                    validation_due=where.validation_due,
                )
            with (
                interrupts_as_usual(trainer),
                blocks_in_training(
                    self.module.model,
                    backend=settings.attention_backend,
                    compiled=compiles(self.config),
                    recomputed=settings.recompute_activations,
                ),
            ):
                trainer.fit(
                    self.module,
                    train_dataloaders=self.training.batches,
                    val_dataloaders=self.training.validation,
                )
        self.best = checkpoints.best

    def finish(self) -> None:
        """Say and write what was found, and leave the model on the CPU."""
        module, training = self.module, self.training
        if self.is_sharded:
            training.model.load_state_dict(whole_tensors(module.model.state_dict()))
        for phase in ("train", "validation"):
            last = ", ".join(f"{k} {v:.3f}" for k, v in sorted(module.history.last(phase).items()))
            if last:
                say(f"{phase}: {last}")
        if module.skipped:
            say(f"{module.skipped} steps changed nothing, as their gradient was not finite.")
        if self.place.is_first:
            module.history.write(self.folder / HISTORY)
            classes = {spec.name: spec.classes for spec in training.labels}
            write_validation_files(self.folder, module, training.source.tokenizer, classes)
            write_curves(self.folder, module.history)
        training.model.cpu().eval()

    def _meter(self) -> ThroughputMeter:
        settings = self.config.trainer
        meter = ThroughputMeter(
            config=self.training.model.model_config,
            objective=self.training.objective,
            is_padded=self.plan.is_padded,
            peak_tflops=self.plan.peak_tflops,
            # A model with frozen parts does less work than the formula counts.
            is_whole=not settings.freeze and not settings.lora.r,
            world_size=self.place.world_size,
        )
        if self.start is not None:
            meter.read(self.folder / THROUGHPUT, step=self.start.step)
        return meter

    def _trackers(self, meter: ThroughputMeter) -> RunTrackers | None:
        if not self.place.is_first:
            return None
        return RunTrackers(self.config, self.folder, meter=meter, start=self.start)

    def _epochs_differ(self) -> bool:
        """Return whether epochs have lengths of their own: stages, or batches of tokens."""
        is_counted = self.config.data_module.batch_tokens is None
        return bool(self.config.trainer.curriculum) or not is_counted

    def _facts(self) -> dict[str, Any]:
        return {
            "num_steps": self.steps,
            "size_of_step": size_of_step(self.config),
            "reversal": sorted(set(self.training.reversal.values())),
            "config": plain(self.config),
            "versions": versions(),
        }

    def _processes(self) -> dict[str, Any]:
        """Return what Lightning must know of the processes; it starts none itself.

        Named, so that it neither guesses them from the variables of SLURM nor resubmits the job.
        """
        if self.place.world_size == 1:
            return {"devices": 1, "plugins": [LightningEnvironment()]}
        settings = self.config.trainer
        # Counts are summed on the host, gradients where they are.
        backend = None if settings.accelerator == "cpu" else "cpu:gloo,cuda:nccl"
        strategy: ParallelStrategy
        if self.is_sharded:
            strategy = ModelParallelStrategy(
                data_parallel_size=self.place.world_size,
                tensor_parallel_size=1,
                process_group_backend=backend,
            )
        else:
            strategy = DDPStrategy(
                process_group_backend=backend,
                find_unused_parameters=_has_unused_parameters(self.training),
            )
        return {
            "devices": settings.devices,
            "num_nodes": settings.num_nodes,
            "strategy": strategy,
            "plugins": [TorchElasticEnvironment()],
        }


def _has_unused_parameters(training: Training) -> bool:
    """Return whether a trained parameter has no part in the loss; every process asks of one cell."""
    batches = training.batches
    (batch,) = batches.read([np.array([batches.first_row])], 0)
    fill_totals([batch])
    loss, _ = training_step(training.model, batch.to("cpu"), training.objective)
    loss.backward()  # type: ignore[no-untyped-call]
    trained = [each for each in training.model.parameters() if each.requires_grad]
    unused = any(each.grad is None for each in trained)
    training.model.zero_grad()
    return unused
