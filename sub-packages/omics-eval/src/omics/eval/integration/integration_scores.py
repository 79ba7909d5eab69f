"""`integrate`: embeddings side by side on what they keep of cell types and how they mix batches.

- PCA of the log-normalised counts is always among them, on the same cells.
- One search of neighbours and one pass over distances serve all metrics of an embedding.
- All metrics run from 0 to 1, and 1 is best. AvgBio is the mean of NMI, ARI and the silhouette of
  labels; AvgBatch of graph connectivity and the silhouette of batches within labels.
- Intervals come from resampled cells, the same for every embedding, with neighbours, clusters and
  silhouettes as they are. They know nothing of other donors or batches.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, UsageError
from omics.eval.annotation import embedding_of, label_column, usable_rows
from omics.eval.baselines import counts_of, log_normalise, principal_components
from omics.eval.classification import missing_labels
from omics.eval.embedding_sources import neighbours_note
from omics.eval.integration.cell_functionals import (
    ari_metric,
    explained_share_metric,
    macro_mean_metric,
    median_metric,
    nmi_metric,
    removed_share_metric,
    scaled_metric,
)
from omics.eval.integration.integration_table import (
    AVERAGES,
    METRICS,
    PCA,
    WITHOUT_INTERVAL,
    Integration,
)
from omics.eval.integration.leiden_clusters import RESOLUTIONS, leiden_clusters, require_igraph
from omics.eval.integration.nearest_cells import fuzzy_graph, nearest_cells
from omics.eval.integration.neighbour_metrics import (
    in_largest_component,
    local_groups,
    well_mixed,
)
from omics.eval.integration.silhouettes import silhouettes
from omics.eval.intervals import CellMetric, Interval, joint_draws, mean_metric
from omics.eval.many_comparisons import differences_from_first, normal_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anndata import AnnData

Array = np.ndarray[Any, np.dtype[Any]]

MAX_CELLS = 100_000
MIN_CELLS = 16
NUM_RESAMPLES = 500
NUM_NEIGHBOURS = {"graph": 14, "kbet": 49, "lisi": 89}


def integrate(
    adata: AnnData,
    *,
    label: str,
    batch: str | None = None,
    use_rep: str | Sequence[str] = "X_omics",
    compare: Sequence[str] = (),
    components: int | None = None,
    max_cells: int = MAX_CELLS,
    seed: int = 0,
) -> Integration:
    """Score embeddings in `obsm`, beside PCA of the counts.

    Args:
        adata: cells with counts, embeddings, labels and batches; not changed.
        label: obs column of cell types.
        batch: obs column of batches; None scores cell types alone.
        use_rep: keys of obsm; the first is the one of interest.
        compare: methods that correct batches here: `harmony`, `scanorama`, `liger`, `scvi`.
        components: wider embeddings are reduced to so many principal components; None keeps them.
        max_cells: more are sampled to this number.
        seed: of the sample, the clusters and the intervals.

    Returns:
        Scores, differences from the first embedding, and what was left out. A cell without a label,
        a batch or any of the embeddings is left out for all.

    Raises:
        UnknownNameError: no such column, key or method.
        InputDataError: no counts, too few cells, or neither two labels nor two batches.
        MissingExtraError: igraph, or a package of `compare`, is not installed.
    """
    from omics.eval.integration.integration_methods import (
        MethodInput,
        check_methods,
        corrected_embedding,
    )
    from omics.eval.report_inputs import bundle_digest

    require_igraph()
    check_methods(compare, batch=batch)
    keys = [use_rep] if isinstance(use_rep, str) else list(use_rep)
    doubled = sorted({key for key in keys if keys.count(key) > 1 or key == PCA})
    if not keys or doubled:
        raise UsageError(
            f"Embeddings must have different names, none of them {PCA}; got {', '.join(keys)}."
            if keys
            else "No embedding is named: give at least one key of obsm (use_rep, --use-rep)."
        )
    embeddings = {key: embedding_of(adata, key) for key in keys}
    labels = label_column(adata, label)
    batches = None if batch is None else label_column(adata, batch)
    rows, notes = _chosen_cells(embeddings, labels, batches, max_cells=max_cells, seed=seed)
    counts, _ = counts_of(adata)
    counts = counts[rows]
    expression = log_normalise(counts)
    pca, _ = principal_components(expression, expression[:1], seed=seed)
    given = {key: embeddings[key][rows] for key in keys}
    for key in keys:
        notes += neighbours_note(adata, key, rows, "scored")
    if components is not None:
        for key in keys:
            if given[key].shape[1] > components:
                notes.append(
                    f"{key} was reduced from {given[key].shape[1]} to {components} principal "
                    "components."
                )
                given[key] = _reduced(given[key], components)
    of_batch = None if batches is None else batches[rows]
    for name in compare:
        assert of_batch is not None
        inputs = MethodInput(counts=counts, expression=expression, components=pca, batches=of_batch)
        title, corrected = corrected_embedding(name, inputs, seed=seed)
        given[title] = corrected
    return score_embeddings(
        {**given, PCA: pca},
        labels[rows],
        of_batch,
        label=label,
        batch=batch or "",
        notes=notes,
        seed=seed,
        bundles={key: bundle_digest(adata, key) for key in keys},
    )


def score_embeddings(
    embeddings: Mapping[str, Array],
    labels: Array,
    batches: Array | None = None,
    *,
    label: str = "label",
    batch: str = "",
    notes: Sequence[str] = (),
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    bundles: Mapping[str, str] | None = None,
) -> Integration:
    """Score embeddings of the same cells.

    Args:
        embeddings: float [n, d] by name, finite; the first is the one of interest, and `PCA` must
            be among them.
        labels: [n], none missing.
        batches: [n], none missing; None scores labels alone.
        label: what the labels are called.
        batch: what the batches are called.
        notes: to hand on.
        seed: of clusters and intervals.
        num_resamples: of the bootstrap.
        bundles: digests by name.

    Raises:
        UsageError: an embedding of another number of cells, or no PCA.
        InputDataError: too few cells, or neither two labels nor two batches.
    """
    require_igraph()
    _check_lengths(embeddings, labels, batches)
    told = list(notes)
    types, type_codes = np.unique(np.asarray(labels, str), return_inverse=True)
    sources, batch_codes = np.unique(
        np.zeros(len(labels), str) if batches is None else np.asarray(batches, str),
        return_inverse=True,
    )
    _check_groups(types, sources, told, batch=None if batches is None else batch)
    wanted = _Wanted(type_codes, batch_codes, bio=len(types) > 1, batch=len(sources) > 1)
    singles = [str(name) for name in types[np.bincount(type_codes) == 1]]
    if singles:
        told.append(f"Labels of a single cell, whose silhouette is 0: {', '.join(singles)}.")
    before = explained_share_metric(embeddings[PCA], batch_codes, name="pcr")
    metrics: dict[str, dict[str, CellMetric | float]] = {}
    resolutions: dict[str, float] = {}
    seconds: dict[str, dict[str, float]] = {}
    for name, embedding in embeddings.items():
        clock = _Clock()
        metrics[name], resolution = _metrics_of(embedding, wanted, before, clock, seed=seed)
        if resolution is not None:
            resolutions[name] = resolution
        seconds[name] = clock.seconds
    scores, draws = _intervals(metrics, len(labels), num_resamples=num_resamples, seed=seed)
    return Integration(
        label=label,
        batch=batch if batches is not None else "",
        methods=tuple(embeddings),
        num_cells=len(labels),
        scores=scores,
        differences=differences_from_first(
            {
                method: {metric: interval.value for metric, interval in of_method.items()}
                for method, of_method in scores.items()
            },
            draws,
            untested=WITHOUT_INTERVAL,
        ),
        resolutions=resolutions,
        seconds=seconds,
        notes=tuple(told),
        seed=seed,
        bundles=bundles or {},
    )


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Labels and batches as numbers, and which of them can be scored."""

    labels: Array
    batches: Array
    bio: bool
    batch: bool


class _Clock:
    """Wall time of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, step: str, work: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        result = work()
        self.seconds[step] = time.perf_counter() - begun
        return result


def _metrics_of(
    embedding: Array, wanted: _Wanted, before: CellMetric, clock: _Clock, *, seed: int
) -> tuple[dict[str, CellMetric | float], float | None]:
    """Return the metrics of an embedding, and the resolution that suits the labels best."""
    labels, batches = wanted.labels, wanted.batches
    num_types, num_batches = int(labels.max()) + 1, int(batches.max()) + 1
    nearest = clock("neighbours", lambda: nearest_cells(embedding, NUM_NEIGHBOURS["lisi"]))
    of_label, of_batch = clock("silhouettes", lambda: silhouettes(embedding, labels, batches))
    near_types, near_batches = clock("lisi", lambda: local_groups(nearest, (labels, batches)))
    close = nearest.first(NUM_NEIGHBOURS["graph"])
    found: dict[str, CellMetric | float] = {}
    resolution = None
    if wanted.bio:
        clusters = clock("clusters", lambda: leiden_clusters(fuzzy_graph(close), seed=seed))
        nmi = [nmi_metric(labels, each) for each in clusters]
        ari = [ari_metric(labels, each) for each in clusters]
        values = np.array([metric.value for metric in nmi])
        best = int(values.argmax())
        resolution = RESOLUTIONS[best]
        found["nmi"], found["ari"] = nmi[best], ari[best]
        found["nmi_mean"] = float(values.mean())
        found["ari_mean"] = float(np.mean([metric.value for metric in ari]))
        found["asw_label"] = mean_metric((of_label + 1) / 2, name="asw_label")
        median = median_metric(near_types, name="clisi")
        found["clisi"] = scaled_metric(median, offset=num_types, factor=-1 / (num_types - 1))
    if wanted.batch:
        together = clock("connectivity", lambda: in_largest_component(close, labels))
        shares = macro_mean_metric(together.astype(np.float64), labels, name="graph_connectivity")
        found["graph_connectivity"] = shares.value
        widths = _batch_widths(of_batch, labels, batches)
        if not np.isnan(widths).all():
            found["asw_batch"] = macro_mean_metric(widths, labels, name="asw_batch")
        median = median_metric(near_batches, name="ilisi")
        found["ilisi"] = scaled_metric(median, offset=1, factor=1 / (num_batches - 1))
        mixed = clock("kbet", lambda: well_mixed(nearest.first(NUM_NEIGHBOURS["kbet"]), batches))
        found["kbet"] = mean_metric(mixed.astype(np.float64), name="kbet", bounds=(0.0, 1.0))
        after = explained_share_metric(embedding, batches, name="pcr")
        found["pcr_comparison"] = removed_share_metric(before, after, name="pcr_comparison")
    return found, resolution


def _batch_widths(silhouette: Array, labels: Array, batches: Array) -> Array:
    """Return 1 - |s| [n]; NaN for labels of one batch, or of batches of one cell each."""
    widths = 1 - np.abs(silhouette)
    pairs = np.unique(np.stack([labels, batches]), axis=1)
    alone = np.bincount(pairs[0], minlength=labels.max() + 1) == np.bincount(labels)
    widths[alone[labels]] = np.nan
    return widths


def _intervals(
    metrics: Mapping[str, Mapping[str, CellMetric | float]],
    num_cells: int,
    *,
    num_resamples: int,
    seed: int,
) -> tuple[dict[str, dict[str, Interval]], dict[str, dict[str, Array]]]:
    """Return scores with intervals, and the resamples behind them, by method and metric."""
    functions = {
        (method, name): metric
        for method, of_method in metrics.items()
        for name, metric in of_method.items()
        if isinstance(metric, CellMetric)
    }
    drawn = joint_draws(list(functions.values()), num_resamples=num_resamples, seed=seed)
    rows = dict(zip(functions, drawn, strict=True))
    scores: dict[str, dict[str, Interval]] = {}
    draws: dict[str, dict[str, Array]] = {}
    for method, of_method in metrics.items():
        values: dict[str, float] = {}
        resamples: dict[str, Array] = {}
        for name, metric in of_method.items():
            values[name] = metric.value if isinstance(metric, CellMetric) else metric
            resamples[name] = rows.get((method, name), np.full(num_resamples, values[name]))
        for name, parts in AVERAGES.items():
            if all(part in values for part in parts):
                values[name] = float(np.mean([values[part] for part in parts]))
                resamples[name] = np.mean([resamples[part] for part in parts], axis=0)
        ordered = [name for name in METRICS if name in values]
        draws[method] = {name: resamples[name] for name in ordered}
        scores[method] = {
            name: Interval(values[name], np.nan, np.nan)
            if name in WITHOUT_INTERVAL
            else normal_interval(values[name], resamples[name], bounds=_bounds(name))
            for name in ordered
        }
    return scores, draws


def _bounds(metric: str) -> tuple[float, float]:
    """Return the ends of a metric: agreement worse than by chance is below 0."""
    return (-1.0 if metric in ("ari", "avg_bio") else 0.0, 1.0)


def _chosen_cells(
    embeddings: Mapping[str, Array],
    labels: Array,
    batches: Array | None,
    *,
    max_cells: int,
    seed: int,
) -> tuple[Array, list[str]]:
    """Return int64 [n] rows of cells that have everything, and what was left out."""
    notes = []
    kept = np.ones(len(labels), bool)

    def leave_out(gone: Array, why: str) -> None:
        number = int((kept & gone).sum())
        if number:
            notes.append(f"{number:,} cells {why} were left out.")
            kept[gone] = False

    leave_out(missing_labels(labels), "without a label")
    if batches is not None:
        leave_out(missing_labels(batches), "without a batch")
    for key, embedding in embeddings.items():
        leave_out(~usable_rows(embedding), f"without an embedding in {key}")
    rows = np.flatnonzero(kept)
    if len(rows) > max_cells:
        notes.append(
            f"A random sample of {max_cells:,} of {len(rows):,} cells was scored (seed {seed})."
        )
        drawn = np.random.default_rng(seed).choice(len(rows), max_cells, replace=False)
        rows = rows[np.sort(drawn)]
    if len(rows) < MIN_CELLS:
        raise InputDataError(
            f"{len(rows)} of {len(labels)} cells have a label"
            f"{'' if batches is None else ', a batch'} and every embedding; at least {MIN_CELLS} "
            "are needed to look at neighbours. Choose other columns or embeddings."
        )
    return rows, notes


def _check_lengths(embeddings: Mapping[str, Array], labels: Array, batches: Array | None) -> None:
    if PCA not in embeddings:
        raise UsageError(
            f"Embeddings are held against {PCA}, which is not among {', '.join(embeddings)}. Add "
            "the principal components of the same cells under that name."
        )
    sizes = {name: len(embedding) for name, embedding in embeddings.items()}
    if batches is not None:
        sizes["batches"] = len(batches)
    for name, size in sizes.items():
        if size != len(labels):
            raise UsageError(
                f"{name} is of {size} cells and the labels of {len(labels)}: give all of them for "
                "the same cells in the same order."
            )
    if len(labels) < MIN_CELLS:
        raise InputDataError(
            f"There are {len(labels)} cells; at least {MIN_CELLS} are needed to look at neighbours."
        )


def _check_groups(types: Array, sources: Array, told: list[str], *, batch: str | None) -> None:
    if len(types) < 2 and len(sources) < 2:
        raise InputDataError(
            f"All cells have the label {str(types[0])!r}, and there are no two batches: nothing can "
            "be told apart or mixed. Choose columns with at least two values."
        )
    if len(types) < 2:
        told.append(
            f"All cells have the label {str(types[0])!r}, so what an embedding keeps of cell types "
            "is not scored."
        )
    if len(sources) < 2 and batch is not None:
        told.append(
            f"All cells are of the batch {str(sources[0])!r}, so the mixing of batches is not scored."
        )


def _reduced(embedding: Array, components: int) -> Array:
    """Return float32 [n, components], the principal components of an embedding."""
    from sklearn import decomposition

    number = min(components, len(embedding))
    pca = decomposition.PCA(number, svd_solver="full")
    return np.asarray(pca.fit_transform(embedding.astype(np.float64)), np.float32)
