"""The trackers of a run by name: told what the history says, and never its undoing.

- Numbers are sent when the history is read (after a validation and after an epoch), never in a step.
- `trackers.json` in the run folder keeps what each tracker calls the run and how many rows of the
  history it was told. A run that goes on finds the same rows again and sends those that are new.
- A tracker changes nothing: one that fails says so in one line and is left out while the run goes
  on, and random numbers are the same with and without it.
"""

from __future__ import annotations

import contextlib
import json
from itertools import groupby
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint

from omics.data.atomic_files import remove_path, write_bytes
from omics.data.command_line import say
from omics.data.errors import StoppedError
from omics.train.checkpointing.random_state import random_state, restore_random_state
from omics.train.checkpointing.run_state import Progress
from omics.train.lightning_module import TrainingModule
from omics.train.run_files import plain
from omics.train.tracking.tensorboard_events import FOLDER
from omics.train.tracking.tracked_run import TrackedRun, flat_settings
from omics.train.tracking.tracker_names import TENSORBOARD, TRACKERS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import lightning as L

    from omics.train.checkpointing.checkpoint_folder import Checkpoint
    from omics.train.run_config import RunConfig
    from omics.train.throughput import ThroughputMeter
    from omics.train.tracking.tracked_run import Status, Tracker

STATE = "trackers.json"


class RunTrackers(LightningCheckpoint):  # type: ignore[misc]
    """Sends what is new in the history of a run to its trackers.

    As Lightning's checkpoint callbacks it is called after the module has read its means.

    Args:
        config: of the run.
        folder: of the run.
        meter: whose rows are sent with those of their epoch.
        start: the checkpoint that the run goes on from, or None.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        *,
        meter: ThroughputMeter,
        start: Checkpoint | None,
    ) -> None:
        self._folder = folder
        self._meter = meter
        self._state = {} if start is None else _read(folder / STATE)
        for name, left in (("", STATE), (TENSORBOARD, FOLDER)):
            if name not in self._state and (folder / left).exists():
                remove_path(folder / left)  # Of an earlier run.
        self._trackers: dict[str, Tracker] = {}
        settings = flat_settings(plain(config))
        for name in config.trainer.trackers:
            known = self._state.get(name)
            self._trackers[name] = TRACKERS[name]()
            run = TrackedRun(
                folder=folder,
                project=config.trainer.project,
                settings=settings,
                known_as=None if known is None else known["run"],
                first_step=0 if start is None else _first_step(start),
            )
            with self._survived(name):
                known_as = self._trackers[name].begin(run)
                told = 0 if known is None else int(known["told"])
                if name == TENSORBOARD and start is not None:
                    # It took back what the run will find again.
                    told = min(told, len(start.state["history"]))
                self._state[name] = {"run": known_as, "told": told}
        self._keep()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Send what the validation found."""
        del trainer
        assert isinstance(pl_module, TrainingModule)
        self._tell(pl_module.history.rows, {})

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Send the means and the throughput of the epoch."""
        assert isinstance(pl_module, TrainingModule)
        rates = self._meter.rates_of(trainer.global_step)
        self._tell(pl_module.history.rows, {f"throughput/{key}": v for key, v in rates.items()})

    def end(self, status: Status) -> None:
        """Let go of the run.

        Args:
            status: how it ended.
        """
        for name in list(self._trackers):
            with self._survived(name):
                self._trackers[name].end(status)

    def _tell(self, rows: list[tuple[int, int, str, str, float]], rates: dict[str, float]) -> None:
        """Send the rows that a tracker was not told of, and rates with the last of them."""
        for name in list(self._trackers):
            told = self._state[name]["told"]
            if told >= len(rows):
                continue
            with self._survived(name):
                for step, group in groupby(rows[told:], key=lambda row: row[0]):
                    numbers = {f"{phase}/{term}": value for _, _, phase, term, value in group}
                    is_last = step == rows[-1][0]
                    self._trackers[name].log({**numbers, **(rates if is_last else {})}, step)
                self._state[name]["told"] = len(rows)
        self._keep()

    @contextlib.contextmanager
    def _survived(self, name: str) -> Iterator[None]:
        # ClearML seeds every generator of the process when it begins.
        before = random_state()
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a tracker does, the run goes on
            del self._trackers[name]
            reason = " ".join(str(error).split()) or type(error).__name__
            say(f"The tracker {name} failed and is left out from here on: {reason}")
        finally:
            restore_random_state(before)

    def _keep(self) -> None:
        if self._state:
            text = json.dumps(self._state, indent=1, sort_keys=True)
            write_bytes(self._folder / STATE, (text + "\n").encode())


@contextlib.contextmanager
def tracked(trackers: RunTrackers | None) -> Iterator[list[L.Callback]]:
    """Give the callbacks of a run's trackers, and tell them how the block ended.

    Args:
        trackers: of the run; None where this process has none.
    """
    if trackers is None:
        yield []
        return
    try:
        yield [trackers]
    except StoppedError:
        trackers.end("stopped")
        raise
    except BaseException:
        trackers.end("failed")
        raise
    trackers.end("finished")


def _first_step(start: Checkpoint) -> int:
    """Return the first step that a run going on may write of."""
    where = Progress.of(start.state)
    return where.step if where.validation_due else where.step + 1


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Return what trackers knew; a file that is missing or damaged says nothing."""
    try:
        found = json.loads(path.read_bytes())
        return {
            str(name): {"run": each["run"], "told": each["told"]} for name, each in found.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
