"""From files and an AnnData object to `ReportData`: scores, figures, runs.

- The baselines and the frozen embedding are computed here, on the split given, never read from
  a file that might have used other cells.
- Predictions of a fine-tuned model are matched by row and name; a test cell without one is an
  error, not a gap in the score.
- Only the chosen label column of obs reaches the page.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, MissingPathError, UnknownNameError, nearest
from omics.data.splits import SPLIT_NAMES
from omics.eval.annotation import Annotation, embedding_of, usable_rows
from omics.eval.baselines import HVG_KNN, MAJORITY, NUM_COMPONENTS, PCA_LOGISTIC, counts_of
from omics.eval.classification import (
    class_table,
    confusion_matrix,
    missing_labels,
    score_difference,
)
from omics.eval.comparison import (
    LabelledSplit,
    baseline_predictions,
    compared_with_all,
    embedding_predictions,
    labelled_split,
    labels_of,
    score_methods,
)
from omics.eval.confidence_calibration import (
    answered_by_threshold,
    calibration,
    calibration_error_metric,
)
from omics.eval.embedding_sources import neighbours_note
from omics.eval.figures import (
    calibration_figure,
    confusion_figure,
    curve_figure,
    legend,
    scatter_figure,
)
from omics.eval.intervals import confidence_interval
from omics.eval.projection import MAX_CELLS, MIN_CELLS, umap_coordinates
from omics.eval.report import (
    CalibrationPanel,
    Method,
    Panel,
    ReportData,
    Run,
    class_numbers,
)
from omics.eval.report_evidence import crossings, read_cards, read_genes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData

    from omics.data.splits import SplitTable
    from omics.eval.confidence_calibration import TrustLevel
    from omics.eval.figures import Picture
    from omics.eval.integration.integration_table import Integration

Array = np.ndarray[Any, np.dtype[Any]]

FINE_TUNED = "fine-tuned model"
FROZEN = "frozen embedding + logistic regression"
MAX_CURVES = 6

_HOW = {
    FINE_TUNED: "predictions of the training run",
    FROZEN: "the model's embedding, not fine-tuned here",
    PCA_LOGISTIC: f"up to {NUM_COMPONENTS} components of log-normalised counts",
    HVG_KNN: "15 neighbours over up to 2,000 variable genes",
    MAJORITY: "the commonest training class for every cell",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """What the user asked for.

    Attributes:
        label: obs column.
        dataset: a name for the cells.
        use_rep: the embedding in obsm.
        others: further embeddings in obsm, to stand beside it.
        batch: obs column of batches, to score integration; None leaves that out.
        predictions: folder of `omics-train predict`; None when there is no fine-tuned model.
        runs: run folders by name.
        genes: folder of `omics-eval attribute`, of the model.
        models: bundles whose cards are shown, as `open_model` takes them.
        group: obs column, such as the donor, of which no value should be on both sides of the split.
        commands: that reproduce the page.
        seed: of baselines, UMAP and intervals.
        projection: rows and UMAP coordinates of `use_rep`, with the same seed; None computes them.
    """

    label: str
    dataset: str
    use_rep: str = "X_omics"
    others: Sequence[str] = ()
    batch: str | None = None
    predictions: Path | None = None
    runs: Mapping[str, Path] | None = None
    genes: Path | None = None
    models: Sequence[str] = ()
    group: str | None = None
    commands: Sequence[str] = ()
    seed: int = 0
    projection: tuple[Array, Array] | None = None

    @property
    def embeddings(self) -> tuple[str, ...]:
        """All keys of obsm, the one of interest first."""
        return (self.use_rep, *self.others)


def gather_report(adata: AnnData, split: SplitTable, request: ReportRequest) -> ReportData:
    """Compute everything the page shows.

    Args:
        adata: cells with counts, labels and an embedding.
        split: of these cells.
        request: what was asked.

    Returns:
        The data of the page.

    Raises:
        OmicsError: a column, key, folder or cell that is not there; each message says which.
    """
    cells = labelled_split(adata, split, label=request.label)
    predicted = None
    if request.predictions is not None:
        predicted = read_predictions(request.predictions, request.label, adata)
        _require_answers(predicted.labels, cells, request.predictions)
    runs = [read_run(name, folder) for name, folder in (request.runs or {}).items()]
    genes = None if request.genes is None else read_genes(request.genes)
    cards = read_cards(request.models)
    counts, place = counts_of(adata)
    crossing = crossings(adata, counts, split, request.group)
    answers = _own_predictions(adata, cells, predicted, request)
    answers |= baseline_predictions(counts, cells, seed=request.seed)
    predictions = labels_of(answers)
    model = next(iter(predictions))
    scores = score_methods(cells.truth, predictions, seed=request.seed)
    confusion = confusion_matrix(cells.truth, predictions[model])
    classes = sorted({*cells.classes, *confusion.classes})
    columns = _columns(adata, split, cells, predictions[model])
    panels, projection = _panels(
        embedding_of(adata, request.use_rep),
        columns,
        classes=classes,
        request=request,
        known=request.projection,
    )
    for key in request.others:
        column = replace(columns[0], title=f"Label, {key}")
        more, notes = _panels(embedding_of(adata, key), [column], classes=classes, request=request)
        panels += more
        projection += [note for note in notes if note not in projection]
    return ReportData(
        dataset=request.dataset,
        label=request.label,
        model=model,
        baseline=PCA_LOGISTIC,
        methods=[Method(name=n, how=_how(n), scores=s) for n, s in scores.items()],
        differences=score_difference(
            cells.truth, predictions, first=model, second=PCA_LOGISTIC, seed=request.seed
        ),
        query=cells.query_name,
        classes=classes,
        splits=list(SPLIT_NAMES),
        cells=_cells_by_class(split, cells),
        class_scores=class_table(cells.truth, predictions[model]),
        confusion=confusion_figure(
            confusion, numbers=class_numbers(classes), title="Confusion matrix (cells)"
        ),
        panels=panels,
        calibrations=_calibrations(cells.truth, answers, seed=request.seed),
        trust=_trust(cells.truth, answers[model]),
        runs=runs,
        facts=_facts(adata, request, place),
        versions=software_versions(),
        commands=list(request.commands),
        notes=_notes(adata, cells, request) + projection,
        comparisons=compared_with_all(cells.truth, predictions, seed=request.seed),
        integration=_integration(adata, request),
        crossings=crossing,
        genes=genes,
        cards=cards,
    )


def read_predictions(folder: Path, label: str, adata: AnnData) -> Annotation:
    """Read the predicted classes of a folder of `omics-train predict`, and how sure they are.

    Args:
        folder: holds `predictions.parquet`.
        label: the label column.
        adata: the cells they must be of.

    Returns:
        Of all cells; None for one that was not predicted, NaN where no confidence was written.

    Raises:
        MissingPathError: there is no such file.
        UnknownNameError: the label was not predicted.
        InputDataError: the rows and names are not those of the cells.
    """
    import pandas as pd
    import pyarrow as pa

    path = folder / "predictions.parquet"
    if not path.is_file():
        raise MissingPathError(
            f"There is no {path}. Give the folder that `omics-train predict` wrote as its "
            "working_dir."
        )
    try:
        table = pd.read_parquet(path)
    except pa.ArrowInvalid as error:
        raise InputDataError(f"{path} is not a Parquet file ({error}).") from error
    columns = [str(name) for name in table.columns if name not in ("row", "cell", "reason")]
    if label not in columns or not {"row", "cell"} <= set(table.columns):
        raise UnknownNameError(f"{path} has no column {label!r}.{nearest(label, columns)}")
    rows = table["row"].to_numpy(np.int64)
    names = np.asarray(adata.obs_names.astype(str), dtype=object)
    fits = (rows >= 0) & (rows < len(names))
    fits[fits] = names[rows[fits]] == table["cell"].to_numpy(dtype=object)[fits]
    if not fits.all():
        first = int(np.flatnonzero(~fits)[0])
        raise InputDataError(
            f"{path} belongs to other cells: {int((~fits).sum())} of {len(rows)} predictions do "
            f"not match, first row {int(rows[first])}, cell {table['cell'].iloc[first]!r}. Predict "
            "the store that this file came from."
        )
    predicted = np.full(len(names), None, dtype=object)
    values = table[label].astype(object).to_numpy()
    answered = ~missing_labels(values)
    predicted[rows[answered]] = [str(value) for value in values[answered]]
    confidence = np.full(len(names), np.nan, np.float32)
    if f"{label}_probability" in columns:
        confidence[rows] = table[f"{label}_probability"].to_numpy(np.float32)
    classes = tuple(sorted({str(value) for value in values[answered]}))
    return Annotation(predicted, confidence, classes)


def read_run(name: str, folder: Path) -> Run:
    """Read what a training run left: `run.json`, `config.yaml`, `history.csv`.

    Args:
        name: to show it under.
        folder: of the run.

    Raises:
        MissingPathError: the folder or one of the files is not there.
        InputDataError: a file cannot be read.
    """
    for file in ("run.json", "config.yaml", "history.csv"):
        if not (folder / file).is_file():
            raise MissingPathError(
                f"The run {name!r} has no {folder / file}. Give the run folder that "
                "`omics-train pretrain` or `omics-train finetune` wrote."
            )
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        configuration = (folder / "config.yaml").read_text(encoding="utf-8")
    except ValueError as error:
        raise InputDataError(f"{folder / 'run.json'} cannot be read ({error}).") from error
    if not isinstance(facts, dict):
        raise InputDataError(f"{folder / 'run.json'} holds no JSON object.")
    curves, note = _curves(name, folder / "history.csv")
    return Run(
        name=name, facts=_run_facts(facts), curves=curves, configuration=configuration, note=note
    )


def software_versions() -> list[tuple[str, str]]:
    """Return what computed the page, as (name, version)."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    names = (
        "omics-eval omics-models omics-tokenizers omics-data numpy scipy scikit-learn umap-learn "
        "matplotlib anndata torch"
    )
    found = [("python", platform.python_version())]
    for name in names.split():
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found


def bundle_digest(adata: AnnData, use_rep: str) -> str:
    """Return the digest of the bundle behind an embedding; empty when it is not recorded.

    Args:
        adata: with the provenance that `embed` wrote into `uns["omics"]`.
        use_rep: key of obsm.
    """
    record = adata.uns.get("omics", {}).get(use_rep, {})
    return str(record.get("bundle_digest", ""))


def name_of(key: str, request: ReportRequest) -> str:
    """Return what the logistic regression on an embedding is called.

    Args:
        key: of obsm.
        request: of the page; the only embedding needs no name.
    """
    return f"{key} + logistic regression" if request.others else FROZEN


def _how(method: str) -> str:
    return _HOW.get(method, "that embedding, not fine-tuned here")


def _integration(adata: AnnData, request: ReportRequest) -> Integration | None:
    if request.batch is None:
        return None
    from omics.eval.integration.integration_scores import integrate

    return integrate(
        adata,
        label=request.label,
        batch=request.batch,
        use_rep=request.embeddings,
        seed=request.seed,
    )


def _own_predictions(
    adata: AnnData, cells: LabelledSplit, predicted: Annotation | None, request: ReportRequest
) -> dict[str, Annotation]:
    """Return answers for the query cells by the model and the embeddings, the model first."""
    ours = {}
    if predicted is not None:
        ours[FINE_TUNED] = Annotation(
            predicted.labels[cells.query], predicted.confidence[cells.query], predicted.classes
        )
    for key in request.embeddings:
        ours[name_of(key, request)] = embedding_predictions(
            adata, cells, use_rep=key, seed=request.seed
        )
    return ours


def _calibrations(
    truth: Array, answers: Mapping[str, Annotation], *, seed: int
) -> list[CalibrationPanel]:
    """Return a reliability diagram of each method that says how sure it is of each cell."""
    panels = []
    for name, given in answers.items():
        answered = ~np.isnan(given.confidence)
        if name == MAJORITY or not answered.any():
            continue
        sure = given.confidence[answered].astype(np.float64)
        right = np.asarray(given.labels[answered] == truth[answered], np.bool_)
        panels.append(
            CalibrationPanel(
                method=name,
                picture=calibration_figure(calibration(sure, right), title=name),
                error=confidence_interval(calibration_error_metric(sure, right), seed=seed),
                num_cells=int(answered.sum()),
            )
        )
    return panels


def _trust(truth: Array, given: Annotation) -> list[TrustLevel]:
    """Return what a threshold of confidence would leave of the model's answers."""
    if np.isnan(given.confidence).all():
        return []
    right = np.asarray(given.labels == truth, np.bool_)
    # In float32, as confidences are: 0.9 is to be at or above 0.9.
    return answered_by_threshold(given.confidence, right)


def _require_answers(predicted: Array, cells: LabelledSplit, folder: Path) -> None:
    gone = cells.query[missing_labels(predicted[cells.query])]
    if len(gone):
        raise InputDataError(
            f"{folder} holds no prediction for {len(gone)} of {len(cells.query)} "
            f"{cells.query_name} cells, first row {int(gone[0])}. Predict all {cells.query_name} "
            "cells, so that every method is scored on the same ones."
        )


@dataclass(frozen=True, slots=True)
class _Column:
    """What one panel shows of every cell of the file."""

    title: str
    values: Array
    caption: str
    ringed: Array | None = None
    classes: tuple[str, ...] | None = None


def _columns(
    adata: AnnData, split: SplitTable, cells: LabelledSplit, answers: Array
) -> list[_Column]:
    in_split = np.full(adata.n_obs, None, dtype=object)
    for name in SPLIT_NAMES:
        in_split[split.rows(name)] = name
    predicted = np.full(adata.n_obs, None, dtype=object)
    predicted[cells.query] = answers
    wrong = np.zeros(adata.n_obs, bool)
    wrong[cells.query] = cells.truth != answers
    prediction = (
        f"Predicted class of the {cells.query_name} cells; a black ring marks a wrong one. Grey: "
        "all other cells."
    )
    return [
        _Column("Label", cells.labels, "The labels as given. Grey: no label."),
        _Column("Split", in_split, "Cells that taught, tuned and tested.", classes=SPLIT_NAMES),
        _Column("Prediction", predicted, prediction, ringed=wrong),
    ]


def _panels(
    embedding: Array,
    columns: list[_Column],
    *,
    classes: list[str],
    request: ReportRequest,
    known: tuple[Array, Array] | None = None,
) -> tuple[list[Panel], list[str]]:
    usable = int(usable_rows(embedding).sum())
    if usable < MIN_CELLS or embedding.shape[1] < 2:
        return [], [f"There is no UMAP: {usable} cells have an embedding."]
    rows, coordinates = known or umap_coordinates(embedding, seed=request.seed)
    notes = []
    if usable > MAX_CELLS:
        notes.append(
            f"The UMAP shows a random sample of {len(rows):,} of {usable:,} embedded cells "
            f"(seed {request.seed}); every other number is of all cells."
        )
    panels = []
    for column in columns:
        names, shown = column.classes or tuple(classes), column.values[rows]
        picture = scatter_figure(
            coordinates,
            shown,
            names,
            title=column.title,
            numbered=column.classes is None,
            ringed=None if column.ringed is None else column.ringed[rows],
            seed=request.seed,
        )
        keys = legend(shown, names, numbered=column.classes is None)
        panels.append(Panel(picture=picture, keys=keys, caption=column.caption))
    return panels, notes


def _cells_by_class(split: SplitTable, cells: LabelledSplit) -> dict[str, list[int]]:
    inside = {name: cells.labels[split.rows(name)] for name in SPLIT_NAMES}
    table = {
        label: [int((inside[name] == label).sum()) for name in SPLIT_NAMES]
        for label in cells.classes
    }
    missing = [int(missing_labels(inside[name]).sum()) for name in SPLIT_NAMES]
    return table | ({"(no label)": missing} if any(missing) else {})


def _facts(adata: AnnData, request: ReportRequest, place: str) -> list[tuple[str, str]]:
    facts = [
        ("Cells", f"{adata.n_obs:,}"),
        ("Genes", f"{adata.n_vars:,}"),
        *(
            ("Embedding", f"{key}, {embedding_of(adata, key).shape[1]} values")
            for key in request.embeddings
        ),
        *_threshold_of(adata, request),
        ("Counts for the baselines", place),
        ("Seed", str(request.seed)),
    ]
    digests = [(key, bundle_digest(adata, key)) for key in request.embeddings]
    for key, digest in digests:
        if digest:
            of_key = f" of {key}" if request.others else ""
            facts.append((f"Bundle{of_key} (sha256)", digest))
    return facts


def _threshold_of(adata: AnnData, request: ReportRequest) -> list[tuple[str, str]]:
    """Return the threshold that `annotate --min-accuracy` left in the file, if it did."""
    found = adata.uns.get(f"{request.label}_unknown_below")
    if found is None:
        return []
    return [("Unknown in this file below a confidence of", f"{float(found):.3f}")]


def _notes(adata: AnnData, cells: LabelledSplit, request: ReportRequest) -> list[str]:
    notes = []
    if cells.unlabelled:
        notes.append(
            f"{cells.unlabelled:,} training or {cells.query_name} cells have no label in "
            f"{request.label} and were left out."
        )
    if cells.untaught:
        names = ", ".join(cells.untaught)
        notes.append(
            f"No training cell is of the class {names}: its {cells.query_name} cells count as "
            "wrong for every method."
        )
    absent = sorted(set(cells.labels[cells.train]) - set(cells.truth))
    if absent:
        notes.append(
            f"No {cells.query_name} cell is of the class {', '.join(absent)}: macro-F1 says nothing "
            "about it."
        )
    for key in request.embeddings:
        gone = int((~usable_rows(embedding_of(adata, key)[cells.query])).sum())
        if gone:
            where = f" in {key}" if request.others else ""
            notes.append(
                f"{gone:,} {cells.query_name} cells have no embedding{where} (no expressed gene that "
                f"the model knows) and count as wrong for the {name_of(key, request)}."
            )
        notes += neighbours_note(adata, key, cells.query, cells.query_name)
    truth, sizes = np.unique(cells.truth, return_counts=True)
    small = [f"{name} ({size})" for name, size in zip(truth, sizes, strict=True) if size < 10]
    if small:
        which = f"{len(small)} of {len(truth)} classes" if len(small) > 6 else ", ".join(small)
        notes.append(
            f"Fewer than 10 {cells.query_name} cells: {which}. Scores of these classes, and "
            "macro-F1 with them, are rough."
        )
    return notes


def _run_facts(facts: dict[str, Any]) -> list[tuple[str, str]]:
    seconds = facts.get("seconds")
    rows = [("Task", facts.get("task")), ("Seed", facts.get("seed"))]
    if isinstance(seconds, int | float):
        rows.append(("Duration", _duration(float(seconds))))
    rows.append(("Device", facts.get("device")))
    versions = facts.get("versions")
    if isinstance(versions, dict):
        rows.append(("Versions", ", ".join(f"{name} {value}" for name, value in versions.items())))
    return [(name, str(value)) for name, value in rows if value is not None]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def _curves(name: str, path: Path) -> tuple[list[Picture], str]:
    import pandas as pd

    try:
        history = pd.read_csv(path)
        history = history.astype({"step": "int64", "value": "float64"})
    except (ValueError, KeyError) as error:
        raise InputDataError(f"{path} is not a training history ({error}).") from error
    lacking = {"phase", "term"} - set(history.columns)
    if lacking:
        raise InputDataError(f"{path} is not a training history: no column {sorted(lacking)}.")
    # Terms in the order logged, the loss itself first.
    terms = [str(term) for term in history["term"].unique()]
    terms.sort(key=lambda term: term != "loss")
    curves = []
    for term in terms[:MAX_CURVES]:
        of_term = history[history["term"].astype(str) == term]
        lines = {
            str(phase): (rows["step"].to_numpy(), rows["value"].to_numpy())
            for phase, rows in of_term.groupby("phase")
        }
        curves.append(curve_figure(lines, title=f"{name}: {term}", value_name=term))
    if not terms:
        return curves, "The run logged nothing."
    left = terms[MAX_CURVES:]
    return curves, f"Not drawn: {', '.join(left)} (in history.csv)." if left else ""
