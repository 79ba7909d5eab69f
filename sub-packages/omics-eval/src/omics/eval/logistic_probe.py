"""The logistic probe: one regression for every embedding, its strength chosen among training cells.

- Model and PCA baseline get the same function, the same strengths and the same folds: what sets them
  apart is the embedding alone. A fixed strength would favour embeddings of some width and scale.
- The strength is chosen by cross-validation within the reference, whole groups held out where they
  are given; then all reference cells teach. Query cells have no part in it: the scores of these are
  those of nested cross-validation (Varma & Simon 2006, BMC Bioinformatics 7, 91).
- It is chosen by log loss: a proper score, smooth where macro-F1 jumps with single cells of rare
  classes, and what makes confidences mean something.
- Means and standard deviations are of the cells that teach, in each fold anew.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from omics.eval.held_out_folds import held_out_folds

Array = np.ndarray[Any, np.dtype[Any]]

# The inverse of the penalty, which is per weight and not per cell: it suits any number of cells.
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
# Where nothing can be held out: scikit-learn's own.
UNCHOSEN = 1.0
NUM_FOLDS = 3
# A strength is as well chosen on a sample, which bounds what the choice costs.
MAX_CELLS = 10_000
MAX_ITERATIONS = 5000
# Smaller problems are solved faster by one thread: a step is over before others have woken up.
_VALUES_FOR_THREADS = 5_000_000


def logistic_probe(
    reference: Array, codes: Array, query: Array, *, groups: Array | None = None, seed: int = 0
) -> tuple[Array, float]:
    """Return the probabilities of classes of query cells, by standardised logistic regression.

    Args:
        reference: float [n, d], finite.
        codes: int [n], classes 0 to C - 1, each present, two at least.
        query: float [m, d], finite.
        groups: [n], such as donors, held out whole when the strength is chosen.
        seed: of the folds of the choice.

    Returns:
        float64 [m, C], and the strength chosen (C of scikit-learn).
    """
    from threadpoolctl import threadpool_limits

    values, asked = reference.astype(np.float64), query.astype(np.float64)
    threads = None if values.size > _VALUES_FOR_THREADS else 1
    with threadpool_limits(threads, user_api="blas"):
        strength = chosen_strength(values, codes, groups=groups, seed=seed)
        scaler, classifier = _scaler(values), _classifier(strength)
        classifier.fit(scaler.transform(values), codes)
        return np.asarray(classifier.predict_proba(scaler.transform(asked))), strength


def chosen_strength(
    values: Array, codes: Array, *, groups: Array | None = None, seed: int = 0
) -> float:
    """Return the strength with the least log loss on held-out cells; the weaker one of equals.

    A cell whose class no cell of the other folds has is not asked.

    Args:
        values: float64 [n, d].
        codes: int [n].
        groups: [n], held out whole.
        seed: of the folds, and of the sample of more than 10,000 cells.

    Returns:
        One of `STRENGTHS`; 1 where nothing can be held out, such as cells of a single group.
    """
    if len(values) > MAX_CELLS:
        kept = np.random.default_rng(seed).choice(len(values), MAX_CELLS, replace=False)
        kept.sort()
        values, codes = values[kept], codes[kept]
        groups = None if groups is None else groups[kept]
    number = min(NUM_FOLDS, len(values) if groups is None else len(np.unique(groups)))
    if number < 2:
        return UNCHOSEN
    folds = held_out_folds(codes, num_folds=number, groups=groups, seed=seed)
    losses, judged = np.zeros(len(STRENGTHS)), 0
    for fold in range(number):
        taught = folds != fold
        known = np.unique(codes[taught])
        asked = ~taught & np.isin(codes, known)
        if len(known) > 1 and asked.any():
            losses += _losses(values[taught], codes[taught], values[asked], codes[asked])
            judged += 1
    return STRENGTHS[int(losses.argmin())] if judged else UNCHOSEN


def _losses(reference: Array, codes: Array, query: Array, truth: Array) -> Array:
    """Return the summed log loss of each strength; each starts from the weights of the one before."""
    scaler = _scaler(reference)
    taught, asked = scaler.transform(reference), scaler.transform(query)
    # Strengths are decades apart: a rough fit tells which one is better.
    classifier = _classifier(STRENGTHS[0], warm_start=True, tol=1e-3)
    losses = []
    for strength in STRENGTHS:
        classifier.set_params(C=strength).fit(taught, codes)
        place = np.searchsorted(classifier.classes_, truth)
        found = classifier.predict_proba(asked)[np.arange(len(truth)), place]
        losses.append(-np.log(np.maximum(found, np.finfo(np.float64).tiny)).sum())
    return np.array(losses)


def _scaler(values: Array) -> Any:
    from sklearn.preprocessing import StandardScaler

    return StandardScaler().fit(values)


def _classifier(strength: float, **options: Any) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, **options)
