"""Whether a run begins, goes on, or is refused because of what its folder holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omics.data.errors import ConfigError, ExistingPathError
from omics.train.checkpointing.checkpoint_folder import checkpoint_steps, newest_checkpoint
from omics.train.run_files import BUNDLE, refuse_existing

if TYPE_CHECKING:
    from pathlib import Path

    from omics.train.checkpointing.checkpoint_folder import Checkpoint
    from omics.train.run_config import RunConfig

AUTO = "auto"


def starting_point(config: RunConfig, run: Path) -> Checkpoint | None:
    """Return the checkpoint that a run goes on from; None where it begins.

    Args:
        config: with `resume` and `overwrite`.
        run: the run folder.

    Raises:
        ConfigError: `resume` is none of its values, stands beside `overwrite`, or there is nothing
            to go on from.
        CorruptCheckpointError: no checkpoint is whole.
        ExistingPathError: the folder holds a run, finished or not, and nothing says what to do.
    """
    if config.resume not in (True, False, AUTO):
        raise ConfigError(f"resume is {config.resume!r}; it is true, false or auto.")
    if config.resume and config.overwrite:
        raise ConfigError(
            "resume goes on with the run in working_dir and overwrite begins it anew: leave one out."
        )
    if config.resume:
        found = newest_checkpoint(run)
        if found is not None:
            return found
        if config.resume != AUTO:
            raise ConfigError(
                f"There is no checkpoint in {run} to go on from. Leave resume out, or say "
                "resume=auto to begin where there is none."
            )
    refuse_existing(run / BUNDLE, overwrite=config.overwrite)
    steps = checkpoint_steps(run)
    if steps and not config.overwrite:
        raise ExistingPathError(
            f"{run} holds a run that was stopped after step {steps[-1]}. Add resume=true to go on "
            "with it, overwrite=true to begin it anew, or choose another working_dir."
        )
    return None
