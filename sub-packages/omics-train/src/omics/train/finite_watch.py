"""`FiniteWatch`: the first step whose gradient is not finite, found without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from omics.data.errors import InputDataError

# Steps on a device between two looks; on the CPU there is nothing to wait for.
READ_EVERY = 50


class NonFiniteError(InputDataError):
    """A loss or gradient that is NaN or infinite.

    Args:
        message: one paragraph.
        step: the optimiser step, from 1.
    """

    code = "not-finite"

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class FiniteWatch:
    """The first step whose number is not finite; the number stays on its device until it is read."""

    def __init__(self) -> None:
        self._first: Tensor | None = None  # int64; 0 for none, as steps count from 1.
        self._unread = 0

    def see(self, number: Tensor, step: int) -> None:
        """Look at a number of a step.

        Args:
            number: such as the norm of the gradient.
            step: the optimiser step, from 1.
        """
        if self._first is None:
            self._first = torch.zeros((), dtype=torch.int64, device=number.device)
        is_first = ~torch.isfinite(number) & (self._first == 0)
        self._first = torch.where(is_first, step, self._first)
        self._unread += 1

    @property
    def is_due(self) -> bool:
        """Whether it is time to read."""
        if self._first is None:
            return False
        return self._first.device.type == "cpu" or self._unread >= READ_EVERY

    def read(self) -> int | None:
        """Return the first step that was not finite, or None; waits for the device."""
        self._unread = 0
        return None if self._first is None else int(self._first) or None
