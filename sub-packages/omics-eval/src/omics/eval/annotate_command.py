"""The verb `omics-eval annotate`: labels of cells, beside those of plain baselines."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omics.data.atomic_files import require_free
from omics.data.command_line import print_json, say
from omics.eval.cell_files import read_cells, write_cells
from omics.eval.command_options import Cells, Label, Out, Overwrite, Seed, Split, UseRep

if TYPE_CHECKING:
    from omics.eval.results import EvalResult


class MethodName(StrEnum):
    """Methods of `annotate`."""

    logistic = "logistic"
    knn = "knn"
    centroid = "centroid"


def add_to(app: typer.Typer) -> None:
    """Add the verb to a command.

    Args:
        app: of `omics-eval`.
    """
    app.command("annotate")(_annotate)


def _annotate(
    source: Cells,
    *,
    label: Label,
    split: Split,
    out: Out,
    use_rep: UseRep = "X_omics",
    method: Annotated[
        MethodName, typer.Option("--method", help="How labels are transferred.")
    ] = MethodName.logistic,
    min_accuracy: Annotated[
        float | None,
        typer.Option(
            "--min-accuracy",
            help="Call cells unknown below the confidence from which on held-out training cells "
            "are right so often, such as 0.95.",
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option("--groups", help="The column of obs, such as the donor, to hold out whole."),
    ] = None,
    query: Annotated[str, typer.Option("--query", help="The split to score.")] = "test",
    results: Annotated[
        Path | None, typer.Option("--results", help="Also write the scores, as Parquet.")
    ] = None,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Label all cells outside the training split by its cells, and score the labelled ones.

    The scores of plain baselines on the same cells stand beside: a model that does not beat them
    has not helped.
    """
    from omics.data import load_split
    from omics.eval.annotation import annotate
    from omics.eval.comparison import (
        baseline_predictions,
        confidence_rows,
        labelled_split,
        result_rows,
    )
    from omics.eval.embedding_sources import neighbours_note
    from omics.eval.report_inputs import bundle_digest
    from omics.eval.results import write_results

    for path in (out, results):
        if path is not None:
            require_free(path, overwrite=overwrite)
    adata, table = read_cells(source), load_split(split)
    cells = labelled_split(adata, table, label=label, query=query)
    reference = table.rows("train")
    annotate(
        adata,
        label=label,
        reference=reference,
        use_rep=use_rep,
        method=method.value,
        min_accuracy=min_accuracy,
        groups=groups,
        seed=seed,
        overwrite=overwrite,
    )
    unknown_below = None
    if min_accuracy is not None:
        unknown_below = adata.uns[f"{label}_unknown_below"]
    # Scores are of all answers, also of those that are not trusted; what is trusted has its own.
    answers = f"{label}_pred" if min_accuracy is None else f"{label}_closest"
    given = adata.obs[answers].astype(object).to_numpy()[cells.query]
    name = f"{use_rep} + {method.value}"
    baselines, _ = baseline_predictions(adata, cells, seed=seed)
    rows = result_rows(
        cells,
        {name: given, **baselines},
        task=f"annotate:{label}",
        dataset=source.name,
        bundles={name: bundle_digest(adata, use_rep)},
        seed=seed,
    )
    rows += confidence_rows(
        cells.truth,
        given,
        adata.obs[f"{label}_confidence"].to_numpy()[cells.query],
        unknown_below=unknown_below,
        task=f"annotate:{label}",
        dataset=source.name,
        method=name,
        bundle=bundle_digest(adata, use_rep),
        seed=seed,
    )
    write_cells(adata, out)
    if results is not None:
        write_results(results, rows)
    notes = neighbours_note(adata, use_rep, cells.query, query)
    if as_json:
        record = {
            "out": str(out),
            "query": query,
            "untaught_classes": cells.untaught,
            "notes": notes,
        }
        print_json({**record, "results": [asdict(row) for row in rows]})
        return
    _say_rows(rows, query)
    for line in _confidence_lines(rows, unknown_below, min_accuracy):
        say(line)
    for absent in cells.untaught:
        say(f"No training cell is of the class {absent!r}: its {query} cells count as wrong.")
    for note in notes:
        say(f"note: {note}")
    say(f"{out}: obs[{label + '_pred'!r}] and obs[{label + '_confidence'!r}]")


def _confidence_lines(
    rows: list[EvalResult], unknown_below: float | None, min_accuracy: float | None
) -> list[str]:
    """Return what confidences are worth, in sentences."""
    found = {row.metric: row for row in rows}
    if "calibration_error" not in found:
        return []
    error = found["calibration_error"].value
    lines = [f"confidence is off by {error:.3f} on average (expected calibration error)"]
    if min_accuracy is None or unknown_below is None:
        return lines
    held_out = f"held-out training cells are right in {min_accuracy:.0%}"
    if unknown_below == inf:
        return [*lines, f"all cells are unknown: from no confidence on {held_out}"]
    right = found.get("accuracy_of_answered")
    share = _shown(found["answered"])
    told = "" if right is None else f", and {_shown(right)} of them are right"
    lines.append(f"unknown below {unknown_below:.3f}, from which on {held_out}")
    lines.append(f"{share} of the cells are answered{told}")
    return lines


def _shown(row: EvalResult) -> str:
    return f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"


def _say_rows(rows: list[EvalResult], query: str) -> None:
    """Print one line a method: accuracy and macro-F1 with their intervals."""
    by_method: dict[str, dict[str, str]] = {}
    for row in rows:
        by_method.setdefault(row.method, {})[row.metric.removesuffix("_difference")] = _shown(row)
    width = max(len(name) for name in by_method)
    say(f"{rows[0].n:,} {query} cells, 95% intervals")
    say(f"{'':{width}}  {'accuracy':24}  macro-F1")
    for name, values in by_method.items():
        say(f"{name:{width}}  {values['accuracy']:24}  {values['macro_f1']}")
