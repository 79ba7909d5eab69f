"""A bundle on datasets of a table of one's own, as on the published ones."""

from __future__ import annotations

import contextlib

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from omics.data import convert
from omics.data.errors import UnknownNameError, UsageError
from omics.data.published_datasets import read_datasets
from omics.eval import read_results
from omics.eval.benchmarking.dataset_scores import ZERO_SHOT, benchmark, copies_of

TABLE = """
[ours]
title = "made-up cells"
file = "ours.h5ad"
published = "a test"
organism = "human"
task = "annotation"
labels = ["kind"]
batch = "donor"
split = "part"

[logged]
title = "the same, log-normalised"
file = "logged.h5ad"
published = "another test"
organism = "human"
task = "annotation"
labels = ["kind"]

[unlabelled]
title = "no labels"
file = "x.h5ad"
published = "nowhere"
organism = "human"
task = "integration"
"""


@pytest.fixture
def table(tmp_path, monkeypatch):
    (tmp_path / "own.toml").write_text(TABLE)
    monkeypatch.setenv("OMICS_DATASETS", str(tmp_path / "own.toml"))
    for name in (*ZERO_SHOT, "ours", "logged"):
        monkeypatch.delenv(f"OMICS_DATA_{name.upper()}", raising=False)


@pytest.fixture
def cells_file(tmp_path):
    generator = np.random.default_rng(0)
    types = np.arange(160) % 2
    rates = np.where((np.arange(11) < 5)[None] == (types == 0)[:, None], 4.0, 1.0)
    cells = ad.AnnData(
        sparse.csr_matrix(generator.poisson(rates).astype(np.float32)),
        obs=pd.DataFrame(
            {
                "kind": np.array(["a", "b"])[types],
                "donor": np.array(["d1", "d2"])[generator.integers(0, 2, 160)],
                "part": np.where(np.arange(160) < 120, "train", "test"),
            },
            index=[f"c{i}" for i in range(160)],
        ),
        var=pd.DataFrame(index=[f"G{i}" for i in range(11)]),
    )
    cells.write_h5ad(tmp_path / "ours.h5ad")
    return tmp_path / "ours.h5ad"


def test_the_zero_shot_sets_are_rows_of_the_table_with_labels_and_batches():
    rows = read_datasets()
    assert len(ZERO_SHOT) == 12
    for name in ZERO_SHOT:
        assert rows[name].labels, name
        assert rows[name].batch, name


@pytest.mark.usefixtures("table")
def test_a_dataset_becomes_rows_beside_baselines(bundle, cells_file, tmp_path):
    convert(cells_file, tmp_path / "ours.store")
    seen = []

    @contextlib.contextmanager
    def show(_task, _total):
        yield seen.append

    from_file, from_store = (
        next(benchmark(bundle, {"ours": path}, show=show))
        for path in (cells_file, tmp_path / "ours.store")
    )
    assert repr(from_file.rows) == repr(from_store.rows)
    assert sum(seen) == 320
    by = {(row.task, row.method, row.metric): row for row in from_file.rows}
    accuracy = by["annotate:kind", "X_omics + logistic", "accuracy"]
    assert (accuracy.dataset, accuracy.n, accuracy.bundle) == ("ours", 40, bundle.digest)
    assert ("annotate:kind", "X_omics + knn", "macro_f1") in by
    assert by["annotate:kind", "PCA + logistic regression", "accuracy"].value > 0.8
    integrated = by["integrate:kind:donor", "X_omics", "avg_batch"]
    assert (integrated.n, integrated.bundle) == (160, bundle.digest)
    assert ("integrate:kind:donor", "PCA", "avg_bio") in by
    assert from_file.lines[0].startswith("accuracy of 40 test cells: X_omics + logistic 0.")
    assert "PCA" in from_file.lines[1]


@pytest.mark.usefixtures("table")
def test_the_command_goes_on_after_a_dataset_that_cannot_be_scored(
    command, bundle_folder, cells_file, tmp_path, monkeypatch
):
    cells = ad.read_h5ad(cells_file)
    cells.X = cells.X * 0.5
    cells.write_h5ad(tmp_path / "logged.h5ad")
    monkeypatch.setenv("OMICS_DATA_OURS", str(cells_file))
    out = tmp_path / "results.parquet"
    arguments = ("benchmark", "--model", bundle_folder, "--out", out)
    logged = ("--dataset", "logged", "--path", f"logged={tmp_path / 'logged.h5ad'}")
    code, said, error = command(*arguments, *logged, "--dataset", "ours")
    assert code == 0, error
    assert "logged: not scored: " in said
    assert "ours: accuracy of 40 test cells: X_omics + logistic" in said
    rows = read_results(out)
    assert {row.dataset for row in rows} == {"ours"}
    assert f"{len(rows)} numbers of 1 of 2 datasets" in said
    code, _, error = command(*arguments, *logged, "--overwrite")
    assert (code, "None of 1 datasets could be scored" in error) == (3, True), error
    code, _, error = command(*arguments, *logged)
    assert (code, "results.parquet exists" in error) == (2, True)


@pytest.mark.usefixtures("table")
def test_missing_copies_are_named_with_where_they_are_published(command, bundle_folder, tmp_path):
    arguments = ("benchmark", "--model", bundle_folder, "--out", tmp_path / "r.parquet")
    code, _, error = command(*arguments)
    assert code == 2
    for name in ZERO_SHOT:
        assert f"OMICS_DATA_{name.upper()}" in error
    assert "get covid_19/h5ad/original.h5ad, published with Liu et al. 2023" in error
    code, _, error = command(*arguments, "--dataset", "ours", "--path", "ours=nowhere.h5ad")
    assert (code, "nowhere.h5ad, which does not exist" in error) == (2, True)
    assert "get ours.h5ad, published with a test" in error
    assert not (tmp_path / "r.parquet").exists()


@pytest.mark.usefixtures("table")
def test_some_of_the_zero_shot_sets_are_enough(
    command, bundle_folder, cells_file, tmp_path, monkeypatch
):
    text = TABLE.replace("[ours]", "[dc]")
    (tmp_path / "own.toml").write_text(text)
    monkeypatch.setenv("OMICS_DATA_DC", str(cells_file))
    code, said, error = command(
        "benchmark", "--model", bundle_folder, "--out", tmp_path / "r.parquet"
    )
    assert code == 0, error
    assert said.count("left out: No copy of the dataset") == 11
    assert "dc: accuracy of 40 test cells" in said


@pytest.mark.usefixtures("table")
def test_names_and_paths_are_checked():
    with pytest.raises(UnknownNameError, match=r"no dataset 'our'.*Did you mean 'ours'"):
        copies_of(["our"])
    with pytest.raises(UsageError, match="'unlabelled' has no column of labels"):
        copies_of(["unlabelled"])
    with pytest.raises(UsageError, match="given for 'dc', which is not among"):
        copies_of(["ours"], {"dc": "x"})
