"""A run: its tasks in order, a training handing its bundle to the next."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from omics.data.errors import ConfigError, nearest
from omics.train.inference_run import check_precision, check_prediction, predict, test
from omics.train.interpretation_run import check_interpretation, interpret
from omics.train.processes import is_first_process
from omics.train.run_config import TASKS, RunConfig
from omics.train.run_files import BUNDLE, BUNDLE_BEST
from omics.train.train_run import train

if TYPE_CHECKING:
    from pathlib import Path

HAND_ON = ("last", "best")


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
    if config.hand_on not in HAND_ON:
        raise ConfigError(f"hand_on is {config.hand_on!r}.{nearest(config.hand_on, HAND_ON)}")
    if set(config.task) & {"test", "predict"}:
        check_precision(config.trainer.precision)
    # A run that goes on replaces what it found before it was stopped.
    replacing = replace(config, overwrite=config.overwrite or bool(config.resume))
    if "predict" in config.task:
        check_prediction(replacing, folder)
    if "interpret" in config.task:
        check_interpretation(replacing, folder)
    for task in config.task:
        if task == "train":
            train(config, folder)
            if not is_first_process():
                return  # Processes of a launcher train together; the first one goes on alone.
            config = _after_training(config, folder)
        elif task == "test":
            test(config, folder)
        elif task == "predict":
            predict(config, folder)
        else:
            interpret(config, folder)


def _after_training(config: RunConfig, folder: Path) -> RunConfig:
    """Return the configuration of the tasks that follow: with the new bundle, in one process."""
    best = folder / BUNDLE_BEST
    # Where the last weights are the best ones there is one bundle.
    bundle = best if config.hand_on == "best" and best.exists() else folder / BUNDLE
    return replace(
        config,
        checkpoint=str(bundle),
        trainer=replace(config.trainer, devices=1, num_nodes=1),
        # What an earlier start has found of other weights is out of date.
        overwrite=config.overwrite or bool(config.resume),
    )


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
    if "train" not in config.task and config.resume:
        raise ConfigError(f"resume is about the task train, and task is {config.task}.")
    if config.hand_on != "last" and (len(config.task) == 1 or "train" not in config.task):
        raise ConfigError(
            f"hand_on says which weights a training hands on, and task is {config.task}. Leave it "
            "out; `checkpoint` names the bundle of a task by itself."
        )
