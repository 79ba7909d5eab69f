"""A run: its tasks in order, a training handing its bundle to the next."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from omics.data.errors import ConfigError, nearest
from omics.train.inference_run import predict, test
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
        ConfigError: an unknown task.
    """
    for task in config.task:
        if task not in TASKS:
            raise ConfigError(f"task holds {task!r}.{nearest(task, TASKS)}")
    for task in config.task:
        if task == "train":
            train(config, folder)
            config = replace(config, checkpoint=str(folder / BUNDLE))
        elif task == "test":
            test(config, folder)
        else:
            predict(config, folder)
