"""Curricula: the first epochs with other batch sizes and shorter cells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from omics.data.errors import ConfigError
from omics.data.transforms import FirstGenes, TopGenes, check_transforms
from omics.data.transforms.transform_registry import ORDERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omics.data.transforms import Transform
    from omics.train.run_config import DataConfig, TrainerConfig
    from omics.train.token_budget import TokenBudget


DEFAULT_BATCH_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Epochs with the same settings.

    Attributes:
        max_epochs: passes that it lasts.
        batch_size: cells per micro-batch; None where tokens are counted.
        budget: of tokens per micro-batch; None where cells are counted.
        steps: transforms of training.
    """

    max_epochs: int
    batch_size: int | None
    steps: Sequence[Transform]
    budget: TokenBudget | None = None


def stages(
    trainer: TrainerConfig, data: DataConfig, steps: Sequence[Transform], *, num_special: int
) -> list[Stage]:
    """Return the stages of a run: those of its curriculum, then the rest of its epochs.

    Args:
        trainer: with the curriculum.
        data: with the batch size.
        steps: transforms of training.
        num_special: tokens of a cell that stand for no gene.

    Raises:
        ConfigError: a stage without effect, or longer than the run.
    """
    found = []
    left = trainer.max_epochs
    for number, stage in enumerate(trainer.curriculum):
        where = f"trainer.curriculum[{number}]"
        for key in ("max_epochs", "batch_size", "max_length"):
            value = getattr(stage, key)
            if value is not None and value < 1:
                raise ConfigError(f"{where}.{key} is {value}; it must be at least 1.")
        if stage.batch_size is not None and data.batch_tokens is not None:
            raise ConfigError(
                f"{where}.batch_size counts cells, and data_module.batch_tokens counts tokens. Leave "
                "one of them out."
            )
        if stage.batch_size is None and stage.max_length is None:
            raise ConfigError(f"{where} changes nothing: give batch_size, max_length or both.")
        left -= stage.max_epochs
        if left < 0:
            raise ConfigError(
                f"{where} ends after {trainer.max_epochs - left} epochs, and trainer.max_epochs is "
                f"{trainer.max_epochs}. Make the stages shorter or the run longer."
            )
        cut = steps
        if stage.max_length is not None:
            if stage.max_length <= num_special:
                raise ConfigError(
                    f"{where}.max_length is {stage.max_length} and {num_special} tokens of each "
                    "cell are special: no place is left for genes."
                )
            cut = _shortened(steps, stage.max_length - num_special)
        size = batch_size(data) if stage.batch_size is None else stage.batch_size
        found.append(Stage(max_epochs=stage.max_epochs, batch_size=size, steps=cut))
    if left:
        found.append(Stage(max_epochs=left, batch_size=batch_size(data), steps=steps))
    return found


def batch_size(data: DataConfig) -> int | None:
    """Return the cells of a micro-batch of training; None where tokens are counted.

    Args:
        data: of the configuration.

    Raises:
        ConfigError: cells and tokens are both given.
    """
    if data.batch_tokens is None:
        return DEFAULT_BATCH_SIZE if data.batch_size is None else data.batch_size
    if data.batch_size is not None:
        raise ConfigError(
            f"data_module.batch_size is {data.batch_size} cells and data_module.batch_tokens "
            f"{data.batch_tokens} tokens; a micro-batch of training has one limit. Set the other to "
            "null."
        )
    return None


def _shortened(steps: Sequence[Transform], max_genes: int) -> list[Transform]:
    """Return steps that leave a cell at most so many genes."""
    limits = [i for i, step in enumerate(steps) if isinstance(step, TopGenes | FirstGenes)]
    if limits:
        last: Any = steps[limits[-1]]
        shorter = replace(last, max_genes=min(last.max_genes, max_genes))
        return [*steps[: limits[-1]], shorter, *steps[limits[-1] + 1 :]]
    ordered = any(ORDERS in step.kinds() for step in steps)
    limit: Transform = FirstGenes(max_genes=max_genes) if ordered else TopGenes(max_genes=max_genes)
    joined = [*steps, limit]
    check_transforms(joined)
    return joined
