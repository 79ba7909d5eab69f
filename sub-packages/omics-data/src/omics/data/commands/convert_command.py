"""The verb `omics-data convert`: sources, options, progress, and the table of gene coverage."""
# typer reads the annotations at run time:

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omics.data.command_line import print_json, progress, say
from omics.data.commands.shared_options import AllowNonCounts, AsJson, Counts, Overwrite

if TYPE_CHECKING:
    from omics.data.converting.conversion_plan import ConversionPlan
    from omics.data.storage.store import CellStore

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...",
        help="Files, folders or addresses of cells; a folder may hold many of them.",
    ),
]
NewStore = Annotated[Path, typer.Argument(metavar="STORE", help="The folder to create.")]
Join = Annotated[
    str,
    typer.Option(
        "--join",
        metavar="HOW",
        help="Which genes to keep of several sources: union, intersection, or list (exactly those "
        "of --genes).",
    ),
]
GeneIdColumn = Annotated[
    str | None,
    typer.Option("--gene-id-column", metavar="COL", help="Take gene ids from this var column."),
]
StripVersions = Annotated[
    bool | None,
    typer.Option(
        "--strip-versions/--keep-versions",
        help="Leave off the versions of Ensembl ids; by default only if sources differ just so.",
    ),
]
GeneAliases = Annotated[
    Path | None,
    typer.Option(
        "--gene-aliases", metavar="FILE", help="Rename genes: a table with columns alias, gene."
    ),
]
Orthologs = Annotated[
    Path | None,
    typer.Option(
        "--orthologs",
        metavar="FILE",
        help="Map genes to those of another species: a table with columns from, to.",
    ),
]
ManyToOne = Annotated[
    bool,
    typer.Option(
        "--many-to-one", help="Use orthologs where several genes go to one, and sum these."
    ),
]
Genes = Annotated[
    Path | None,
    typer.Option("--genes", metavar="FILE", help="Keep only the genes of this list."),
]
RepeatedGenes = Annotated[
    str | None,
    typer.Option(
        "--repeated-genes",
        metavar="HOW",
        help="Several genes of a source that come to one id: sum, first or error. By default ids "
        "that a source repeats are an error, and those that renaming makes equal are summed.",
    ),
]
PrefixNames = Annotated[
    bool, typer.Option("--prefix-names", help="Put the name of its source before each cell name.")
]
SourceOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="An option for the reader of the sources; repeatable.",
    ),
]
Layout = Annotated[
    str,
    typer.Option("--layout", help="plain, or packed: half the bytes, a little slower to read."),
]
RankMedians = Annotated[
    Path | None,
    typer.Option(
        "--rank-medians",
        metavar="FILE",
        help="Also store genes in the order of count / median: a table with columns gene, median.",
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="ADDRESS",
        help="Convert the sources on the workers of a Dask scheduler, such as tcp://host:8786.",
    ),
]
NoResume = Annotated[
    bool,
    typer.Option("--no-resume", help="Begin anew, though an interrupted conversion could go on."),
]


def add_to(app: typer.Typer) -> None:
    """Add the verb to a command.

    Args:
        app: of `omics-data`.
    """
    app.command("convert")(_convert)


def _convert(
    sources: Sources,
    store: NewStore,
    *,
    counts: Counts = "auto",
    allow_non_counts: AllowNonCounts = False,
    join: Join = "union",
    genes: Genes = None,
    gene_id_column: GeneIdColumn = None,
    gene_aliases: GeneAliases = None,
    orthologs: Orthologs = None,
    many_to_one: ManyToOne = False,
    strip_versions: StripVersions = None,
    repeated_genes: RepeatedGenes = None,
    prefix_names: PrefixNames = False,
    option: SourceOptions = None,
    layout: Layout = "plain",
    rank_medians: RankMedians = None,
    scheduler: Scheduler = None,
    no_resume: NoResume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Turn sources into one store of raw counts; nothing is written if values are no counts.

    Several sources, or a folder of them, become one store: cells one after the other, genes
    matched by id, with a column of obs that names the source. A conversion that was interrupted
    goes on where it stopped when the same command is given again.
    """
    from omics.data.converting.conversion import plan_conversion, run_plan
    from omics.data.matching.gene_matching import GeneOptions
    from omics.data.matching.gene_tables import read_medians

    options: dict[str, Any] = {
        "join": join,
        "id_column": gene_id_column,
        "strip_versions": strip_versions,
        "aliases": gene_aliases,
        "orthologs": orthologs,
        "many_to_one": many_to_one,
        "keep": genes,
        "repeated": repeated_genes,
    }
    medians = None if rank_medians is None else read_medians(rank_medians)
    plan = plan_conversion(
        sources,
        store,
        location=counts,
        genes=GeneOptions(**options),
        allow_non_counts=allow_non_counts,
        overwrite=overwrite,
        prefix_names=prefix_names,
        source_options=reader_options(option or []),
    )
    if not as_json:
        _say_plan(plan)
    with progress("converting", plan.num_cells) as advance:
        written = run_plan(
            plan,
            store,
            layout=layout,
            rank_medians=medians,
            overwrite=overwrite,
            resume=not no_resume,
            scheduler=scheduler,
            on_progress=advance,
        )
    if as_json:
        print_json(_as_dict(plan, written, store))
    else:
        _say_written(written, store)


def reader_options(given: list[str]) -> dict[str, Any]:
    """Return the options for a reader that were given as NAME=VALUE.

    Args:
        given: the texts.

    Raises:
        UsageError: a text is not of that form.
    """
    from omics.data.errors import UsageError

    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UsageError(f"--option {text!r} is not NAME=VALUE.")
        options[name.strip().replace("-", "_")] = _value_of(value)
    return options


def _value_of(text: str) -> Any:
    """Return a number, True or False where the text is one, else the text."""
    known = {"true": True, "false": False}
    if text.lower() in known:
        return known[text.lower()]
    try:
        return int(text)
    except ValueError:
        return text


def _say_plan(plan: ConversionPlan) -> None:
    if plan.skipped:
        shown = ", ".join(plan.skipped[:5]) + (", ..." if len(plan.skipped) > 5 else "")
        say(f"note: {len(plan.skipped):,} files are no sources and are skipped: {shown}")
    for note in plan.notes:
        say(f"note: {note}")
    if len(plan.sources) > 1:
        say(
            f"{len(plan.sources):,} sources, {plan.num_cells:,} cells, {len(plan.genes):,} genes in "
            "common table"
        )


def _say_written(written: CellStore, store: Path) -> None:
    from omics.data.matching.gene_coverage import coverage_of, coverage_text

    coverage = coverage_of(written)
    if coverage:
        for line in coverage_text(coverage).splitlines():
            say(line)
    cells, genes = written.shape
    found = written.provenance
    say(
        f"wrote {store}: {cells:,} cells x {genes:,} genes, {written.num_entries:,} non-zeros from "
        f"{found['location']}, {written.num_bytes:,} bytes"
    )
    if found["duplicate_cell_names"]:
        say(f"note: {found['duplicate_cell_names']:,} cell names occur more than once (kept)")
    say(f"next: omics-data info {shlex.quote(str(store))}")


def _as_dict(plan: ConversionPlan, written: CellStore, store: Path) -> dict[str, Any]:
    from omics.data.matching.gene_coverage import coverage_of

    return {
        "store": str(store),
        "digest": written.digest,
        "num_cells": written.shape[0],
        "num_genes": written.shape[1],
        "num_entries": written.num_entries,
        "num_bytes": written.num_bytes,
        "sources": [
            {"path": str(each.path), "name": each.label, "location": each.location}
            for each in plan.sources
        ],
        "skipped": list(plan.skipped),
        "notes": list(plan.notes),
        "coverage": [row.to_dict() for row in coverage_of(written)],
        "duplicate_cell_names": written.provenance["duplicate_cell_names"],
    }
