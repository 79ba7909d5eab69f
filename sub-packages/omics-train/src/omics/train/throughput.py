"""How fast a training is: cells, tokens and useful work a second, by epoch; `throughput.csv`.

- Beside the history, not in it: the history of a seed is the same on every machine and in every run.
- Everything is counted on the host, where the lengths of cells are known: nothing waits for a device.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.atomic_files import write_bytes
from omics.train.flops import Workload, training_flops

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from omics.models.model_config import ModelConfig
    from omics.train.objective import Objective
    from omics.train.training_batch import TrainingBatch

THROUGHPUT = "throughput.csv"
HEADER = "step,epoch,seconds,cells,tokens,cells_per_second,tokens_per_second,fill,tflops,mfu"


def workload(batch: TrainingBatch, objective: Objective) -> Workload:
    """Return what a batch asks of the model.

    Args:
        batch: prepared on the host.
        objective: of the run.
    """
    final = None
    if batch.asked is not None:
        final = np.diff(np.searchsorted(batch.asked, batch.tokens.offsets))
    return Workload(
        lengths=np.asarray(batch.tokens.lengths),
        asked={
            head: len(batch.questions[name].positions)
            for head, name in objective.field_heads.items()
        },
        final=final,
        decodes=bool(objective.decoded_fields),
        decoded_genes=None if objective.decoded is None else len(objective.decoded),
    )


@dataclass
class Counted:
    """What was done in some time.

    Attributes:
        seconds: of training alone.
        cells: of this process.
        tokens: real ones.
        slots: rows of what the device computed with: more than tokens where cells are padded, or
            batches filled up to one shape.
        flops: useful operations.
    """

    seconds: float = 0.0
    cells: int = 0
    tokens: int = 0
    slots: int = 0
    flops: int = 0


@dataclass
class ThroughputMeter:
    """Counts the steps of a run, with a clock that stands still during validation.

    Attributes:
        config: of the model.
        objective: of the run.
        is_padded: whether attention pads cells to the longest of their batch.
        peak_tflops: of the device; None where it is unknown.
        is_whole: whether everything is trained; a partly frozen model does less than is counted, and
            its work is not told.
        world_size: processes that do as much as this one.
        rows: lines of the file.
    """

    config: ModelConfig
    objective: Objective
    is_padded: bool = False
    peak_tflops: float | None = None
    is_whole: bool = True
    world_size: int = 1
    rows: list[str] = field(default_factory=list)
    _now: Counted = field(default_factory=Counted)
    _since: float | None = None

    def start(self) -> None:
        """Let the clock run."""
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Let the clock stand still; a second call changes nothing."""
        if self._since is not None:
            self._now.seconds += time.perf_counter() - self._since
            self._since = None

    def add(self, batches: Iterable[TrainingBatch]) -> None:
        """Count the micro-batches of a step.

        Args:
            batches: of this process, prepared on the host.
        """
        for batch in batches:
            work = workload(batch, self.objective)
            longest = int(work.lengths.max(initial=0))
            tokens = int(work.lengths.sum())
            self._now.cells += len(work.lengths)
            self._now.tokens += tokens
            rows = tokens if batch.shape is None else batch.shape.filled(tokens)
            self._now.slots += longest * len(work.lengths) if self.is_padded else rows
            self._now.flops += training_flops(self.config, work)

    def rates(self) -> dict[str, float]:
        """Return what was done a second since the epoch began; empty before the first step."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        seconds, now = self._now.seconds + running, self._now
        if not now.tokens or seconds <= 0:
            return {}
        found = {
            "cells_per_second": self.world_size * now.cells / seconds,
            "tokens_per_second": self.world_size * now.tokens / seconds,
            "fill": now.tokens / now.slots,
        }
        if self.is_whole:
            found["tflops"] = now.flops / seconds / 1e12
            if self.peak_tflops is not None:
                found["mfu"] = found["tflops"] / self.peak_tflops
        return found

    def line(self) -> str:
        """Return the rates for people, such as `210 cells/s, 190,512 tokens/s, fill 100%`."""
        rates = self.rates()
        if not rates:
            return ""
        parts = [
            f"{rates['cells_per_second']:,.0f} cells/s",
            f"{rates['tokens_per_second']:,.0f} tokens/s",
            f"fill {rates['fill']:.0%}",
        ]
        if "tflops" in rates:
            parts.append(f"{rates['tflops']:.3g} TFLOP/s")
        if "mfu" in rates:
            parts.append(f"MFU {rates['mfu']:.0%}")
        return ", ".join(parts)

    def end_epoch(self, step: int, epoch: int) -> None:
        """Keep a row, and begin to count afresh.

        Args:
            step: optimiser steps so far.
            epoch: passes finished.
        """
        self.pause()
        rates, now = self.rates(), self._now
        names = HEADER.split(",")[5:]
        numbers = [f"{rates[name]:.6g}" if name in rates else "" for name in names]
        counts: list[Any] = [self.world_size * now.cells, self.world_size * now.tokens]
        row = [step, epoch, f"{now.seconds:.3f}", *counts, *numbers]
        if now.tokens:
            self.rows.append(",".join(str(each) for each in row))
        self._now = Counted()

    def rates_of(self, step: int) -> dict[str, float]:
        """Return the rates of the epoch that ended at a step; empty where none did.

        Args:
            step: optimiser steps.
        """
        if not self.rows:
            return {}
        named = dict(zip(HEADER.split(","), self.rows[-1].split(","), strict=True))
        if int(named["step"]) != step:
            return {}
        return {name: float(named[name]) for name in HEADER.split(",")[5:] if named[name]}

    def read(self, path: Path, *, step: int) -> None:
        """Keep the rows of a file that a run goes on from.

        Args:
            path: the file; one that is not there has none.
            step: after which rows are left out.
        """
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()[1:]
            self.rows = [line for line in lines if int(line.split(",", 1)[0]) <= step]

    def write(self, path: Path) -> None:
        """Write the rows as CSV, whole or not at all.

        Args:
            path: the file.
        """
        write_bytes(path, ("\n".join([HEADER, *self.rows]) + "\n").encode())
