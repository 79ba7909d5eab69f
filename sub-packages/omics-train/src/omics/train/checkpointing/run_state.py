"""Everything a run needs to go on exactly where it was: gathered from its parts, and put back.

- Weights, optimizer and what the last validation found are tensors; the rest is plain JSON.
- Random generators and running means belong to a process. With another number of processes the
  means are added up and the generators begin anew, keyed by the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from omics.data.errors import ConfigError
from omics.train.checkpointing.checkpoint_folder import (
    MODEL,
    OPTIMIZER,
    VALIDATION,
    difference,
)
from omics.train.checkpointing.optimizer_tensors import load_optimizer, optimizer_tensors
from omics.train.checkpointing.random_state import random_state, restore_random_state
from omics.train.history import RunningMeans
from omics.train.sharding import like, whole_tensors
from omics.train.validation_metrics import Confusion

if TYPE_CHECKING:
    from collections.abc import Mapping

    import lightning as L
    from torch import Tensor

    from omics.train.checkpointing.checkpoint_folder import Checkpoint
    from omics.train.lightning_module import TrainingModule
    from omics.train.processes import Place

_CONFUSION, _GENE_ERRORS = "confusion:", "gene_errors:"
_SCHEDULE = ("base_lrs", "last_epoch", "_step_count", "_last_lr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run is.

    Attributes:
        step: optimiser steps that were taken.
        epoch: that goes on, from 0.
        steps_of_epoch: those of its steps that were taken.
        loader: position after the last of them; None at the start of an epoch.
        validation_due: whether a validation after the last step has still to be run.
    """

    step: int = 0
    epoch: int = 0
    steps_of_epoch: int = 0
    loader: dict[str, Any] | None = None
    validation_due: bool = False

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Progress:
        """Return the progress of a saved state.

        Args:
            state: of a checkpoint.
        """
        return cls(**state["progress"])


def gather_state(
    trainer: L.Trainer, module: TrainingModule, place: Place
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Return the state of a run as JSON, and its tensors by file, which the first process has.

    Every process takes part.

    Args:
        trainer: that runs.
        module: that is trained.
        place: of this process.
    """
    own = {
        "random": random_state(),
        "means": {phase: means.state_dict() for phase, means in module.means.items()},
    }
    ranks: list[Any] = [own]
    if place.world_size > 1:
        ranks = [None] * place.world_size
        dist.all_gather_object(ranks, own)
    adaptive = module.objective.masks.adaptive
    optimizer, schedule = trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler
    state = {
        "ranks": ranks,
        "rates": [group["lr"] for group in optimizer.param_groups],
        "schedule": {key: schedule.state_dict()[key] for key in _SCHEDULE},
        "scaler": trainer.precision_plugin.state_dict(),
        "adaptive_masking": None if adaptive is None else adaptive.state_dict(),
        "pieces": module.batches.pieces,
        "excluded": sorted(module.excluded),
        "skipped": module.skipped,
        "history": module.history.rows,
        "validated": module.validated,
    }
    tables = {f"{_CONFUSION}{each.source}": each.counts for each in module.confusions}
    for name, errors in module.metrics.gene_errors.items():
        tables[f"{_GENE_ERRORS}{name}"] = errors.joined
    keeps = place.is_first
    tensors = {
        MODEL: whole_tensors(module.model.state_dict(), keeps=keeps),
        OPTIMIZER: whole_tensors(optimizer_tensors(optimizer, module.model), keeps=keeps),
        VALIDATION: tables,
    }
    return state, tensors


def restore_state(
    trainer: L.Trainer, module: TrainingModule, checkpoint: Checkpoint, place: Place
) -> None:
    """Put a state back; optimizer and schedule are those of this run already.

    Args:
        trainer: that is about to take its first step.
        module: that is trained.
        checkpoint: to go on from.
        place: of this process.

    Raises:
        ConfigError: the checkpoint is of another model.
    """
    state = checkpoint.state
    restore_results(module, checkpoint)
    load_optimizer(
        trainer.optimizers[0], module.model, checkpoint.tensors(OPTIMIZER), state["rates"]
    )
    schedule = trainer.lr_scheduler_configs[0].scheduler
    schedule.load_state_dict(
        {**state["schedule"], "lr_lambdas": [None] * len(state["schedule"]["base_lrs"])}
    )
    trainer.precision_plugin.load_state_dict(state["scaler"])
    if module.objective.masks.adaptive is not None:
        module.objective.masks.adaptive.load_state_dict(state["adaptive_masking"])
    module.batches.pieces = state["pieces"]
    module.excluded |= set(state["excluded"])
    ranks = state["ranks"]
    if len(ranks) == place.world_size:
        own = ranks[place.rank]
        restore_random_state(own["random"])
        parts = [own["means"]]
    else:
        torch.manual_seed(torch.initial_seed() + checkpoint.step)
        parts = [each["means"] for each in ranks] if place.is_first else []
    for phase in module.means:
        module.means[phase] = RunningMeans.summed([part[phase] for part in parts], module.device)


def restore_results(module: TrainingModule, checkpoint: Checkpoint) -> None:
    """Put back what a run has found: weights, history and the tables of its last validation.

    Args:
        module: that is trained.
        checkpoint: of the run.

    Raises:
        ConfigError: the checkpoint is of another model.
    """
    state, weights = checkpoint.state, checkpoint.tensors(MODEL)
    targets = module.model.state_dict()
    differs = difference(targets, weights)
    if differs:
        raise ConfigError(
            f"{checkpoint.path} is of another model: {differs}. Go on with the configuration, the "
            "cells and the checkpoint that the run was begun with, or choose another working_dir."
        )
    module.model.load_state_dict({k: like(weights[k], target) for k, target in targets.items()})
    module.history.rows = [tuple(row) for row in state["history"]]
    module.validated = state["validated"]
    module.skipped = state["skipped"]
    _restore_tables(module, checkpoint.tensors(VALIDATION))


def _restore_tables(module: TrainingModule, tables: Mapping[str, Tensor]) -> None:
    """Put back what the last validation found."""
    module.confusions = [
        Confusion(source=name.removeprefix(_CONFUSION), counts=counts)
        for name, counts in tables.items()
        if name.startswith(_CONFUSION)
    ]
    for name, errors in module.metrics.gene_errors.items():
        sums = tables.get(f"{_GENE_ERRORS}{name}")
        if sums is not None:
            errors.joined = sums
