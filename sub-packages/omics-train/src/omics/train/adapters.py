"""LoRA: small trained matrices beside frozen weights, and their merging into plain ones.

Hu et al. 2022, "LoRA"; with `use_dora` Liu et al. 2024, "DoRA". The work is done by peft, the extra
`lora`.

- Adapters and heads are trained, nothing else. What was frozen by pattern stays frozen.
- After the training the adapters are added into the weights: the bundle is one like any other, and
  who loads it needs no peft.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from omics.data.errors import ConfigError, MissingExtraError, nearest
from omics.models.model import HEADS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omics.models import OmicsModel
    from omics.train.run_config import LoraConfig


class Adapters:
    """The adapters of a model, until they are merged.

    Attributes:
        modules: names of the modules that have one.
    """

    def __init__(self, tuner: Any, modules: Sequence[str]) -> None:
        self._tuner = tuner
        self.modules = tuple(modules)

    def merge(self) -> None:
        """Add the adapters into the weights and take them out of the model."""
        self._tuner.merge_and_unload()


def add_adapters(model: OmicsModel, config: LoraConfig, *, seed: int) -> Adapters:
    """Put adapters beside the weights of chosen modules and freeze all else but the heads.

    Args:
        model: changed in place; its parameters get other names until the adapters are merged.
        config: with `r` above 0.
        seed: of the new matrices.

    Raises:
        MissingExtraError: peft is not installed.
        ConfigError: a size out of range, or a target that is no linear layer or table.
    """
    _check(config)
    peft = _peft()
    modules = _targets(model, config.target_modules)
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    settings = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_dora=config.use_dora,
        target_modules=modules,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        tuner = peft.LoraModel(model, settings, "default")
    # peft freezes all that is no adapter, heads included.
    for name, parameter in model.named_parameters():
        if name.startswith(HEADS) and name in trained:
            parameter.requires_grad_(True)
    return Adapters(tuner, modules)


def refuse_idle_lora(config: LoraConfig, default: LoraConfig) -> None:
    """Refuse settings of adapters where there are none.

    Args:
        config: of the run.
        default: of a run that says nothing.

    Raises:
        ConfigError: `r` is 0 and something else is set.
    """
    if config.r == 0 and config != default:
        raise ConfigError("trainer.lora.r is 0, so there are no adapters: set it (16 is usual).")


def _check(config: LoraConfig) -> None:
    if config.r < 1:
        raise ConfigError(f"trainer.lora.r is {config.r}; it must be at least 1, or 0 for none.")
    if config.alpha <= 0:
        raise ConfigError(f"trainer.lora.alpha is {config.alpha}; it must be above 0.")
    if not 0 <= config.dropout < 1:
        raise ConfigError(f"trainer.lora.dropout is {config.dropout}; it must be in [0, 1).")


def _targets(model: OmicsModel, wanted: Sequence[str]) -> list[str]:
    """Return the full names of the modules meant: by their last name, or by all of it."""
    known = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
    ]
    known = [name for name in known if not name.startswith(HEADS)]
    found: list[str] = []
    for target in wanted:
        matching = [name for name in known if name == target or name.endswith(f".{target}")]
        if not matching:
            last = sorted({name.rsplit(".", maxsplit=1)[-1] for name in known})
            raise ConfigError(
                f"trainer.lora.target_modules holds {target!r}, which is no linear layer or table "
                f"of this model.{nearest(target, last)}"
            )
        found += [name for name in matching if name not in found]
    if not found:
        raise ConfigError("trainer.lora.target_modules is empty: name layers, such as qkv.")
    return found


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError(
            f"LoRA needs peft, which cannot be imported ({error}). Run: "
            "pip install 'omics-train[lora]'"
        ) from error
    return peft
