"""The verb `select` of `omics-data`: a table of informative cells."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from omics.data.command_line import print_json, progress, say
from omics.data.commands.shared_options import AsJson, Overwrite, StoreOrFile, TableOut


def add_to(app: typer.Typer) -> None:
    """Register the verb `select`.

    Args:
        app: the application of `omics-data`.
    """
    app.command(name="select")(select)


def select(
    store: StoreOrFile,
    out: TableOut,
    *,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="random, equal-per-group, label-balanced, geometric-sketch, farthest-first or "
            "by-quality.",
        ),
    ],
    cells: Annotated[
        int, typer.Option(min=1, help="Cells to choose (label-balanced: of each label).")
    ],
    group: Annotated[
        str | None, typer.Option(metavar="COL", help="The obs column of groups or labels.")
    ] = None,
    embedding: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Coordinates of the cells (.npy or .parquet); without it, 50 principal components.",
        ),
    ] = None,
    quality: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Of omics-data qc: choose among the cells it keeps."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same cells.")] = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Choose informative cells of a store, as a table of rows that a Loader takes."""
    from omics.data.atomic_files import require_free
    from omics.data.cell_source import open_cells
    from omics.data.quality.quality_table import load_quality
    from omics.data.selection.selecting import SPATIAL, select_cells

    require_free(out, overwrite=overwrite)
    with open_cells(store) as opened, contextlib.ExitStack() as shown:
        table_of_quality = None if quality is None else load_quality(quality, opened)
        advance = None
        if method in SPATIAL and embedding is None:
            known = table_of_quality is not None and "highly_variable" in table_of_quality.genes
            passes = 2 if known else 3
            advance = shown.enter_context(progress("components", passes * len(opened)))
        table = select_cells(
            opened,
            method,
            cells,
            group=group,
            embedding=embedding,
            quality=table_of_quality,
            seed=seed,
            on_progress=advance,
        )
        table.save(out, overwrite=overwrite)
    if as_json:
        print_json(
            {
                "path": str(out),
                "cells": len(table),
                "method": table.method,
                "seed": seed,
                "store_digest": table.store_digest,
            }
        )
        return
    say(f"wrote {out}: {len(table):,} of {table.method['of']:,} cells, {method}")
    sizes = table.method.get("sizes")
    if sizes:
        smallest = min(sizes, key=lambda name: sizes[name])
        say(f"  {len(sizes):,} groups, the smallest {smallest!r} with {sizes[smallest]:,} cells")
        if table.method["cells_without_group"]:
            say(f"note: {table.method['cells_without_group']:,} cells have no {group}: not chosen")
    say("next: Loader(store, rows=load_selection(...).rows), see the guide on selection")
