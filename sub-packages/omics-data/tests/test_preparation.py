"""`prepare`: each step as it would be by hand, whole or not at all, and going on where it stopped."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import scanpy
from scipy.sparse import csr_matrix

from omics.data import Preparation, load_split, open_store, prepare, synthesize
from omics.data import preparation as module
from omics.data.checked_table import read_checked_table
from omics.data.errors import (
    ExistingPathError,
    InputDataError,
    MissingPathError,
    StoreLockedError,
    UnknownNameError,
    UsageError,
)
from omics.data.export import write_h5ad
from omics.data.quality import Thresholds, load_quality

BIOFORMERS = Preparation(
    min_gene_counts=10,
    thresholds=Thresholds(min_counts=100),
    fractions=(0.8, 0.1, 0.1),
    hvg=60,
    seed=3,
)


def experiment(*, seed=1):
    """Return 240 cells of 150 genes, some of both with few counts."""
    adata = synthesize(240, 150, num_types=3, num_donors=4, seed=seed)
    counts = 6 * adata.X.toarray()
    counts[:, 5:15] = 0
    counts[3, 5:15] = 1  # Genes of one count each.
    counts[::20] = 0
    counts[::20, 40] = 9  # Cells of nine counts.
    adata.X = csr_matrix(counts.astype(np.float32))
    return adata


@pytest.fixture
def cells(tmp_path):
    """Return the path of the experiment."""
    write_h5ad(experiment(), tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def genes_of(folder):
    return open_store(folder / "cells.store").genes.ids.tolist()


def test_the_steps_are_those_of_the_reference_with_genes_of_the_training_cells(cells, tmp_path):
    found = prepare(cells, tmp_path / "out", BIOFORMERS)
    adata = experiment()
    scanpy.pp.filter_genes(adata, min_counts=10)
    scanpy.pp.filter_cells(adata, min_counts=100)
    store = open_store(tmp_path / "out/cells.store")
    assert store.obs.names.tolist() == adata.obs_names.tolist()
    split = load_split(tmp_path / "out/split.parquet", store)
    assert split.sizes == {"train": 182, "validation": 23, "test": 23}
    train = adata[split.rows("train")].copy()
    scanpy.pp.highly_variable_genes(train, n_top_genes=60, flavor="seurat_v3")
    chosen = train.var_names[train.var["highly_variable"]].tolist()
    assert genes_of(tmp_path / "out") == chosen
    kept = adata[:, chosen]
    assert (store.to_anndata().X != kept.X).nnz == 0
    assert store.obs.to_pandas()["cell_type"].tolist() == adata.obs["cell_type"].tolist()
    store.verify()
    assert (found["source_cells"], found["cells"]) == (240, 228)
    assert (found["source_genes"], found["genes_meeting_limits"], found["genes"]) == (150, 140, 60)
    assert json.loads((tmp_path / "out/prepare.json").read_text()) == found


def test_tables_say_of_every_cell_and_gene_why_it_is_kept(cells, tmp_path):
    prepare(cells, tmp_path / "out", BIOFORMERS)
    quality = load_quality(tmp_path / "out/qc")
    assert quality.cells["keep"].sum() == 228
    assert not quality.cells["keep"][::20].any()
    genes, record = read_checked_table(
        tmp_path / "out/genes.parquet", kind=module.GENES_KIND, made_by="omics-data prepare"
    )
    assert record["source"] == "cells.h5ad"
    assert len(genes["gene"]) == 150
    assert genes["gene"][genes["keep"]].tolist() == genes_of(tmp_path / "out")
    assert not genes["meets_limits"][5:15].any()
    assert genes["total_counts"][5:15].tolist() == [1.0] * 10
    assert np.isnan(genes["variances_norm"][5:15]).all()
    assert genes["meets_limits"].sum() == np.isfinite(genes["variances_norm"]).sum() == 140


def test_without_settings_all_cells_and_genes_are_there(cells, tmp_path):
    found = prepare(cells, tmp_path / "out")
    assert (found["cells"], found["genes"]) == (240, 150)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "cells.store", "genes.parquet", "prepare.json", "qc", "split.parquet",
    ]  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"cells.h5ad", "out"}
    # A store is read where it is.
    again = prepare(tmp_path / "out/cells.store", tmp_path / "again", BIOFORMERS)
    direct = prepare(cells, tmp_path / "direct", BIOFORMERS)
    assert again["genes"] == direct["genes"]
    assert genes_of(tmp_path / "again") == genes_of(tmp_path / "direct")


def test_bioformers_fault_variable_genes_do_not_depend_on_test_cells(cells, tmp_path):
    settings = Preparation(hvg=40, fractions=(0.5, 0.25, 0.25))
    prepare(cells, tmp_path / "before", settings)
    split = load_split(tmp_path / "before/split.parquet")
    adata = experiment()
    counts = adata.X.toarray()
    held_out = np.concatenate([split.rows("validation"), split.rows("test")])
    counts[held_out] = counts[held_out][:, ::-1] * 7
    adata.X = csr_matrix(counts)
    write_h5ad(adata, tmp_path / "changed.h5ad")
    prepare(tmp_path / "changed.h5ad", tmp_path / "after", settings)
    assert genes_of(tmp_path / "after") == genes_of(tmp_path / "before")
    # Training cells do decide.
    counts[split.rows("train")] = counts[split.rows("train")][:, ::-1] * 7
    adata.X = csr_matrix(counts)
    write_h5ad(adata, tmp_path / "other.h5ad")
    prepare(tmp_path / "other.h5ad", tmp_path / "other", settings)
    assert genes_of(tmp_path / "other") != genes_of(tmp_path / "before")


def test_bioformers_fault_the_split_has_a_seed_and_test_cells(cells, tmp_path):
    tables = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        prepare(cells, tmp_path / name, Preparation(seed=seed))
        tables[name] = load_split(tmp_path / name / "split.parquet")
    assert tables["a"].codes.tolist() == tables["b"].codes.tolist()
    assert tables["a"].codes.tolist() != tables["c"].codes.tolist()
    assert min(tables["a"].sizes.values()) > 0


def test_groups_stay_together_and_columns_are_known(cells, tmp_path):
    found = prepare(cells, tmp_path / "out", Preparation(group="donor"))
    split = load_split(tmp_path / "out/split.parquet")
    donor = open_store(tmp_path / "out/cells.store").obs["donor"]
    assert all(len(set(split.codes[donor == each])) == 1 for each in set(donor))
    assert found["leakage"]["shared_groups"] == []
    with pytest.raises(UnknownNameError, match="Did you mean 'donor'"):
        prepare(cells, tmp_path / "no", Preparation(group="donors"))
    assert not list(tmp_path.glob(".no*"))


@pytest.mark.parametrize("stopped_in", ["assess_quality", "highly_variable_genes", "leakage"])
def test_what_was_stopped_goes_on_where_it_was(cells, tmp_path, monkeypatch, stopped_in):
    place = {
        "assess_quality": "omics.data.quality.quality_assessment.assess_quality",
        "highly_variable_genes": "omics.data.quality.variable_genes.highly_variable_genes",
        "leakage": "omics.data.preparation.leakage",
    }[stopped_in]

    def stop(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(cells, tmp_path / "out", BIOFORMERS)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / ".out.preparing/raw.store").exists()

    def never(*_args, **_options):
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr("omics.data.converting.conversion.run_plan", never)
        if stopped_in != "assess_quality":
            patch.setattr("omics.data.quality.quality_assessment.assess_quality", never)
        went_on = prepare(cells, tmp_path / "out", BIOFORMERS)
    assert not (tmp_path / ".out.preparing").exists()
    at_once = prepare(cells, tmp_path / "at_once", BIOFORMERS)
    assert genes_of(tmp_path / "out") == genes_of(tmp_path / "at_once")
    same = {"cells", "genes", "split", "leakage", "gene_digest"}
    assert {name: went_on[name] for name in same} == {name: at_once[name] for name in same}


def test_another_call_begins_anew(cells, tmp_path, monkeypatch):
    def stop(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("omics.data.quality.variable_genes.highly_variable_genes", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(cells, tmp_path / "out", BIOFORMERS)
    found = prepare(cells, tmp_path / "out", Preparation(hvg=20))
    assert (found["cells"], found["genes"]) == (240, 20)


def test_a_folder_that_exists_is_kept_unless_it_may_be_replaced(cells, tmp_path):
    prepare(cells, tmp_path / "out", BIOFORMERS)
    before = (tmp_path / "out/prepare.json").read_bytes()
    with pytest.raises(ExistingPathError, match="out exists; choose another path or add --over"):
        prepare(cells, tmp_path / "out")
    impossible = Preparation(thresholds=Thresholds(min_counts=1e9))
    with pytest.raises(InputDataError, match="None of the 240 cells"):
        prepare(cells, tmp_path / "out", impossible, overwrite=True)
    assert (tmp_path / "out/prepare.json").read_bytes() == before
    assert prepare(cells, tmp_path / "out", overwrite=True)["genes"] == 150


def test_two_processes_do_not_prepare_one_folder(cells, tmp_path):
    from omics.data.atomic_files import writer_lock

    (tmp_path / ".out.preparing").mkdir()
    with (
        writer_lock(tmp_path / ".out.preparing"),
        pytest.raises(StoreLockedError, match="is being written by process"),
    ):
        prepare(cells, tmp_path / "out")


def test_a_published_dataset_by_name(cells, tmp_path, monkeypatch):
    monkeypatch.setenv("OMICS_DATA_PBMC_4K_8K", str(cells))
    assert prepare("dataset:pbmc_4k_8k", tmp_path / "out")["source"] == "cells.h5ad"
    monkeypatch.delenv("OMICS_DATA_ADAMSON_GEARS", raising=False)
    with pytest.raises(MissingPathError, match="set OMICS_DATA_ADAMSON_GEARS to its path"):
        prepare("dataset:adamson_gears", tmp_path / "other")
    with pytest.raises(UnknownNameError, match="There is no dataset 'pbmc'"):
        prepare("dataset:pbmc", tmp_path / "other")


def test_values_that_are_no_counts_are_prepared_without_variable_genes(tmp_path):
    adata = experiment()
    adata.X = adata.X.log1p()
    write_h5ad(adata, tmp_path / "log.h5ad")
    with pytest.raises(InputDataError, match="counts"):
        prepare(tmp_path / "log.h5ad", tmp_path / "out")
    settings = Preparation(counts="X", allow_non_counts=True, min_gene_counts=10)
    found = prepare(tmp_path / "log.h5ad", tmp_path / "out", settings)
    assert found["genes"] == 140
    assert open_store(tmp_path / "out/cells.store").value_kind == "float"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"min_gene_counts": -1}, UsageError, "min_gene_counts is -1; it must be a number from 0"),
        ({"thresholds": Thresholds(min_cells=3)}, UsageError, "give min_gene_cells instead"),
        ({"hvg": 5, "allow_non_counts": True}, UsageError, "Highly variable genes are found on"),
        ({"min_gene_cells": 500}, InputDataError, "None of the 150 genes .* is left"),
        ({"fractions": (0.5, 0.5, 0.5)}, UsageError, "0.5"),
        ({"group": "donor", "stratify": "cell_type"}, UsageError, "one of stratify, group and"),
        ({"hvg": 10, "hvg_flavor": "v3"}, UsageError, "no flavour 'v3'"),
    ],
)
def test_settings_that_cannot_work_leave_nothing(cells, tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        prepare(cells, tmp_path / "out", Preparation(**settings))
    assert {path.name for path in tmp_path.iterdir()} == {"cells.h5ad"}


def test_sources_and_places_that_are_not_there(cells, tmp_path):
    with pytest.raises(MissingPathError):
        prepare(tmp_path / "none.h5ad", tmp_path / "out")
    with pytest.raises(MissingPathError, match=r"There is no folder .* to write to"):
        prepare(cells, tmp_path / "a/b")
    prepare(cells, tmp_path / "out")
    with pytest.raises(UsageError, match="is a store, which holds one matrix"):
        prepare(tmp_path / "out/cells.store", tmp_path / "b", Preparation(counts="raw.X"))


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run the verb in the test's folder; return its exit code and what it printed."""
    from omics.data.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["omics-data", "prepare", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


def test_the_command_says_what_was_kept_and_what_comes_next(command, cells):
    code, out, err = command(
        "cells.h5ad", "out", "--min-gene-counts", 10, "--min-counts", 100, "--hvg", 60,
        "--fractions", "0.8,0.1,0.1", "--seed", 3,
    )  # fmt: skip
    assert code == 0, err
    assert "wrote out: 228 of 240 cells, 60 of 150 genes" in out
    assert "train 182, validation 23, test 23" in out
    assert "input_file=out/cells.store data_module.split=out/split.parquet" in out
    code, _, err = command("cells.h5ad", "out")
    assert code == 2
    assert "out exists; choose another path or add --overwrite" in err
    code, out, _ = command("cells.h5ad", "out", "--overwrite", "--json", "--max-genes", 90)
    assert code == 0
    said = json.loads(out)
    assert said["settings"]["thresholds"] == {"max_genes": 90}
    assert said["path"] == "out"
    code, _, err = command("cells.h5ad", "b", "--fractions", "most,rest")
    assert code == 2
    assert "--fractions 'most,rest' is not three numbers" in err
