"""`EarlyStopping`: ends a run when a term of the validation history no longer improves; and by others.

- It reads means over all processes, so all of them stop at the same step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning as L

from omics.data.command_line import say
from omics.train.lightning_module import TrainingModule
from omics.train.metric_table import lower_is_better

if TYPE_CHECKING:
    from collections.abc import Callable

    from omics.train.history import History
    from omics.train.run_config import EarlyStoppingConfig


class EarlyStopping(L.Callback):  # type: ignore[misc]
    """Ends a run after so many validations without an improvement.

    Losses, errors and perplexities improve by falling, everything else by rising.

    Args:
        config: what is watched, and how patiently; checked by `check_trainer`.
    """

    def __init__(self, config: EarlyStoppingConfig) -> None:
        self.config = config
        self.patience = config.patience or 1
        self.sign = -1.0 if lower_is_better(config.monitor) else 1.0
        self.best: float | None = None
        self.waited = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the newest value; where it is not defined, nothing is decided."""
        assert isinstance(pl_module, TrainingModule)
        value = pl_module.validated.get(self.config.monitor)
        if value is None:
            return
        if self.best is None or self.sign * (value - self.best) > self.config.min_delta:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            trainer.should_stop = True
            say(
                f"Stopped in epoch {trainer.current_epoch + 1}: {self.config.monitor} was best "
                f"{self.waited} validations ago ({self.best:.4g})."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]


class ValidationWatch(L.Callback):  # type: ignore[misc]
    """Ends a run when somebody who is shown its history says so.

    Args:
        watch: is shown the history after each validation, and says whether the run ends there.
    """

    def __init__(self, watch: Callable[[History], bool]) -> None:
        self.watch = watch

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the history."""
        assert isinstance(pl_module, TrainingModule)
        if self.watch(pl_module.history):
            trainer.should_stop = True
