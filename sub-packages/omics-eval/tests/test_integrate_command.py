from __future__ import annotations

import json

import pytest
from integration_cells import counted_cells

from omics.eval import read_results


@pytest.fixture
def cells_file(tmp_path):
    counted_cells(120).write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def test_integrate_prints_a_verdict_a_table_and_times(command, cells_file, tmp_path):
    arguments = ("integrate", cells_file, "--label", "kind", "--batch", "donor")
    results = tmp_path / "scores.parquet"
    code, out, _ = command(
        *(*arguments, "--use-rep", "X_good", "--use-rep", "X_random", "--results", results)
    )
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("X_good is better than PCA at keeping cell types apart (0.")
    assert lines[1] == "120 cells, 95% intervals over cells; 1 is best"
    assert lines[2].split() == ["X_good", "X_random", "PCA"]
    assert lines[3].startswith("avg_bio ")
    assert lines[3].count("[") == 3
    assert "X_good minus PCA" in lines
    assert "p < 0.001" in out
    assert any(line.startswith("PCA, seconds: neighbours 0.") for line in lines)
    rows = read_results(results)
    assert {row.method for row in rows} == {
        *("X_good", "X_random", "PCA", "X_good minus X_random", "X_good minus PCA")
    }
    code, _, error = command(*arguments, "--use-rep", "X_good", "--results", results)
    assert (code, "exists; choose another path or add --overwrite" in error) == (2, True)


def test_integrate_as_json_has_null_for_what_has_no_interval(command, cells_file):
    code, out, _ = command(
        "integrate", cells_file, "--label", "kind", "--use-rep", "X_good", "--json"
    )
    assert code == 0
    record = json.loads(out)
    assert record["verdict"].startswith("X_good is better than PCA")
    by_metric = {row["metric"]: row for row in record["results"] if row["method"] == "X_good"}
    assert by_metric["nmi_mean"]["low"] is None
    assert by_metric["nmi"]["low"] <= by_metric["nmi"]["value"]
    assert set(record["seconds"]["PCA"]) == {"neighbours", "silhouettes", "lisi", "clusters"}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--label", "kind"), 2, "obsm has no embedding 'X_omics'"),
        (("--label", "kind", "--use-rep", "X_good", "--batch", "doner"), 2, "Did you mean 'donor'"),
        (("--label", "kind", "--use-rep", "X_good", "--compare", "ligre"), 2, "no method 'ligre'"),
    ],
)
def test_bad_input_ends_in_a_line(command, cells_file, options, code, message):
    ended, _, error = command("integrate", cells_file, *options)
    assert (ended, message in error) == (code, True), error
