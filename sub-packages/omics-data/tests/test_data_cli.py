"""The command `omics-data`: what it prints, and the exit code of every kind of failure."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pytest
import scanpy
from scipy import sparse

from omics.data import load_split, open_store, synthesize
from omics.data.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def omics_data(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    """Run the command in the test's folder; return its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    # Help and usage errors are laid out for the width of the terminal.
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["omics-data", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    path = tmp_path / "cells.h5ad"
    synthesize(60, 40, seed=1, mean_genes=20).write_h5ad(path)
    return path


def test_the_way_from_file_to_split(omics_data: Run, tmp_path: Path) -> None:
    code, out, _ = omics_data("synthesize", "a.h5ad", "--cells", 80, "--genes", 50, "--seed", 2)
    assert code == 0
    assert "wrote a.h5ad: 80 cells x 50 genes" in out
    code, out, _ = omics_data("check", "a.h5ad")
    assert code == 0
    commands = [line.strip() for line in out.splitlines() if line.startswith("  omics-data")]
    assert len(commands) == 2
    code, out, _ = omics_data(*commands[0].split()[1:])
    assert code == 0
    assert "wrote a.store: 80 cells x 50 genes" in out
    code, out, _ = omics_data(*commands[1].split()[1:])
    assert code == 0
    assert "wrote a.split.parquet: train 56, validation 8, test 16" in out
    split = load_split(tmp_path / "a.split.parquet", open_store(tmp_path / "a.store"))
    assert split.method["column"] == "cell_type"
    code, out, _ = omics_data("info", "a.store")
    assert code == 0
    assert "a.store   store, generation 1" in out
    code, out, _ = omics_data("verify", "a.store")
    assert code == 0
    assert "a.store is whole" in out
    code, out, _ = omics_data("export", "a.store", "b.h5ad")
    assert code == 0
    found, made = anndata.read_h5ad(tmp_path / "b.h5ad"), anndata.read_h5ad(tmp_path / "a.h5ad")
    assert (found.X != made.X).nnz == 0


def test_whole_perturbations_are_held_out(omics_data: Run, cells: Path, tmp_path: Path) -> None:
    omics_data("convert", cells, "s")
    about = ("--perturbation", "donor", "--control", "donor0")
    code, out, _ = omics_data("split", "s", "a.parquet", *about, "--held-out", "donor2")
    assert code == 0
    assert "wrote a.parquet: train " in out
    store = open_store(tmp_path / "s")
    split = load_split(tmp_path / "a.parquet", store)
    assert set(store.obs["donor"][split.rows("test")]) == {"donor2"}
    shares = ("--fractions", "0.5,0.2,0.3", "--hold-out", "genes", "--separator", "/")
    code, _, _ = omics_data("split", "s", "b.parquet", *about, *shares, "--seed", 2)
    assert code == 0
    method = load_split(tmp_path / "b.parquet", store).method
    assert (method["hold_out"], method["separator"]) == ("genes", "/")


def test_machine_readable_results(omics_data: Run, cells: Path) -> None:
    omics_data("convert", cells, "s")
    results = {}
    for arguments in (
        ("check", cells),
        ("check", "s"),
        ("info", "s"),
        ("verify", "s"),
        ("split", "s", "x.parquet", "--group", "donor"),
    ):
        code, out, _ = omics_data("--quiet", *arguments, "--json")
        assert code == 0
        results[arguments[0], str(arguments[1])] = json.loads(out)
    assert results["check", str(cells)]["counts_location"] == "X"
    assert results["check", "s"] == results["info", "s"]
    assert results["info", "s"]["num_cells"] == 60
    assert results["verify", "s"]["generation"] == 1
    assert sum(results["split", "s"]["sizes"].values()) == 60
    assert results["split", "s"]["leakage"]["shared_groups"] == []


def test_quiet_prints_results_only(omics_data: Run, cells: Path) -> None:
    assert omics_data("-q", "convert", cells, "s") == (0, "", "")
    code, out, _ = omics_data("-q", "check", cells)
    assert code == 0
    assert "60 cells x 40 genes" in out


def test_remarks_are_printed(omics_data: Run, tmp_path: Path) -> None:
    adata = synthesize(30, 20, seed=1)
    adata.X = sparse.csr_matrix(np.repeat(adata.X[0].toarray(), 30, axis=0))
    adata.obs_names = ["same"] * 30
    with pytest.warns(UserWarning, match="Observation names are not unique"):
        anndata.AnnData(adata.X, adata.obs, adata.var).write_h5ad(tmp_path / "a.h5ad")
    _, out, _ = omics_data("convert", "a.h5ad", "s")
    assert "note: 29 cell names occur more than once (kept)" in out
    _, out, _ = omics_data("split", "s", "a.parquet")
    assert "note: 9 cells equal a cell of another split gene by gene (rows" in out
    (tmp_path / "s" / "gen-1" / "notes.txt").write_text("x")
    _, out, _ = omics_data("verify", "s")
    assert "files that do not belong to it: notes.txt" in out


FAILURES: list[tuple[list[str], int, str]] = [
    (["convert", "page.h5ad", "s"], 3, "it looks like a web page (HTML)"),
    (["check", "page.h5ad"], 3, "is not an HDF5 file"),
    (["convert", "log1p.h5ad", "s"], 3, "X holds log1p values, log(1 + x) of counts scaled to"),
    (["convert", "log1p.h5ad", "s", "--counts", "X"], 3, "not raw counts"),
    (["convert", "cells.h5ad", "s", "--allow-non-counts"], 2, "only from a named place"),
    (["convert", "cells.h5ad", "s", "--counts", "layer/counts"], 2, "no matrix 'layer/counts'"),
    (["convert", "none.h5ad", "s"], 2, "There is no file or folder none.h5ad"),
    (["check", "none.h5ad"], 2, "There is no file or folder none.h5ad"),
    (["info", "none"], 2, "does not exist"),
    (["info", "cells.h5ad"], 3, "is a file, not a store"),
    (["convert", "cells.h5ad", "store"], 2, "holds a store already"),
    (["convert", "folder", "s"], 3, "is no source of cells"),
    (["split", "store", "a.parquet", "--stratify", "cel_type"], 2, "Did you mean 'cell_type'?"),
    (["split", "store", "page.h5ad"], 2, "add --overwrite"),
    (["split", "store", "a.parquet", "--fractions", "most"], 2, "is not three numbers"),
    (["split", "store", "a.parquet", "--fractions", "0.5,0.5"], 2, "Fractions are three numbers"),
    (["split", "store", "a.parquet", "--group", "a", "--column", "b"], 2, "Give one of"),
    (
        ["split", "store", "a.parquet", "--group", "a", "--perturbation", "b", "--control", "c"],
        2,
        "Give",
    ),
    (["split", "store", "a.parquet", "--perturbation", "donor"], 2, "add --control"),
    (["split", "store", "a.parquet", "--held-out", "donor0"], 2, "add --perturbation"),
    (["split", "store", "a.parquet", "--control", "donor0"], 2, "add --perturbation"),
    (["export", "store", "page.h5ad"], 2, "add --overwrite"),
    (["synthesize", "page.h5ad"], 2, "add --overwrite"),
    (["verify", "damaged"], 4, "counts.bin"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "words"), FAILURES, ids=[" ".join(each[0]) for each in FAILURES]
)
def test_a_failure_is_one_paragraph_with_its_exit_code(
    arguments: list[str], code: int, words: str, omics_data: Run, cells: Path, tmp_path: Path
) -> None:
    (tmp_path / "page.h5ad").write_text("<!DOCTYPE html><html></html>")
    (tmp_path / "folder").mkdir()
    adata = anndata.read_h5ad(cells)
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    scanpy.pp.log1p(adata)
    adata.write_h5ad(tmp_path / "log1p.h5ad")
    for name in ("store", "damaged"):
        assert omics_data("convert", cells, name)[0] == 0
    file = tmp_path / "damaged" / "gen-1" / "counts.bin"
    data = np.frombuffer(file.read_bytes(), np.uint8).copy()
    data[7] ^= 2
    file.write_bytes(data.tobytes())
    found, out, err = omics_data(*arguments)
    assert found == code
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in out + err
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "a.parquet").exists()


def test_a_misspelt_option_or_verb_is_a_usage_error(omics_data: Run, cells: Path) -> None:
    code, _, err = omics_data("convert", cells, "s", "--overwite")
    assert code == 2
    assert "--overwrite" in err
    code, _, err = omics_data("conver", cells, "s")
    assert code == 2
    assert "conver" in err


def test_verbose_shows_where_an_error_arose(omics_data: Run) -> None:
    code, _, err = omics_data("-v", "check", "none.h5ad")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: ")


def test_every_verb_explains_itself(omics_data: Run) -> None:
    code, out, _ = omics_data("--help")
    assert code == 0
    for verb in ("check", "convert", "info", "verify", "split", "export", "synthesize"):
        assert verb in out
        code, explained, _ = omics_data(verb, "--help")
        assert code == 0
        assert f" {verb} [OPTIONS]" in explained


def test_values_that_are_no_counts_are_kept_when_asked(
    omics_data: Run, cells: Path, tmp_path: Path
) -> None:
    adata = anndata.read_h5ad(cells)
    adata.X = adata.X * np.float32(0.25)
    adata.write_h5ad(tmp_path / "f.h5ad")
    code, out, _ = omics_data("convert", "f.h5ad", "s", "--counts", "X", "--allow-non-counts")
    assert code == 0
    assert "from X" in out
    assert open_store(tmp_path / "s").value_kind == "float"


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    synthesize(40, 30, seed=0).write_h5ad("pbmc.h5ad")
    readme = Path(__file__).parents[1] / "README.md"
    example = readme.read_text().split("```python\n")[1].split("```")[0]
    Path("example.py").write_text(example)
    assert len(runpy.run_path("example.py")["adata"]) == 28
