"""The verb `omics-eval integrate`: embeddings side by side, beside PCA."""

from __future__ import annotations

from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import Annotated

import typer

from omics.data.atomic_files import require_free
from omics.data.command_line import print_json, say
from omics.eval.cell_files import read_cells
from omics.eval.command_options import Cells, Label, Overwrite


def add_to(app: typer.Typer) -> None:
    """Add the verb to a command.

    Args:
        app: of `omics-eval`.
    """
    app.command("integrate")(_integrate)


def _integrate(
    source: Cells,
    *,
    label: Label,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch", help="The column of obs with the batches. Default: score labels alone."
        ),
    ] = None,
    use_rep: Annotated[
        list[str] | None,
        typer.Option(
            "--use-rep",
            help="An embedding in obsm; repeatable, the one of interest first. Default: X_omics.",
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="NAMES",
            help="Also correct the batches here: any of harmony,scanorama,liger,scvi.",
        ),
    ] = None,
    components: Annotated[
        int | None,
        typer.Option(
            "--components", min=1, help="Reduce wider embeddings to so many principal components."
        ),
    ] = None,
    max_cells: Annotated[
        int, typer.Option("--max-cells", min=16, help="More cells are sampled to this number.")
    ] = 100_000,
    results: Annotated[
        Path | None, typer.Option("--results", help="Also write the scores, as Parquet.")
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of the sample, the clusters and the bootstrap.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Score how well embeddings keep cell types together and mix batches.

    Every metric runs from 0 to 1, and 1 is best. PCA of the log-normalised counts is always scored
    beside them, on the same cells.
    """
    from omics.eval.integration.integration_scores import integrate
    from omics.eval.results import write_results

    if results is not None:
        require_free(results, overwrite=overwrite)
    found = integrate(
        read_cells(source),
        label=label,
        batch=batch,
        use_rep=use_rep or ["X_omics"],
        compare=[name.strip() for name in compare.split(",")] if compare else [],
        components=components,
        max_cells=max_cells,
        seed=seed,
    )
    rows = found.rows(dataset=source.name)
    if results is not None:
        write_results(results, rows)
    if as_json:
        # There is no NaN in JSON.
        plain = [
            {
                key: None if isinstance(value, float) and isnan(value) else value
                for key, value in asdict(row).items()
            }
            for row in rows
        ]
        print_json(
            {
                "verdict": found.verdict(),
                "notes": list(found.notes),
                "resolutions": dict(found.resolutions),
                "seconds": {name: dict(steps) for name, steps in found.seconds.items()},
                "results": plain,
            }
        )
        return
    say(found.verdict())
    say(f"{found.num_cells:,} cells, 95% intervals over cells; 1 is best")
    for line in found.lines():
        say(line)
    for note in found.notes:
        say(f"note: {note}")
    for name, steps in found.seconds.items():
        shown = ", ".join(f"{step} {seconds:.1f}" for step, seconds in steps.items())
        say(f"{name}, seconds: {shown}")
    if results is not None:
        say(str(results))
