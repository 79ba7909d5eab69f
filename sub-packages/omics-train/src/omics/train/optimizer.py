"""AdamW, or Muon for matrices of blocks, with a rate for the heads, one for the rest, and less for lower layers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from omics.train.muon import MuonWithAdamW
from omics.train.schedules import schedule

if TYPE_CHECKING:
    from collections.abc import Collection

    from omics.train.run_config import TrainerConfig

_LABEL_HEADS = "label_heads."
_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.")


def build_optimizer(
    model: nn.Module, config: TrainerConfig, *, undecayed: Collection[str] = ()
) -> torch.optim.Optimizer:
    """Return the optimizer; matrices and tables decay, biases and norms do not.

    Args:
        model: with label heads under `label_heads.` and blocks under `encoder.layers.`; frozen
            parameters are left out.
        config: rates and decay; checked by `check_trainer`.
        undecayed: names of further parameters without decay.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    blocks = [int(found[1]) for name, _ in named if (found := _BLOCK.search(name))]
    num_blocks = max(blocks, default=-1) + 1
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        rate = config.learning_rate
        if config.encoder_learning_rate is not None and _LABEL_HEADS not in name:
            rate = config.encoder_learning_rate
        rate *= config.layer_decay ** _depth(name, num_blocks)
        decays = parameter.ndim > 1 and name not in undecayed
        by_muon = config.optimizer == "muon" and parameter.ndim == 2 and bool(_BLOCK.search(name))
        groups.setdefault((by_muon, rate, decays), []).append(parameter)
    settings: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for (by_muon, rate, decays), parameters in groups.items():
        decay = config.weight_decay if decays else 0.0
        settings[by_muon].append({"params": parameters, "lr": rate, "weight_decay": decay})
    # One pass over the memory of all parameters in place of a dozen. With float16 it would undo the
    # scale of gradients within its step, behind the clipping.
    fused = not config.precision.startswith("16")
    if settings[True]:
        return MuonWithAdamW(
            settings[True],
            settings[False],
            momentum=config.muon_momentum,
            betas=config.betas,
            eps=config.eps,
            fused=fused,
        )
    return torch.optim.AdamW(
        settings[False], betas=(config.betas[0], config.betas[1]), eps=config.eps, fused=fused
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, config: TrainerConfig, num_steps: int
) -> LRScheduler:
    """Return the schedule, to be stepped after every optimiser step.

    Args:
        optimizer: with its peak rates.
        config: with `schedule`, its warm-up and decay.
        num_steps: optimiser steps of the whole run.

    Raises:
        ConfigError: see `schedules.schedule`.
    """
    return LambdaLR(optimizer, schedule(config, num_steps))


def _depth(name: str, num_blocks: int) -> int:
    """Return how many levels a parameter is below the heads: 1 for the top block."""
    found = _BLOCK.search(name)
    if found:
        return num_blocks - int(found[1])
    return num_blocks + 1 if name.startswith("embedding.") else 0
