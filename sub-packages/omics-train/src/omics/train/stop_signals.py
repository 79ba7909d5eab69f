"""Signals that ask a run to stop: remembered, and acted on when an optimiser step is done."""

from __future__ import annotations

import signal
import threading
from typing import Any

# SIGUSR1 is what SLURM sends ahead of the end with `--signal=USR1@90`.
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Whether this process was asked to stop.

    Attributes:
        name: of the signal that asked; None for none so far.
    """

    def __init__(self) -> None:
        self.name: str | None = None

    @property
    def asked(self) -> bool:
        """Whether a signal asked to stop."""
        return self.name is not None

    def listen(self) -> None:
        """Take the signals over; the next one of the same kind ends the process at once.

        Called when Lightning has set its own handlers: they would resubmit SLURM jobs and talk to
        other processes from within a handler. It puts those from before the run back at its end.
        """
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._remember)

    def _remember(self, number: int, frame: Any) -> None:
        del frame
        self.name = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)
