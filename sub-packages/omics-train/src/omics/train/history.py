"""The history of a run: one row per epoch, phase and term; `history.csv` in the run folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from omics.data.atomic_files import write_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from omics.train.losses import LossTerm

HISTORY = "history.csv"
HEADER = "step,epoch,phase,term,value"


@dataclass
class RunningMeans:
    """Sums and counts of terms, kept on the device until they are read once an epoch."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor | float] = field(default_factory=dict)

    def add(self, terms: Mapping[str, tuple[Tensor, Tensor | float]]) -> None:
        """Add the sums and counts of one batch.

        Args:
            terms: `{term: (sum, count)}`.
        """
        for name, (total, count) in terms.items():
            self.sums[name] = total.double() + self.sums.get(name, 0.0)
            # A number of the host stays there: carrying it over would wait for the device.
            over = count.double() if isinstance(count, Tensor) else count
            self.counts[name] = over + self.counts.get(name, 0.0)

    def state_dict(self) -> dict[str, list[float]]:
        """Return the sum and count of each term of this process, as plain JSON."""
        return {name: [float(self.sums[name]), float(self.counts[name])] for name in self.sums}

    @classmethod
    def summed(
        cls, states: Sequence[Mapping[str, list[float]]], device: torch.device
    ) -> RunningMeans:
        """Return means that go on from those of processes.

        Args:
            states: as made by `state_dict`.
            device: of the sums.
        """
        means = cls()
        for state in states:
            means.add(
                {
                    name: (torch.tensor(total, dtype=torch.float64, device=device), count)
                    for name, (total, count) in state.items()
                }
            )
        return means

    def read(self) -> dict[str, float]:
        """Return the means over all processes and start again; a term without count is left out."""
        names = sorted(self.sums)
        if not names:
            return {}
        table = torch.stack(
            [
                torch.stack(
                    [self.sums[name].cpu(), torch.as_tensor(self.counts[name]).cpu().double()]
                )
                for name in names
            ]
        )
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(table)
        self.sums, self.counts = {}, {}
        rows = zip(names, table.tolist(), strict=True)
        return {name: total / count for name, (total, count) in rows if count > 0}


def history_rows(means: Mapping[str, float], terms: Sequence[LossTerm]) -> dict[str, float]:
    """Return what the history says of one pass: the losses, their groups and sum, and the rest.

    Args:
        means: of the terms, and of other things.
        terms: with weights and groups.

    Returns:
        `loss`, the sum of the weighted means; `<group>_loss`, the same of the terms of a group;
        `<term>_loss`, the mean of each term without its weight; what is no term as it is.
    """
    named = {term.name: term for term in terms}
    totals: dict[str, float] = {}
    for name, term in named.items():
        for total in ("loss", *([f"{term.group}_loss"] if term.group else [])):
            if name in means:
                totals[total] = totals.get(total, 0.0) + term.weight * means[name]
    rest = {f"{key}_loss" if key in named else key: value for key, value in means.items()}
    return {**totals, **rest}


@dataclass
class History:
    """Rows of a run.

    Attributes:
        rows: (step, epoch, phase, term, value).
    """

    rows: list[tuple[int, int, str, str, float]] = field(default_factory=list)

    def add(self, step: int, epoch: int, phase: str, terms: dict[str, float]) -> None:
        """Add the means of one pass.

        Args:
            step: optimiser steps so far.
            epoch: passes finished.
            phase: `train` or `validation`.
            terms: means.
        """
        self.rows += [(step, epoch, phase, term, value) for term, value in terms.items()]

    def last(self, phase: str) -> dict[str, float]:
        """Return the last value of each term.

        Args:
            phase: `train` or `validation`.
        """
        return {term: value for _, _, which, term, value in self.rows if which == phase}

    def write(self, path: Path) -> None:
        """Write the rows as CSV, whole or not at all.

        Args:
            path: the file.
        """
        lines = [HEADER, *(f"{s},{e},{p},{t},{v:.9g}" for s, e, p, t, v in self.rows)]
        write_bytes(path, ("\n".join(lines) + "\n").encode())
