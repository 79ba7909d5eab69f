"""ClearML, Weights & Biases and MLflow, by their own clients: where they send to is theirs to know.

Each reads its server, keys and offline mode from its own variables and files, as it does anywhere.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omics.train.tracking.tracked_run import Status, TrackedRun

# What MLflow allows in a name, and in the value of a parameter.
_NOT_IN_A_NAME = re.compile(r"[^\w\-. :/]")
_LONGEST_VALUE = 6000
_STEP = "step"


class ClearMLTask:
    """A task of ClearML; nothing of the process is recorded but what is sent here."""

    def __init__(self) -> None:
        self._task: Any = None

    def begin(self, run: TrackedRun) -> str:
        """Make a task, or go on with the one that there is."""
        from clearml import Task

        self._task = Task.init(
            project_name=run.project,
            task_name=run.name,
            reuse_last_task_id=False,
            continue_last_task=run.known_as or False,
            auto_connect_arg_parser=False,
            auto_connect_frameworks=False,
            auto_connect_streams=False,
            auto_resource_monitoring=False,
        )
        if run.known_as is None:
            self._task.connect(dict(run.settings), name="configuration")
        else:
            # It would count steps from its last one; ours count from the beginning.
            self._task.set_initial_iteration(0)
        return str(self._task.id)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Send scalars: a plot for each term, with a line for each phase."""
        logger = self._task.get_logger()
        for name, value in numbers.items():
            phase, _, term = name.partition("/")
            logger.report_scalar(title=term, series=phase, value=value, iteration=step)

    def end(self, status: Status) -> None:
        """Send what waits; a run that ended before its time says so."""
        if status != "finished":
            self._task.set_comment(f"The run {status}; it can go on with resume=true.")
        self._task.close()


class WeightsAndBiases:
    """A run of Weights & Biases; its x axis is our step, as its own only ever rises."""

    def __init__(self) -> None:
        self._run: Any = None

    def begin(self, run: TrackedRun) -> str:
        """Make a run, or go on with the one that there is."""
        import wandb

        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.known_as,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.settings) if run.known_as is None else None,
        )
        self._run.define_metric("*", step_metric=_STEP)
        return str(self._run.id)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Send numbers, with the step beside them."""
        self._run.log({**numbers, _STEP: step})

    def end(self, status: Status) -> None:
        """Send what waits; it shows whether the run came to its end."""
        self._run.finish(exit_code=0 if status == "finished" else 1)


class MLflowRun:
    """A run of MLflow, in the experiment of the project."""

    def __init__(self) -> None:
        self._mlflow: Any = None

    def begin(self, run: TrackedRun) -> str:
        """Make a run, or go on with the one that there is."""
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment(run.project)
        if run.known_as is not None:
            return str(mlflow.start_run(run_id=run.known_as).info.run_id)
        begun = mlflow.start_run(run_name=run.name)
        settings = {key: str(value)[:_LONGEST_VALUE] for key, value in run.settings.items()}
        mlflow.log_params(settings)
        return str(begun.info.run_id)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Send numbers; characters that a name cannot hold become `_`."""
        allowed = {_NOT_IN_A_NAME.sub("_", name): value for name, value in numbers.items()}
        self._mlflow.log_metrics(allowed, step=step)

    def end(self, status: Status) -> None:
        """Say how it ended."""
        ends = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
        self._mlflow.end_run(ends[status])
