"""The verb `prepare` of `omics-data`: from a source of cells to what a training reads, in one step."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omics.data.command_line import print_json, progress, say
from omics.data.errors import UsageError

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
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to create.")],
    *,
    counts: Annotated[
        str,
        typer.Option(
            metavar="LOCATION",
            help="Where the raw counts are: X, raw.X, layers/NAME, or auto to look at the values.",
        ),
    ] = "auto",
    allow_non_counts: Annotated[
        bool,
        typer.Option(
            "--allow-non-counts",
            help="Keep the values of LOCATION as they are, though they are no counts.",
        ),
    ] = False,
    min_gene_counts: Annotated[
        float | None, typer.Option(min=0, help="Counts that a gene has at least, over all cells.")
    ] = None,
    min_gene_cells: Annotated[
        int | None, typer.Option(min=0, help="Cells in which a gene is found at least.")
    ] = None,
    min_counts: Annotated[
        float | None, typer.Option(min=0, help="Counts that a cell has at least.")
    ] = None,
    max_counts: Annotated[float | None, typer.Option(min=0, help="And at most.")] = None,
    min_genes: Annotated[
        int | None, typer.Option(min=0, help="Expressed genes that a cell has at least.")
    ] = None,
    max_genes: Annotated[int | None, typer.Option(min=0, help="And at most.")] = None,
    max_mito: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Mitochondrial counts at most, in percent of a cell's."),
    ] = None,
    mads: Annotated[
        float | None,
        typer.Option(min=0, help="Median absolute deviations a cell may be from the median."),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(metavar="COL", help="The obs column of batches, each judged by itself."),
    ] = None,
    fractions: Annotated[
        str, typer.Option(metavar="A,B,C", help="Shares of train, validation and test.")
    ] = "0.7,0.1,0.2",
    stratify: Annotated[
        str | None, typer.Option(metavar="COL", help="Keep the shares of this obs column.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(metavar="COL", help="Never divide a value of this obs column.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(metavar="COL", help="Use the split that this obs column names.")
    ] = None,
    hvg: Annotated[
        int, typer.Option(min=0, help="Keep so many genes that vary most in the training cells.")
    ] = 0,
    hvg_flavor: Annotated[
        str, typer.Option(metavar="NAME", help="seurat_v3 on raw counts, or seurat.")
    ] = "seurat_v3",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same split.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is at the output.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
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


def read_fractions(text: str) -> tuple[float, ...]:
    """Return the fractions of an option.

    Args:
        text: as it was given.

    Raises:
        UsageError: it is not numbers with commas between them.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"--fractions {text!r} is not three numbers such as 0.7,0.1,0.2."
        ) from None


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
