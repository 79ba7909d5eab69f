"""`benchmark`: a bundle on published datasets: embed, annotate and integrate, as rows of results.

- The datasets are the rows of omics-data (`omics-data datasets`); nothing is downloaded.
- Each is scored by itself: what is wrong with one is told, and the others go on.
- The published split teaches and tests where there is one; otherwise 70 per cent of every class
  teach, and 20 are tested.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from omics.data.errors import MissingPathError, OmicsError, UsageError
from omics.data.published_datasets import find_dataset, locate_dataset

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from omics.data.command_line import Show
    from omics.data.published_datasets import Dataset
    from omics.eval.results import EvalResult
    from omics.models.bundle import Bundle

# On which bmfm reports zero-shot scores.
ZERO_SHOT = (
    "covid_19",
    "heart_atlas",
    "immune_all_human",
    "lung_atlas",
    "pbmc_10k",
    "cell_lines",
    "dc",
    "human_pbmc",
    "immune_atlas",
    "pancrm",
    "multiple_sclerosis",
    "myeloid",
)
KEY = "X_omics"
METHODS = ("logistic", "knn")


@dataclass(frozen=True, slots=True)
class DatasetScores:
    """What became of one dataset.

    Attributes:
        name: of the dataset.
        rows: its results; empty where it could not be scored.
        lines: what to tell: the verdicts, or why there are none.
    """

    name: str
    rows: list[EvalResult]
    lines: list[str]


def copies_of(
    names: Sequence[str], paths: Mapping[str, Path] | None = None
) -> tuple[dict[str, Path], list[str]]:
    """Find the user's copies of datasets.

    Args:
        names: of datasets.
        paths: of copies, by name; for the others `OMICS_DATA_<NAME>` is asked.

    Returns:
        The paths by name, and a line for each dataset without a copy: what to get, and where it is
        published.

    Raises:
        UnknownNameError: there is no such dataset.
        UsageError: a dataset has no column of labels, or a path is given for one that is not named.
        InputDataError: a copy is not the published file.
    """
    given = paths or {}
    other = [name for name in given if name not in names]
    if other:
        raise UsageError(
            f"A path is given for {other[0]!r}, which is not among the datasets to score: "
            f"{', '.join(names)}."
        )
    found, missing = {}, []
    for name in names:
        if not find_dataset(name).labels:
            raise UsageError(
                f"The dataset {name!r} has no column of labels to score. Add a row of your own "
                "with `labels` to the file that OMICS_DATASETS names."
            )
        try:
            found[name] = locate_dataset(name, given.get(name))
        except MissingPathError as error:
            missing.append(str(error))
    return found, missing


def benchmark(
    model: Bundle | str | Path,
    copies: Mapping[str, Path],
    *,
    device: str = "auto",
    batch_tokens: int | None = None,
    seed: int = 0,
    show: Show | None = None,
) -> Iterator[DatasetScores]:
    """Score a bundle on datasets, one after the other.

    Args:
        model: a loaded bundle, its folder, or a name, as in `embed`.
        copies: an `.h5ad` file or a store by the name of its dataset, from `copies_of`.
        device: `auto`, `cpu`, `cuda`, ...
        batch_tokens: tokens at once; None for what suits the device.
        seed: of splits, baselines, clusters and intervals.
        show: shows progress, as in `embed`.

    Yields:
        The scores of each dataset as soon as they are known.

    Raises:
        MissingExtraError: igraph is not installed.
        MissingPathError: there is no such model.
    """
    from omics.eval.embedding_run import EmbeddingOptions
    from omics.eval.integration.leiden_clusters import require_igraph

    require_igraph()
    loaded, _, _ = EmbeddingOptions(show=show).opened(model)
    for name, path in copies.items():
        try:
            rows, lines = _scores(
                find_dataset(name),
                path,
                loaded,
                seed=seed,
                device=device,
                batch_tokens=batch_tokens,
                show=show,
            )
        except OmicsError as error:
            rows, lines = [], [f"not scored: {error}"]
        yield DatasetScores(name, rows, lines)


def _scores(
    dataset: Dataset,
    path: Path,
    bundle: Bundle,
    *,
    seed: int,
    device: str,
    batch_tokens: int | None,
    show: Show | None,
) -> tuple[list[EvalResult], list[str]]:
    """Return the rows of one dataset, and what to tell of them."""
    from omics.data.cell_source import open_cells
    from omics.data.splits import make_split
    from omics.eval.baselines import counts_of
    from omics.eval.comparison import (
        baseline_predictions,
        embedding_predictions,
        labelled_split,
        labels_of,
        result_rows,
    )
    from omics.eval.embedding import embed
    from omics.eval.integration.integration_scores import integrate

    label = dataset.labels[0]
    with open_cells(path) as store:
        if dataset.split:
            split = make_split(store, column=dataset.split)
        else:
            split = make_split(store, stratify=label, seed=seed)
        cells = embed(
            store,
            bundle,
            key_added=KEY,
            device=device,
            batch_tokens=batch_tokens,
            show=show,
        )
    asked = labelled_split(cells, split, label=label)
    ours = {
        f"{KEY} + {method}": embedding_predictions(
            cells, asked, use_rep=KEY, method=method, seed=seed
        )
        for method in METHODS
    }
    baselines = baseline_predictions(counts_of(cells)[0], asked, seed=seed)
    annotated = result_rows(
        asked.truth,
        labels_of({**ours, **baselines}),
        task=f"annotate:{label}",
        dataset=dataset.name,
        bundles=dict.fromkeys(ours, bundle.digest),
        seed=seed,
    )
    integrated = integrate(cells, label=label, batch=dataset.batch or None, use_rep=KEY, seed=seed)
    accuracy = {row.method: row for row in annotated if row.metric == "accuracy"}
    shown = ", ".join(
        f"{method} {row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"
        for method, row in accuracy.items()
    )
    lines = [f"accuracy of {len(asked.query):,} test cells: {shown}", integrated.verdict()]
    lines += [f"note: {note}" for note in integrated.notes]
    return [*annotated, *integrated.rows(dataset=dataset.name)], lines
