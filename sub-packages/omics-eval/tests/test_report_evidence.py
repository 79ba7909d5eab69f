"""What the report shows beside scores: crossings of the split, genes with their checks, cards."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from omics.data.errors import InputDataError, MissingPathError, UnknownNameError
from omics.eval.report import render_report
from omics.eval.report_evidence import Card, crossings, read_cards, read_genes
from omics.eval.report_inputs import ReportRequest, gather_report
from omics.eval.results import EvalResult, write_results

LABEL = "bulk_labels"


@pytest.fixture
def genes_folder(tmp_path):
    """What `attribute` leaves, in small."""
    folder = tmp_path / "genes"
    folder.mkdir()
    table = pd.DataFrame(
        {
            "class": ["<b>B</b>", "<b>B</b>", "T"],
            "symbol": ["CD79A", "MS4A1", "CD3D"],
            "score": [0.5, 0.4, 0.3],
            "low": [0.4, 0.3, 0.2],
            "high": [0.6, 0.5, 0.4],
        }
    )
    table.to_parquet(folder / "top_genes.parquet")
    shared = {"dataset": "d", "method": "m", "n": 9, "seed": 0, "bundle": "digest"}
    rows = [
        EvalResult(task="attribute:t", metric="drop_top", value=2.5, low=2.0, high=3.0, **shared),
        EvalResult(
            task="attribute:t=<b>B</b>",
            metric="top_genes_shared_by_halves",
            value=0.75,
            low=np.nan,
            high=np.nan,
            **shared,
        ),
    ]
    write_results(folder / "checks.parquet", rows)
    return folder


def cells_and_split(split_by, donors):
    rows = [[1, 0, 2], [0, 3, 0], [1, 0, 2], [0, 0, 0], [0, 0, 0], [4, 0, 0]]
    counts = sparse.csr_matrix(np.array(rows, np.float32))
    adata = ad.AnnData(counts, obs=pd.DataFrame({"donor": donors}, index=list("abcdef")))
    return adata, counts, split_by(adata, np.array([0, 0, 2, 0, 2, 1], np.int8))


def test_equal_cells_and_shared_donors_are_found(split_by):
    adata, counts, split = cells_and_split(split_by, ["x", "x", "y", "x", "x", None])
    cells, donors = crossings(adata, counts, split, "donor")
    assert (cells.found, cells.is_sound) == ("1 (rows 0 and 2)", False)
    assert (donors.what, donors.found) == ("Values of donor in more than one part", "1 (x)")
    assert not donors.is_sound


def test_a_clean_split_is_sound(split_by):
    adata, _, split = cells_and_split(split_by, ["x", "x", "y", "x", "y", "z"])
    counts = sparse.csr_matrix(np.arange(18, dtype=np.float32).reshape(6, 3))
    found = crossings(adata, counts, split, "donor")
    assert [(each.found, each.is_sound) for each in found] == [("none", True)] * 2
    assert len(crossings(adata, counts, split, None)) == 1
    with pytest.raises(UnknownNameError, match="Did you mean 'donor'"):
        crossings(adata, counts, split, "doner")


def test_genes_come_with_their_checks(genes_folder):
    genes = read_genes(genes_folder)
    assert b"CD79A" in genes.picture.data
    first, second = genes.checks
    assert first[:2] == ("drop_top", "")
    assert (first[2].value, first[2].low) == (2.5, 2.0)
    assert second[:2] == ("top_genes_shared_by_halves", "<b>B</b>")


def test_genes_without_checks_are_shown_all_the_same(genes_folder):
    (genes_folder / "checks.parquet").unlink()
    assert read_genes(genes_folder).checks == []


def test_genes_that_are_not_there_or_damaged_are_named(genes_folder, tmp_path):
    with pytest.raises(MissingPathError, match="omics-eval attribute"):
        read_genes(tmp_path)
    pd.DataFrame({"class": ["B"]}).to_parquet(genes_folder / "top_genes.parquet")
    with pytest.raises(InputDataError, match="is not a table of top genes"):
        read_genes(genes_folder)
    (genes_folder / "top_genes.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(InputDataError, match="is not a table of top genes"):
        read_genes(genes_folder)


def test_cards_say_what_bundles_are(bundle_folder, bundle):
    (card,) = read_cards([str(bundle_folder)])
    assert card.name == str(bundle_folder)
    sections = {title: dict(rows) for title, rows in card.sections}
    parameters = sum(each.numel() for each in bundle.model.parameters())
    assert sections["What it is"]["parameters"] == f"{parameters:,}"
    assert "embedding of a cell" in sections["What it gives"]
    with pytest.raises(MissingPathError, match="There is no model"):
        read_cards(["nowhere"])


def test_the_page_shows_all_of_it_as_text(pbmc, pbmc_split, genes_folder, monkeypatch):
    monkeypatch.setattr(
        "omics.eval.report_inputs.umap_coordinates",
        lambda embedding, **_: (np.arange(len(embedding)), embedding[:, :2]),
    )
    pbmc.obsm["X_omics"] = np.random.default_rng(0).normal(size=(700, 4)).astype(np.float32)
    pbmc.obs["phase"] = ["G1", "S"] * 350
    evil = Card(name="<script>", sections=[("What it is", [("x", "<img src=y>")])])
    monkeypatch.setattr("omics.eval.report_inputs.read_cards", lambda _: [evil])
    request = ReportRequest(
        label=LABEL, dataset="pbmc", genes=genes_folder, models=["m"], group="phase"
    )
    html = render_report(gather_report(pbmc, pbmc_split, request))
    for part in (
        "Genes behind the answers",
        "drop top",
        "&lt;b&gt;B&lt;/b&gt;",
        "What crosses the split",
        "Cells with the counts of a cell in another part: none.",
        "Values of phase in more than one part: <b>2 (G1, S)</b>",
        "<h3>&lt;script&gt;</h3>",
        "&lt;img src=y&gt;",
    ):
        assert part in html, part
    assert "<script" not in html
    assert "<img src=y" not in html
