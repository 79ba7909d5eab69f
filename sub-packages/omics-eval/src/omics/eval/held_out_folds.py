"""Folds of cells to hold out in turn: every class in each of them, groups such as donors whole."""

from __future__ import annotations

from typing import Any

import numpy as np

from omics.data.errors import InputDataError

Array = np.ndarray[Any, np.dtype[Any]]


def held_out_folds(
    labels: Array, *, num_folds: int, groups: Array | None = None, seed: int = 0
) -> Array:
    """Return the fold of every cell, int64 [n].

    Cells of a class are dealt out in turn, so that its numbers differ by at most one between folds,
    also for classes with fewer cells than there are folds. Groups are placed whole, large ones first,
    each where least of its classes and of all cells is so far.

    Args:
        labels: [n], the class of each cell; none missing.
        num_folds: at least 2.
        groups: [n], such as donors, none missing; None holds out cells.
        seed: of the order within a class, or among groups of one size.

    Raises:
        InputDataError: fewer cells, or groups, than folds.
    """
    random = np.random.default_rng(seed)
    if groups is None:
        if len(labels) < num_folds:
            raise InputDataError(
                f"{len(labels)} labelled cells cannot be held out in {num_folds} folds. Ask for "
                "fewer folds, or label more cells."
            )
        shuffled = random.permutation(len(labels))
        order = shuffled[np.argsort(labels[shuffled], kind="stable")]
        folds = np.empty(len(labels), np.int64)
        folds[order] = np.arange(len(labels)) % num_folds
        return folds
    names, members = np.unique(groups, return_inverse=True)
    if len(names) < num_folds:
        raise InputDataError(
            f"The labelled cells are of {len(names)} group{'s' if len(names) > 1 else ''}, which "
            f"cannot be held out whole in {num_folds} folds. Ask for at most as many folds as groups, or leave --groups out."
        )
    classes, codes = np.unique(labels, return_inverse=True)
    # The last column counts all cells as one more class.
    size = np.zeros((len(names), len(classes) + 1))
    np.add.at(size, (members, codes), 1)
    size[:, -1] = size.sum(axis=1)
    share = size / size.sum(axis=0)
    order = random.permutation(len(names))
    order = order[np.argsort(-size[order, -1], kind="stable")]
    load = np.zeros((num_folds, share.shape[1]))
    fold_of = np.empty(len(names), np.int64)
    for group in order:
        # This fold adds least to the sum of squared shares; an empty one adds least of all.
        chosen = int((load @ share[group]).argmin())
        load[chosen] += share[group]
        fold_of[group] = chosen
    return np.asarray(fold_of[members])
