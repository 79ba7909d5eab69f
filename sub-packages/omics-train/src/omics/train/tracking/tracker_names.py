"""The trackers by name, and the refusal of those that are unknown or not installed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from omics.data.errors import ConfigError, MissingExtraError, nearest
from omics.train.run_config import TrainerConfig
from omics.train.tracking.hosted_trackers import ClearMLTask, MLflowRun, WeightsAndBiases
from omics.train.tracking.tensorboard_events import TensorBoardEvents

if TYPE_CHECKING:
    from collections.abc import Callable

    from omics.train.tracking.tracked_run import Tracker

TENSORBOARD = "tensorboard"
TRACKERS: dict[str, Callable[[], Tracker]] = {
    TENSORBOARD: TensorBoardEvents,
    "clearml": ClearMLTask,
    "wandb": WeightsAndBiases,
    "mlflow": MLflowRun,
}


def check_trackers(trainer: TrainerConfig) -> None:
    """Refuse trackers that there are not, or that are not installed.

    Args:
        trainer: with its trackers.

    Raises:
        ConfigError: a name that is unknown or comes twice, or a project that nothing shows.
        MissingExtraError: a package is not installed.
    """
    names = trainer.trackers
    for name in names:
        if name == "csv":
            raise ConfigError(
                "trainer.trackers holds 'csv': history.csv and throughput.csv are written by every "
                "run. Leave it out."
            )
        if name not in TRACKERS:
            raise ConfigError(f"trainer.trackers holds {name!r}.{nearest(name, list(TRACKERS))}")
    if len(set(names)) < len(names):
        raise ConfigError(f"trainer.trackers is {list(names)}: name each tracker once.")
    hosted = [name for name in names if name != TENSORBOARD]
    if not hosted and trainer.project != TrainerConfig().project:
        raise ConfigError(
            f"trainer.project is {trainer.project!r}, and no tracker of trainer.trackers lists runs "
            "by project (clearml, wandb and mlflow do). Leave one of them out."
        )
    for name in hosted:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingExtraError(
                f"trainer.trackers holds {name!r}, which cannot be imported ({error}). Run: "
                f"pip install 'omics-train[{name}]'"
            ) from error
