"""The verb `omics-eval annotate`: labels of cells, beside those of plain baselines."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from omics.data.atomic_files import require_free
from omics.data.command_line import print_json, say
from omics.data.errors import UsageError
from omics.eval.cell_files import read_cells, write_cells
from omics.eval.command_options import Cells, Label, Out, Overwrite, Seed

if TYPE_CHECKING:
    from anndata import AnnData

    from omics.data.splits import SplitTable
    from omics.eval.comparison import LabelledCells
    from omics.eval.results import EvalResult
    from omics.tokenizers.ontology_labels import Ontology

HEAD = "label head"


class MethodName(StrEnum):
    """Methods of `annotate`."""

    logistic = "logistic"
    knn = "knn"
    centroid = "centroid"
    head = "head"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What the user asked for, of all but files to write."""

    source: Path
    label: str
    use_rep: str
    method: str
    folds: int | None
    query: str
    model: str
    head: str
    device: str
    min_accuracy: float | None
    groups: str | None
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answered:
    """What is known once the cells have their columns.

    Attributes:
        name: of the method.
        digest: of the bundle behind it.
        cells: that are scored; None where there are no labels.
        notes: what to tell.
        unknown_classes: of the scored cells, that the method cannot give.
    """

    name: str
    digest: str
    cells: LabelledCells | None
    notes: list[str]
    unknown_classes: list[str]


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
    out: Out,
    split: Annotated[
        Path | None,
        typer.Option(
            "--split", help="The split of these cells: its training cells teach, others are scored."
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            "--folds", min=2, help="Without a split: hold labelled cells out in so many turns."
        ),
    ] = None,
    use_rep: Annotated[
        str | None, typer.Option("--use-rep", help="The embedding in obsm. Default: X_omics.")
    ] = None,
    method: Annotated[
        MethodName,
        typer.Option("--method", help="How labels are transferred; head: by the model itself."),
    ] = MethodName.logistic,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Of --method head: a bundle, or another model as in `embed`."),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option("--head", help="Of --method head: its name. Default: that of the label."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="Of --method head: auto (default), cpu, cuda or mps."),
    ] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(
            "--min-accuracy",
            help="Call cells unknown below the confidence from which on held-out cells are right "
            "so often, such as 0.95.",
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            "--groups",
            help="The column of obs, such as the donor: held out whole, and intervals are over it.",
        ),
    ] = None,
    query: Annotated[
        str | None, typer.Option("--query", help="The part of the split to score. Default: test.")
    ] = None,
    ontology: Annotated[
        Path | None,
        typer.Option(
            "--ontology", help="An .obo file that has the labels: also score how far answers are."
        ),
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--results", help="Also write the scores, as Parquet.")
    ] = None,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Label cells by others through an embedding, or by a model's head, and score the labelled ones.

    The scores of plain baselines on the same cells stand beside: a model that does not beat them
    has not helped. With --folds each labelled cell is answered by those of the other folds.
    """
    from omics.data import load_split
    from omics.eval.annotation import refuse_taken_columns
    from omics.eval.results import write_results
    from omics.tokenizers.ontology_labels import Ontology

    _check_options(
        method,
        split=split,
        folds=folds,
        query=query,
        use_rep=use_rep,
        model=model,
        head=head,
        device=device,
    )
    for path in (out, results):
        if path is not None:
            require_free(path, overwrite=overwrite)
    wanted = _Wanted(
        source=source,
        label=label,
        use_rep=use_rep or "X_omics",
        method=method.value,
        folds=folds,
        query=query or "test",
        model=model or "",
        head=head or label,
        device=device or "auto",
        min_accuracy=min_accuracy,
        groups=groups,
        seed=seed,
    )
    adata = read_cells(source)
    refuse_taken_columns(adata, label, unknown=min_accuracy is not None, overwrite=overwrite)
    terms = None if ontology is None else Ontology.read(ontology)
    table = None if split is None else load_split(split)
    scores_wanted = results is not None or terms is not None or groups is not None
    if method is MethodName.head:
        answered = _by_head(adata, table, wanted, scores_wanted=scores_wanted)
    else:
        answered = _by_cells(adata, table, wanted)
    rows, notes = _scores(adata, answered, wanted, terms)
    write_cells(adata, out)
    if results is not None:
        write_results(results, rows)
    if as_json:
        record = {
            "out": str(out),
            "query": "" if answered.cells is None else answered.cells.query_name,
            "untaught_classes": answered.unknown_classes,
            "notes": notes,
        }
        print_json({**record, "results": [asdict(row) for row in rows]})
        return
    if answered.cells is not None:
        _say_rows(rows, answered.cells.query_name)
    for line in _confidence_lines(rows, adata.uns.get(f"{label}_unknown_below"), min_accuracy):
        say(line)
    for note in notes:
        say(note)
    say(f"{out}: obs[{label + '_pred'!r}] and obs[{label + '_confidence'!r}]")


def _check_options(method: MethodName, **given: Any) -> None:
    """Refuse options that do not go together."""
    if given["split"] is not None and given["folds"] is not None:
        raise UsageError(
            "--split and --folds both say which cells teach, and which are scored. Leave one out."
        )
    if given["query"] is not None and given["split"] is None:
        raise UsageError(f"--query {given['query']} is a part of a split: add --split FILE.")
    if method is MethodName.head:
        if given["model"] is None:
            raise UsageError("--method head asks a model: add --model, a fine-tuned bundle.")
        if given["use_rep"] is not None:
            raise UsageError("--method head reads counts, and no embedding: leave --use-rep out.")
        return
    for name in ("model", "head", "device"):
        if given[name] is not None:
            raise UsageError(
                f"--{name} is of --method head; {method} reads the embedding in the file."
            )
    if given["split"] is None and given["folds"] is None:
        raise UsageError(
            f"Say which cells teach {method}: --split FILE of `omics-data split`, or --folds 5 to "
            "hold all labelled cells out in turn."
        )


def _by_cells(adata: AnnData, table: SplitTable | None, wanted: _Wanted) -> _Answered:
    """Label cells by others of them."""
    from omics.eval.annotating.cross_validation import annotate_folds
    from omics.eval.annotation import annotate
    from omics.eval.comparison import labelled_folds, labelled_split
    from omics.eval.embedding_sources import neighbours_note
    from omics.eval.report_inputs import bundle_digest

    cells: LabelledCells
    if table is None:
        assert wanted.folds is not None
        cells = labelled_folds(
            adata,
            label=wanted.label,
            num_folds=wanted.folds,
            groups=wanted.groups,
            seed=wanted.seed,
        )
        annotate_folds(
            adata,
            cells,
            key=wanted.label,
            use_rep=wanted.use_rep,
            method=wanted.method,
            min_accuracy=wanted.min_accuracy,
            seed=wanted.seed,
        )
        absent = "All cells of the class {!r} lie in one fold, so that none teaches it: they"
    else:
        cells = labelled_split(
            adata, table, label=wanted.label, query=wanted.query, groups=wanted.groups
        )
        holds_out = wanted.method == "logistic" or wanted.min_accuracy is not None
        annotate(
            adata,
            label=wanted.label,
            reference=table.rows("train"),
            use_rep=wanted.use_rep,
            method=wanted.method,
            min_accuracy=wanted.min_accuracy,
            groups=wanted.groups if holds_out else None,
            seed=wanted.seed,
            overwrite=True,
        )
        absent = f"No training cell is of the class {{!r}}: its {cells.query_name} cells"
    notes = [f"{absent.format(name)} count as wrong." for name in cells.untaught]
    notes += neighbours_note(adata, wanted.use_rep, cells.query, cells.query_name)
    return _Answered(
        name=f"{wanted.use_rep} + {wanted.method}",
        digest=bundle_digest(adata, wanted.use_rep),
        cells=cells,
        notes=notes,
        unknown_classes=cells.untaught,
    )


def _by_head(
    adata: AnnData, table: SplitTable | None, wanted: _Wanted, *, scores_wanted: bool
) -> _Answered:
    """Label cells by the head of a bundle."""
    from omics.data.cell_source import open_cells
    from omics.eval.annotating.label_head import (
        find_head,
        head_answers,
        head_thresholds,
        scorable,
    )
    from omics.eval.annotation import write_answers
    from omics.eval.comparison import labelled_cells, labelled_folds, labelled_split
    from omics.models.model_by_name import open_model

    label, groups = wanted.label, wanted.groups
    bundle = open_model(wanted.model)
    spec = find_head(bundle, wanted.head)
    notes, strangers = [], []
    cells: LabelledCells | None = None
    if table is not None:
        cells = labelled_split(adata, table, label=label, query=wanted.query, groups=groups)
    elif wanted.folds is not None:
        cells = labelled_folds(
            adata, label=label, num_folds=wanted.folds, groups=groups, seed=wanted.seed
        )
    elif label in adata.obs or scores_wanted or wanted.min_accuracy is not None:
        cells = labelled_cells(adata, label=label, groups=groups)
        notes.append(
            "All labelled cells were scored: that is fair if the model has seen none of them."
        )
    else:
        notes.append(f"obs has no column {label!r}: the cells are labelled, and not scored.")
    if cells is not None:
        kept = scorable(cells, spec)
        left_out = int((~kept).sum())
        if left_out:
            notes.append(
                f"{left_out:,} cells have a label above several classes of the head, and are not "
                "scored."
            )
            cells = cells.asking(kept)
        strangers = sorted(set(cells.truth) - set(spec.classes))
        for name in strangers:
            number = int((cells.truth == name).sum())
            notes.append(
                f"The head knows no class {name!r}: its {number:,} {cells.query_name} cells count "
                "as wrong."
            )
    with open_cells(wanted.source) as store:
        given = head_answers(bundle, store, spec, device=wanted.device)
    overall, thresholds = None, None
    if wanted.min_accuracy is not None and cells is not None:
        overall, thresholds = head_thresholds(cells, table, given, min_accuracy=wanted.min_accuracy)
    write_answers(adata, label, given, unknown_below=overall, thresholds=thresholds)
    return _Answered(
        name=HEAD, digest=bundle.digest, cells=cells, notes=notes, unknown_classes=strangers
    )


def _scores(
    adata: AnnData, answered: _Answered, wanted: _Wanted, ontology: Ontology | None
) -> tuple[list[EvalResult], list[str]]:
    """Return the scores of the method and the baselines, and what to tell."""
    from omics.eval.annotating.ontology_scores import TermScores, ontology_rows
    from omics.eval.annotation import UNKNOWN
    from omics.eval.baselines import counts_of
    from omics.eval.classification import missing_labels
    from omics.eval.comparison import (
        LabelledFolds,
        LabelledSplit,
        baseline_predictions,
        confidence_rows,
        labels_of,
        result_rows,
    )

    cells, label, notes = answered.cells, wanted.label, list(answered.notes)
    if cells is None:
        return [], notes
    # Scores are of all answers, also of those that are not trusted; what is trusted has its own.
    column = f"{label}_pred" if wanted.min_accuracy is None else f"{label}_closest"
    given = adata.obs[column].astype(object).to_numpy()[cells.query]
    trusted = None
    if wanted.min_accuracy is not None:
        called = adata.obs[f"{label}_pred"].astype(object).to_numpy()[cells.query]
        trusted = ~missing_labels(called) & (called != UNKNOWN)
    predictions = {answered.name: given}
    if isinstance(cells, LabelledSplit | LabelledFolds):
        predictions |= labels_of(baseline_predictions(counts_of(adata)[0], cells, seed=wanted.seed))
    donors = cells.query_groups
    if donors is not None:
        number = len(np.unique(donors))
        notes.append(
            f"Intervals are over {number} groups of {wanted.groups}."
            if number > 1
            else f"All {cells.query_name} cells are of one {wanted.groups}: intervals are over cells."
        )
    shared: dict[str, Any] = {
        "task": f"annotate:{label}",
        "dataset": wanted.source.name,
        "groups": donors,
        "seed": wanted.seed,
    }
    digests = {answered.name: answered.digest}
    rows = result_rows(cells.truth, predictions, bundles=digests, **shared)
    rows += confidence_rows(
        cells.truth,
        given,
        adata.obs[f"{label}_confidence"].to_numpy()[cells.query],
        trusted=trusted,
        method=answered.name,
        bundle=answered.digest,
        **shared,
    )
    if ontology is not None:
        every = np.concatenate([each[~missing_labels(each)] for each in predictions.values()])
        scores = TermScores(ontology, set(cells.truth), set(every))
        rows += ontology_rows(scores, cells.truth, predictions, bundles=digests, **shared)
        notes += scores.notes
    return rows, notes


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
    held_out = f"held-out cells are right in {min_accuracy:.0%}"
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


_TABLES = (
    {"accuracy": "accuracy", "macro_f1": "macro-F1"},
    {
        "lineage_accuracy": "same lineage",
        "ontology_distance": "steps away",
        "hierarchical_f1": "hierarchical F1",
    },
)


def _say_rows(rows: list[EvalResult], query: str) -> None:
    """Print one line a method and table, scores with their intervals."""
    by_method: dict[str, dict[str, EvalResult]] = {}
    for row in rows:
        by_method.setdefault(row.method, {})[row.metric.removesuffix("_difference")] = row
    width = max(len(name) for name in by_method)
    for table in _TABLES:
        first = next((row for row in rows if row.metric in table), None)
        if first is None:
            continue
        say(f"{first.n:,} {query} cells, 95% intervals")
        say(f"{'':{width}}  " + "  ".join(f"{title:24}" for title in table.values()).rstrip())
        for name, found in by_method.items():
            texts = [_shown(found[metric]) for metric in table]
            say(f"{name:{width}}  " + "  ".join(f"{text:24}" for text in texts).rstrip())
