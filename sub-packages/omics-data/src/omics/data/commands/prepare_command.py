"""The verb `prepare` of `omics-data`: from a source of cells to what a training reads, in one step."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omics.data.command_line import print_json, progress, say
from omics.data.commands.shared_options import (
    AllowNonCounts,
    AsJson,
    Batch,
    Column,
    Counts,
    FolderOut,
    Fractions,
    Group,
    Mads,
    MaxCounts,
    MaxGenes,
    MaxMito,
    MinCells,
    MinCounts,
    MinGenes,
    Overwrite,
    Stratify,
    read_fractions,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


def add_to(app: typer.Typer) -> None:
    """Register the verb `prepare`.

    Args:
        app: the application of `omics-data`.
    """
    app.command(name="prepare")(prepare)


def prepare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A file, folder or address of cells, a store, or dataset:NAME for your copy of a "
            "published dataset.",
        ),
    ],
    out: FolderOut,
    *,
    counts: Counts = "auto",
    allow_non_counts: AllowNonCounts = False,
    min_gene_counts: Annotated[
        float | None, typer.Option(min=0, help="Counts that a gene has at least, over all cells.")
    ] = None,
    min_gene_cells: MinCells = None,
    min_counts: MinCounts = None,
    max_counts: MaxCounts = None,
    min_genes: MinGenes = None,
    max_genes: MaxGenes = None,
    max_mito: MaxMito = None,
    mads: Mads = None,
    batch: Batch = None,
    fractions: Fractions = "0.7,0.1,0.2",
    stratify: Stratify = None,
    group: Group = None,
    column: Column = None,
    hvg: Annotated[
        int, typer.Option(min=0, help="Keep so many genes that vary most in the training cells.")
    ] = 0,
    hvg_flavor: Annotated[
        str, typer.Option(metavar="NAME", help="seurat_v3 on raw counts, or seurat.")
    ] = "seurat_v3",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same split.")] = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Convert, leave out genes and cells, split, and keep variable genes: all that a training reads.

    Genes are left out first, then cells; variable genes are those of the training cells alone. A
    preparation that was stopped goes on where it was when the same command is given again.
    """
    from omics.data.preparation import Preparation
    from omics.data.preparation import prepare as make
    from omics.data.quality.thresholds import Thresholds

    settings = Preparation(
        counts=counts,
        allow_non_counts=allow_non_counts,
        min_gene_counts=min_gene_counts,
        min_gene_cells=min_gene_cells,
        thresholds=Thresholds(
            min_genes=min_genes,
            max_genes=max_genes,
            min_counts=min_counts,
            max_counts=max_counts,
            max_mito=max_mito,
            mads=mads,
        ),
        batch=batch,
        fractions=read_fractions(fractions),
        stratify=stratify,
        group=group,
        column=column,
        hvg=hvg,
        hvg_flavor=hvg_flavor,
        seed=seed,
    )
    found = make(source, out, settings, overwrite=overwrite, show=progress)
    if as_json:
        print_json({"path": str(out), **found})
        return
    _say_result(found, out)


def _say_result(found: Mapping[str, Any], out: Path) -> None:
    say(
        f"wrote {out}: {found['cells']:,} of {found['source_cells']:,} cells, {found['genes']:,} of "
        f"{found['source_genes']:,} genes"
    )
    say("  " + ", ".join(f"{name} {size:,}" for name, size in found["split"].items()))
    if found["empty_cells"]:
        say(f"note: {found['empty_cells']:,} cells have no count in the genes that are kept")
    if found["leakage"]["duplicate_cells"]:
        say(
            f"note: {found['leakage']['duplicate_cells']:,} cells equal a cell of another split gene "
            "by gene"
        )
    store, split = (shlex.quote(str(out / name)) for name in ("cells.store", "split.parquet"))
    say(f"next: omics-train pretrain input_file={store} data_module.split={split} working_dir=RUN")
