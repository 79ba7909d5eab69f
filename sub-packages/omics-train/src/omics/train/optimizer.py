"""AdamW with two rates and a schedule by name."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from omics.data.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Collection

    from omics.train.run_config import TrainerConfig

SCHEDULES = ("one_cycle", "constant")
FIRST_FACTOR, LAST_FACTOR = 1 / 25, 1 / 250_000
_HEADS = "label_heads."


def build_optimizer(
    model: nn.Module, config: TrainerConfig, *, undecayed: Collection[str] = ()
) -> torch.optim.Optimizer:
    """Return AdamW; matrices and tables decay, biases and norms do not.

    Args:
        model: with label heads under `label_heads.`; frozen parameters are left out.
        config: rates and decay.
        undecayed: names of further parameters without decay.
    """
    encoder_rate = config.encoder_learning_rate
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_head = encoder_rate is None or _HEADS in name
        decays = parameter.ndim > 1 and name not in undecayed
        groups.setdefault((is_head, decays), []).append(parameter)
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
        ConfigError: an unknown schedule, or a warm-up that is no share.
    """
    if not 0 <= config.warmup_fraction <= 1:
        raise ConfigError(f"trainer.warmup_fraction is {config.warmup_fraction}; it is a share.")
    if config.schedule == "one_cycle":
        return LambdaLR(optimizer, partial(one_cycle, num_steps, config.warmup_fraction))
    if config.schedule == "constant":
        return LambdaLR(optimizer, lambda _step: 1.0)
    hint = nearest(config.schedule, SCHEDULES)
    raise ConfigError(f"trainer.schedule is {config.schedule!r}.{hint}")


def one_cycle(num_steps: int, warmup_fraction: float, step: int) -> float:
    """Return the factor of the peak rate: a cosine up, then a cosine down (Smith 2018).

    As torch's OneCycleLR, which cannot do with a warm-up of one step.

    Args:
        num_steps: optimiser steps of the whole run.
        warmup_fraction: share of them that rises.
        step: from 0; what is beyond the last stays there.
    """
    top = warmup_fraction * num_steps - 1
    last = max(num_steps - 1, 1)
    if step < top:
        return _cosine(FIRST_FACTOR, 1.0, step / top)
    top = max(top, 0.0)
    return _cosine(1.0, LAST_FACTOR, min((step - top) / max(last - top, 1.0), 1.0))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
