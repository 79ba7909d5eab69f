"""Training steps and embeddings of both models, timed side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from omics.data.errors import OmicsError
from omics.train.benchmarking.compared_models import (
    SameCells,
    Sizes,
    cell_lengths,
    our_embedding,
    our_loss,
    our_model,
    stock_embedding,
    stock_loss,
    stock_model,
)
from omics.train.benchmarking.interleaved_rounds import interleaved, medians
from omics.train.flops import forward_flops, training_flops

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from omics.train.benchmarking.compared_models import Pooling

# By how much the two may differ where both compute in float32, and in bfloat16.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


_SAID = {"mean": "the mean", "first_token": "the first token"}


class BenchError(OmicsError, RuntimeError):
    """The two models do not compute the same, so that comparing them says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One comparison: what was run, and how fast each way of it was.

    Attributes:
        title: what it is about.
        seconds: `{way: seconds of each round}`, the way that the others are compared with first.
        cells: of one run.
        tokens: real ones, of one run.
        flops: useful work of one run.
        peaks: `{way: measured peak of its type}`, in 10^12 operations a second.
        facts: further numbers, for the JSON.
    """

    title: str
    seconds: Mapping[str, list[float]]
    cells: int
    tokens: int
    flops: int
    peaks: Mapping[str, float]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row of each way: rates from the median, and how many times the first it is."""
        found = medians(self.seconds)
        first = next(iter(found.values()))
        return [
            {
                "name": name,
                "milliseconds": 1e3 * value,
                "tokens_per_second": self.tokens / value,
                "cells_per_second": self.cells / value,
                "tflops": self.flops / value / 1e12,
                "mfu_measured": self.flops / value / 1e12 / self.peaks[name],
                "times": first / value,
                "seconds": self.seconds[name],
            }
            for name, value in found.items()
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """What is compared, and how.

    Attributes:
        sizes: of the models.
        tokens: of a batch, about.
        rounds: of each comparison.
        device: `cpu` or `cuda`.
        peaks: `{type: measured peak}`, in 10^12 operations a second.
    """

    sizes: Sizes
    tokens: int
    rounds: int
    device: str
    peaks: Mapping[torch.dtype, float]

    def cells(self, cap: int) -> SameCells:
        """Return a batch of cells.

        Args:
            cap: longest cell.
        """
        return SameCells(self.sizes, cell_lengths(self.tokens, cap), cap, self.device)

    @property
    def step_type(self) -> torch.dtype:
        """In what a training step computes: bfloat16 beside float32 weights on CUDA."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32


def compare_steps(plan: BenchPlan, cap: int) -> Measured:
    """Time a training step, AdamW included: stock BERT padded to the cap, its eager form, and ours.

    Args:
        plan: of the bench.
        cap: longest cell.

    Raises:
        BenchError: the losses differ.
    """
    cells = plan.cells(cap)
    model = our_model(plan.sizes, cap, plan.device)
    losses: dict[str, tuple[torch.nn.Module, Callable[[], Tensor]]] = {}
    stock = stock_model(model, plan.sizes, cap, attention="sdpa")
    eager = stock_model(model, plan.sizes, cap, attention="eager")
    losses["stock BERT, padded to the cap"] = stock, lambda: stock_loss(stock, cells, "cap")
    losses["stock BERT, padded to the longest"] = (
        stock,
        lambda: stock_loss(stock, cells, "longest"),
    )
    losses["eager attention, padded to the cap"] = eager, lambda: stock_loss(eager, cells, "cap")
    losses["omics, flat, masked head"] = model, lambda: our_loss(model, cells)
    with torch.no_grad():
        found = {name: _typed(run, plan)() for name, (_, run) in losses.items()}
    _check_same(found, plan.step_type)
    optimizers = {
        id(each): torch.optim.AdamW(each.parameters(), lr=1e-4, fused=True)
        for each in (stock, eager, model)
    }
    seconds = interleaved(
        {
            name: step_of(optimizers[id(module)], run, plan)
            for name, (module, run) in losses.items()
        },
        rounds=plan.rounds,
        device=plan.device,
    )
    return Measured(
        title=f"Training step, cap {cap:,}",
        seconds=seconds,
        cells=len(cells.lengths),
        tokens=int(cells.lengths.sum()),
        flops=training_flops(model.model_config, cells.work),
        peaks=dict.fromkeys(seconds, plan.peaks[plan.step_type]),
        facts={"cap": cap, "fill_padded": float(cells.lengths.mean() / cap)},
    )


def step_of(
    optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], plan: BenchPlan
) -> Callable[[], None]:
    """Return a whole training step.

    Args:
        optimizer: of the parameters.
        loss: computes it anew.
        plan: of the bench.
    """

    def step() -> None:
        _typed(loss, plan)().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare_embeddings(plan: BenchPlan, cap: int, pooling: Pooling = "mean") -> Measured:
    """Time the embedding of cells: stock BERT padded, and ours, in each type that is fast here.

    Args:
        plan: of the bench.
        cap: longest cell.
        pooling: what a row is made of.

    Raises:
        BenchError: the embeddings differ.
    """
    cells = plan.cells(cap)
    model = our_model(plan.sizes, cap, plan.device).eval()
    stock = stock_model(model, plan.sizes, cap, attention="sdpa").eval()
    runs: dict[str, Callable[[], Tensor]] = {}
    peaks: dict[str, float] = {}
    for kind, peak in plan.peaks.items():
        name = str(kind).removeprefix("torch.")
        ways: dict[str, Callable[[], Tensor]] = {
            f"stock BERT, padded to the cap, {name}": lambda: stock_embedding(
                stock, cells, "cap", pooling
            ),
            f"stock BERT, padded to the longest, {name}": lambda: stock_embedding(
                stock, cells, "longest", pooling
            ),
            f"omics, flat, {name}": lambda: our_embedding(model, cells, pooling),
        }
        for way, run in ways.items():
            runs[way], peaks[way] = _embedding_in(run, kind, plan.device), peak
    _check_same({way: run() for way, run in runs.items()}, min(plan.peaks, key=_bits))
    return Measured(
        title=f"Embedding by {_SAID[pooling]}, cap {cap:,}",
        seconds=interleaved(runs, rounds=plan.rounds, device=plan.device),
        cells=len(cells.lengths),
        tokens=int(cells.lengths.sum()),
        flops=forward_flops(model.model_config, cells.work_of_embedding(pooling)),
        peaks=peaks,
        facts={"cap": cap, "fill_padded": float(cells.lengths.mean() / cap)},
    )


def _bits(kind: torch.dtype) -> int:
    return torch.finfo(kind).bits


def _typed(run: Callable[[], Tensor], plan: BenchPlan) -> Callable[[], Tensor]:
    def typed() -> Tensor:
        is_mixed = plan.step_type == torch.bfloat16
        with torch.autocast(plan.device, torch.bfloat16, enabled=is_mixed):
            return run()

    return typed


def _embedding_in(
    run: Callable[[], Tensor], kind: torch.dtype, device: str
) -> Callable[[], Tensor]:
    def embedding() -> Tensor:
        mixed = torch.autocast(device, torch.bfloat16, enabled=kind == torch.bfloat16)
        with torch.inference_mode(), mixed:
            return run()

    return embedding


def _check_same(found: Mapping[str, Tensor], kind: torch.dtype) -> None:
    """Refuse to compare what is not the same."""
    first, *others = found
    for name in others:
        difference = float((found[name].float() - found[first].float()).abs().max())
        if not difference <= TOLERANCE[kind] * max(1.0, float(found[first].abs().max())):
            raise BenchError(
                f"{name!r} differs from {first!r} by {difference:.2g}, so that comparing their speed "
                "says nothing. Please report this with the versions of torch and transformers."
            )
