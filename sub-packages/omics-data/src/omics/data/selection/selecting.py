"""`select_cells`: one call for every method, from a store to a table that can be saved.

- Methods that need coordinates take principal components of the store, or an embedding file.
- Given a table of quality control, every method chooses among the cells that it keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, UsageError, nearest
from omics.data.obs_groups import group_codes
from omics.data.selection.cell_embedding import principal_components, read_embedding
from omics.data.selection.farthest_first import farthest_first_rows
from omics.data.selection.geometric_sketch import geometric_sketch_rows
from omics.data.selection.group_quotas import (
    check_number,
    equal_per_group_rows,
    label_balanced_rows,
    random_rows,
)
from omics.data.selection.selection_table import SelectionTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from omics.data.quality.quality_table import QualityTable
    from omics.data.storage.store import CellStore

Array = np.ndarray[Any, np.dtype[Any]]

METHODS = (
    "random",
    "equal-per-group",
    "label-balanced",
    "geometric-sketch",
    "farthest-first",
    "by-quality",
)
GROUPED = ("equal-per-group", "label-balanced")
SPATIAL = ("geometric-sketch", "farthest-first")


@dataclass(frozen=True, eq=False, slots=True)
class _Choice:
    """The cells to choose among, ascending, and the table that says so."""

    store: CellStore
    rows: Array
    quality: QualityTable | None


def select_cells(
    store: CellStore,
    method: str,
    number: int,
    *,
    group: str | None = None,
    embedding: str | Path | None = None,
    quality: QualityTable | None = None,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> SelectionTable:
    """Choose informative cells of a store.

    Args:
        store: the store.
        method: `random`; `equal-per-group` and `label-balanced` (over the values of `group`);
            `geometric-sketch` and `farthest-first` (in PCA space, or an embedding); `by-quality`
            (the best `quality_score` of `quality`).
        number: cells to choose; for `label-balanced`, of each label.
        group: the obs column of the groups or labels.
        embedding: a file of coordinates for the spatial methods; None computes 50 principal
            components, of the highly variable genes of `quality` if it has them.
        quality: a table of quality control: only cells that it keeps are chosen among.
        seed: of the random part.
        on_progress: called with the number of cells just passed while components are computed.

    Returns:
        The selection.

    Raises:
        UsageError: an unknown method, more cells than there are, or arguments that the method
            does not use or lacks.
        UnknownNameError: there is no such obs column.
        InputDataError: the table or the embedding is of other cells.
    """
    _check_arguments(method, group=group, embedding=embedding, quality=quality)
    if seed < 0:
        raise UsageError(f"The seed is {seed}; it must not be negative.")
    if quality is not None and len(quality) != len(store):
        raise InputDataError(
            f"The quality table has {len(quality):,} cells, {store.path} has {len(store):,}."
        )
    among = np.arange(len(store)) if quality is None else quality.rows
    choice = _Choice(store, among, quality)
    settings: dict[str, Any] = {"kind": method, "cells": number, "of": len(among)}
    if quality is not None:
        settings["quality"] = {"store_digest": quality.summary["store_digest"]}
    if method in GROUPED:
        chosen, said = _by_group(choice, method, number, column=str(group), seed=seed)
        settings.update(said)
    elif method in SPATIAL:
        points, said = _coordinates(choice, embedding, on_progress)
        settings.update(said)
        if method == "farthest-first":
            chosen = farthest_first_rows(points, number)
        else:
            chosen = geometric_sketch_rows(points, number, seed=seed)
    elif method == "by-quality":
        assert quality is not None
        check_number(number, len(among), "cells that quality control keeps")
        score = quality.cells["quality_score"][among]
        chosen = np.argsort(-score, kind="stable")[:number]
    else:
        chosen = random_rows(len(among), number, seed=seed)
    rows = among[chosen].astype(np.int64)
    return SelectionTable(
        rows=rows,
        cells=np.asarray(store.obs.names, dtype=object)[rows],
        method=settings,
        seed=seed,
        store_digest=store.digest,
        gene_digest=store.genes.digest,
    )


def _check_arguments(
    method: str,
    *,
    group: str | None,
    embedding: str | Path | None,
    quality: QualityTable | None,
) -> None:
    if method not in METHODS:
        raise UsageError(f"There is no method {method!r}.{nearest(method, METHODS)}")
    if (group is not None) != (method in GROUPED):
        needs = "needs an obs column: give --group" if method in GROUPED else "takes no group"
        raise UsageError(f"The method {method} {needs}.")
    if embedding is not None and method not in SPATIAL:
        raise UsageError(f"The method {method} takes no embedding.")
    if quality is None and method == "by-quality":
        raise UsageError("The method by-quality needs a table of omics-data qc: give --quality.")


def _by_group(
    choice: _Choice, method: str, number: int, *, column: str, seed: int
) -> tuple[Array, dict[str, Any]]:
    codes, names = group_codes(choice.store, column)
    mine = codes[choice.rows]
    choose = equal_per_group_rows if method == "equal-per-group" else label_balanced_rows
    chosen = choose(mine, number, seed=seed)
    sizes = np.bincount(mine[chosen], minlength=len(names)).tolist()
    said = {
        "group": column,
        "sizes": dict(zip(names, sizes, strict=True)),
        "cells_without_group": int((mine < 0).sum()),
    }
    return chosen, said


def _coordinates(
    choice: _Choice, embedding: str | Path | None, on_progress: Callable[[int], None] | None
) -> tuple[Array, dict[str, Any]]:
    if embedding is not None:
        points = read_embedding(embedding, choice.store)
        return points[choice.rows], {"embedding": Path(embedding).name, "axes": points.shape[1]}
    variable = None if choice.quality is None else choice.quality.genes.get("highly_variable")
    genes = None if variable is None else np.flatnonzero(variable)
    points = principal_components(choice.store, genes=genes, on_progress=on_progress)
    said = {"embedding": "pca", "axes": points.shape[1]}
    return points[choice.rows], said
