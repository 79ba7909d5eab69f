from __future__ import annotations

import sys
import warnings

import matplotlib as mpl
import numpy as np
import pytest

from omics.data.errors import MissingExtraError, UnknownNameError, UsageError
from omics.eval import plot_umap, umap
from omics.eval.cell_scatter import COLOURS
from omics.eval.figures import blank_figure
from omics.eval.umap_plot import umap_picture

LABEL = "bulk_labels"


@pytest.fixture
def placed(pbmc):
    """Cells with coordinates, two of them without."""
    pbmc.obsm["X_umap"] = np.asarray(pbmc.obsm["X_omics"][:, :2], np.float32)
    pbmc.obsm["X_umap"][[3, 5]] = np.nan
    return pbmc


def axes_of():
    return blank_figure(400, 300).add_subplot()


def test_umap_is_added_with_how_it_was_made(pbmc, monkeypatch):
    def drawn(embedding, *, seed, max_cells):
        """In the place of UMAP, which has its own test."""
        rows = np.flatnonzero(~np.isnan(embedding).any(axis=1))[:max_cells]
        return rows, embedding[rows, :2] + seed

    monkeypatch.setattr("omics.eval.projection.umap_coordinates", drawn)
    few = pbmc[:60].copy()
    few.obsm["X_omics"][7] = np.nan
    assert umap(few, seed=2) is few
    places = few.obsm["X_umap"]
    assert (places.shape, places.dtype) == ((60, 2), np.float32)
    assert np.flatnonzero(np.isnan(places).any(axis=1)).tolist() == [7]
    assert np.allclose(places[:7], few.obsm["X_omics"][:7, :2] + 2)
    record = few.uns["omics"]["X_omics"]
    assert record["umap"] == {
        "key": "X_umap",
        "num_cells": 59,
        "num_neighbours": 15,
        "min_distance": 0.3,
        "seed": 2,
    }
    assert record["bundle_digest"] == "ab" * 32
    with pytest.raises(UsageError, match="obsm already holds 'X_umap'"):
        umap(few)
    part = umap(few, key_added="X_part", max_cells=20)
    assert np.isfinite(part.obsm["X_part"]).all(axis=1).sum() == 20


def test_an_embedding_of_too_few_cells_has_no_umap(pbmc):
    pbmc.obsm["X_omics"][4:] = np.nan
    with pytest.raises(UsageError, match="Too few cells have an embedding 'X_omics'"):
        umap(pbmc)
    assert "X_umap" not in pbmc.obsm


def test_axes_come_back_and_colours_are_kept_where_scanpy_looks(placed):
    axes = axes_of()
    assert plot_umap(placed, color=LABEL, axes=axes) is axes
    assert (axes.get_title(), axes.get_xlabel()) == (LABEL, "UMAP 1 (arbitrary units)")
    categories = list(placed.obs[LABEL].astype("category").cat.categories)
    colours = list(placed.uns[f"{LABEL}_colors"])
    assert colours == [COLOURS[i % len(COLOURS)] for i in range(len(categories))]
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [each.split("  ")[0] for each in shown] == [str(i + 1) for i in range(len(categories))]
    drawn = sum(len(each.get_offsets()) for each in axes.collections)
    assert drawn == 698


def test_colours_that_are_there_are_taken(placed):
    placed.obs[LABEL] = placed.obs[LABEL].astype("category")
    number = len(placed.obs[LABEL].cat.categories)
    mine = [f"#0000{i:02x}" for i in range(number)]
    placed.uns[f"{LABEL}_colors"] = list(mine)
    axes = plot_umap(placed, color=LABEL, axes=axes_of())
    assert list(placed.uns[f"{LABEL}_colors"]) == mine
    handles = axes.get_legend().legend_handles
    assert [mpl.colors.to_hex(each.get_color()) for each in handles] == mine


def test_scanpy_draws_the_same_colours(placed):
    import scanpy as sc

    mpl.use("agg")
    plot_umap(placed, color=LABEL, axes=axes_of())
    mine = list(placed.uns[f"{LABEL}_colors"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scanpy, about matplotlib
        figure = sc.pl.umap(placed, color=LABEL, show=False, return_fig=True)
    assert list(placed.uns[f"{LABEL}_colors"]) == mine
    mpl.pyplot.close(figure)


def test_without_a_column_cells_are_grey_and_a_figure_is_made(placed):
    mpl.use("agg")
    axes = plot_umap(placed)
    assert axes.get_legend() is None
    assert not [key for key in placed.uns if key.endswith("_colors")]
    mpl.pyplot.close(axes.figure)


def test_names_that_are_not_there_have_their_nearest(placed):
    with pytest.raises(UnknownNameError, match="Did you mean 'bulk_labels'"):
        plot_umap(placed, color="bulk_label", axes=axes_of())
    with pytest.raises(UnknownNameError, match=r"no coordinates 'X_umpa'.*Did you mean 'X_umap'"):
        plot_umap(placed, basis="X_umpa", axes=axes_of())
    with pytest.raises(UnknownNameError, match="obsm has no embedding 'X_none'"):
        umap(placed, use_rep="X_none")


def test_the_picture_is_a_png_that_repeats(placed):
    first, second = (umap_picture(placed, color=LABEL, title="Cells") for _ in range(2))
    assert first.data[:4] == b"\x89PNG"
    assert first == second
    assert first.alt == "Cells: 698 cells on two UMAP axes"


def test_missing_matplotlib_names_the_pip_command(placed, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'omics-eval\[plots\]'"):
        plot_umap(placed)
