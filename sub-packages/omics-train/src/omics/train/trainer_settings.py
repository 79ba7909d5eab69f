"""Settings of the trainer, checked before anything is written, and as Lightning reads them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from omics.data.errors import ConfigError, nearest
from omics.models.attention import BACKENDS
from omics.train.metric_table import reported
from omics.train.schedules import schedule
from omics.train.sharding import check_strategy
from omics.train.tracking.tracker_names import check_trackers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from omics.train.objective import Objective
    from omics.train.run_config import RunConfig, TrainerConfig

ON_NAN = ("stop", "skip", "roll_back")
OPTIMIZERS = ("adamw", "muon")
TF32_MODES = ("highest", "high", "medium")


def check_trainer(config: RunConfig, objective: Objective, *, validates: bool) -> None:
    """Refuse settings that cannot work.

    Args:
        config: of the run.
        objective: of the run.
        validates: whether there are validation cells.

    Raises:
        ConfigError: naming the first of them.
    """
    trainer = config.trainer
    schedule(trainer, 1)
    validation_interval(trainer)
    _check_stopping(config, objective, validates=validates)
    _check_tf32(trainer)
    check_trackers(trainer)
    check_strategy(config)
    _check_backend(trainer)
    _check_optimizer(trainer)
    if trainer.compile and config.data_module.batch_tokens is None:
        raise ConfigError(
            "trainer.compile needs batches of one shape: set data_module.batch_tokens and leave "
            "data_module.batch_size out."
        )
    for name in ("max_epochs", "accumulate_grad_batches", "max_steps"):
        value = getattr(trainer, name)
        if value is not None and value < 1:
            raise ConfigError(f"trainer.{name} is {value}; it must be at least 1.")
    if not 0 < trainer.layer_decay <= 1:
        raise ConfigError(
            f"trainer.layer_decay is {trainer.layer_decay}; it must be above 0 and at most 1."
        )
    if len(trainer.betas) != 2 or not all(0 <= beta < 1 for beta in trainer.betas):
        raise ConfigError(f"trainer.betas is {trainer.betas}; give two numbers in [0, 1).")
    _check_unused(config)
    stopping = trainer.early_stopping
    if not validates:
        needs = {
            "trainer.early_stopping": stopping.patience is not None,
            "data_module.adaptive_masking": objective.masks.adaptive is not None,
        }
        for key in (key for key, is_set in needs.items() if is_set):
            raise ConfigError(
                f"{key} follows what validation finds, and there are no validation cells: give "
                "data_module.split, or leave it out."
            )
    if stopping.patience is None:
        return
    known = reported(objective.terms)
    if stopping.monitor not in known:
        raise ConfigError(
            f"trainer.early_stopping.monitor is {stopping.monitor!r}, which validation does not "
            f"report.{nearest(stopping.monitor, sorted(known))}"
        )
    if stopping.patience < 1 or not stopping.min_delta >= 0:
        raise ConfigError(
            f"trainer.early_stopping has patience {stopping.patience} and min_delta "
            f"{stopping.min_delta}; they must be at least 1 and 0."
        )


def _check_unused(config: RunConfig) -> None:
    """Refuse settings of something that is not switched on."""
    data, stopping = config.data_module, config.trainer.early_stopping
    parts = {
        "trainer.early_stopping": (stopping, stopping.patience is None, "patience"),
        "data_module.pairing": (data.pairing, data.pairing.column is None, "column"),
        "data_module.adaptive_masking": (
            data.adaptive_masking,
            not data.adaptive_masking.enabled,
            "enabled",
        ),
    }
    for name, (part, is_off, switch) in parts.items():
        if is_off and part != type(part)():
            raise ConfigError(f"{name} has settings and no effect without {name}.{switch}: set it.")


def _check_stopping(config: RunConfig, objective: Objective, *, validates: bool) -> None:
    """Refuse settings of checkpoints and of steps that are not finite."""
    trainer, checkpoint = config.trainer, config.trainer.checkpoint
    if trainer.on_nan not in ON_NAN:
        raise ConfigError(f"trainer.on_nan is {trainer.on_nan!r}.{nearest(trainer.on_nan, ON_NAN)}")
    for name, value in (("every_steps", checkpoint.every_steps), ("keep", checkpoint.keep)):
        if value is not None and value < 1:
            raise ConfigError(f"trainer.checkpoint.{name} is {value}; it must be at least 1.")
    if not validates:
        for key, is_set in (
            ("trainer.checkpoint.best", checkpoint.best is not None),
            ("hand_on=best", config.hand_on == "best"),
        ):
            if is_set:
                raise ConfigError(
                    f"{key} follows what validation finds, and there are no validation cells: give "
                    "data_module.split, or leave it out."
                )
    known = reported(objective.terms)
    if checkpoint.best is not None and checkpoint.best not in known:
        raise ConfigError(
            f"trainer.checkpoint.best is {checkpoint.best!r}, which validation does not report."
            f"{nearest(checkpoint.best, sorted(known))}"
        )


def uses_cuda(trainer: TrainerConfig) -> bool:
    """Return whether a training runs on CUDA.

    Args:
        trainer: with its accelerator.
    """
    return trainer.accelerator in ("cuda", "gpu", "auto") and torch.cuda.is_available()


def compiles(config: RunConfig) -> bool:
    """Return whether blocks are compiled, and batches filled up to one shape.

    Args:
        config: of the run.
    """
    wanted, is_fixed = config.trainer.compile, config.data_module.batch_tokens is not None
    return is_fixed and uses_cuda(config.trainer) if wanted is None else wanted


def validation_interval(trainer: TrainerConfig) -> int | float:
    """Return the interval of validation as Lightning reads it: a share of an epoch, or steps.

    Args:
        trainer: with `val_check_interval`, a share or micro-batches.

    Raises:
        ConfigError: neither of these.
    """
    value = trainer.val_check_interval
    if not value > 0 or (value > 1 and value != int(value)):
        raise ConfigError(
            f"trainer.val_check_interval is {value}; give a share of an epoch up to 1, or a whole "
            "number of micro-batches above 1."
        )
    return value if value <= 1 else -(-int(value) // trainer.accumulate_grad_batches)


@contextlib.contextmanager
def tf32(trainer: TrainerConfig) -> Iterator[None]:
    """Set the precision of float32 products on CUDA while the block runs.

    Args:
        trainer: with `tf32_mode`: `highest` (float32), `high` (TF32), `medium` (bfloat16), or null
            to leave it as it is.
    """
    if trainer.tf32_mode is None:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(trainer.tf32_mode)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _check_optimizer(trainer: TrainerConfig) -> None:
    if trainer.optimizer not in OPTIMIZERS:
        raise ConfigError(
            f"trainer.optimizer is {trainer.optimizer!r}.{nearest(trainer.optimizer, OPTIMIZERS)}"
        )
    if trainer.optimizer != "muon" and trainer.muon_momentum != type(trainer)().muon_momentum:
        raise ConfigError("trainer.muon_momentum is read with trainer.optimizer=muon alone.")
    if not 0 <= trainer.muon_momentum < 1:
        raise ConfigError(
            f"trainer.muon_momentum is {trainer.muon_momentum}; it must be in [0, 1)."
        )


def _check_backend(trainer: TrainerConfig) -> None:
    name = trainer.attention_backend
    if name not in BACKENDS:
        raise ConfigError(f"trainer.attention_backend is {name!r}.{nearest(name, list(BACKENDS))}")
    if name in ("varlen", "flex") and not uses_cuda(trainer):
        raise ConfigError(
            f"trainer.attention_backend={name} trains on CUDA alone, and this run does not. Use "
            "auto, or set trainer.accelerator=cuda on a machine that has it."
        )
    if name == "varlen" and trainer.precision.startswith("32"):
        raise ConfigError(
            "trainer.attention_backend=varlen needs bfloat16 or float16: set "
            "trainer.precision=bf16-mixed, or use auto."
        )


def _check_tf32(trainer: TrainerConfig) -> None:
    mode = trainer.tf32_mode
    if mode is None:
        return
    if mode not in TF32_MODES:
        raise ConfigError(f"trainer.tf32_mode is {mode!r}.{nearest(mode, TF32_MODES)}")
    if trainer.accelerator not in ("cuda", "gpu", "auto"):
        raise ConfigError(
            f"trainer.tf32_mode is for CUDA, and trainer.accelerator is {trainer.accelerator!r}. "
            "Leave one of them out."
        )
