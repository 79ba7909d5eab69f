"""Scores of predicted perturbations: one number a perturbation and metric, from pseudobulks.

With x the prediction, y the truth and c the controls, over the genes g of one perturbation:

| metric | formula | perfect | says nothing |
|---|---|---|---|
| `pearson` | correlation of x and y | 1 | |
| `delta_pearson` | correlation of x - c and y - c | 1 | 0 |
| `mae`, `mse` | mean of abs(x - y), of (x - y)^2 | 0 | |
| `discrimination` | 1 - r / (p - 1), r: how many of the other p - 1 truths are closer to x | 1 | 0.5 |
| `direction_accuracy_de` | share of genes with the same sign of x - c and y - c | 1 | 0.5 |

- The first four are also taken over the differentially expressed genes: `pearson_de`, ... These are
  the 20 genes with the largest absolute Welch t of the cells of the perturbation against controls.
- Closer means a smaller L1 distance over all genes but the perturbed ones; a tie counts half, so a
  prediction that is the same for all perturbations has 0.5 on average. 0 is the worst.
- A prediction without any spread has no correlation and scores 0; where the truth has none, nobody
  can be scored, and the number is NaN. A predicted sign of 0 is half right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omics.eval.pseudobulk import Pseudobulks

Array = np.ndarray[Any, np.dtype[Any]]

NUM_DE_GENES = 20
DISCRIMINATION = "discrimination"
DIRECTION = "direction_accuracy_de"
_OVER_GENES = ("pearson", "delta_pearson", "mae", "mse")
METRICS = (*_OVER_GENES, *(f"{name}_de" for name in _OVER_GENES), DISCRIMINATION, DIRECTION)
# What is left of a constant is rounding.
_NO_SPREAD = 1e-12


def metric_bounds(metric: str) -> tuple[float, float]:
    """Return the least and the greatest value of a metric.

    Args:
        metric: of `METRICS`.
    """
    if "pearson" in metric:
        return -1.0, 1.0
    return 0.0, np.inf if metric.startswith(("mae", "mse")) else 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PerturbationTruth:
    """What perturbations did, of one covariate.

    Attributes:
        names: object [p], the perturbations.
        values: float64 [p, g], their pseudobulks.
        control: float64 [g], that of the controls.
        de_genes: for each perturbation, int64 places of its differentially expressed genes, the most
            certain one first; none where they are not known.
        perturbed: for each perturbation, int64 places of the perturbed genes among the g genes.

    Raises:
        UsageError: parts that do not fit each other.
        InputDataError: fewer than two perturbations, or values that are not finite.
    """

    names: Array
    values: Array
    control: Array
    de_genes: Sequence[Array]
    perturbed: Sequence[Array]

    def __post_init__(self) -> None:
        """Check that the parts fit each other."""
        p, g = self.values.shape
        if not len(self.names) == len(self.de_genes) == len(self.perturbed) == p:
            raise UsageError(
                f"{len(self.names)} names, {len(self.de_genes)} lists of differentially expressed "
                f"and {len(self.perturbed)} of perturbed genes come with {p} pseudobulks: give one "
                "for each."
            )
        if self.control.shape != (g,):
            raise UsageError(f"The control has {self.control.size} genes, the perturbations {g}.")
        if p < 2:
            raise InputDataError(
                f"There is {p} perturbation to score ({', '.join(map(str, self.names))}). Which of "
                "several perturbations a prediction is closest to needs at least two, and so does an "
                "interval: test more perturbations."
            )
        if not (np.isfinite(self.values).all() and np.isfinite(self.control).all()):
            raise InputDataError(
                "The measured cells hold values that are not finite. Leave these genes out, or give "
                "cells without gaps."
            )

    def __len__(self) -> int:
        """Return the number of perturbations."""
        return len(self.names)

    def scores(self, predicted: Array) -> dict[str, Array]:
        """Score a prediction of each perturbation.

        Args:
            predicted: float64 [p, g], on the scale of the truth.

        Returns:
            `{metric: float64 [p]}` for all `METRICS`; NaN where a metric is not defined.

        Raises:
            UsageError: another shape.
            InputDataError: a value that is not finite.
        """
        if predicted.shape != self.values.shape:
            raise UsageError(
                f"The prediction is {predicted.shape} and the truth {self.values.shape}: give one row "
                "a perturbation and one column a gene, in the same order."
            )
        wrong = np.argwhere(~np.isfinite(predicted))
        if len(wrong):
            raise InputDataError(
                f"{len(wrong):,} of {predicted.size:,} predicted values are not finite, first one of "
                f"{self.names[wrong[0, 0]]!r}. Score the genes that all predictions have."
            )
        found = {name: np.full(len(self), np.nan) for name in METRICS}
        for place in range(len(self)):
            x, y, c = predicted[place], self.values[place], self.control
            genes = self.de_genes[place]
            for ending, part in (("", slice(None)), ("_de", genes)):
                if ending and not len(genes):
                    continue
                for name, value in _over_genes(x[part], y[part], c[part]).items():
                    found[name + ending][place] = value
            found[DIRECTION][place] = _same_direction((x - c)[genes], (y - c)[genes])
        found[DISCRIMINATION] = self._discrimination(predicted)
        return found

    def _discrimination(self, predicted: Array) -> Array:
        """Return float64 [p], where the own truth ranks among all by distance."""
        score = np.zeros(len(self))
        apart = np.empty_like(self.values)
        for place, x in enumerate(predicted):
            np.abs(np.subtract(self.values, x, out=apart), out=apart)
            apart[:, self.perturbed[place]] = 0.0
            distance = apart.sum(axis=1)
            others = np.delete(distance, place)
            own = distance[place]
            rank = (others < own).sum() + 0.5 * (others == own).sum()
            score[place] = 1.0 - rank / len(others)
        return score


def welch_t(perturbed: Pseudobulks, control: Pseudobulks) -> Array:
    """Return Welch's t of each gene: cells of perturbations against those of controls.

    Args:
        perturbed: [p] groups.
        control: one group of the same genes and scale.

    Returns:
        float64 [p, g]: difference of the means of the cells' values in standard errors. Without any
        spread in both it is 0 if the means are equal and infinite if not. NaN where either is one
        cell.

    Source: Welch, B. L. (1947), Biometrika 34, 28-35.
    """
    difference = perturbed.cell_means - control.cell_means
    error = np.sqrt(
        perturbed.cell_variances / perturbed.num_cells[:, None]
        + control.cell_variances / control.num_cells[:, None]
    )
    t = np.where(difference == 0, 0.0, np.copysign(np.inf, difference))
    np.divide(difference, error, out=t, where=error > 0)
    return np.asarray(np.where(np.isnan(error), np.nan, t))


def differential_genes(
    perturbed: Pseudobulks, control: Pseudobulks, *, num_genes: int = NUM_DE_GENES
) -> list[Array]:
    """Return the genes that tell the cells of each perturbation best from controls.

    Args:
        perturbed: [p] groups.
        control: one group of the same genes and scale.
        num_genes: how many, at most.

    Returns:
        For each perturbation, int64 places of the genes with the largest absolute Welch t, largest
        first; ties in the order of the genes. Genes without any difference are left out, and a group
        of one cell has none.
    """
    certainty = np.nan_to_num(np.abs(welch_t(perturbed, control)), nan=0.0, posinf=np.inf)
    order = np.argsort(-certainty, axis=1, kind="stable")[:, :num_genes]
    return [
        places[row[places] > 0].astype(np.int64)
        for row, places in zip(certainty, order, strict=True)
    ]


def _over_genes(x: Array, y: Array, c: Array) -> dict[str, float]:
    error = x - y
    return {
        "pearson": _correlation(x, y),
        "delta_pearson": _correlation(x - c, y - c),
        "mae": float(np.abs(error).mean()),
        "mse": float((error**2).mean()),
    }


def _correlation(x: Array, y: Array) -> float:
    """Return Pearson's correlation; 0 if only x is constant, NaN if y is."""
    a, b = x - x.mean(), y - y.mean()
    xx, yy = float(a @ a), float(b @ b)
    if yy <= _NO_SPREAD * float(y @ y) or len(y) < 2:
        return float("nan")
    if xx <= _NO_SPREAD * float(x @ x):
        return 0.0
    return float(np.clip(a @ b / np.sqrt(xx * yy), -1.0, 1.0))


def _same_direction(x: Array, y: Array) -> float:
    """Return the share of genes that change into the same direction; NaN if none changes."""
    changes = y != 0
    if not changes.any():
        return float("nan")
    agree = np.sign(x[changes]) * np.sign(y[changes])
    return float((0.5 + 0.5 * agree).mean())
