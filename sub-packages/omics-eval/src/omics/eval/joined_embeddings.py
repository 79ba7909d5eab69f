"""Embeddings of the same cells from several files, brought together under the names of the files."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from omics.data.errors import InputDataError, UsageError
from omics.eval.annotation import embedding_of
from omics.eval.cell_files import read_cells
from omics.eval.embedding_sources import source_column

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData


def join_embeddings(paths: Sequence[Path], use_rep: str) -> tuple[AnnData, tuple[str, ...]]:
    """Read files of the same cells and put the embedding of each into the first.

    Args:
        paths: `.h5ad` files; the first gives counts, labels and everything else.
        use_rep: the key of obsm in each.

    Returns:
        The cells, and the keys of the embeddings: `use_rep` for a single file, the names of the files
        without their ending for several.

    Raises:
        UsageError: two files of one name, or a name that is a key of obsm already.
        InputDataError: a file of other cells, or of the same ones in another order.
    """
    cells = read_cells(paths[0])
    if len(paths) == 1:
        return cells, (use_rep,)
    names = [path.stem for path in paths]
    doubled = [name for name, count in Counter(names).items() if count > 1]
    taken = [name for name in names if name in cells.obsm]
    if doubled or taken:
        found = (
            f"Two files are named {doubled[0]!r}"
            if doubled
            else f"{paths[0]} has an embedding {taken[0]!r} already"
        )
        raise UsageError(
            f"{found}, and embeddings of several files go by the names of the files. Rename one."
        )
    record = dict(cells.uns.get("omics", {}))
    for name, path in zip(names, paths, strict=True):
        others = cells if path == paths[0] else read_cells(path)
        _check_cells(cells, others, paths[0], path)
        cells.obsm[name] = embedding_of(others, use_rep)
        if (sources := source_column(use_rep)) in others.obs:
            cells.obs[source_column(name)] = others.obs[sources].to_numpy()
        provenance = dict(others.uns.get("omics", {})).get(use_rep)
        if provenance is not None:
            record[name] = provenance
    cells.uns["omics"] = record
    return cells, tuple(names)


def _check_cells(cells: AnnData, others: AnnData, first: Path, path: Path) -> None:
    ours, theirs = (np.asarray(each.obs_names.astype(str), object) for each in (cells, others))
    if len(ours) != len(theirs):
        found = f"it has {len(theirs)} cells and {first} has {len(ours)}"
    elif (other := np.flatnonzero(ours != theirs)).size:
        found = (
            f"{len(other)} of {len(ours)} cells have another name, first row {int(other[0])}: "
            f"{theirs[other[0]]!r}, {ours[other[0]]!r} in {first}"
        )
    else:
        return
    raise InputDataError(
        f"{path} is not of the same cells in the same order: {found}. Embed one file of cells with "
        "each bundle."
    )
