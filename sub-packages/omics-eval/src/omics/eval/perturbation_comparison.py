"""A prediction of perturbations beside plain ones: scores, their intervals, and how far apart they are.

- Every method is scored over the same perturbations and the same genes.
- A perturbation of several covariates counts once: its scores are averaged over them, and intervals
  resample perturbations.
- Combinations are also scored by how many of their genes training has seen: `single`, `combo_seen0`,
  `combo_seen1`, `combo_seen2`, ...
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, UsageError
from omics.data.perturbation_names import perturbed_genes
from omics.eval.intervals import CellMetric, Interval, bootstrap_interval, mean_metric
from omics.eval.perturbation_baselines import TrainingEffects
from omics.eval.perturbation_scores import (
    METRICS,
    PerturbationTruth,
    differential_genes,
    metric_bounds,
)
from omics.eval.pseudobulk import unlogged
from omics.eval.results import EvalResult

if TYPE_CHECKING:
    from pathlib import Path

    from omics.eval.perturbation_inputs import MeasuredScreen, PredictedScreen
    from omics.eval.pseudobulk import Pseudobulks

Array = np.ndarray[Any, np.dtype[Any]]

_MANY_TIMES = 3.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PerturbationComparison:
    """Scores of several methods over the same perturbations.

    Attributes:
        model: name of the method that the others are held against.
        names: object [u], the perturbations, one after the other in each covariate.
        covariates: object [u].
        kinds: object [u], `single` or `combo_seen<number>`.
        num_cells: int64 [u], measured cells.
        scores: `{method: {metric: float64 [u]}}`, the model first; NaN where not defined.
        num_genes: that were scored.
        num_genes_left_out: measured genes that the prediction lacks.
        notes: what a reader of the scores should know, a sentence each.
    """

    model: str
    names: Array
    covariates: Array
    kinds: Array
    num_cells: Array
    scores: dict[str, dict[str, Array]]
    num_genes: int
    num_genes_left_out: int
    notes: tuple[str, ...]

    def mean(self, method: str, metric: str, *, kind: str | None = None) -> CellMetric | None:
        """Return the mean of a metric over perturbations; None where it is defined for none.

        Args:
            method: of `scores`.
            metric: of `METRICS`.
            kind: of `kinds`; None for all.
        """
        wanted = np.isfinite(self.scores[method][metric])
        if kind is not None:
            wanted &= self.kinds == kind
        if not wanted.any():
            return None
        _, place = np.unique(self.names[wanted].astype(str), return_inverse=True)
        summed = np.bincount(place, self.scores[method][metric][wanted])
        return mean_metric(summed / np.bincount(place), name=metric, bounds=metric_bounds(metric))

    def rows(self, *, task: str, dataset: str, seed: int = 0) -> list[EvalResult]:
        """Return every mean with its interval, and the model minus each baseline.

        Args:
            task: what was asked, such as `perturb:perturbation`; `:single`, ... is added for kinds,
                where there are several.
            dataset: a name for the cells.
            seed: of the bootstrap over perturbations.
        """
        found: list[EvalResult] = []

        def add(mean: CellMetric | None, asked: str, method: str, metric: str) -> None:
            if mean is not None:
                found.append(
                    EvalResult.of(
                        _interval(mean, seed),
                        task=asked,
                        dataset=dataset,
                        method=method,
                        metric=metric,
                        n=mean.num_cells,
                        seed=seed,
                    )
                )

        kinds = sorted(set(self.kinds.tolist()))
        for kind in [None, *(kinds if len(kinds) > 1 else [])]:
            asked = task if kind is None else f"{task}:{kind}"
            means = {
                (method, metric): self.mean(method, metric, kind=kind)
                for method in self.scores
                for metric in METRICS
            }
            for (method, metric), mean in means.items():
                add(mean, asked, method, metric)
            for (method, metric), mean in means.items():
                first = means[self.model, metric]
                if method != self.model and first is not None and mean is not None:
                    both = f"{self.model} minus {method}"
                    add(first - mean, asked, both, f"{metric}_difference")
        return found

    def write_each(self, path: Path) -> None:
        """Write one row a perturbation and method: what it is, and every metric.

        Args:
            path: `.parquet` or `.csv`; replaced if it exists.
        """
        import pyarrow as pa

        from omics.eval.table_files import open_table

        said = {"perturbation": self.names, "covariate": self.covariates, "kind": self.kinds}
        tables = [
            pa.table(
                {
                    **{name: pa.array(values, pa.string()) for name, values in said.items()},
                    "num_cells": self.num_cells,
                    "method": pa.array([method] * len(self.names), pa.string()),
                    **metrics,
                }
            )
            for method, metrics in self.scores.items()
        ]
        with open_table(path, tables[0].schema) as file:
            for table in tables:
                file.write_table(table)


def compare_perturbations(
    measured: MeasuredScreen,
    predicted: PredictedScreen,
    *,
    model: str = "model",
    shared_genes: bool = False,
) -> PerturbationComparison:
    """Score a prediction and every baseline on the perturbations to test.

    Args:
        measured: with a split, whose tested perturbations are scored; without one those are scored
            that were predicted, and all others teach the baselines.
        predicted: of the model.
        model: its name.
        shared_genes: score all methods on the genes that the prediction has a value of for every
            perturbation to test; otherwise it must have all that were measured.

    Raises:
        UsageError: the model is called like a baseline.
        InputDataError: a perturbation to test or a gene was not predicted, a covariate has no
            controls, or fewer than two perturbations are left.
    """
    tested, rows = _tested(measured, predicted)
    values = predicted.values[rows]
    has_value = np.asarray(~np.isnan(values).any(axis=0))
    lacking = int((~has_value).sum())
    if lacking and (not shared_genes or has_value.sum() < 2):
        advice = (
            "Predict more of them."
            if shared_genes
            else "Predict them, or leave them out for every method with --shared-genes; nothing is "
            "filled in."
        )
        raise InputDataError(
            f"The prediction has no value of {lacking:,} of {len(has_value):,} measured genes, such as "
            f"{str(measured.genes.ids[~has_value][0])!r}. {advice}"
        )
    kept = np.flatnonzero(has_value)
    parts: list[PerturbationComparison] = []
    notes = _notes(measured, predicted, values[:, kept], tested, kept)
    for covariate in sorted(set(measured.bulks.covariates[tested].tolist())):
        here = measured.bulks.covariates == covariate
        inside = here[tested]
        parts.append(
            _of_covariate(
                measured,
                np.flatnonzero(here & ~tested),
                np.flatnonzero(here & tested),
                values[inside][:, kept],
                genes=kept,
                model=model,
            )
        )
    methods = [name for name in parts[0].scores if all(name in part.scores for part in parts)]
    if len(methods) == 2:  # the model and no change
        notes.append(
            "No perturbation is left to learn from, so there is no other baseline than the controls."
        )
    return PerturbationComparison(
        model=model,
        names=np.concatenate([part.names for part in parts]),
        covariates=np.concatenate([part.covariates for part in parts]),
        kinds=np.concatenate([part.kinds for part in parts]),
        num_cells=np.concatenate([part.num_cells for part in parts]),
        scores={
            name: {m: np.concatenate([part.scores[name][m] for part in parts]) for m in METRICS}
            for name in methods
        },
        num_genes=len(kept),
        num_genes_left_out=lacking,
        notes=tuple(notes),
    )


def _tested(measured: MeasuredScreen, predicted: PredictedScreen) -> tuple[Array, Array]:
    """Return which groups are tested, bool [k], and the predicted row of each of these."""
    bulks, control = measured.bulks, measured.columns.control
    pairs = list(zip(bulks.covariates.tolist(), bulks.names.tolist(), strict=True))
    row_of = {
        pair: row
        for row, pair in enumerate(
            zip(predicted.covariates.tolist(), predicted.names.tolist(), strict=True)
        )
    }
    if measured.is_tested is None:
        tested = np.array([pair in row_of and pair[1] != control for pair in pairs], bool)
        if not tested.any():
            names = sorted({str(name) for name in bulks.names} - {control})
            raise InputDataError(
                f"None of the predicted perturbations, such as {sorted(predicted.names)[:2]}, was "
                f"measured; measured were {names[:2]}, ... Are the names and the separator the same?"
            )
    else:
        tested = measured.is_tested
    asked = [pair for pair, is_asked in zip(pairs, tested.tolist(), strict=True) if is_asked]
    absent = [pair for pair in asked if pair not in row_of]
    if absent:
        where = f" in {absent[0][0]!r}" if absent[0][0] else ""
        raise InputDataError(
            f"{len(absent)} of {len(asked)} perturbations to test were not predicted, such as "
            f"{absent[0][1]!r}{where}. Predict them, or make a split that does not test them."
        )
    return tested, np.array([row_of[pair] for pair in asked], np.int64)


def _of_covariate(
    measured: MeasuredScreen,
    others: Array,
    asked: Array,
    values: Array,
    *,
    genes: Array,
    model: str,
) -> PerturbationComparison:
    """Score all methods in one covariate; `others` are its groups that are not tested."""
    columns = measured.columns
    bulks = _with_genes(measured.bulks, genes)
    is_control = bulks.names[others] == columns.control
    if not is_control.any():
        raise InputDataError(
            f"The covariate {str(bulks.covariates[asked[0]])!r} has no {columns.control!r} cells, so "
            "there is nothing to compare its perturbations with. Leave its cells out."
        )
    control, truth = bulks.take(others[is_control]), bulks.take(asked)
    train = bulks.take(others[~is_control])
    position_of = _positions(measured, genes)
    parts = [_parts(measured, each) for each in truth.names.tolist()]
    trained = [_parts(measured, each) for each in train.names.tolist()]
    scored = PerturbationTruth(
        names=truth.names,
        values=truth.values,
        control=control.values[0],
        de_genes=differential_genes(truth, control),
        perturbed=[
            np.array([position_of[g] for g in each if g in position_of], np.int64) for each in parts
        ],
    )
    baselines = TrainingEffects(
        parts=trained,
        values=train.values,
        control=control.values[0],
        position_of=position_of,
    ).predictions(parts)
    if model in baselines:
        raise UsageError(f"{model!r} is the name of a baseline: give the model another name.")
    seen = {gene for each in trained for gene in each}
    kinds = [
        "single" if len(each) == 1 else f"combo_seen{len(seen.intersection(each))}"
        for each in parts
    ]
    predictions = {model: values, **baselines}
    return PerturbationComparison(
        model=model,
        names=truth.names,
        covariates=truth.covariates,
        kinds=np.array(kinds, dtype=object),
        num_cells=truth.num_cells,
        scores={name: scored.scores(each) for name, each in predictions.items()},
        num_genes=len(genes),
        num_genes_left_out=0,
        notes=(),
    )


def _notes(
    measured: MeasuredScreen,
    predicted: PredictedScreen,
    values: Array,
    tested: Array,
    genes: Array,
) -> list[str]:
    """Return what a reader of the scores should know."""
    notes = []
    others = predicted.num_other_genes
    if others:
        notes.append(f"{others:,} predicted genes were not measured and are not scored.")
    base = measured.bulks.log_base
    sums = unlogged(values, base).sum(axis=1)
    true = unlogged(measured.bulks.values[tested][:, genes], base).sum(axis=1)
    ratio = float(np.median(sums)) / max(float(np.median(true)), 1e-12)
    if not 1 / _MANY_TIMES < ratio < _MANY_TIMES:
        notes.append(
            f"The predicted expression of a cell sums to {ratio:.3g} times the measured one: the two "
            "are not normalised to the same total, or the values are not what was said."
        )
    few = int((measured.bulks.num_cells[tested] < 2).sum())
    if few:
        notes.append(
            f"{few} perturbations have a single cell, so their differentially expressed genes are not "
            "known, and they have no scores over these."
        )
    return notes


def _with_genes(bulks: Pseudobulks, genes: Array) -> Pseudobulks:
    return replace(
        bulks,
        values=bulks.values[:, genes],
        cell_means=bulks.cell_means[:, genes],
        cell_variances=bulks.cell_variances[:, genes],
    )


def _positions(measured: MeasuredScreen, genes: Array) -> dict[str, int]:
    """Return the places among the scored genes, by id and symbol."""
    place_of = {int(gene): place for place, gene in enumerate(genes)}
    return {
        name: place_of[gene]
        for name, gene in measured.genes.position_of_name.items()
        if gene in place_of
    }


def _parts(measured: MeasuredScreen, name: str) -> tuple[str, ...]:
    columns = measured.columns
    return perturbed_genes(name, control=columns.control, separator=columns.separator)


def _interval(mean: CellMetric, seed: int) -> Interval:
    """Return the interval over perturbations; of a single one, the widest that there is."""
    if mean.num_cells > 1:
        return bootstrap_interval(mean, seed=seed)
    return Interval(mean.value, *mean.bounds)
