"""The state of an optimizer as named tensors, and back: no pickle, no numbers of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omics.train.checkpointing.checkpoint_folder import CorruptCheckpointError
from omics.train.sharding import like

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor, nn


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the state of each parameter as `{parameter:key}`, such as `head.weight:exp_avg`.

    Args:
        optimizer: of the model; parameters without a gradient so far have no state.
        model: whose names are used.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}:{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    rates: list[float],
) -> None:
    """Continue with the state of a checkpoint.

    Args:
        optimizer: made as that of the checkpoint.
        model: whose names are used.
        tensors: from `optimizer_tensors`.
        rates: learning rate of each group.

    Raises:
        CorruptCheckpointError: tensors of another optimizer.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = optimizer.param_groups
    parameters = [parameter for group in groups for parameter in group["params"]]
    numbers = {names[id(parameter)]: number for number, parameter in enumerate(parameters)}
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        name, _, what = key.rpartition(":")
        if name not in numbers:
            raise CorruptCheckpointError(
                f"The optimizer of the checkpoint has {key!r}, and {name!r} is not trained here. "
                "Continue with the configuration of the run that was stopped."
            )
        number = numbers[name]
        state.setdefault(number, {})[what] = like(value, parameters[number])
    described = optimizer.state_dict()["param_groups"]
    if len(rates) != len(described):
        raise CorruptCheckpointError(
            f"The optimizer of the checkpoint has {len(rates)} groups, this one {len(described)}. "
            "Continue with the configuration of the run that was stopped."
        )
    for group, rate in zip(described, rates, strict=True):
        group["lr"] = rate
    optimizer.load_state_dict({"state": state, "param_groups": described})
