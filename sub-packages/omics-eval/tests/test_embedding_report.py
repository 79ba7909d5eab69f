"""One call: counts in; embedded cells, a UMAP and the report out."""

from __future__ import annotations

import sys

import anndata as ad
import numpy as np
import pytest

from omics.data import load_split, synthesize
from omics.data.errors import MissingExtraError
from omics.eval import embed_and_report, embedding_report
from omics.eval.embedding import embed
from omics.eval.embedding_report import split_beside

LABEL = "cell_type"


@pytest.fixture
def file(planted_cells, tmp_path):
    planted_cells.adata.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


@pytest.fixture
def model(planted_cells):
    return planted_cells.bundle.path


@pytest.fixture
def places(monkeypatch):
    """The first two dimensions in the place of UMAP, which has its own test; counts the calls."""
    called = []

    def first_two(embedding, *, seed, max_cells=0):
        called.append(seed)
        rows = np.flatnonzero(~np.isnan(embedding).any(axis=1))
        return rows, embedding[rows, :2]

    for module in ("projection", "report_inputs"):
        monkeypatch.setattr(f"omics.eval.{module}.umap_coordinates", first_two)
    return called


def test_one_call_gives_cells_a_umap_and_the_report(
    command, file, model, places, planted_cells, tmp_path
):
    out, page, picture = (tmp_path / name for name in ("out.h5ad", "page.html", "cells.png"))
    arguments = (
        *("embed", file, "--model", model, "--out", out, "--label", LABEL, "--seed", 5),
        *("--report", page, "--umap", picture, "--device", "cpu"),
    )
    code, said, error = command(*arguments)
    assert (code, error) == (0, "")
    lines = said.splitlines()
    assert lines[0].startswith("400 cells on cpu: about ")
    assert f"{picture}: 400 cells in the plane, obsm['X_umap']" in lines
    assert f"{split_beside(out)}: the split of the report, by cell_type with the seed 5" in lines
    assert lines[-1] == str(page)
    found = ad.read_h5ad(out)
    expected = embed(planted_cells.adata.copy(), planted_cells.bundle, device="cpu")
    assert np.array_equal(found.obsm["X_omics"], expected.obsm["X_omics"])
    # Projected once, for the cells, the figure and the page.
    assert places == [5]
    assert np.array_equal(found.obsm["X_umap"], found.obsm["X_omics"][:, :2])
    assert found.uns["omics"]["X_omics"]["umap"]["seed"] == 5
    assert len(found.uns[f"{LABEL}_colors"]) == found.obs[LABEL].nunique()
    assert picture.read_bytes()[:4] == b"\x89PNG"
    split = load_split(split_beside(out))
    assert split.seed == 5
    assert split.sizes["test"] == pytest.approx(80, abs=2)
    html = page.read_text(encoding="utf-8")
    assert "frozen embedding" in html
    assert f"omics-eval embed {file}" in html
    code, _, error = command(*arguments)
    assert (code, "out.h5ad exists" in error) == (2, True)
    first = picture.read_bytes()
    assert command(*arguments, "--overwrite")[0] == 0
    assert picture.read_bytes() == first


def test_a_split_that_is_given_is_used_and_none_is_written(
    file, model, places, planted_cells, split_by, tmp_path
):
    split_by(planted_cells.adata, np.arange(400) % 3).save(tmp_path / "mine.parquet")
    record = embed_and_report(
        *(file, model, tmp_path / "out.h5ad"),
        report=tmp_path / "page.html",
        label=LABEL,
        split=tmp_path / "mine.parquet",
        device="cpu",
    )
    assert "umap" not in record
    assert not split_beside(tmp_path / "out.h5ad").exists()
    assert "X_umap" not in ad.read_h5ad(tmp_path / "out.h5ad").obsm
    assert "133 test cells" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("places")
def test_a_umap_alone_needs_no_label(file, model, tmp_path):
    out = tmp_path / "out.h5ad"
    record = embed_and_report(file, model, out, umap=tmp_path / "u.png", key_added="X_mine")
    assert record["umap"]["num_cells"] == 400
    assert set(ad.read_h5ad(out).obsm) == {"X_mine", "X_umap"}


@pytest.mark.usefixtures("places")
def test_colours_of_the_input_stay(file, model, planted_cells, tmp_path):
    cells = planted_cells.adata.copy()
    mine = ["#010101", "#020202", "#030303"]
    cells.uns[f"{LABEL}_colors"] = np.array(mine, dtype=object)
    cells.write_h5ad(file)
    embed_and_report(file, model, tmp_path / "o.h5ad", umap=tmp_path / "u.png", label=LABEL)
    assert list(ad.read_h5ad(tmp_path / "o.h5ad").uns[f"{LABEL}_colors"]) == mine


@pytest.mark.usefixtures("places")
def test_a_sketch_is_owned_up_to_by_command_report_and_annotate(command, file, model, tmp_path):
    out, page = tmp_path / "out.h5ad", tmp_path / "page.html"
    code, said, _ = command(
        *("embed", file, "--model", model, "--out", out, "--max-cells", 100, "--label", LABEL),
        *("--report", page, "--device", "cpu"),
    )
    assert code == 0
    assert said.startswith("100 cells on cpu: about ")
    assert "The model embedded 100 of them; 300 have a mean of their neighbours" in said
    split = load_split(split_beside(out))
    sources = ad.read_h5ad(out).obs["X_omics_source"].to_numpy()[split.rows("test")]
    note = (
        f"{(sources == 'neighbours').sum()} of {len(sources)} test cells have their X_omics from "
        "neighbours in a PCA of counts"
    )
    assert note in page.read_text(encoding="utf-8")
    annotate = ("annotate", out, "--label", LABEL, "--split", split_beside(out))
    code, said, _ = command(*annotate, "--out", tmp_path / "a.h5ad")
    assert (code, note in said) == (0, True)
    code, said, _ = command(*annotate, "--out", tmp_path / "b.h5ad", "--json")
    assert (code, note in said) == (0, True)


def test_quiet_says_nothing(command, file, model, tmp_path):
    code, said, error = command(
        "-q", "embed", file, "--model", model, "--out", tmp_path / "out.h5ad"
    )
    assert (code, said, error) == (0, "", "")


@pytest.mark.parametrize(
    ("options", "exit_code", "message"),
    [
        (["--report", "p.html"], 2, "A report is about a label: name the column of obs"),
        (["--report", "p.html", "--label", "cell_tpye"], 2, "Did you mean 'cell_type'"),
        (["--umap", "u.png", "--label", "cell_tpye"], 2, "Did you mean 'cell_type'"),
        (["--report", "p.html", "--label", "only"], 3, "hold only 'same' in 'only'"),
        (["--label", "cell_type"], 2, "A label is for a report (report, --report) or a UMAP"),
        (["--split", "s.parquet"], 2, "A split is for a report"),
        (["--umap", "u.svg"], 2, "u.svg is no name of a UMAP: it must end with .png"),
        (["--report", "out.h5ad", "--label", "cell_type"], 2, "out.h5ad would be written twice"),
        (["--report", "there", "--label", "cell_type"], 2, "there exists; choose another path"),
        (["--umap", "no/u.png"], 2, "There is no folder"),
        (["--max-cells", "0"], 2, "Invalid value for '--max-cells'"),
        (["--model", "geneformer-v2-105m"], 2, "Did you mean 'geneformer-v2-104m'"),
        (["--level", "gene", "--max-cells", "9"], 2, "--max-cells is about vectors of cells"),
        (["--level", "gene", "--umap", "u.png"], 2, "--umap is about vectors of cells"),
        (["--split", "none.parquet", "--report", "p.html", "--label", "cell_type"], 2, "no split"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(
    command, file, model, planted_cells, tmp_path, monkeypatch, options, exit_code, message
):
    cells = planted_cells.adata.copy()
    cells.obs["only"] = "same"
    cells.write_h5ad(file)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_text("mine")
    before = sorted(tmp_path.iterdir())
    monkeypatch.delattr("omics.models.model.OmicsModel.forward")
    chosen = [] if "--model" in options else ["--model", model]
    code, _, error = command("embed", file, "--out", "out.h5ad", *chosen, *options)
    assert (code, message in " ".join(error.split())) == (exit_code, True), error
    assert sorted(tmp_path.iterdir()) == before


def test_coordinates_that_are_there_are_not_replaced(command, file, model, planted_cells, tmp_path):
    cells = planted_cells.adata.copy()
    cells.obsm["X_umap"] = np.ones((400, 2), np.float32)
    cells.write_h5ad(file)
    arguments = ("embed", file, "--model", model, "--out", tmp_path / "out.h5ad")
    code, _, error = command(*arguments, "--umap", tmp_path / "u.png")
    assert (code, "obsm already holds 'X_umap'" in error) == (2, True)
    assert command(*arguments)[0] == 0
    assert (ad.read_h5ad(tmp_path / "out.h5ad").obsm["X_umap"] == 1).all()


@pytest.mark.parametrize("missing", ["umap", "matplotlib.figure"])
def test_a_missing_extra_is_told_before_any_work(file, model, tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'omics-eval\[plots\]'"):
        embed_and_report(file, model, tmp_path / "o.h5ad", umap=tmp_path / "u.png")
    assert not (tmp_path / "o.h5ad").exists()


def test_cells_of_which_the_model_sees_nothing_are_written_and_not_reported(
    command, model, planted_cells, tmp_path
):
    genes = list(planted_cells.adata.var_names)
    cells = synthesize(30, len(genes) + 5, num_types=2, mean_genes=20, seed=1)
    cells.var_names = [*genes, *(f"other {i}" for i in range(5))]
    counts = cells.X.toarray()
    counts[:, : len(genes)] = 0
    counts[:, -1] = 1 + np.arange(30)
    cells.X = type(cells.X)(counts)
    cells.write_h5ad(tmp_path / "in.h5ad")
    arguments = ("embed", tmp_path / "in.h5ad", "--model", model, "--out")
    code, said, _ = command(*arguments, tmp_path / "a.h5ad", "--umap", tmp_path / "u.png")
    assert code == 0
    assert "30 cells without one (see obs['omics_reason'])" in said
    assert "There is no UMAP: too few cells have an embedding" in said
    assert np.isnan(ad.read_h5ad(tmp_path / "a.h5ad").obsm["X_umap"]).all()
    code, _, error = command(
        *(*arguments, tmp_path / "b.h5ad", "--label", LABEL, "--report", tmp_path / "r.html")
    )
    assert (code, "The 0 usable reference cells hold none" in error) == (3, True)
    assert np.isnan(ad.read_h5ad(tmp_path / "b.h5ad").obsm["X_omics"]).all()
    assert not (tmp_path / "r.html").exists()
    code, said, _ = command(*arguments, tmp_path / "c.h5ad", "--max-cells", 3)
    assert (code, "30 cells without one" in said) == (0, True)


def test_a_report_reads_what_was_written(file, model, places, tmp_path, monkeypatch):
    """The page is about the file on disk, so a fault in it cannot hide behind what is in memory."""
    read = []
    monkeypatch.setattr(
        embedding_report, "read_cells", lambda path: read.append(path) or ad.read_h5ad(path)
    )
    embed_and_report(
        file, model, tmp_path / "o.h5ad", report=tmp_path / "r.html", label=LABEL, device="cpu"
    )
    assert read == [tmp_path / "o.h5ad"]
    assert places == [0]
