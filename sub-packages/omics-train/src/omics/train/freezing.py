"""Parameters and rows of tables that a training leaves as they are.

- `freeze` takes regular expressions over the names of parameters: what matches gets no gradient
  and is not in the optimiser.
- `freeze_rows` leaves chosen rows of a table bit by bit as they are, while the others are trained:
  their gradient is set to zero before it is added up or clipped, and the table has no weight
  decay (AdamW moves a parameter without gradient by nothing else).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from omics.data.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence


def freeze(model: nn.Module, patterns: Sequence[str]) -> str:
    r"""Freeze the parameters whose names match.

    Args:
        model: changed in place.
        patterns: regular expressions, found anywhere in a name such as
            `encoder.layers.0.qkv.weight`: `embedding\.` or `layers\.[0-3]\.`.

    Returns:
        One line for people: how much is frozen.

    Raises:
        ConfigError: no regular expression, a pattern that matches nothing, or nothing left to train.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        try:
            matching = [name for name in parameters if re.search(pattern, name)]
        except re.error as error:
            raise ConfigError(
                f"trainer.freeze holds {pattern!r}, which is no regular expression ({error})."
            ) from error
        if not matching:
            hint = nearest(pattern.replace("\\", ""), list(parameters))
            raise ConfigError(f"trainer.freeze: no parameter matches {pattern!r}.{hint}")
        for name in matching:
            parameters[name].requires_grad_(False)
    return trained_share(model)


def trained_share(model: nn.Module) -> str:
    """Return one line for people: how many numbers of a model are trained.

    Args:
        model: whose parameters know whether they are trained.

    Raises:
        ConfigError: none is.
    """
    sizes = [(each.numel(), each.requires_grad) for each in model.parameters()]
    total, trained = sum(n for n, _ in sizes), sum(n for n, is_trained in sizes if is_trained)
    if not trained:
        raise ConfigError("trainer.freeze leaves nothing to train: name fewer parameters.")
    return f"{total - trained:,} of {total:,} parameters are frozen, {trained:,} are trained"


def freeze_rows(table: nn.Parameter, rows: Tensor) -> None:
    """Make the gradient of rows of a table zero for as long as the parameter lives.

    Args:
        table: the parameter, [rows, width].
        rows: int64, which of them.
    """
    is_frozen = torch.zeros(len(table), 1, dtype=torch.bool)
    is_frozen[rows] = True
    by_device = {is_frozen.device: is_frozen}

    def masked(gradient: Tensor) -> Tensor:
        if gradient.device not in by_device:
            by_device[gradient.device] = is_frozen.to(gradient.device)
        return gradient.masked_fill(by_device[gradient.device], 0.0)

    table.register_hook(masked)  # type: ignore[no-untyped-call]
