"""A run: its tasks in order, a training handing its bundle to the next."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from omics.data.errors import ConfigError, nearest
from omics.train.inference_run import check_precision, check_prediction, predict, test
from omics.train.interpretation_run import check_interpretation, interpret
from omics.train.run_config import TASKS, RunConfig
from omics.train.run_files import BUNDLE
from omics.train.train_run import train

if TYPE_CHECKING:
    from pathlib import Path


def run_tasks(config: RunConfig, folder: Path) -> None:
    """Run the tasks of a configuration in order.

    Args:
        config: of the run.
        folder: the run folder, made if needed.

    Raises:
        ConfigError: an unknown task, or a setting that none of the tasks reads.
    """
    for task in config.task:
        if task not in TASKS:
            raise ConfigError(f"task holds {task!r}.{nearest(task, TASKS)}")
    _refuse_idle(config)
    if set(config.task) & {"test", "predict"}:
        check_precision(config.trainer.precision)
    if "predict" in config.task:
        check_prediction(config, folder)
    if "interpret" in config.task:
        check_interpretation(config, folder)
    for task in config.task:
        if task == "train":
            train(config, folder)
            config = replace(config, checkpoint=str(folder / BUNDLE))
        elif task == "test":
            test(config, folder)
        elif task == "predict":
            predict(config, folder)
        else:
            interpret(config, folder)


def _refuse_idle(config: RunConfig) -> None:
    """Refuse settings of tasks that are not run: they would be ignored."""
    default = RunConfig()
    readers = {"embedding": "predict", "output": "predict", "attribution": "interpret"}
    for section, task in readers.items():
        if task not in config.task and getattr(config, section) != getattr(default, section):
            raise ConfigError(
                f"{section} is read by the task {task}, and task is {config.task}. Add {task} to "
                f"it, or leave {section} out."
            )
    if config.data_module.batch_tokens is not None and set(config.task) == {"train"}:
        raise ConfigError(
            "data_module.batch_tokens is read by test, predict and interpret; a training has "
            "data_module.batch_size."
        )
