"""The whole of quality control: what is kept and why, saved, read again, drawn, and written out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scanpy

from omics.data import Loader
from omics.data.cell_source import open_cells
from omics.data.errors import (
    CorruptStoreError,
    ExistingPathError,
    InputDataError,
    MissingPathError,
    UnknownNameError,
    UsageError,
)
from omics.data.quality import (
    Thresholds,
    assess_quality,
    draw_figures,
    load_quality,
    write_filtered_store,
)
from omics.data.quality.quality_table import QualityTable

REAL = sorted(Path(os.environ.get("OMICS_REAL_DATA") or os.devnull).glob("**/*.h5ad"))
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def table(faulty_store):
    return assess_quality(
        faulty_store,
        thresholds=Thresholds(mads=6, min_genes=40, max_mito=25, min_cells=3),
        batch="batch",
        doublets=True,
        hvg=40,
        seed=5,
    )


def test_planted_faults_are_left_out_and_say_why(table, faulty_store):
    cells = table.cells
    rows = np.arange(300)
    dying, thin = rows % 20 == 3, rows % 25 == 7
    assert cells["fails_max_mito"][dying & ~thin].all()
    assert cells["fails_min_genes"][thin | (rows == 0)].all()
    assert not cells["keep"][dying | thin].any()
    fails = np.stack([cells[f"fails_{rule}"] for rule in table.rules])
    np.testing.assert_array_equal(cells["keep"], ~fails.any(axis=0))
    np.testing.assert_array_equal(table.rows, np.flatnonzero(cells["keep"]))
    assert 200 < len(table.rows) < 290
    loader = Loader(faulty_store, rows=table.rows, batch_size=50)
    np.testing.assert_array_equal(np.concatenate([each.rows for each in loader]), table.rows)


def test_the_summary_counts_what_the_table_holds(table):
    found = table.summary
    assert found["cells"] == 300 == len(table)
    assert found["cells_kept"] + found["cells_removed"] == 300
    for rule in found["rules"]:
        assert rule["failed"] == int(table.cells[f"fails_{rule['name']}"].sum())
        assert 0 <= rule["failed_by_this_alone"] <= rule["failed"]
    by_mads = next(each for each in found["rules"] if each["name"] == "mad_counts")
    assert [each["batch"] for each in by_mads["bounds"]] == ["batch0", "batch1", "batch2"]
    assert found["thresholds"] == {"mads": 6, "min_genes": 40, "max_mito": 25, "min_cells": 3}
    assert found["seed"] == 5
    assert found["genes_kept"] == int((table.genes["n_cells_by_counts"] >= 3).sum())
    assert found["highly_variable"] == {"flavor": "seurat", "genes": 40}
    json.dumps(found, allow_nan=False)


def test_the_quality_score_orders_cells_within_their_batch(table):
    score, cells = table.cells["quality_score"], table.cells
    assert 0 < score.min() < score.max() < 1
    assert score[0] < np.percentile(score, 10)  # The empty cell.
    mine = cells["batch"] == "batch1"
    ranks = pd.DataFrame(
        {name: cells[name][mine] for name in ("total_counts", "n_genes_by_counts")}
    )
    better = ranks.rank().mean(axis=1)
    assert np.corrcoef(better, score[mine])[0, 1] > 0.5


def test_saved_and_read_again_it_is_the_same(table, faulty_store, tmp_path):
    folder = tmp_path / "qc"
    table.save(folder)
    assert sorted(each.name for each in folder.iterdir()) == [
        "counts_against_genes.png",
        "distributions.png",
        "doublet_scores.png",
        "genes.parquet",
        "mitochondrial_share.png",
        "qc.json",
        "qc.parquet",
    ]
    for path in (folder, folder / "qc.parquet"):
        again = load_quality(path, faulty_store)
        assert again.summary == table.summary
        np.testing.assert_array_equal(again.names, table.names)
        for mine, its in ((table.cells, again.cells), (table.genes, again.genes)):
            assert list(mine) == list(its)
            for name in mine:
                np.testing.assert_array_equal(mine[name], its[name])
    frame = pd.read_parquet(folder / "qc.parquet")  # Any program can read it.
    assert frame["cell"].tolist() == faulty_store.obs.names.tolist()
    assert frame["keep"].dtype == bool
    with pytest.raises(ExistingPathError, match="exists already"):
        table.save(folder)
    table.save(folder, overwrite=True, figures=False)
    assert not list(folder.glob("*.png"))


def test_no_rule_keeps_every_cell_and_figures_need_little(faulty_store):
    plain = assess_quality(faulty_store)
    assert plain.rules == ()
    assert plain.cells["keep"].all()
    assert plain.summary["doublets"] is None
    pictures = draw_figures(plain)
    assert set(pictures) == {
        "counts_against_genes.png",
        "distributions.png",
        "mitochondrial_share.png",
    }
    assert all(picture.startswith(PNG) and len(picture) > 5000 for picture in pictures.values())


def test_figures_of_awkward_tables(tmp_path, write_store):
    names = [f"$\\frac$ & {number} with a very long name" for number in range(26)]
    obs = pd.DataFrame({"b": np.repeat(names, 2)}, index=[str(cell) for cell in range(52)])
    var = pd.DataFrame({"gene_symbol": ["MT-A", "B"]}, index=["x", "y"])
    equal = write_store(tmp_path / "equal", np.full((52, 2), 3), obs=obs, var=var)
    table = assess_quality(equal, batch="b", thresholds=Thresholds(iqr=1.5))
    assert len(draw_figures(table)["mitochondrial_share.png"]) > 5000
    empty = write_store(tmp_path / "empty", np.zeros((3, 2), int), var=var)
    assert set(draw_figures(assess_quality(empty))) == {
        "counts_against_genes.png",
        "distributions.png",
    }


def test_a_table_of_another_store_or_with_changed_bytes_is_refused(
    table, tmp_path, write_store, random_counts
):
    table.save(tmp_path / "qc", figures=False)
    other = write_store(tmp_path / "other", random_counts(300, 5))
    with pytest.raises(
        InputDataError, match=r"of another store: its cell of row 0 is 'cell0000000'"
    ):
        load_quality(tmp_path / "qc", other)
    small = write_store(tmp_path / "small", random_counts(3, 5))
    with pytest.raises(InputDataError, match=r"it names row 299, and .* has 3 cells"):
        load_quality(tmp_path / "qc", small)
    (tmp_path / "qc" / "qc.json").write_text("{")
    with pytest.raises(CorruptStoreError, match=r"qc\.json is damaged"):
        load_quality(tmp_path / "qc")
    (tmp_path / "qc" / "qc.json").unlink()
    with pytest.raises(MissingPathError, match=r"has no qc\.json; run omics-data qc again"):
        load_quality(tmp_path / "qc")
    with pytest.raises(MissingPathError, match="There is no table"):
        load_quality(tmp_path / "nowhere")
    with pytest.raises(MissingPathError, match="There is no folder"):
        table.save(tmp_path / "no" / "where")


def test_the_kept_cells_as_a_store_of_their_own(table, faulty_store, tmp_path, in_small_blocks):
    seen: list[int] = []
    kept = write_filtered_store(
        faulty_store, table.rows, tmp_path / "kept", reason={"mads": 6}, on_progress=seen.append
    )
    kept.verify()
    assert sum(seen) == len(kept) == len(table.rows)
    before, after = faulty_store.to_anndata(table.rows), kept.to_anndata()
    assert (before.X != after.X).nnz == 0
    pd.testing.assert_frame_equal(before.obs, after.obs)
    pd.testing.assert_frame_equal(before.var, after.var)
    assert kept.provenance["taken_from"] == {"store_digest": faulty_store.digest, "cells": 300}
    assert kept.provenance["reason"] == {"mads": 6}
    with pytest.raises(UsageError, match="is the store that is read"):
        write_filtered_store(faulty_store, table.rows, faulty_store.path, overwrite=True)


def test_some_genes_of_some_cells_as_a_store_of_their_own(faulty_store, tmp_path, in_small_blocks):
    rows, genes = np.arange(290, 5, -3), np.array([0, 7, 8, 599])
    kept = write_filtered_store(faulty_store, rows, tmp_path / "kept", genes=genes)
    kept.verify()
    before, after = faulty_store.to_anndata(rows)[:, genes], kept.to_anndata()
    assert (before.X != after.X).nnz == 0
    pd.testing.assert_frame_equal(before.var, after.var)
    pd.testing.assert_frame_equal(before.obs, after.obs)
    for wrong in ([], [3, 3], [5, 2], [-1, 2], [0, 600]):
        with pytest.raises(UsageError, match="are not places among the 600 genes of the store"):
            write_filtered_store(faulty_store, rows, tmp_path / "x", genes=np.array(wrong, int))
    assert not (tmp_path / "x").exists()


def test_what_cannot_be_assessed(faulty_store, tmp_path, write_store):
    with pytest.raises(UnknownNameError, match="Did you mean 'batch'"):
        assess_quality(faulty_store, batch="batches")
    with pytest.raises(UsageError, match="seed is -1"):
        assess_quality(faulty_store, seed=-1)
    with pytest.raises(UsageError, match="highly variable genes is -2"):
        assess_quality(faulty_store, hvg=-2)
    with pytest.raises(InputDataError, match="has no cells to assess"):
        assess_quality(write_store(tmp_path / "none", np.zeros((0, 2), int)))


def test_cells_without_a_batch_are_a_batch_of_their_own(tmp_path, write_store, random_counts):
    obs = pd.DataFrame({"b": ["x"] * 5 + [None] * 5}, index=[str(cell) for cell in range(10)])
    store = write_store(tmp_path / "s", random_counts(10, 60), obs=obs)
    table = assess_quality(store, batch="b", thresholds=Thresholds(mads=3))
    assert table.cells["batch"].tolist() == ["x"] * 5 + ["(none)"] * 5
    assert isinstance(table, QualityTable)


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_cells_are_measured_as_scanpy_does_and_most_are_kept(path, tmp_path):
    with open_cells(path) as store:
        table = assess_quality(store, thresholds=Thresholds(mads=5), doublets=True, hvg=500)
        memory = store.to_anndata()
        memory.X = memory.X.astype(np.float64)
        expected, genes = scanpy.pp.calculate_qc_metrics(memory, log1p=False)
        for name in expected.columns:
            np.testing.assert_array_equal(table.cells[name], expected[name].to_numpy())
        np.testing.assert_array_equal(table.genes["mean_counts"], genes["mean_counts"].to_numpy())
        assert len(table.rows) > 0.5 * len(store)
        assert table.summary["gene_sets"]["ribo"] > 50
        table.save(tmp_path / "qc")
        assert load_quality(tmp_path / "qc", store).summary == table.summary


def test_the_cells_that_scanpy_ships(tmp_path, write_store):
    """Counts are got back from the logarithms of `raw`, whose totals were 10,000 a cell."""
    shipped = scanpy.datasets.pbmc68k_reduced()
    totals = shipped.obs["n_counts"].to_numpy()[:, None] / 1e4
    counts = np.rint(np.expm1(shipped.raw.X.toarray()) * totals).astype(np.int64)
    var = pd.DataFrame(
        {"gene_symbol": shipped.raw.var_names.to_numpy()}, index=shipped.raw.var_names
    )
    obs = pd.DataFrame({"type": shipped.obs["bulk_labels"].astype(str)})
    store = write_store(tmp_path / "pbmc", counts, obs=obs, var=var, block=100)
    table = assess_quality(store, thresholds=Thresholds(mads=5, min_genes=50))
    assert table.summary["gene_sets"]["ribo"] == 4
    # The cells were through quality control already.
    assert len(table.rows) > 0.95 * len(store)
