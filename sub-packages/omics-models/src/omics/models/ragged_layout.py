"""`RaggedLayout`: where each cell lies among flat tokens, in the forms the kernels need.

- Built once a batch, on the host, before tensors move: no kernel asks the device for a length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RaggedLayout:
    """The rows of a flat batch of `T` tokens in `n` cells.

    Attributes:
        bounds: the n + 1 offsets as a list of the host.
        offsets: int32 [n + 1], the same on the device.
        longest: tokens of the longest cell.
        cell: int64 [T], the cell of each token.
        position: int64 [T], the position of each token in its cell, from 0.
        lengths: int64 [n].
        first: int64 [n], the first token of each cell (0 for an empty cell).
    """

    bounds: list[int]
    offsets: Tensor
    longest: int
    cell: Tensor
    position: Tensor
    lengths: Tensor
    first: Tensor

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.bounds) - 1

    @classmethod
    def from_offsets(cls, offsets: Tensor, device: torch.device | str = "cpu") -> RaggedLayout:
        """Return the layout of offsets.

        Args:
            offsets: int64 [n + 1] on the CPU.
            device: where the index tensors go.
        """
        offsets = offsets.to("cpu", torch.int64)
        lengths = offsets.diff()
        cell = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        position = torch.arange(len(cell)) - offsets[:-1][cell]
        first = offsets[:-1] * (lengths > 0)
        return cls(
            bounds=offsets.tolist(),
            offsets=offsets.to(device, torch.int32, non_blocking=True),
            longest=int(lengths.max()) if len(lengths) else 0,
            cell=cell.to(device, non_blocking=True),
            position=position.to(device, non_blocking=True),
            lengths=lengths.to(device, non_blocking=True),
            first=first.to(device, non_blocking=True),
        )
