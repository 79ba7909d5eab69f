"""Conversion on a Dask cluster of two worker processes gives what one process gives."""

from __future__ import annotations

import sys

import anndata
import distributed
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from omics.data import convert, open_store
from omics.data.converting.cluster_conversion import parts_folder
from omics.data.converting.conversion import plan_conversion, run_plan
from omics.data.errors import InputDataError, MissingExtraError, ResourceError
from omics.data.matching.gene_coverage import coverage_of
from omics.data.matching.gene_matching import GeneOptions


@pytest.fixture(scope="module")
def scheduler():
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=None,
        memory_limit=None,
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def paths(tmp_path):
    found = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        genes = rng.permutation([f"G{n}" for n in range(30)])[:20]
        counts = rng.integers(1, 400, (25, 20)) * (rng.random((25, 20)) < 0.5)
        obs = pd.DataFrame({"n": np.arange(25)}, index=[f"{seed}-{n}" for n in range(25)])
        adata = anndata.AnnData(
            sparse.csr_matrix(counts.astype(np.float32)), obs, pd.DataFrame(index=genes)
        )
        found.append(tmp_path / f"{seed}.h5ad")
        adata.write_h5ad(found[-1])
    return found


def assert_equal_stores(one, other):
    rows = np.arange(len(other))
    assert (one.take(rows).to_csr() != other.take(rows).to_csr()).nnz == 0
    assert one.genes.digest == other.genes.digest
    pd.testing.assert_frame_equal(one.obs.to_pandas(), other.obs.to_pandas())
    assert one.provenance == other.provenance
    assert coverage_of(one) == coverage_of(other)
    one.verify()


def test_two_workers_write_what_one_process_writes(scheduler, paths, tmp_path):
    options = {"genes": GeneOptions(aliases=(("G1", "G0"),)), "layout": "packed"}
    done = []
    store = convert(paths, tmp_path / "s", scheduler=scheduler, on_progress=done.append, **options)
    assert_equal_stores(store, convert(paths, tmp_path / "alone", **options))
    assert sum(done) == 100
    assert store.layout == "packed"
    assert not parts_folder(tmp_path / "s").exists()


def test_parts_that_were_finished_are_used_again(scheduler, paths, tmp_path, monkeypatch):
    plan = plan_conversion(paths, tmp_path / "s")
    with monkeypatch.context() as patch:
        patch.setattr("omics.data.converting.cluster_conversion.write_sources", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_plan(plan, tmp_path / "s", scheduler=scheduler)
    parts = sorted(parts_folder(tmp_path / "s").iterdir())
    assert len(parts) == 4
    digests = [open_store(part).digest for part in parts]
    stamps = [(part / "CURRENT").stat().st_mtime_ns for part in parts]
    assert len(digests) == len(set(digests))
    with monkeypatch.context() as patch:
        patch.setattr("omics.data.converting.cluster_conversion.write_sources", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_plan(plan, tmp_path / "s", scheduler=scheduler)
    assert [(part / "CURRENT").stat().st_mtime_ns for part in parts] == stamps
    store = run_plan(plan, tmp_path / "s", scheduler=scheduler)
    assert_equal_stores(store, convert(paths, tmp_path / "alone"))
    assert not parts_folder(tmp_path / "s").exists()


def interrupt(*_arguments, **_options):
    raise KeyboardInterrupt


def test_an_error_of_a_worker_is_the_error_of_the_conversion(scheduler, paths, tmp_path):
    plan = plan_conversion(paths, tmp_path / "s")
    adata = anndata.read_h5ad(paths[2])
    adata.X.data[0] += 1
    adata.write_h5ad(paths[2])
    with pytest.raises(InputDataError, match=r"2\.h5ad changed while it was read"):
        run_plan(plan, tmp_path / "s", scheduler=scheduler)
    assert not (tmp_path / "s").exists()


def test_a_scheduler_that_is_not_there_is_told(paths, tmp_path, monkeypatch):
    monkeypatch.setattr("omics.data.converting.cluster_conversion.CONNECT_TIMEOUT_S", 0.5)
    with pytest.raises(
        ResourceError, match=r"The Dask scheduler at tcp://127\.0\.0\.1:9 cannot be"
    ):
        convert(paths, tmp_path / "s", scheduler="tcp://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'omics-data\[qc\]'"):
        convert(paths, tmp_path / "s", scheduler="tcp://127.0.0.1:9")
