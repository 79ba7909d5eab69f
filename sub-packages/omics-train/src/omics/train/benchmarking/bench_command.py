"""The verb `bench` of `omics-train`: what this machine can do, and what we make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from omics.data.command_line import print_json, say


def add_to(app: typer.Typer) -> None:
    """Register the verb `bench`.

    Args:
        app: the application of `omics-train`.
    """
    app.command(name="bench")(bench)


def bench(
    *,
    caps: Annotated[
        list[int] | None,
        typer.Option("--cap", min=8, help="Longest cell in tokens; give it once for each cap."),
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Blocks of the model.")] = None,
    hidden: Annotated[int | None, typer.Option(min=8, help="Its width.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Its attention heads.")] = None,
    tokens: Annotated[int | None, typer.Option(min=64, help="Real tokens of a batch.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Of which the median counts.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the CPU.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    growth: Annotated[
        bool,
        typer.Option("--growth", help="How the cost of a step grows, in place of the comparisons."),
    ] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A small batch, one round: whether it works, not how fast."),
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Keep the figures as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print them as one JSON object.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
) -> None:
    """Measure this machine, and training and embedding on it, beside stock BERT in the same run.

    Both models have the same weights and cells, and are checked to compute the same. Rounds are
    interleaved and medians reported; only real tokens count as work. Compare ratios: seconds depend
    on what else runs. With --growth: steps along the length of cells, their number, and the blocks and
    width of the model, beside the work of the formula.
    """
    from omics.data.atomic_files import require_free, write_bytes
    from omics.train.benchmarking.bench_run import BenchOptions, measure

    if out is not None:
        require_free(out, overwrite=overwrite)
    options = BenchOptions.of(
        device=device,
        quick=quick,
        caps=caps,
        layers=layers,
        hidden=hidden,
        heads=heads,
        tokens=tokens,
        rounds=rounds,
        threads=threads,
        growth=growth,
    )
    record = measure(options, tell=(lambda _line: None) if as_json else say)
    if out is not None:
        write_bytes(out, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
    if as_json:
        print_json(record)
