"""`RaggedLayout` and `AskedTokens`: where each cell lies among flat tokens, and which are read at the end.

- Built once a batch, on the host, before tensors move: no kernel asks the device for a length.
- A head reads few of the final hidden states: hidden tokens, or the first of each cell. The last
  block computes those alone; its keys and values are of all tokens.
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


@dataclass(frozen=True, slots=True)
class AskedTokens:
    """The tokens of a flat batch whose final hidden states are read.

    Attributes:
        tokens: int64 [A], their flat positions, ascending; a position may be there several times.
        layout: of these tokens, in the cells of the batch.
    """

    tokens: Tensor
    layout: RaggedLayout

    @classmethod
    def of(
        cls,
        tokens: Tensor,
        offsets: Tensor,
        device: torch.device | str = "cpu",
        *,
        longest: int | None = None,
        num_cells: int | None = None,
    ) -> AskedTokens:
        """Return the tokens with their layout.

        Args:
            tokens: int64 [A] on the CPU, ascending flat positions.
            offsets: int64 [n + 1] on the CPU, of the batch.
            device: where the index tensors go.
            longest: see `RaggedLayout.from_offsets`.
            num_cells: see `RaggedLayout.from_offsets`.
        """
        asked_before = torch.searchsorted(tokens, offsets)
        layout = RaggedLayout.from_offsets(
            asked_before, device, longest=longest, num_cells=num_cells
        )
        return cls(on_device(tokens, device), layout)

    @classmethod
    def leading(
        cls, number: int, offsets: Tensor, device: torch.device | str = "cpu"
    ) -> AskedTokens:
        """Return the first tokens of every cell.

        Args:
            number: of a cell; one that has fewer gives all of its tokens.
            offsets: int64 [n + 1] on the CPU, of the batch.
            device: where the index tensors go.
        """
        begins = torch.repeat_interleave(offsets[:-1], offsets.diff())
        place = torch.arange(len(begins)) - begins
        return cls.of((place < number).nonzero().flatten(), offsets, device)

    def rows(self, tokens: Tensor) -> Tensor:
        """Return int64 [K], where tokens lie among those that are asked for.

        Args:
            tokens: int64 [K], flat positions; each must be asked for.
        """
        return torch.searchsorted(self.tokens, tokens)
