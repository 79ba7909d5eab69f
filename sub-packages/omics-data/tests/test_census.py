"""The CELLxGENE census, from a copy laid out like it and a list of releases on loopback."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anndata
import numpy as np
import pandas as pd
import pytest
import tiledbsoma
import tiledbsoma.io as soma_io
from scipy.sparse import csr_matrix

from omics.data.errors import (
    InputDataError,
    MissingPathError,
    ResourceError,
    UnknownNameError,
    UsageError,
)
from omics.data.sources import census
from omics.data.sources.registry import open_source
from omics.data.sources.source_soma import open_soma

CELLS, GENES = 40, 12
DATASETS = ("11111111-aaaa", "22222222-bbbb", "33333333-cccc")


@pytest.fixture(scope="module")
def adata():
    random = np.random.default_rng(3)
    counts = random.integers(0, 4, (CELLS, GENES)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "dataset_id": pd.Categorical([DATASETS[row % 3] for row in range(CELLS)]),
            "is_primary_data": np.arange(CELLS) % 4 != 0,
            "tissue": pd.Categorical(["lung" if row < 25 else "blood" for row in range(CELLS)]),
            "nnz": (counts > 0).sum(axis=1).astype(np.int64),
        },
        index=[f"cell{row}" for row in range(CELLS)],
    )
    var = pd.DataFrame(
        {"feature_name": [f"S{gene}" for gene in range(GENES)]},
        index=[f"ENSG{gene:011d}" for gene in range(GENES)],
    )
    return anndata.AnnData(csr_matrix(counts), obs, var)


@pytest.fixture(scope="module")
def root(tmp_path_factory, adata):
    """A database laid out as the census is: census_data/ORGANISM beside census_info."""
    import pyarrow as pa

    path = tmp_path_factory.mktemp("census") / "soma"
    with tiledbsoma.Collection.create(str(path)) as top:
        data = top.add_new_collection("census_data")
        info = top.add_new_collection("census_info")
        soma_io.from_anndata(
            f"{path}/census_data/homo_sapiens",
            adata,
            "RNA",
            X_layer_name="raw",
            obs_id_name="observation_joinid",
            var_id_name="feature_id",
        )
        data.set(
            "homo_sapiens",
            tiledbsoma.open(f"{path}/census_data/homo_sapiens"),
            use_relative_uri=True,
        )
        schema = pa.schema([("soma_joinid", pa.int64()), ("dataset_id", pa.large_string())])
        with info.add_new_dataframe("datasets", schema=schema, domain=[[0, 9]]) as datasets:
            datasets.write(
                pa.table({"soma_joinid": [0, 1, 2], "dataset_id": list(DATASETS)}, schema=schema)
            )
        data.close()
        info.close()
    return path


@pytest.fixture(scope="module")
def server(root):
    """Serve release.json, and what is not one, on loopback."""
    release = {"soma": {"uri": f"{root}/", "s3_region": "us-west-2"}}
    table = {
        "stable": "2025-01-30",
        "latest": "2025-06-02",
        "2025-01-30": release,
        "2025-06-02": release,
        "2023-12-15": {"soma": {}},
        "circle": "circle",
    }
    pages = {"/release.json": json.dumps(table).encode(), "/page": b"<html>", "/list": b"[1]"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            page = pages.get(self.path)
            self.send_response(200 if page else 404)
            self.end_headers()
            self.wfile.write(page or b"")

        def log_message(self, *_arguments):
            """Stay quiet."""

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture(autouse=True)
def use_the_local_list(server, monkeypatch):
    monkeypatch.setattr(census, "RELEASES", f"{server}/release.json")


def dense(source):
    parts = [
        csr_matrix(
            (values, genes.astype(np.int64), indptr), shape=(len(indptr) - 1, GENES)
        ).toarray()
        for indptr, genes, values in source.matrix("raw").blocks()
    ]
    return np.concatenate(parts)


@pytest.mark.parametrize("version", ["2025-01-30", "stable", "latest"])
def test_a_version_gives_its_primary_cells(version, adata):
    expected = adata[adata.obs["is_primary_data"]]
    with open_source(f"census:{version}/homo_sapiens") as source:
        assert source.format_name.startswith("CELLxGENE census 2025-0")
        assert (dense(source) == expected.X.toarray()).all()
        assert source.obs().index.tolist() == expected.obs_names.tolist()
        assert source.var().index.tolist() == expected.var_names.tolist()
        assert source.fingerprint()["obs_filter"] == "is_primary_data == True"


def test_a_filter_is_added_to_primary_cells_and_all_cells_can_be_had(adata):
    primary = adata.obs["is_primary_data"]
    with open_source("census:stable/homo_sapiens", obs_filter="tissue == 'lung'") as source:
        assert source.num_cells == int((primary & (adata.obs["tissue"] == "lung")).sum())
    either = "tissue == 'lung' or tissue == 'blood'"
    with open_source("census:stable/homo_sapiens", obs_filter=either) as source:
        assert source.num_cells == int(primary.sum())
    with open_source("census:stable/homo_sapiens", all_cells=True) as source:
        assert (dense(source) == adata.X.toarray()).all()


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_table_of_datasets_restricts_to_a_split(form, adata, tmp_path):
    table = pd.DataFrame({"split": ["train", "dev", "train"], "dataset_id": DATASETS})
    path = tmp_path / f"datasets.{form}"
    if form == "csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)
    kept = adata.obs["is_primary_data"] & (adata.obs["dataset_id"] != DATASETS[1])
    with open_source("census:stable/homo_sapiens", dataset_split=f"{path}:train") as source:
        assert (dense(source) == adata[kept].X.toarray()).all()
        assert set(source.obs()["dataset_id"]) == {DATASETS[0], DATASETS[2]}
    with (
        pytest.raises(UnknownNameError, match=r"no split 'test'. Known: 'dev', 'train'"),
        open_source("census:stable/homo_sapiens", dataset_split=f"{path}:test"),
    ):
        pass


def test_a_table_made_for_another_version_is_refused(tmp_path):
    path = tmp_path / "datasets.csv"
    path.write_text(f"dataset_id,split\n{DATASETS[0]},train\ngone,train\n")
    with (
        pytest.raises(InputDataError, match=r"1 of 2 datasets of split 'train' .* not in census"),
        open_source("census:stable/homo_sapiens", dataset_split=f"{path}:train"),
    ):
        pass
    path.write_text("dataset,split\nx,train\n")
    with pytest.raises(InputDataError, match="columns dataset_id and split"):
        census.datasets_of(path, "train")
    with pytest.raises(MissingPathError, match="no table of datasets"):
        census.datasets_of(tmp_path / "none.csv", "train")
    with (
        pytest.raises(UsageError, match="FILE:NAME"),
        open_source("census:stable/homo_sapiens", dataset_split="datasets.csv"),
    ):
        pass


def test_size_and_time_are_stated_from_what_obs_counts(adata):
    kept = adata[adata.obs["is_primary_data"]]
    with open_source("census:stable/homo_sapiens") as source:
        statement = source.size_statement(rate=10)
        assert statement.exact
        assert statement.entries == kept.X.nnz
        assert statement.seconds == kept.X.nnz / 10
        assert f"{kept.X.nnz:,} values" in statement.text
        assert "at 1e-05 million values a second" in statement.text
        assert json.loads(json.dumps(statement.to_dict()))["cells"] == 30
        assert source.matrix("raw").count_empty(10**6) == int((kept.obs["nnz"] == 0).sum())
    with open_source("census:stable/homo_sapiens", var_filter="feature_name == 'S1'") as source:
        statement = source.size_statement()
        assert not statement.exact
        assert "about" in statement.text


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("census:2025-01-31/homo_sapiens", r"no version '2025-01-31'. The nearest is '2025-01-30'"),
        ("census:stabel/homo_sapiens", r"no version 'stabel'. Did you mean 'stable'"),
        ("census:circle/homo_sapiens", r"no version 'circle'"),
        ("census:stable/homo_sapien", r"no organism 'homo_sapien'. Did you mean 'homo_sapiens'"),
    ],
)
def test_a_wrong_version_or_organism_names_the_nearest(address, message):
    with pytest.raises(UnknownNameError, match=message), open_source(address):
        pass


def test_a_wrong_address_or_filter_is_explained():
    with (
        pytest.raises(UsageError, match="give census:VERSION/ORGANISM"),
        open_source("census:homo_sapiens"),
    ):
        pass
    with (
        pytest.raises(UsageError, match=r"tisue does not exist in schema. Did you mean 'tissue'"),
        open_source("census:stable/homo_sapiens", obs_filter="tisue == 'lung'"),
    ):
        pass


def test_a_list_of_releases_that_cannot_be_had_is_explained(server):
    for path, message in {
        "/nothing": r"cannot be fetched \(Not Found\)",
        "/page": "not the list of census releases",
        "/list": "not the list of census releases",
    }.items():
        with pytest.raises(ResourceError, match=message):
            census.find_release("stable", releases=server + path)
    with pytest.raises(ResourceError, match="Check the network"):
        census.find_release("stable", releases="http://127.0.0.1:9/release.json")
    with pytest.raises(UsageError, match=r"http\(s\) address"):
        census.find_release("stable", releases="file:///etc/passwd")
    with (
        pytest.raises(ResourceError, match="does not say where census 2023-12-15 lies"),
        open_source("census:2023-12-15/homo_sapiens"),
    ):
        pass


def test_the_root_of_a_census_says_which_experiments_it_holds(root, adata):
    with (
        pytest.raises(InputDataError, match=r"census_data/ORGANISM, with one of 'homo_sapiens'"),
        open_soma(root),
    ):
        pass
    with open_soma(root / "census_data" / "homo_sapiens") as source:
        assert source.num_cells == CELLS
        assert "files" in source.fingerprint()
