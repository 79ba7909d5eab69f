"""All sections of the bench, one after the other, told as they are found and kept as one record."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from omics.data.errors import UsageError, nearest
from omics.train.benchmarking.compared_loops import compare_feeding, lightning_overhead
from omics.train.benchmarking.compared_models import Sizes
from omics.train.benchmarking.compared_steps import (
    BenchPlan,
    Measured,
    compare_embeddings,
    compare_steps,
)
from omics.train.benchmarking.cost_growth import Growth, measure_growth
from omics.train.benchmarking.machine_ceilings import (
    copy_gigabytes,
    device_name,
    has_fast_bfloat16,
    product_tflops,
)
from omics.train.flops import datasheet_tflops

if TYPE_CHECKING:
    from collections.abc import Callable

_DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What is measured.

    Attributes:
        device: `cpu` or `cuda`.
        caps: longest cells.
        sizes: of the models.
        tokens: real ones of a batch, about.
        rounds: of which the median counts.
        loop_steps: of a round of the section about the store.
        turns: of a plain loop and of Lightning.
        product_size: of the matrices whose product is timed; None for what fills the device.
        threads: of the CPU; None leaves them.
        growth: whether it is measured how the cost of a step grows, in place of all comparisons.
    """

    device: str
    caps: tuple[int, ...]
    sizes: Sizes
    tokens: int
    rounds: int
    loop_steps: int
    turns: int
    product_size: int | None
    threads: int | None
    growth: bool = False

    @classmethod
    def of(
        cls,
        *,
        device: str = "auto",
        quick: bool = False,
        caps: list[int] | None = None,
        layers: int | None = None,
        hidden: int | None = None,
        heads: int | None = None,
        tokens: int | None = None,
        rounds: int | None = None,
        threads: int | None = None,
        growth: bool = False,
    ) -> BenchOptions:
        """Return the options of the command, with what suits the device where nothing is said.

        Args:
            device: `auto`, `cpu` or `cuda`.
            quick: small batches and one round.
            caps: longest cells.
            layers: blocks.
            hidden: width.
            heads: of attention.
            tokens: of a batch.
            rounds: of which the median counts.
            threads: of the CPU.
            growth: measure how cost grows, in place of the comparisons; one cap is its middle.

        Raises:
            UsageError: no such device, sizes that do not fit each other, or several middles.
        """
        if growth and len(caps or []) > 1:
            raise UsageError("--growth takes one --cap, the middle of the lengths it goes through.")
        if device not in _DEVICES:
            raise UsageError(f"--device is {device!r}.{nearest(device, _DEVICES)}")
        has_cuda = torch.cuda.is_available()
        if device == "cuda" and not has_cuda:
            raise UsageError("--device cuda: torch finds no CUDA device. Use --device cpu.")
        on_cuda = has_cuda and device != "cpu"
        width = hidden or (768 if on_cuda else 256)
        num_heads = heads or max(1, width // 64)
        if width % num_heads:
            raise UsageError(f"--hidden {width} is not a multiple of --heads {num_heads}.")
        usual_tokens, usual_rounds = (65_536, 7) if on_cuda else (6144, 5)
        usual_caps = [1024, 2048, 4096] if on_cuda else [1024, 2048]
        usual_caps = usual_caps[:1] if growth else usual_caps
        return cls(
            device="cuda" if on_cuda else "cpu",
            caps=tuple(caps or ([256] if quick else usual_caps)),
            sizes=Sizes(layers=layers or (12 if on_cuda else 4), hidden=width, heads=num_heads),
            tokens=tokens or (1024 if quick else usual_tokens),
            rounds=rounds or (1 if quick else usual_rounds),
            loop_steps=4 if quick else 12,
            turns=20 if quick else 400,
            product_size=512 if quick else None,
            threads=threads,
            growth=growth,
        )


def measure(options: BenchOptions, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return all figures.

    Args:
        options: what is measured.
        tell: called with each line for people.

    Raises:
        BenchError: the models that are compared do not compute the same.
    """
    before = torch.get_num_threads()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        return _measure(options, tell)
    finally:
        torch.set_num_threads(before)


def _measure(options: BenchOptions, tell: Callable[[str], None]) -> dict[str, Any]:
    device, name = options.device, device_name(options.device)
    kinds = [torch.float32, *([torch.bfloat16] if has_fast_bfloat16(device) else [])]
    peaks = {kind: product_tflops(kind, device=device, size=options.product_size) for kind in kinds}
    copied = copy_gigabytes(device=device)
    sheet = datasheet_tflops(name) if device == "cuda" else None
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    tell(f"{name}{threads}")
    for kind, peak in peaks.items():
        tell(f"  matrix product in {_short(kind)}: {peak:.3g} TFLOP/s measured")
    if sheet is not None:
        tell(f"  matrix product in bfloat16: {sheet:,.0f} TFLOP/s in the data sheet")
    tell(f"  copying memory: {copied:,.1f} GB/s")
    plan = BenchPlan(
        sizes=options.sizes,
        tokens=options.tokens,
        rounds=options.rounds,
        device=device,
        peaks=peaks,
    )
    found: dict[str, Any]
    if options.growth:
        growths = measure_growth(plan, options.caps[0])
        found = {"growth": [_told_growth(each, tell) for each in growths]}
    else:
        found = _comparisons(options, plan, tell, sheet)
    libraries = ("torch", "transformers", "lightning", "omics-train", "omics-models")
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{n: version(n) for n in libraries}},
        "sizes": asdict(options.sizes),
        "tokens": options.tokens,
        "rounds": options.rounds,
        "ceilings": {
            "product_tflops": {_short(kind): peak for kind, peak in peaks.items()},
            "datasheet_tflops": sheet,
            "copy_gigabytes_per_second": copied,
        },
        **found,
    }


def _comparisons(
    options: BenchOptions, plan: BenchPlan, tell: Callable[[str], None], sheet: float | None
) -> dict[str, Any]:
    """Compare with stock BERT, with batches in memory, and with steps without Lightning."""
    sections: list[dict[str, Any]] = []
    by_first_token = partial(compare_embeddings, pooling="first_token")
    for compare in (compare_steps, compare_embeddings, by_first_token):
        sections += [_told(compare(plan, cap), tell, sheet) for cap in options.caps]
    sections.append(_told(compare_feeding(plan, steps=options.loop_steps), tell, sheet))
    lightning = lightning_overhead(device=options.device, pairs=options.turns)
    tell(
        f"Lightning adds {lightning['overhead_ms']:.2f} ms [{lightning['low_ms']:.2f}, "
        f"{lightning['high_ms']:.2f}] to a step of {lightning['plain_ms']:.0f} ms: "
        f"{lightning['overhead_ms'] / lightning['plain_ms']:.1%}"
    )
    return {"sections": sections, "lightning": lightning}


def _told(found: Measured, tell: Callable[[str], None], sheet: float | None) -> dict[str, Any]:
    """Tell one comparison as a table, and return its record."""
    rows = found.rows()
    if sheet is not None:
        for row in rows:
            row["mfu_datasheet"] = row["tflops"] / sheet
    giga = found.flops / found.cells / 1e9
    tell(
        f"{found.title}: {found.cells:,} cells, {found.tokens:,} tokens, {giga:.2f} GFLOPs a cell"
        + (f", {found.facts['fill_padded']:.0%} full if padded" if found.facts else "")
    )
    for row in rows:
        share = f"{row['mfu_measured']:6.1%} of the measured peak"
        if "mfu_datasheet" in row:
            share += f", {row['mfu_datasheet']:5.1%} of the data sheet"
        tell(
            f"  {row['name']:45}{row['milliseconds']:10,.1f} ms {row['tokens_per_second']:10,.0f} "
            f"tokens/s {row['cells_per_second']:8,.1f} cells/s {row['times']:6.2f} x  {share}"
        )
    return {
        "title": found.title,
        "cells": found.cells,
        "tokens": found.tokens,
        "flops": found.flops,
        "rows": rows,
        **found.facts,
    }


def _told_growth(found: Growth, tell: Callable[[str], None]) -> dict[str, Any]:
    """Tell how cost grew along one axis, and return its record."""
    rows = found.rows()
    tell(
        f"{found.axis}: time grows with work to the power {found.power:.2f}, and differs from that "
        f"by {found.deviation:.0%} at most"
    )
    for row in rows:
        tell(
            f"  {row['value']:8,}{row['flops'] / 1e9:12,.1f} GFLOPs{row['milliseconds']:12,.1f} ms"
            f"{row['times_work']:8.2f} x work{row['times_time']:8.2f} x time  "
            f"{row['mfu_measured']:6.1%} of the measured peak"
        )
    return {"axis": found.axis, "power": found.power, "deviation": found.deviation, "rows": rows}


def _short(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")
