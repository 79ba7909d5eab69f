"""Lightning's counters, set so that its loops go on where a run was stopped.

Its own state is plain numbers, and `load_state_dict` of its loops is the documented way to set them.
A batch of Lightning is an optimiser step here, which leaves three places to go on from:
between two epochs, between two steps, and before a validation that had not begun or not ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import lightning as L


def set_counters(
    trainer: L.Trainer, *, step: int, epoch: int, steps_of_epoch: int, validation_due: bool
) -> None:
    """Let `fit` go on in the middle of a run.

    Args:
        trainer: before `fit`.
        step: optimiser steps that were taken.
        epoch: that goes on, from 0.
        steps_of_epoch: those of its steps that were taken.
        validation_due: whether the validation after the last of them has still to be run.
    """
    begun = epoch + (steps_of_epoch > 0)
    epochs = {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
    state = trainer.fit_loop.state_dict()
    state["epoch_progress"] = {"total": dict(epochs), "current": dict(epochs)}
    state["epoch_loop.batch_progress"] = {
        "total": _all(step),
        "current": _all(steps_of_epoch),
        "is_last_batch": False,
    }
    state["epoch_loop.manual_optimization.optim_step_progress"] = {
        "total": {"ready": step, "completed": step},
        "current": {"ready": step, "completed": step},
    }
    if validation_due:
        # A validation in its first batch: Lightning runs it again from there.
        first = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        state["epoch_loop.val_loop.batch_progress"] = {
            "total": first,
            "current": _all(0),
            "is_last_batch": False,
        }
    trainer.fit_loop.load_state_dict(state)


def _all(number: int) -> dict[str, int]:
    return dict.fromkeys(("ready", "started", "processed", "completed"), number)
