"""Timing of things side by side: round after round, so that a busy machine is busy for all."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Runs = Mapping[str, Callable[[], Any]]


def seconds_of(run: Callable[[], Any], device: str) -> float:
    """Return the seconds of one call, with what it has left to the device.

    Args:
        run: what is timed.
        device: `cpu` or `cuda`.
    """
    if device == "cuda":
        torch.cuda.synchronize()
    before = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - before


def interleaved(runs: Runs, *, rounds: int, device: str) -> dict[str, list[float]]:
    """Return the seconds of each run in each round; one round before the first is thrown away.

    Args:
        runs: by name.
        rounds: that count.
        device: `cpu` or `cuda`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            taken = seconds_of(run, device)
            if number:
                seconds[name].append(taken)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median of each run.

    Args:
        seconds: of `interleaved`.
    """
    return {name: statistics.median(each) for name, each in seconds.items()}
