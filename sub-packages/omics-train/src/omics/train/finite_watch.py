"""`FiniteWatch`: the first step whose gradient is not finite, found without waiting for the device."""

from __future__ import annotations

import math

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
    """The first step whose number is not finite; numbers stay on their device until they are read."""

    def __init__(self) -> None:
        self._unread: list[tuple[int, Tensor]] = []

    def see(self, number: Tensor, step: int) -> None:
        """Keep a number of a step for the next look.

        Args:
            number: such as the norm of the gradient.
            step: the optimiser step, from 1.
        """
        self._unread.append((step, number))

    @property
    def is_due(self) -> bool:
        """Whether it is time to read."""
        if not self._unread:
            return False
        _, newest = self._unread[-1]
        return newest.device.type == "cpu" or len(self._unread) >= READ_EVERY

    def read(self) -> int | None:
        """Return the first step since the last look that was not finite; waits for the device."""
        unread, self._unread = self._unread, []
        if not unread:
            return None
        numbers = torch.stack([number for _, number in unread]).tolist()
        steps = (step for step, _ in unread)
        return next((k for k, x in zip(steps, numbers, strict=True) if not math.isfinite(x)), None)
