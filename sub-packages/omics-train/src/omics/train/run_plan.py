"""What a training will take, told before its first step: parameters, work, memory and time.

- From the same formulas as the throughput that is measured later, on a sample of its own cells.
- Time follows from a product of matrices that is measured here, and a usual share of its rate. It is
  an estimate, and says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from omics.data.command_line import duration
from omics.train.benchmarking.machine_ceilings import product_tflops
from omics.train.chunked_scores import usual_chunk
from omics.train.flops import Memory, datasheet_tflops, training_flops, training_memory
from omics.train.sharding import FSDP
from omics.train.throughput import workload
from omics.train.trainer_settings import uses_cuda

if TYPE_CHECKING:
    from omics.train.run_config import RunConfig
    from omics.train.train_run import Training

SAMPLED_CELLS = 64
# What steps reach of a large product of matrices: a usual value, not a promise.
EFFICIENCY = 0.4
_PRODUCT_SIZE = {"cpu": 512, "cuda": 4096}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What a training will take.

    Attributes:
        parameters: of the model.
        trained: those of them that are trained.
        sampled: cells that were looked at.
        tokens_per_cell: their mean.
        flops_per_cell: useful operations of a training step, their mean.
        memory: of the largest micro-batch such cells make, estimated.
        steps: optimiser steps of the whole run.
        cells_per_epoch: of this process.
        measured_tflops: of a product of matrices here and now.
        datasheet: of the device's data sheet, in 10^12 operations a second; None where unknown.
        is_padded: whether attention pads cells to the longest of their batch.
    """

    parameters: int
    trained: int
    sampled: int
    tokens_per_cell: float
    flops_per_cell: float
    memory: Memory
    steps: int
    cells_per_epoch: int
    measured_tflops: float
    datasheet: float | None
    is_padded: bool

    @property
    def peak_tflops(self) -> float:
        """What MFU is a share of: the data sheet's peak, or the measured one."""
        return self.measured_tflops if self.datasheet is None else self.datasheet

    @property
    def seconds_per_epoch(self) -> float:
        """An estimate."""
        work = self.flops_per_cell * self.cells_per_epoch
        return work / (EFFICIENCY * self.measured_tflops * 1e12)

    def __str__(self) -> str:
        """Return the plan as a paragraph."""
        peak = f"{self.measured_tflops:.3g} TFLOP/s measured"
        if self.datasheet is not None:
            peak += f", {self.datasheet:,.0f} in the data sheet"
        memory = self.memory
        return (
            f"Plan: {_short(self.parameters)} parameters, {_short(self.trained)} of them trained; "
            f"{self.tokens_per_cell:,.0f} tokens and {_short(self.flops_per_cell)} FLOPs a cell "
            f"(mean of {self.sampled}).\n"
            f"  memory of a step: about {_bytes(memory.total)} "
            f"({_bytes(memory.weights + memory.gradients + memory.moments)} weights and optimiser, "
            f"{_bytes(memory.activations + memory.outputs)} activations)\n"
            f"  {self.steps:,} steps; an epoch of {self.cells_per_epoch:,} cells takes about "
            f"{duration(self.seconds_per_epoch)}, if steps reach {EFFICIENCY:.0%} of the peak ({peak})"
        )


def plan_run(training: Training, config: RunConfig, *, steps: int) -> RunPlan:
    """Return what a training will take.

    Args:
        training: the checked parts.
        config: of the run.
        steps: optimiser steps of the whole run.
    """
    settings, model, batches = config.trainer, training.model, training.batches
    wants_cuda = uses_cuda(settings)
    device = "cuda" if wants_cuda else "cpu"
    is_half = not settings.precision.startswith("32")
    kind = torch.bfloat16 if is_half else torch.float32
    loader = batches.epochs[0].loader
    rows = loader.spread_rows(SAMPLED_CELLS)
    (batch,) = batches.read([rows], 0, pieces=1)
    work = workload(batch, training.objective)
    parameters = sum(each.numel() for each in model.parameters())
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    sizes = model.model_config
    flops = training_flops(sizes, work)
    sampled = len(rows)
    tokens_per_cell = float(work.lengths.mean())
    cells = loader.batch_size
    if cells is None:
        cells = math.ceil((config.data_module.batch_tokens or 0) / max(tokens_per_cell, 1))
    memory = training_memory(
        sizes,
        work,
        parameters=parameters,
        trained=trained,
        value_bytes=2 if is_half else 4,
        cells=cells,
        chunk_scores=usual_chunk(device),
    )
    if settings.strategy == FSDP:
        memory = memory.in_shares(settings.devices * settings.num_nodes)
    return RunPlan(
        parameters=parameters,
        trained=trained,
        sampled=sampled,
        tokens_per_cell=tokens_per_cell,
        flops_per_cell=flops / sampled,
        memory=memory,
        steps=steps,
        cells_per_epoch=loader.num_rows // loader.world_size,
        measured_tflops=_measured_tflops(kind, device),
        datasheet=datasheet_tflops(torch.cuda.get_device_name())
        if wants_cuda and is_half
        else None,
        is_padded=wants_cuda and not is_half,
    )


@cache
def _measured_tflops(kind: torch.dtype, device: str) -> float:
    return product_tflops(kind, device=device, size=_PRODUCT_SIZE[device])


def _short(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"


def _bytes(number: float) -> str:
    return f"{number / 1e9:.2g} GB" if number >= 1e8 else f"{number / 1e6:.2g} MB"
