"""The verb `qc`: what it writes and prints, and how it fails."""

from __future__ import annotations

import json
import sys

import pytest

from omics.data import open_store
from omics.data.command_line import make_app, run
from omics.data.commands.qc_command import add_to
from omics.data.export import write_h5ad
from omics.data.quality import load_quality


@pytest.fixture
def qc(monkeypatch, capsys, tmp_path):
    """Run the verb in the test's folder; return its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        app = make_app("omics-data", "For a test.")
        app.command()(lambda: None)  # With a single verb typer would not ask for its name.
        add_to(app)
        monkeypatch.setattr(sys, "argv", ["omics-data", "qc", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run(app)
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


def test_it_writes_tables_figures_and_the_kept_cells(qc, faulty_store, tmp_path):
    code, out, err = qc(
        faulty_store.path, "out", "--min-genes", 40, "--max-mito", 25, "--mads", 6, "--batch",
        "batch", "--min-cells", 3, "--hvg", 30, "--write-store", "kept.store",
    )  # fmt: skip
    assert code == 0, err
    table = load_quality(tmp_path / "out", faulty_store)
    assert f"wrote out: {len(table.rows)} of 300 cells kept" in out
    assert "  max_mito: " in out
    assert "  highly variable genes: 30 (genes.parquet)" in out
    assert "next: omics-data info kept.store" in out
    assert len(open_store(tmp_path / "kept.store")) == len(table.rows)
    assert (tmp_path / "out" / "distributions.png").exists()


def test_json_of_an_h5ad_file_with_doublets(qc, faulty_adata, tmp_path):
    write_h5ad(faulty_adata, tmp_path / "cells.h5ad")
    code, out, _ = qc(
        "cells.h5ad", "out", "--doublets", "--max-counts", 5000, "--json", "--no-figures"
    )
    assert code == 0
    said = json.loads(out)
    assert said["cells"] == 300
    assert [rule["name"] for rule in said["rules"]] == ["max_counts", "doublet"]
    assert said["path"] == "out"
    assert said["written_store"] is None


def test_without_rules_it_says_what_to_try(qc, faulty_store, tmp_path):
    code, out, _ = qc(faulty_store.path, "out", "--no-figures")
    assert code == 0
    assert not list(tmp_path.glob("out/*.png"))
    assert "no rule was set; try --mads 5" in out
    code, _, err = qc(faulty_store.path, "out")
    assert code == 2
    assert "out exists; choose another path or add --overwrite" in err
    assert qc(faulty_store.path, "out", "--overwrite", "--no-figures")[0] == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--min-genes", 9, "--max-genes", 3], 2, "no cell can meet both"),
        (["--batch", "lane"], 2, "has no column 'lane'"),
        (["--hvg", 5, "--hvg-flavor", "seurat9"], 2, "no flavour 'seurat9'"),
        (["--doublets", "--doublet-memory", 0.1, "--batch", "donor", "--no-figures"], 0, ""),
        (["--scheduler", "somewhere"], 2, "is not an address such as tcp://127.0.0.1:8786"),
    ],
)
def test_options_that_do_not_do(qc, faulty_store, tmp_path, options, code, message):
    found, _, err = qc(faulty_store.path, "out", *options)
    assert found == code, err
    assert message in err
    assert (tmp_path / "out").exists() == (code == 0)
