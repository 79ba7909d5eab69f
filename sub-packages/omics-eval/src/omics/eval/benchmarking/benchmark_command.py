"""The verb `omics-eval benchmark`: a bundle on published datasets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omics.data.atomic_files import require_free
from omics.data.command_line import progress, say
from omics.data.errors import InputDataError, MissingPathError
from omics.eval.command_options import Model, Overwrite, named_paths

if TYPE_CHECKING:
    from omics.eval.results import EvalResult


def add_to(app: typer.Typer) -> None:
    """Add the verb to a command.

    Args:
        app: of `omics-eval`.
    """
    app.command("benchmark")(_benchmark)


def _benchmark(
    *,
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="The results to write, as Parquet.")],
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            metavar="NAME",
            help="A name of `omics-data datasets`; repeatable. Default: of the twelve zero-shot "
            "sets those of which you have a copy.",
        ),
    ] = None,
    path: Annotated[
        list[str] | None,
        typer.Option(
            "--path",
            metavar="NAME=FILE",
            help="Your copy, an .h5ad file or a store; repeatable. Default: OMICS_DATA_NAME.",
        ),
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option("--batch-tokens", min=1, help="Tokens at once. Default: by the device."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")] = "auto",
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of splits, baselines, clusters and bootstrap.")
    ] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Embed, annotate and integrate published datasets, each beside plain baselines.

    Nothing is downloaded: a line tells which files are missing, and where they are published. One
    row for each number goes into the results, which are written again after every dataset.
    """
    from omics.eval.benchmarking.dataset_scores import ZERO_SHOT, benchmark, copies_of
    from omics.eval.results import write_results

    require_free(out, overwrite=overwrite)
    copies, missing = copies_of(dataset or ZERO_SHOT, named_paths(path or [], "--path"))
    if missing and (dataset or not copies):
        raise MissingPathError(" ".join(missing))
    for line in missing:
        say(f"left out: {line}")
    rows: list[EvalResult] = []
    scored = 0
    for found in benchmark(
        model, copies, device=device, batch_tokens=batch_tokens, seed=seed, show=progress
    ):
        for line in found.lines:
            say(f"{found.name}: {line}")
        scored += bool(found.rows)
        rows += found.rows
        if rows:
            write_results(out, rows)
    if not scored:
        raise InputDataError(
            f"None of {len(copies)} datasets could be scored; the lines above say why."
        )
    say(f"{out}: {len(rows):,} numbers of {scored} of {len(copies)} datasets")
