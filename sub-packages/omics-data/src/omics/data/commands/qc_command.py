"""The verb `qc` of `omics-data`: quality control of a store, as tables, figures and one summary."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omics.data.command_line import print_json, progress, say
from omics.data.commands.shared_options import (
    AsJson,
    Batch,
    FolderOut,
    Mads,
    MaxCounts,
    MaxGenes,
    MaxMito,
    MinCells,
    MinCounts,
    MinGenes,
    Overwrite,
    StoreOrFile,
)
from omics.data.errors import ExistingPathError

if TYPE_CHECKING:
    from omics.data.quality.quality_table import QualityTable


def add_to(app: typer.Typer) -> None:
    """Register the verb `qc`.

    Args:
        app: the application of `omics-data`.
    """
    app.command(name="qc")(qc)


def qc(
    store: StoreOrFile,
    out: FolderOut,
    *,
    min_genes: MinGenes = None,
    max_genes: MaxGenes = None,
    min_counts: MinCounts = None,
    max_counts: MaxCounts = None,
    max_mito: MaxMito = None,
    mads: Mads = None,
    iqr: Annotated[
        float | None,
        typer.Option(min=0, help="Interquartile ranges a cell may be outside the quartiles; 1.5."),
    ] = None,
    min_cells: MinCells = None,
    batch: Batch = None,
    doublets: Annotated[
        bool, typer.Option("--doublets", help="Score doublets, and leave out those called.")
    ] = False,
    doublet_memory: Annotated[
        float, typer.Option(min=0.1, metavar="GB", help="Memory a batch may take for that.")
    ] = 8.0,
    hvg: Annotated[int, typer.Option(min=0, help="Highly variable genes to find.")] = 0,
    hvg_flavor: Annotated[
        str, typer.Option(metavar="NAME", help="seurat, or seurat_v3 on raw counts.")
    ] = "seurat",
    write_store: Annotated[
        Path | None,
        typer.Option(
            metavar="STORE", help="Write the cells that are kept as a store of their own."
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Compute on the dask cluster of this scheduler (tcp://HOST:PORT).",
        ),
    ] = None,
    figures: Annotated[
        bool, typer.Option("--figures/--no-figures", help="Draw figures beside the tables.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same doublet scores.")] = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Measure every cell, say which to leave out and why, and draw what there is to see."""
    from omics.data.cell_source import open_cells
    from omics.data.quality.filtered_store import write_filtered_store
    from omics.data.quality.quality_assessment import assess_quality
    from omics.data.quality.thresholds import Thresholds

    limits = Thresholds(
        min_genes=min_genes,
        max_genes=max_genes,
        min_counts=min_counts,
        max_counts=max_counts,
        max_mito=max_mito,
        mads=mads,
        iqr=iqr,
        min_cells=min_cells,
    )
    for path in (out, write_store):
        if path is not None and path.exists() and not overwrite:
            raise ExistingPathError(f"{path} exists; choose another path or add --overwrite.")
    with open_cells(store) as opened:
        steps = len(opened) * (2 if doublets else 1)
        with progress("measuring", steps) as advance:
            table = assess_quality(
                opened,
                thresholds=limits,
                batch=batch,
                doublets=doublets,
                doublet_memory_gb=doublet_memory,
                hvg=hvg,
                hvg_flavor=hvg_flavor,
                seed=seed,
                scheduler=scheduler,
                on_progress=advance,
            )
        table.save(out, overwrite=overwrite, figures=figures)
        if write_store is not None:
            with progress("writing", len(table.rows)) as advance:
                write_filtered_store(
                    opened,
                    table.rows,
                    write_store,
                    reason={"thresholds": limits.to_dict(), "doublets": doublets, "seed": seed},
                    overwrite=overwrite,
                    on_progress=advance,
                )
    if as_json:
        written = None if write_store is None else str(write_store)
        print_json({"path": str(out), "written_store": written, **table.summary})
        return
    _say_result(table, out, write_store)


def _say_result(table: QualityTable, out: Path, write_store: Path | None) -> None:
    found = table.summary
    say(f"wrote {out}: {found['cells_kept']:,} of {found['cells']:,} cells kept")
    for rule in found["rules"]:
        say(
            f"  {rule['name']}: {rule['failed']:,} cells ({rule['failed_by_this_alone']:,} by this "
            "alone)"
        )
    if not found["rules"]:
        say("  no rule was set; try --mads 5, after a look at the figures")
    if found["genes_kept"] < found["genes"]:
        say(f"  genes found in enough cells: {found['genes_kept']:,} of {found['genes']:,}")
    if found["highly_variable"]:
        say(f"  highly variable genes: {found['highly_variable']['genes']:,} (genes.parquet)")
    for remark in found["remarks"]:
        say(f"note: {remark}")
    if write_store is not None:
        say(f"wrote {write_store}: the cells that are kept")
        say(f"next: omics-data info {shlex.quote(str(write_store))}")
    else:
        say("next: look at the figures, then again with limits and --write-store KEPT.store")
