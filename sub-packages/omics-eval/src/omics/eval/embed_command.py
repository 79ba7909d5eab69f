"""The verb `omics-eval embed`: vectors of cells or genes; on request a UMAP and the report."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from omics.data.atomic_files import require_free
from omics.data.command_line import progress, say
from omics.data.errors import UsageError
from omics.eval.command_options import Model, Out, Overwrite

_NO_UMAP = "There is no UMAP: too few cells have an embedding; obsm['X_umap'] is NaN."


class LevelName(StrEnum):
    """What `embed` gives a vector of."""

    cell = "cell"
    gene = "gene"


def add_to(app: typer.Typer) -> None:
    """Add the verb to a command.

    Args:
        app: of `omics-eval`.
    """
    app.command("embed")(_embed)


def _embed(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="An .h5ad file with counts, or a store folder.")
    ],
    *,
    model: Model,
    out: Out,
    level: Annotated[
        LevelName,
        typer.Option("--level", help="A vector of every cell (.h5ad), or gene (.parquet or .csv)."),
    ] = LevelName.cell,
    max_cells: Annotated[
        int | None,
        typer.Option(
            "--max-cells",
            min=1,
            help="Run the model on a sketch of so many cells; the others get a mean of their "
            "neighbours in it, and are flagged. Default: all.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="HTML", help="Also write the report; needs --label."),
    ] = None,
    umap: Annotated[
        Path | None,
        typer.Option(
            "--umap", metavar="PNG", help="Also draw a UMAP, and put it into obsm['X_umap']."
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", help="The column of obs with classes, for --report and --umap."),
    ] = None,
    split: Annotated[
        Path | None,
        typer.Option(
            "--split",
            help="A split of these cells, for --report. Default: one is made, and written beside "
            "the cells.",
        ),
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(
            "--pooling",
            help="How tokens become the vector of a cell: mean, first_token, mean_after_first, "
            "pooler, token:K, pooled, or several joined by +. Default: what the bundle says.",
        ),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(
            "--layer",
            help="Whose hidden states are read: 0 for the inputs, 1 for the first block, -1 for "
            "the last. Default: what the bundle says, or the final ones.",
        ),
    ] = None,
    key_added: Annotated[str, typer.Option("--key-added", help="The key of obsm.")] = "X_omics",
    batch_tokens: Annotated[
        int | None,
        typer.Option("--batch-tokens", min=1, help="Tokens at once. Default: by the device."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Cells at once, at most.")
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", help="32-true, or bf16-mixed (fast on a GPU).")
    ] = "32-true",
    device: Annotated[
        str,
        typer.Option("--device", help="auto (cuda, mps, cpu, the first there is), or its name."),
    ] = "auto",
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of sketch, split, UMAP and baselines.")
    ] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write the model's embedding of every cell into obsm, or of every gene into a table.

    Cells are never dropped or reordered: a cell without an expressed gene that the model knows
    has NaN, and its reason in obs["omics_reason"]. The input is copied and added to, never loaded
    as a whole. The vector of a gene is the mean over the cells that express it.
    """
    shared: dict[str, Any] = {
        "layer": layer,
        "batch_tokens": batch_tokens,
        "batch_size": batch_size,
        "precision": precision,
        "device": device,
        "show": progress,
    }
    if level is LevelName.gene:
        of_cells = {"--pooling": pooling, "--max-cells": max_cells, "--report": report,
                    "--umap": umap, "--label": label, "--split": split}  # fmt: skip
        for option, value in of_cells.items():
            if value is not None:
                raise UsageError(
                    f"{option} is about vectors of cells; leave it out at --level gene."
                )
        _embed_genes(source, model, out, overwrite=overwrite, **shared)
        return
    from omics.eval.embedding_report import embed_and_report, split_beside

    record = embed_and_report(
        source,
        model,
        out,
        report=report,
        umap=umap,
        label=label,
        split=split,
        key_added=key_added,
        commands=[shlex.join(["omics-eval", *sys.argv[1:]])],
        overwrite=overwrite,
        pooling=pooling,
        max_cells=max_cells,
        seed=seed,
        on_estimate=lambda estimate: say(str(estimate)),
        **shared,
    )
    say(record["genes"])
    gone = record["num_without_embedding"]
    without = f"; {gone:,} cells without one (see obs['omics_reason'])" if gone else ""
    say(f"{out}: {record['num_cells']:,} cells with obsm[{key_added!r}]{without}")
    if sketch := record.get("sketch"):
        say(
            f"The model embedded {sketch['num_cells']:,} of them; {sketch['num_from_neighbours']:,} "
            f"have a mean of their neighbours (see obs['{key_added}_source'])"
        )
    if umap is not None:
        shown = record["umap"]["num_cells"]
        say(f"{umap}: {shown:,} cells in the plane, obsm['X_umap']" if shown else _NO_UMAP)
    if report is not None:
        if split is None:
            say(f"{split_beside(out)}: the split of the report, by {label} with the seed {seed}")
        say(str(report))


def _embed_genes(source: Path, model: str, out: Path, *, overwrite: bool, **options: Any) -> None:
    from omics.eval.embedding import embed_genes_file

    require_free(out, overwrite=overwrite)
    genes, coverage = embed_genes_file(source, model, out, **options)
    say(coverage)
    say(f"{out}: vectors of {len(genes.genes):,} genes")
