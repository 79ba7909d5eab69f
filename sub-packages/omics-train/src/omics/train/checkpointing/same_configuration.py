"""Whether a run may go on with a configuration: that of the checkpoint, but for a few keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omics.data.errors import ConfigError
from omics.train.curriculum import batch_size
from omics.train.run_files import plain
from omics.train.schedules import schedule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from omics.train.run_config import RunConfig

# What does not change the numbers, or is checked by what it leads to.
_FREE = (
    "working_dir",
    "overwrite",
    "resume",
    "task",
    "hand_on",
    "input_file",
    "embedding",
    "output",
    "scoring",
    "attribution",
    "data_module.dataset",
    "data_module.path",
    "data_module.predict_split",
    "data_module.prefetch",
    "trainer.checkpoint.every_steps",
    "trainer.checkpoint.keep",
    "trainer.on_nan",
    "trainer.accelerator",
    "trainer.strategy",
    "trainer.tf32_mode",
    "trainer.trackers",
    "trainer.project",
)
# Together they are the size of a step, which must stay.
_OF_A_STEP = (
    "data_module.batch_size",
    "data_module.batch_tokens",
    "trainer.accumulate_grad_batches",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.curriculum",
)
_LENGTH = ("trainer.max_epochs", "trainer.max_steps")


def size_of_step(config: RunConfig) -> list[str]:
    """Return the cells or tokens of a step over all processes, of each stage and then for good.

    Args:
        config: of a run.
    """
    trainer = config.trainer
    batches = trainer.accumulate_grad_batches * trainer.devices * trainer.num_nodes
    cells = batch_size(config.data_module)
    if cells is None:
        assert config.data_module.batch_tokens is not None
        return [f"{config.data_module.batch_tokens * batches:,} tokens"]
    sizes = [stage.batch_size or cells for stage in trainer.curriculum]
    return [f"{size * batches:,} cells" for size in (*sizes, cells)]


def refuse_other_configuration(config: RunConfig, state: Mapping[str, Any], num_steps: int) -> None:
    """Refuse to go on with a configuration that is not that of the checkpoint.

    The run may be made longer or shorter if the rates of the steps that were taken stay the same:
    with a constant schedule, or before the decay of `wsd`.

    Args:
        config: of this run.
        state: of the checkpoint.
        num_steps: optimiser steps of this run.

    Raises:
        ConfigError: naming the keys that differ.
    """
    before, now = dict(_flat(state["config"])), dict(_flat(plain(config)))
    differ = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and not _is_within(key, (*_FREE, *_OF_A_STEP, *_LENGTH))
    ]
    size = size_of_step(config)
    if size != state["size_of_step"]:
        differ.append(
            f"an optimiser step (data_module.batch_size or batch_tokens x "
            f"trainer.accumulate_grad_batches x processes) had {state['size_of_step'][-1]} and has "
            f"{size[-1]}"
        )
    if _stages(state["config"]) != _stages(plain(config)):
        differ.append("trainer.curriculum has other stages")
    if differ:
        raise ConfigError(
            f"The run was begun with another configuration: {'; '.join(differ)}. Give the same to "
            "go on with resume=true, or choose another working_dir."
        )
    if num_steps != state["num_steps"]:
        _refuse_other_rates(config, state, num_steps)


def _stages(config: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Return what a curriculum says beside batch sizes, which count as the size of a step."""
    return [(each["max_epochs"], each["max_length"]) for each in config["trainer"]["curriculum"]]


def _refuse_other_rates(config: RunConfig, state: Mapping[str, Any], num_steps: int) -> None:
    old, new = (schedule(config.trainer, n) for n in (state["num_steps"], num_steps))
    differs = any(old(step) != new(step) for step in range(state["step"]))
    if differs or "dann" in state["reversal"]:
        raise ConfigError(
            f"The run was begun for {state['num_steps']} steps and would now have {num_steps}, "
            f"which changes the rates of the {state['step']} steps that were taken "
            f"(trainer.schedule={config.trainer.schedule}). Give the same trainer.max_epochs and "
            "trainer.max_steps, or use a schedule that does not depend on them: constant, or wsd "
            "with trainer.warmup_steps."
        )


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings by their dotted keys; lists are leaves."""
    if not isinstance(value, dict) or not value:
        yield prefix, value
        return
    for key, each in value.items():
        yield from _flat(each, f"{prefix}.{key}" if prefix else str(key))


def _is_within(key: str, places: tuple[str, ...]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)
