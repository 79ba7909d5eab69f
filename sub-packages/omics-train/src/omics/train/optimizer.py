"""AdamW with two rates and a schedule by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from omics.data.errors import ConfigError, nearest

if TYPE_CHECKING:
    from omics.train.run_config import TrainerConfig

SCHEDULES = ("one_cycle", "constant")
_HEADS = "label_heads."


def build_optimizer(model: nn.Module, config: TrainerConfig) -> torch.optim.Optimizer:
    """Return AdamW; matrices and tables decay, biases and norms do not.

    Args:
        model: with label heads under `label_heads.`.
        config: rates and decay.
    """
    encoder_rate = config.encoder_learning_rate
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_head = encoder_rate is None or _HEADS in name
        groups.setdefault((is_head, parameter.ndim > 1), []).append(parameter)
    settings: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": config.learning_rate if is_head else encoder_rate,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (is_head, decays), parameters in groups.items()
    ]
    return torch.optim.AdamW(settings)


def build_schedule(
    optimizer: torch.optim.Optimizer, config: TrainerConfig, num_steps: int
) -> LRScheduler:
    """Return the schedule, to be stepped after every optimiser step.

    Args:
        optimizer: with its peak rates.
        config: with `schedule` and `warmup_fraction`.
        num_steps: optimiser steps of the whole run.

    Raises:
        ConfigError: an unknown schedule.
    """
    if config.schedule == "one_cycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(
            optimizer,
            peaks,
            total_steps=max(num_steps, 2),
            pct_start=config.warmup_fraction,
            cycle_momentum=False,
        )
    if config.schedule == "constant":
        return LambdaLR(optimizer, lambda _step: 1.0)
    hint = nearest(config.schedule, SCHEDULES)
    raise ConfigError(f"trainer.schedule is {config.schedule!r}.{hint}")
