"""`umap` and `plot_umap`: an embedding of `obsm` in the plane, under the names that scanpy uses.

- Coordinates are in `obsm["X_umap"]`, colours of categories in `uns["COLUMN_colors"]`: what is drawn
  here can be drawn again by scanpy with the same colours, and the other way round.
- A UMAP is for looking at. Distances between groups, their sizes and gaps mean little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import UnknownNameError, UsageError, nearest
from omics.eval.annotation import embedding_of, label_column, usable_rows
from omics.eval.cell_scatter import class_style, draw_cells
from omics.eval.figures import Picture, blank_figure, picture_of, require_matplotlib, shown_name
from omics.eval.projection import MAX_CELLS, MIN_DISTANCE, NUM_NEIGHBOURS, placed_cells

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

Array = np.ndarray[Any, np.dtype[Any]]

UMAP_KEY = "X_umap"
_WIDTH_PX, _HEIGHT_PX = 760, 520
_LEGEND_ROWS = 22
_MAX_NAME = 36


def umap(
    adata: AnnData,
    *,
    use_rep: str = "X_omics",
    key_added: str = UMAP_KEY,
    seed: int = 0,
    max_cells: int = MAX_CELLS,
    overwrite: bool = False,
) -> AnnData:
    """Add the UMAP coordinates of an embedding.

    Args:
        adata: with the embedding; changed in place.
        use_rep: key of obsm with the embedding.
        key_added: key of obsm for the coordinates.
        seed: of UMAP, and of the sample.
        max_cells: of more cells a sample of so many is projected, and the others have NaN.
        overwrite: replace what is there under that key.

    Returns:
        The same object, with `obsm[key_added]` float32 [n, 2], NaN for cells that are not projected,
        and how it was made in `uns["omics"][use_rep]["umap"]`.

    Raises:
        UnknownNameError: no such embedding.
        UsageError: the key exists and may not be replaced, or fewer than 5 cells have an embedding.
        MissingExtraError: umap-learn is not installed.
    """
    embedding = embedding_of(adata, use_rep)
    if key_added in adata.obsm and not overwrite:
        raise UsageError(
            f"obsm already holds {key_added!r}. Name another key (key_added), or allow it to be "
            "replaced (overwrite)."
        )
    places = placed_cells(embedding, seed=seed, max_cells=max_cells)
    if np.isnan(places).all():
        raise UsageError(
            f"Too few cells have an embedding {use_rep!r} for a UMAP: it needs at least 5, of 2 "
            "dimensions or more."
        )
    adata.obsm[key_added] = places
    records = dict(adata.uns.get("omics", {}))
    own = {**dict(records.get(use_rep, {})), "umap": umap_record(places, key=key_added, seed=seed)}
    adata.uns["omics"] = {**records, use_rep: own}
    return adata


def umap_record(places: Array, *, key: str, seed: int) -> dict[str, Any]:
    """Return how coordinates came about.

    Args:
        places: float32 [n, 2].
        key: of obsm.
        seed: of UMAP.
    """
    num_cells = int(usable_rows(places).sum())
    return {
        "key": key,
        "num_cells": num_cells,
        "num_neighbours": min(NUM_NEIGHBOURS, max(num_cells - 1, 0)),
        "min_distance": MIN_DISTANCE,
        "seed": seed,
    }


def plot_umap(
    adata: AnnData,
    *,
    color: str | None = None,
    basis: str = UMAP_KEY,
    title: str | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Draw cells in the plane, coloured by a column of obs.

    Args:
        adata: with coordinates; `uns["COLOR_colors"]` is added where the column has none.
        color: column of obs, taken as classes; None draws all cells in grey.
        basis: key of obsm with the coordinates.
        title: of the figure; the name of the column by default.
        axes: to draw into; None makes a figure of pyplot.

    Returns:
        The axes.

    Raises:
        UnknownNameError: no such column or key.
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    keys = [str(key) for key in adata.obsm]
    if basis not in keys:
        raise UnknownNameError(
            f"obsm has no coordinates {basis!r}.{nearest(basis, keys)} Make some with "
            "`omics.eval.umap`."
        )
    places = np.asarray(adata.obsm[basis], np.float32)[:, :2]
    rows = np.flatnonzero(usable_rows(places))
    names = np.full(len(places), None, dtype=object)
    classes: list[str] = []
    colours: list[str] = []
    if color is not None:
        names = label_column(adata, color)
        classes, colours = _coloured(adata, color, names)
    if axes is None:
        import matplotlib.pyplot as plt

        axes = plt.subplots(figsize=(7, 5), layout="constrained")[1]
    draw_cells(
        axes,
        places[rows],
        names[rows],
        classes,
        colours=colours,
        axis=basis.removeprefix("X_").upper() if basis == UMAP_KEY else basis,
    )
    axes.set_title(title if title is not None else color or "", parse_math=False)
    _legend(axes, classes, colours, drawn=set(names[rows]))
    return axes


def umap_picture(adata: AnnData, *, color: str | None, title: str) -> Picture:
    """Return `plot_umap` as a PNG.

    Args:
        adata: with coordinates in `obsm["X_umap"]`.
        color: column of obs; None draws all cells in grey.
        title: of the figure.
    """
    figure = blank_figure(_WIDTH_PX, _HEIGHT_PX)
    plot_umap(adata, color=color, title=title, axes=figure.add_subplot())
    number = int(usable_rows(np.asarray(adata.obsm[UMAP_KEY], np.float32)).sum())
    return picture_of(figure, f"{title}: {number} cells on two UMAP axes", _WIDTH_PX)


def _coloured(adata: AnnData, color: str, names: Array) -> tuple[list[str], list[str]]:
    """Return the classes of a column and their colours, and keep these where scanpy looks."""
    column = adata.obs[color]
    if hasattr(column, "cat"):
        classes = [str(each) for each in column.cat.categories]
    else:
        classes = sorted({name for name in names if name is not None})
    key = f"{color}_colors"
    given = [str(each) for each in adata.uns.get(key, [])]
    if len(given) < len(classes):
        given = [class_style(index)[0] for index in range(len(classes))]
        adata.uns[key] = np.array(given, dtype=object)
    return classes, given[: len(classes)]


def _legend(axes: Axes, classes: list[str], colours: list[str], *, drawn: set[Any]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=class_style(index)[1],
            color=colour,
            label=f"{index + 1}  {shown_name(label, _MAX_NAME)}",
        )
        for index, (label, colour) in enumerate(zip(classes, colours, strict=True))
        if label in drawn
    ]
    if handles:
        box = axes.legend(
            handles=handles,
            loc="center left",
            bbox_to_anchor=(1.01, 0.5),
            frameon=False,
            ncols=-(-len(handles) // _LEGEND_ROWS),
        )
        for text in box.get_texts():
            text.set_parse_math(False)
