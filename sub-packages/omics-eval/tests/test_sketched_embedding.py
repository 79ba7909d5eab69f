"""`--max-cells`: a sketch is embedded, the other cells have a mean of their neighbours, and say so."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from omics.data import convert
from omics.data.command_line import no_progress
from omics.data.errors import ConfigError, UsageError
from omics.data.selection import geometric_sketch_rows, principal_components
from omics.eval import embed, embed_file, integrate
from omics.eval import sketched_embedding as sketched
from omics.eval.embedding_sources import SOURCES, neighbours_note
from omics.eval.joined_embeddings import join_embeddings
from omics.models.inference import NO_COUNTS, NO_KNOWN_GENE

MAX_CELLS = 120
BLIND = [4, 7]


@pytest.fixture(scope="module")
def cells(planted_cells):
    """Planted cells; cell 4 has no counts, cell 7 only those of a gene that the model lacks."""
    adata = planted_cells.adata
    counts = sparse.hstack([adata.X, np.zeros((adata.n_obs, 1))]).tolil()
    counts[4], counts[7] = 0, 0
    counts[7, -1] = 5
    var = pd.DataFrame(index=[*adata.var_names, "unknown gene"])
    return ad.AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=adata.obs.copy(), var=var)


@pytest.fixture(scope="module")
def file(cells, tmp_path_factory):
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    cells.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def whole(cells, planted_cells):
    return embed(cells.copy(), planted_cells.bundle, device="cpu").obsm["X_omics"]


@pytest.fixture(scope="module")
def part(cells, planted_cells):
    return embed(cells.copy(), planted_cells.bundle, device="cpu", max_cells=MAX_CELLS, seed=3)


def sources_of(adata, key="X_omics"):
    return adata.obs[f"{key}_source"].astype(str).to_numpy()


def test_cells_of_the_sketch_are_those_of_the_model_and_the_others_are_near_them(part, whole):
    found, sources = part.obsm["X_omics"], sources_of(part)
    assert {name: int((sources == name).sum()) for name in SOURCES} == {
        "embedded": MAX_CELLS,
        "neighbours": 400 - MAX_CELLS - 2,
        "none": 2,
    }
    assert np.array_equal(found[sources == "embedded"], whole[sources == "embedded"])
    near = sources == "neighbours"
    assert found.dtype == np.float32
    # Against one embedded cell at random, and against the mean of all of them.
    random = np.random.default_rng(0).choice(np.flatnonzero(sources == "embedded"), near.sum())
    error, of_random, of_mean = (
        np.square(guess - whole[near]).sum()
        for guess in (found[near], whole[random], whole[sources == "embedded"].mean(axis=0))
    )
    assert error < 0.3 * of_random
    assert error < 0.5 * of_mean


def test_types_survive_in_the_neighbours(part, whole, cells):
    """Cells that were not embedded are near the mean of their type about as often as if they were."""
    sources = sources_of(part)
    types = cells.obs["cell_type"].astype(str).to_numpy()
    names = np.unique(types)
    own, near = sources == "embedded", sources == "neighbours"
    centres = np.stack([whole[own & (types == name)].mean(axis=0) for name in names])
    of_neighbours, of_model = (
        (names[np.square(each[near][:, None] - centres).sum(axis=2).argmin(axis=1)] == types[near])
        for each in (part.obsm["X_omics"], whole)
    )
    assert of_neighbours.mean() > 0.9 * of_model.mean() > 0.75


def test_a_cell_that_the_model_does_not_see_gets_nothing_made_up(part):
    found = part.obsm["X_omics"]
    assert np.flatnonzero(np.isnan(found).all(axis=1)).tolist() == BLIND
    assert sources_of(part)[BLIND].tolist() == ["none", "none"]
    assert part.obs["omics_reason"].iloc[BLIND].tolist() == [NO_COUNTS, NO_KNOWN_GENE]
    assert set(part.obs["omics_reason"].drop(part.obs_names[BLIND])) == {""}
    assert part.uns["omics"]["X_omics"]["num_without_embedding"] == 2


def test_the_record_says_how_the_sketch_was_drawn(part, cells, tmp_path):
    assert part.uns["omics"]["X_omics"]["sketch"] == {
        "method": "geometric-sketch",
        "num_cells": MAX_CELLS,
        "num_from_neighbours": 400 - MAX_CELLS - 2,
        "num_neighbours": 15,
        "num_components": 50,
        "seed": 3,
    }
    cells.write_h5ad(tmp_path / "in.h5ad")
    store = convert(tmp_path / "in.h5ad", tmp_path / "in.store")
    seen = np.delete(np.arange(400), BLIND)
    rows = seen[geometric_sketch_rows(principal_components(store)[seen], MAX_CELLS, seed=3)]
    assert np.flatnonzero(sources_of(part) == "embedded").tolist() == rows.tolist()


def test_the_same_seed_gives_the_same_cells_and_numbers(cells, part, planted_cells):
    options = {"device": "cpu", "max_cells": MAX_CELLS}
    again = embed(cells.copy(), planted_cells.bundle, seed=3, batch_tokens=300, **options)
    assert np.array_equal(again.obsm["X_omics"], part.obsm["X_omics"], equal_nan=True)
    other = embed(cells.copy(), planted_cells.bundle, seed=4, **options)
    assert (sources_of(other) != sources_of(part)).any()


def test_from_file_to_file_and_in_small_blocks_it_is_the_same(
    file, part, planted_cells, tmp_path, monkeypatch
):
    monkeypatch.setattr(sketched, "_BLOCK_CELLS", 37)
    told = []
    record = embed_file(
        file,
        planted_cells.bundle,
        tmp_path / "out.h5ad",
        device="cpu",
        max_cells=MAX_CELLS,
        seed=3,
        on_estimate=told.append,
    )
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    assert np.allclose(found.obsm["X_omics"], part.obsm["X_omics"], atol=1e-6, equal_nan=True)
    own = sources_of(part) != "neighbours"
    assert np.array_equal(found.obsm["X_omics"][own], part.obsm["X_omics"][own], equal_nan=True)
    assert found.obs["X_omics_source"].equals(part.obs["X_omics_source"])
    assert found.obs["omics_reason"].tolist() == part.obs["omics_reason"].tolist()
    assert found.uns["omics"]["X_omics"]["sketch"] == record["sketch"]
    assert record["sketch"] == part.uns["omics"]["X_omics"]["sketch"]
    assert [estimate.num_cells for estimate in told] == [MAX_CELLS]


@pytest.mark.parametrize("number", [398, 399, 400, 10_000])
def test_a_sketch_of_all_cells_is_none_and_nothing_is_flagged(cells, whole, planted_cells, number):
    found = embed(cells.copy(), planted_cells.bundle, device="cpu", max_cells=number)
    assert np.array_equal(found.obsm["X_omics"], whole, equal_nan=True)
    assert "X_omics_source" not in found.obs
    assert "sketch" not in found.uns["omics"]["X_omics"]


@pytest.mark.parametrize("number", [1, 3])
def test_a_tiny_sketch_has_as_many_neighbours_as_there_are(cells, planted_cells, number):
    found = embed(cells.copy(), planted_cells.bundle, device="cpu", max_cells=number)
    assert found.uns["omics"]["X_omics"]["sketch"]["num_neighbours"] == number
    assert np.isnan(found.obsm["X_omics"]).all(axis=1).sum() == 2
    if number == 1:
        assert len(np.unique(np.delete(found.obsm["X_omics"], BLIND, axis=0), axis=0)) == 1


def test_a_copy_of_an_embedded_cell_has_its_vector(planted_cells):
    adata = planted_cells.adata
    copies = ad.AnnData(adata.X[np.repeat(np.arange(100), 4)], var=adata.var)
    copies.obs_names = [f"cell {i}" for i in range(400)]
    whole = embed(copies.copy(), planted_cells.bundle, device="cpu").obsm["X_omics"]
    found = embed(copies, planted_cells.bundle, device="cpu", max_cells=200)
    sources, group = sources_of(found), np.arange(400) // 4
    copied = (sources == "neighbours") & np.isin(group, group[sources == "embedded"])
    assert copied.sum() > 100
    assert np.allclose(found.obsm["X_omics"][copied], whole[copied], atol=1e-6)


@pytest.mark.parametrize("as_file", [False, True])
def test_a_full_embedding_in_its_place_takes_the_flag_away(
    cells, part, whole, planted_cells, tmp_path, as_file
):
    adata = part.copy()
    embed(adata, planted_cells.bundle, key_added="X_two", device="cpu")
    assert "X_omics_source" in adata.obs
    assert "X_two_source" not in adata.obs
    if as_file:
        adata.write_h5ad(tmp_path / "in.h5ad")
        embed_file(
            *(tmp_path / "in.h5ad", planted_cells.bundle, tmp_path / "out.h5ad"),
            device="cpu",
            overwrite=True,
        )
        adata = ad.read_h5ad(tmp_path / "out.h5ad")
    else:
        embed(adata, planted_cells.bundle, device="cpu", overwrite=True)
    assert np.array_equal(adata.obsm["X_omics"], whole, equal_nan=True)
    assert "X_omics_source" not in adata.obs
    assert "cell_type" in adata.obs


def test_a_column_of_the_name_of_the_flag_is_left_alone(cells, file, planted_cells, tmp_path):
    mine = cells.copy()
    mine.obs["X_omics_source"] = "mine"
    with pytest.raises(UsageError, match="obs already holds 'X_omics_source'"):
        embed(mine, planted_cells.bundle, max_cells=50)
    mine.write_h5ad(tmp_path / "in.h5ad")
    with pytest.raises(UsageError, match="obs already holds 'X_omics_source'"):
        embed_file(tmp_path / "in.h5ad", planted_cells.bundle, tmp_path / "out.h5ad", max_cells=50)
    embed(mine, planted_cells.bundle, device="cpu")
    assert set(mine.obs["X_omics_source"]) == {"mine"}


def test_numbers_out_of_range_are_refused(cells, planted_cells):
    with pytest.raises(UsageError, match="max_cells is 0; it must be at least 1"):
        embed(cells.copy(), planted_cells.bundle, max_cells=0)
    with pytest.raises(UsageError, match="The seed is -1"):
        embed(cells.copy(), planted_cells.bundle, max_cells=10, seed=-1)


def test_a_mistyped_precision_is_refused_before_a_sketch_is_drawn(cells, planted_cells):
    shown = []

    def show(task, total):
        shown.append(task)
        return no_progress(task, total)

    options = {"max_cells": 10, "show": show}
    with pytest.raises(ConfigError, match="precision is 'half'"):
        embed(cells.copy(), planted_cells.bundle, precision="half", **options)
    assert not shown
    embed(cells.copy(), planted_cells.bundle, **options)
    assert shown == ["reading genes", "components of counts", "embedding", "neighbours"]


def test_what_reads_an_embedding_says_that_some_are_of_neighbours(part, whole, tmp_path):
    rows = np.arange(100)
    number = int((sources_of(part)[rows] == "neighbours").sum())
    (note,) = neighbours_note(part, "X_omics", rows, "test")
    assert note.startswith(f"{number} of 100 test cells have their X_omics from neighbours")
    own = np.flatnonzero(sources_of(part) == "embedded")
    assert neighbours_note(part, "X_omics", own, "test") == []
    assert neighbours_note(part, "X_other", rows, "test") == []
    found = integrate(part, label="cell_type", seed=0)
    assert any("278 of 398 scored cells have their X_omics from" in each for each in found.notes)

    paths = [tmp_path / "sketch.h5ad", tmp_path / "whole.h5ad"]
    part.write_h5ad(paths[0])
    full = ad.AnnData(part.X, obs=part.obs[["cell_type"]].copy(), var=part.var)
    full.obsm["X_omics"] = whole
    full.write_h5ad(paths[1])
    for order in (paths, paths[::-1]):
        joined, keys = join_embeddings(order, "X_omics")
        said = {key: neighbours_note(joined, key, rows, "test") for key in keys}
        assert said["whole"] == []
        assert said["sketch"][0].startswith(f"{number} of 100 test cells have their sketch from")
