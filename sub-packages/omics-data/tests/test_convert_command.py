"""`omics-data convert`: many sources, their options, the coverage table, JSON for machines."""

from __future__ import annotations

import json
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from omics.data import open_store
from omics.data.command_line import make_app, run
from omics.data.commands.convert_command import add_to


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run the verb in the test's folder; return its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    app = make_app("omics-data", "Test.")
    add_to(app)
    app.command("other")(lambda: None)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["omics-data", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run(app)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def two(tmp_path):
    for seed, (name, genes) in enumerate([("a", "ABC"), ("b", "BCD")]):
        counts = np.random.default_rng(seed).integers(1, 9, (4, 3)).astype(np.float32)
        obs = pd.DataFrame(index=[f"c{n}" for n in range(4)])
        adata = anndata.AnnData(sparse.csr_matrix(counts), obs, pd.DataFrame(index=list(genes)))
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    return tmp_path


def test_several_sources_and_a_table_of_their_genes(command, two):
    code, out, _ = command("a.h5ad", "b.h5ad", "s", "--prefix-names", "--join", "intersection")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "2 sources, 8 cells, 2 genes in common table"
    assert lines[1].split()[:3] == ["source", "genes", "matched"]
    assert lines[2].split()[:4] == ["a", "3", "2", "2"]
    assert "wrote s: 8 cells x 2 genes" in out
    assert "next: omics-data info s" in out
    assert open_store("s").obs.names.tolist()[0] == "a:c0"


def test_a_folder_with_tables_about_genes_as_json(command, two):
    data = two / "data"
    data.mkdir()
    for name in "ab":
        (two / f"{name}.h5ad").rename(data / f"{name}.h5ad")
    (data / "notes.txt").write_text("x")
    (two / "aliases.csv").write_text("D,A\n")
    (two / "genes.txt").write_text("A\nB\n")
    (two / "medians.tsv").write_text("gene\tmedian\nA\t2\nB\t3\n")
    code, out, err = command(
        "data", "s", "--gene-aliases", "aliases.csv", "--genes", "genes.txt", "--join", "list",
        "--layout", "packed", "--rank-medians", "medians.tsv", "--no-resume", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["num_cells"] == 8
    assert found["num_genes"] == 2
    assert found["skipped"] == ["data/notes.txt"]
    assert found["coverage"][1]["renamed"] == 1
    assert found["duplicate_cell_names"] == 4
    store = open_store("s")
    assert store.digest == found["digest"]
    assert store.layout == "packed"
    assert store.rank_digest is not None


def test_one_source_is_told_as_ever(command, two):
    code, out, _ = command("a.h5ad", "s")
    assert code == 0
    assert out.splitlines()[0].startswith("wrote s: 4 cells x 3 genes, 12 non-zeros from X")
    assert command("a.h5ad", "s")[0] == 2
    assert command("a.h5ad", "s", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["a.h5ad", "s", "--join", "unoin"], 2, "Did you mean 'union'"),
        (["a.h5ad", "s", "--repeated-genes", "add"], 2, "repeated is 'add'"),
        (["a.h5ad", "s", "--option", "x"], 2, "--option 'x' is not NAME=VALUE"),
        (
            ["a.h5ad", "s", "--option", "nothing=1"],
            2,
            "The reader for h5ad has no option 'nothing'",
        ),
        (["a.h5ad", "s", "--allow-non-counts"], 2, "only from a named place"),
        (
            ["a.h5ad", "b.h5ad", "s", "--gene-id-column", "k"],
            2,
            "No source has the gene column 'k'",
        ),
        (["a.h5ad", "s", "--genes", "none.txt"], 2, "There is no file none.txt"),
        (["a.h5ad", "a.h5ad", "s"], 2, "given twice"),
        (["a.h5ad", "s", "--scheduler", "nowhere"], 5, "nowhere cannot be reached"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(command, two, arguments, code, message, monkeypatch):
    monkeypatch.setattr("omics.data.converting.cluster_conversion.CONNECT_TIMEOUT_S", 0.5)
    found, _, err = command(*arguments)
    assert found == code, err
    assert message in err
    assert err.count("\n") == 1
    assert not (two / "s").exists()
