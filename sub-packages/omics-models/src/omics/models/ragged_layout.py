"""`RaggedLayout`: where each cell lies among flat tokens, in the forms the kernels need.

- Built once a batch, on the host, before tensors move: no kernel asks the device for a length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from omics.tokenizers.device_copies import on_device


@dataclass(frozen=True, slots=True)
class RaggedLayout:
    """The rows of a flat batch of `T` tokens in `n` cells.

    Attributes:
        bounds: the n + 1 offsets as a list of the host.
        offsets: int32 [n + 1], the same on the device.
        longest: tokens of the longest cell, or more.
        num_cells: cells that stand for something; those behind them are filler.
        cell: int64 [T], the cell of each token.
        position: int64 [T], the position of each token in its cell, from 0.
        lengths: int64 [n].
        first: int64 [n], the first token of each cell (0 for an empty cell).
        masks: `{window: what a backend made of the layout}`, made once for all blocks.
    """

    bounds: list[int]
    offsets: Tensor
    longest: int
    num_cells: int
    cell: Tensor
    position: Tensor
    lengths: Tensor
    first: Tensor
    masks: dict[int | None, Any] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        """Return the number of cells, filler included."""
        return len(self.bounds) - 1

    @classmethod
    def from_offsets(
        cls,
        offsets: Tensor,
        device: torch.device | str = "cpu",
        *,
        longest: int | None = None,
        num_cells: int | None = None,
    ) -> RaggedLayout:
        """Return the layout of offsets.

        Args:
            offsets: int64 [n + 1] on the CPU.
            device: where the index tensors go.
            longest: a number that no cell exceeds, where it should not depend on the batch.
            num_cells: how many of the cells are no filler; None for all.
        """
        offsets = offsets.to("cpu", torch.int64)
        lengths = offsets.diff()
        cell = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        position = torch.arange(len(cell)) - offsets[:-1][cell]
        first = offsets[:-1] * (lengths > 0)
        return cls(
            bounds=offsets.tolist(),
            offsets=on_device(offsets.to(torch.int32), device),
            longest=longest or (int(lengths.max()) if len(lengths) else 0),
            num_cells=len(lengths) if num_cells is None else num_cells,
            cell=on_device(cell, device),
            position=on_device(position, device),
            lengths=on_device(lengths, device),
            first=on_device(first, device),
        )
