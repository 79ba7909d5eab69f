"""How the time of a training step grows with the length of cells, their number and the size of the model.

- Beside the work of the formula (`omics.train.flops`): along each axis a power law, seconds = c work^s,
  is fitted by least squares in logarithms. With s = 1 time is as the formula says; below it, small
  steps pay for what they do once; above it, large ones lose more than their work.
- Our model alone, with the masked head and AdamW, as in the comparison of steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omics.train.benchmarking.compared_models import SameCells, cell_lengths, our_loss, our_model
from omics.train.benchmarking.compared_steps import step_of
from omics.train.benchmarking.interleaved_rounds import interleaved, medians
from omics.train.flops import training_flops

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from omics.train.benchmarking.compared_models import Array, Sizes
    from omics.train.benchmarking.compared_steps import BenchPlan

LENGTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)  # of the cap
BATCHES = (1 / 4, 1 / 2, 1, 2)  # of the tokens
BLOCKS = (1 / 2, 1, 2)  # of the layers
WIDTHS = (1 / 2, 1, 2)  # of the hidden size


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Steps along one axis.

    Attributes:
        axis: what grows.
        values: of it, ascending.
        work: useful operations of a step, of each value.
        seconds: the median step, of each value.
        peak: measured, in 10^12 operations a second.
    """

    axis: str
    values: tuple[int, ...]
    work: tuple[int, ...]
    seconds: tuple[float, ...]
    peak: float

    @property
    def power(self) -> float:
        """The s of the fitted law."""
        slope, _ = np.polyfit(np.log(self.work), np.log(self.seconds), 1)
        return float(slope)

    @property
    def deviation(self) -> float:
        """By how much a step differs from the law at most, as a share."""
        logs = np.log(self.work), np.log(self.seconds)
        fitted = np.polyval(np.polyfit(*logs, 1), logs[0])
        return float(np.expm1(np.abs(logs[1] - fitted).max()))

    def rows(self) -> list[dict[str, Any]]:
        """Return a row of each value: its work and time, and both as multiples of the first."""
        return [
            {
                "value": value,
                "flops": flops,
                "milliseconds": 1e3 * seconds,
                "times_work": flops / self.work[0],
                "times_time": seconds / self.seconds[0],
                "mfu_measured": flops / seconds / 1e12 / self.peak,
            }
            for value, flops, seconds in zip(self.values, self.work, self.seconds, strict=True)
        ]


def measure_growth(plan: BenchPlan, cap: int) -> list[Growth]:
    """Time steps along every axis.

    Args:
        plan: of the bench; its sizes and tokens are the middle of the axes.
        cap: longest cell, and the middle of the lengths.
    """
    usual = cell_lengths(plan.tokens, cap)
    lengths = [max(1, round(share * cap)) for share in LENGTHS]
    equal = [np.full(max(1, round(plan.tokens / each)), each) for each in lengths]
    batches = [cell_lengths(round(share * plan.tokens), cap) for share in BATCHES]
    blocks = [max(1, round(share * plan.sizes.layers)) for share in BLOCKS]
    # Heads of one size, as many as fit.
    heads = [max(1, round(share * plan.sizes.heads)) for share in WIDTHS]
    head_size = plan.sizes.hidden // plan.sizes.heads
    sizes = plan.sizes
    axes: list[tuple[str, list[int], list[tuple[Sizes, Array]]]] = [
        ("tokens of a cell", lengths, [(sizes, each) for each in equal]),
        ("cells of a batch", [len(each) for each in batches], [(sizes, each) for each in batches]),
        ("blocks", blocks, [(replace(sizes, layers=each), usual) for each in blocks]),
        (
            "width",
            [each * head_size for each in heads],
            [(replace(sizes, hidden=each * head_size, heads=each), usual) for each in heads],
        ),
    ]
    return [_along(axis, values, points, plan) for axis, values, points in axes]


def _along(
    axis: str, values: Sequence[int], points: Sequence[tuple[Sizes, Array]], plan: BenchPlan
) -> Growth:
    longest = max(int(lengths.max()) for _, lengths in points)
    steps: dict[str, Callable[[], None]] = {}
    work: list[int] = []
    # A size that is there twice, as half of one block, is timed once.
    unique = dict(zip(values, points, strict=True))
    for value, (sizes, lengths) in unique.items():
        cells = SameCells(sizes, lengths, longest, plan.device)
        model = our_model(sizes, longest, plan.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        steps[str(value)] = step_of(optimizer, partial(our_loss, model, cells), plan)
        work.append(training_flops(model.model_config, cells.work))
    found = medians(interleaved(steps, rounds=plan.rounds, device=plan.device))
    return Growth(
        axis=axis,
        values=tuple(unique),
        work=tuple(work),
        seconds=tuple(found.values()),
        peak=plan.peaks[plan.step_type],
    )
