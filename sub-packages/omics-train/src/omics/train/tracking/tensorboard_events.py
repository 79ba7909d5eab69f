"""TensorBoard: event files in the run folder; nothing leaves the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.utils.tensorboard import SummaryWriter

    from omics.train.tracking.tracked_run import Status, TrackedRun

FOLDER = "tensorboard"
# What the table of runs in TensorBoard compares.
_COMPARED = ("train/loss", "validation/loss")


class TensorBoardEvents:
    """A folder of event files; a run that goes on takes back what it will write again."""

    def __init__(self) -> None:
        self._writer: SummaryWriter

    def begin(self, run: TrackedRun) -> str:
        """Open an event file, the first one with the configuration as hyper-parameters."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        is_new = run.known_as is None
        after = None if is_new else run.first_step
        self._writer = SummaryWriter(str(run.folder / FOLDER), purge_step=after)
        if is_new:
            # `add_hparams` would put them into a run of their own.
            compared = dict.fromkeys(_COMPARED, 0.0)
            for summary in hparams(dict(run.settings), compared):  # type: ignore[no-untyped-call]
                self._writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
            self._writer.flush()
        return FOLDER

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Write scalars, and see that they are on disk: there are few, and a run may be killed."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, status: Status) -> None:
        """Close the event file."""
        del status
        self._writer.close()
