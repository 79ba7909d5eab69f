"""The verb `perturb`: files in, a table of scores out, every bad input in a line."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from omics.data import convert, make_perturbation_split
from omics.eval import read_results

GENES = [f"g{i}" for i in range(20)]


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("screen")
    names = ["ctrl", *GENES[:6], "g0+g1", "g2+g3"] * 10
    generator = np.random.default_rng(0)
    effect = {name: generator.normal(0, 0.5, 20) for name in GENES[:6]}
    logs = [
        sum(effect[p] for p in name.split("+") if p in effect) + np.full(20, 3) for name in names
    ]
    cells = ad.AnnData(
        generator.poisson(np.exp(logs)).astype(np.float32),
        obs=pd.DataFrame({"target": names}, index=[f"c{i}" for i in range(90)]),
        var=pd.DataFrame(index=GENES),
    )
    cells.write_h5ad(folder / "cells.h5ad")
    store = convert(folder / "cells.h5ad", folder / "cells.store")
    split = make_perturbation_split(
        store, column="target", control="ctrl", held_out=["g0+g1", "g2+g3", "g5"]
    )
    split.save(folder / "split.parquet")
    cells[np.isin(names, ["g0+g1", "g2+g3", "g5"])].write_h5ad(folder / "predicted.h5ad")
    return folder


@pytest.fixture
def arguments(screen):
    truth = ("--truth", screen / "cells.store", "--perturbation", "target", "--control", "ctrl")
    return ("perturb", screen / "predicted.h5ad", *truth, "--prediction-values", "counts")


def test_scores_are_printed_and_written(command, arguments, screen, tmp_path):
    code, out, error = command(
        *(*arguments, "--split", screen / "split.parquet", "--out", tmp_path / "results.parquet"),
        *("--each", tmp_path / "each.csv", "--name", "mine", "--seed", 3),
    )
    assert (code, error) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "20 genes, 95% intervals over perturbations"
    assert lines[1] == "perturb:target, 3 perturbations"
    assert lines[2].split() == [
        *("delta_pearson", "delta_pearson_de", "mae", "discrimination", "direction_accuracy_de"),
    ]
    assert lines[3].startswith("mine ")
    assert "1.000 [1.000, 1.000]" in lines[3]
    assert any(line.startswith("mine minus additive ") for line in lines)
    assert "perturb:target:combo_seen2, 2 perturbations" in lines
    assert "perturb:target:single, 1 perturbations" in lines
    assert lines[-1] == str(tmp_path / "results.parquet")
    rows = read_results(tmp_path / "results.parquet")
    assert {row.dataset for row in rows} == {"cells.store"}
    assert {row.seed for row in rows} == {3}
    assert next(r.value for r in rows if (r.method, r.metric) == ("mine", "delta_pearson")) == 1
    each = pd.read_csv(tmp_path / "each.csv")
    assert each["perturbation"].tolist()[:3] == ["g0+g1", "g2+g3", "g5"]
    assert set(each["method"]) >= {"mine", "no change", "linear"}


def test_scores_as_json_and_without_a_split(command, arguments, tmp_path):
    code, out, _ = command(*arguments, "--out", tmp_path / "results.parquet", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["genes"], found["genes_left_out"], found["notes"]) == (20, 0, [])
    assert {row["n"] for row in found["results"]} == {1, 2, 3}
    by_row = {(row["task"], row["method"], row["metric"]): row for row in found["results"]}
    alone = by_row["perturb:target:single", "model", "mae"]
    assert (alone["value"], alone["low"], alone["high"]) == (0, 0, None)


def test_genes_left_out_are_told(command, arguments, screen, tmp_path):
    cells = ad.read_h5ad(screen / "predicted.h5ad")[:, :15]
    cells.write_h5ad(tmp_path / "fewer.h5ad")
    fewer = ("perturb", tmp_path / "fewer.h5ad", *arguments[2:], "--out", tmp_path / "r.parquet")
    code, _, error = command(*fewer)
    assert (code, "leave them out for every method with --shared-genes" in error) == (3, True)
    assert not (tmp_path / "r.parquet").exists()
    code, out, _ = command(*fewer, "--shared-genes")
    assert code == 0
    assert out.startswith("15 genes (5 that are not predicted left out)")


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (["--control", "control"], 3, "has no 'control' there"),
        (["--perturbation", "targt"], 2, "Did you mean 'target'?"),
        (["--covariate", "line"], 2, "no column 'line'"),
        (["--prediction-values", "log-e"], 3, "Say what the values are"),
        (["--truth-values", "log-2"], 2, "is a store, which holds raw counts"),
        (["--separator", "|"], 0, ""),
        (["--name", "additive"], 2, "is the name of a baseline"),
        (["--each", "each.txt"], 2, "is no name of a table"),
        (["--query", "train"], 2, "training cells teach the baselines"),
    ],
)
def test_bad_options_are_refused_in_a_line(command, arguments, tmp_path, extra, code, message):
    found, _, error = command(*arguments, "--out", tmp_path / "r.parquet", *extra)
    assert (found, message in error, error.strip().count("\n")) == (code, True, 0), error
    assert (tmp_path / "r.parquet").exists() == (code == 0)


def test_an_output_that_exists_is_kept(command, arguments, tmp_path):
    (tmp_path / "r.parquet").write_text("mine")
    code, _, error = command(*arguments, "--out", tmp_path / "r.parquet")
    assert (code, "r.parquet exists" in error) == (2, True)
    code, _, _ = command(*arguments, "--out", tmp_path / "r.parquet", "--overwrite")
    assert code == 0
    assert read_results(tmp_path / "r.parquet")
