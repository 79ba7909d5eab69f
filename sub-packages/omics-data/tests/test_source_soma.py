"""TileDB-SOMA experiments: read as AnnData holds them, filtered, restarted, refused."""

from __future__ import annotations

import json
import time

import anndata
import numpy as np
import pandas as pd
import pytest
import tiledbsoma
import tiledbsoma.io as soma_io
from scipy.sparse import csr_matrix, vstack

from omics.data.errors import (
    InputDataError,
    MissingExtraError,
    MissingPathError,
    ResourceError,
    UnknownNameError,
    UsageError,
)
from omics.data.sources import soma_access, soma_matrix
from omics.data.sources.registry import open_source
from omics.data.sources.soma_access import normal_address, patiently, soma_context
from omics.data.sources.source_soma import open_soma, recognises

CELLS, GENES = 60, 15


def counts_of(seed, *, cells=CELLS):
    random = np.random.default_rng(seed)
    counts = random.integers(1, 500, (cells, GENES))
    return np.where(random.random((cells, GENES)) < 0.4, counts, 0).astype(np.float32)


@pytest.fixture(scope="module")
def adata():
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(
                np.where(np.arange(CELLS) % 5 == 0, None, np.where(np.arange(CELLS) % 2, "B", "T")),
                categories=["T", "B"],
                ordered=True,
            ),
            "donor": [f"d{row // 20}" for row in range(CELLS)],
            "score": np.arange(CELLS) * 0.25,
            "age": pd.array([None if row == 4 else row for row in range(CELLS)], dtype="Int64"),
            "smokes": pd.array([None, True, False] * (CELLS // 3), dtype="boolean"),
            "passed": np.arange(CELLS) % 2 == 0,
        },
        index=pd.Index([f"cell{row % 50}-{row}" for row in range(CELLS)], name="barcode"),
    )
    var = pd.DataFrame(
        {"feature_name": [f"S{gene}" for gene in range(GENES)]},
        index=[f"ENSG{gene:011d}" for gene in range(GENES)],
    )
    counts = counts_of(0)
    counts[7] = 0
    return anndata.AnnData(
        csr_matrix(counts), obs, var, layers={"normalized": csr_matrix(np.log1p(counts))}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory, adata):
    path = tmp_path_factory.mktemp("soma") / "experiment"
    soma_io.from_anndata(str(path), adata, "RNA", X_layer_name="raw")
    return path


def matrix_of(source, location="raw", **options):
    blocks = list(source.matrix(location).blocks(**options))
    parts = [
        csr_matrix(
            (values, genes.astype(np.int64), indptr), shape=(len(indptr) - 1, source.num_genes)
        )
        for indptr, genes, values in blocks
    ]
    return vstack(parts).toarray()


def test_an_experiment_is_read_as_anndata_holds_it(folder, adata):
    assert recognises(folder)
    with open_source(folder) as source:
        assert (source.num_cells, source.num_genes) == (CELLS, GENES)
        assert sorted(source.matrices) == ["normalized", "raw"]
        assert not source.unreadable
        assert (matrix_of(source) == adata.X.toarray()).all()
        normal = matrix_of(source, "X/normalized", storage="float")
        assert (normal == adata.layers["normalized"].toarray()).all()
        matrix = source.matrix("raw")
        assert matrix.stored_entries == adata.X.nnz
        assert matrix.dtype == np.float32
        assert matrix.encoding == "coordinate"
        pd.testing.assert_frame_equal(source.obs(), adata.obs)
        pd.testing.assert_frame_equal(source.var(), adata.var)
        assert source.obs_columns == list(adata.obs.columns)
        assert source.table_bytes() > 0


def test_a_filter_gives_the_cells_that_anndata_gives(folder, adata):
    kept = adata[(adata.obs["cell_type"] == "B") & (adata.obs["score"] > 3)]
    with open_soma(folder, obs_filter="cell_type == 'B' and score > 3") as source:
        assert (matrix_of(source) == kept.X.toarray()).all()
        expected = kept.obs.copy()
        expected["cell_type"] = expected["cell_type"].cat.remove_unused_categories()
        # No age is missing any more, so the column needs no nullable type.
        expected["age"] = expected["age"].astype(np.int64)
        pd.testing.assert_frame_equal(source.obs(), expected)
        assert source.matrix("raw").stored_entries is None


def test_genes_are_filtered_and_keep_their_order(folder, adata):
    names = ["S3", "S9", "S14"]
    kept = adata[:, adata.var["feature_name"].isin(names)]
    with open_soma(folder, var_filter=f"feature_name in {names}") as source:
        assert (matrix_of(source) == kept.X.toarray()).all()
        assert source.var().index.tolist() == kept.var_names.tolist()


@pytest.mark.parametrize("single", [0, 256])
def test_many_genes_apart_are_found_by_range_and_by_name(folder, adata, monkeypatch, single):
    monkeypatch.setattr(soma_matrix, "_SINGLE_GENES", single)
    kept = adata[:, [0, 2, 5, 6, 11]]
    names = kept.var["feature_name"].tolist()
    with open_soma(folder, var_filter=f"feature_name in {names}", obs_filter="score < 4") as source:
        assert (matrix_of(source) == kept.X.toarray()[:16]).all()


def test_rows_are_chosen_by_joinid_in_their_order_each_once(folder, adata):
    with open_soma(folder, obs_joinids=[40, 3, 3, 59]) as source:
        assert source.num_cells == 3
        assert (matrix_of(source) == adata.X.toarray()[[3, 40, 59]]).all()
        assert source.obs().index.tolist() == adata.obs_names[[3, 40, 59]].tolist()
    with pytest.raises(UsageError, match="no row 60"), open_soma(folder, obs_joinids=[60]):
        pass
    with pytest.raises(UsageError, match="whole numbers"), open_soma(folder, obs_joinids=[0.5]):
        pass


def test_only_the_columns_asked_for_are_read(folder):
    with open_soma(folder, obs_columns="donor, soma_joinid") as source:
        obs = source.obs()
    assert obs.columns.tolist() == ["donor", "soma_joinid"]
    assert obs["soma_joinid"].tolist() == list(range(CELLS))
    with (
        pytest.raises(UnknownNameError, match=r"no column 'doner'. Did you mean 'donor'"),
        open_soma(folder, obs_columns=["doner"]),
    ):
        pass


@pytest.mark.parametrize("first", [0, 1, 17, 59])
@pytest.mark.parametrize("obs_filter", [None, "passed == True"])
def test_reading_goes_on_at_any_cell_in_small_ranges(folder, adata, monkeypatch, first, obs_filter):
    monkeypatch.setattr(soma_matrix, "RANGE_ENTRIES", 30)
    expected = adata.X.toarray()
    expected = expected if obs_filter is None else expected[::2]
    first = min(first, len(expected) - 1)
    with open_soma(folder, obs_filter=obs_filter) as source:
        blocks = list(source.matrix("raw").blocks(first_cell=first))
        assert len(blocks) > 1 or first > 20
        assert (matrix_of(source, first_cell=first) == expected[first:]).all()


def test_a_range_with_far_more_values_than_planned_is_cut(folder, adata, monkeypatch):
    monkeypatch.setattr(soma_matrix, "RANGE_ENTRIES", 6)
    monkeypatch.setattr(soma_matrix.SomaMatrix, "mean_entries", 0.1)
    with open_soma(folder) as source:
        lengths = [len(block[0]) - 1 for block in source.matrix("raw").blocks()]
        assert max(lengths) < 10
        assert (matrix_of(source) == adata.X.toarray()).all()


def test_a_sample_shows_what_kind_of_values_there_are(folder, adata):
    with open_soma(folder) as source:
        matrix = source.matrix("raw")
        whole = matrix.sample(64 * 2**20)
        assert whole.complete
        assert sorted(whole.values.tolist()) == sorted(adata.X.data.tolist())
        assert whole.indptr.tolist() == adata.X.indptr.tolist()
        part = matrix.sample(20_000)
        assert not part.complete
        assert 0 < len(part.values) < adata.X.nnz
        assert matrix.sample(10) is None
        assert matrix.count_empty(10**6) is None


def test_the_counts_are_found_and_converted_with_the_cells_that_pass(folder, adata, tmp_path):
    from omics.data.converting.conversion import convert

    store = convert(folder, tmp_path / "all")
    assert store.provenance["location"] == "raw"
    assert (store.take(np.arange(CELLS)).to_csr().toarray() == adata.X.toarray()).all()
    some = convert(folder, tmp_path / "some", source_options={"obs_filter": "donor == 'd2'"})
    assert some.obs.names.tolist() == adata.obs_names[40:].tolist()
    assert (some.take(np.arange(20)).to_csr().toarray() == adata.X.toarray()[40:]).all()


def test_values_that_are_no_counts_name_the_cell_and_gene(folder, adata):
    with (
        open_soma(folder) as source,
        pytest.raises(
            InputDataError, match=r"normalized of .* row 0, column .* is not a whole number"
        ),
    ):
        matrix_of(source, "normalized")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cell_type = 'B'", "Could not parse"),
        ("celltype == 'B'", "celltype does not exist in schema. Did you mean 'cell_type'?"),
        ("score == 'high'", "cannot be used"),
        ("score", "cannot be used"),
    ],
)
def test_a_bad_filter_is_one_paragraph_that_shows_a_good_one(folder, text, reason):
    with pytest.raises(UsageError) as caught, open_soma(folder, obs_filter=text):
        pass
    message = str(caught.value)
    assert reason in message
    assert repr(text) in message
    assert "\n" not in message
    assert "cell_type == 'B cell'" in message


def test_a_filter_that_nothing_passes_is_an_error(folder):
    with (
        pytest.raises(InputDataError, match=r"obs of .* has no rows with score > 1e9"),
        open_soma(folder, obs_filter="score > 1e9"),
    ):
        pass


def test_what_is_not_there_is_said(folder, tmp_path):
    with (
        pytest.raises(MissingPathError, match="no SOMA experiment"),
        open_soma(tmp_path / "nothing"),
    ):
        pass
    with (
        pytest.raises(UnknownNameError, match=r"no measurement 'rna'"),
        open_soma(folder, measurement="rna"),
    ):
        pass
    with (
        open_soma(folder) as source,
        pytest.raises(UnknownNameError, match=r"no layer 'row'. Did you mean 'raw'"),
    ):
        source.matrix("row")
    with (
        pytest.raises(InputDataError, match=r"is a SOMA Collection, not an experiment. .*'RNA'"),
        open_soma(folder / "ms"),
    ):
        pass
    with (
        pytest.raises(UsageError, match="neither milliseconds"),
        open_soma(folder, timestamp="yesterday"),
    ):
        pass
    assert not recognises(tmp_path)
    assert not recognises(tmp_path / "nothing")


def test_an_experiment_is_seen_as_it_was_at_a_time(tmp_path, adata):
    path = tmp_path / "experiment"
    soma_io.from_anndata(str(path), adata, "RNA", X_layer_name="raw")
    with open_soma(path) as source:
        before, stamp = source.fingerprint(), source.stamp()
    with open_soma(path) as source:
        assert source.stamp() == stamp
    with tiledbsoma.open(str(path)) as experiment:
        moment = experiment.tiledb_timestamp_ms
    time.sleep(0.01)  # Fragments are told apart by milliseconds.
    with tiledbsoma.open(str(path / "ms" / "RNA" / "X" / "raw"), "w") as array:
        import pyarrow as pa

        array.write(
            pa.table(
                {
                    "soma_dim_0": np.array([0]),
                    "soma_dim_1": np.array([1]),
                    "soma_data": np.array([77], np.float32),
                }
            )
        )
    with open_soma(path, timestamp=moment) as source:
        assert (matrix_of(source) == adata.X.toarray()).all()
    with open_soma(path) as source:
        assert matrix_of(source)[0, 1] == 77
        assert source.fingerprint() != before
        assert json.loads(json.dumps(source.fingerprint())) == source.fingerprint()
        assert source.stamp() != stamp
    with pytest.raises((InputDataError, MissingPathError)), open_soma(path, timestamp="2001-01-01"):
        pass


def written_by_hand(path, *, cells, obs_rows, dense=None, gene_rows=3, duplicates=False):
    """Write an experiment whose matrix need not fit its tables."""
    import pyarrow as pa

    def table(frame, collection, name, rows):
        schema = pa.schema([("soma_joinid", pa.int64()), (frame, pa.large_string())])
        with collection.add_new_dataframe(name, schema=schema, domain=[[0, 99]]) as made:
            names = [f"{frame}{row}" for row in rows]
            made.write(
                pa.table({"soma_joinid": pa.array(rows, pa.int64()), frame: names}, schema=schema)
            )

    with tiledbsoma.Experiment.create(str(path)) as experiment:
        table("obs_id", experiment, "obs", obs_rows)
        measurement = experiment.add_new_collection("ms").add_new_collection(
            "RNA", tiledbsoma.Measurement
        )
        table("var_id", measurement, "var", list(range(gene_rows)))
        layers = measurement.add_new_collection("X")
        if dense is not None:
            array = layers.add_new_dense_ndarray("raw", type=pa.int32(), shape=dense.shape)
            array.write((slice(None), slice(None)), pa.Tensor.from_numpy(dense))
        else:
            options = {"allows_duplicates": duplicates}
            array = layers.add_new_sparse_ndarray(
                "raw",
                type=pa.int32(),
                shape=(100, 100),
                platform_config={"tiledb": {"create": options}},
            )
            rows, genes, values = (np.array(each) for each in zip(*cells, strict=True))
            array.write(
                pa.table(
                    {
                        "soma_dim_0": rows,
                        "soma_dim_1": genes,
                        "soma_data": values.astype(np.int32),
                    }
                )
            )
        array.close()


def test_a_dense_layer_and_gaps_between_joinids_are_read(tmp_path):
    dense = np.arange(30, dtype=np.int32).reshape(10, 3) % 4
    written_by_hand(tmp_path / "e", cells=[], obs_rows=[1, 2, 5, 9], dense=dense)
    with open_soma(tmp_path / "e") as source:
        assert source.matrix("raw").encoding == "dense"
        assert source.matrix("raw").stored_entries is None
        assert (matrix_of(source) == dense[[1, 2, 5, 9]]).all()
        assert (matrix_of(source, first_cell=2) == dense[[5, 9]]).all()
        assert source.matrix("raw").sample(10**6).complete
        assert source.obs().index.tolist() == ["obs_id1", "obs_id2", "obs_id5", "obs_id9"]


def test_values_at_one_place_are_summed_and_zeros_dropped(tmp_path):
    cells = [(0, 1, 5), (0, 1, 7), (1, 0, 0), (1, 2, 3)]
    written_by_hand(tmp_path / "e", cells=cells, obs_rows=[0, 1], duplicates=True)
    with open_soma(tmp_path / "e") as source:
        assert matrix_of(source).tolist() == [[0, 12, 0], [0, 0, 3]]


def test_values_of_genes_or_cells_without_a_row_are_an_error(tmp_path):
    written_by_hand(tmp_path / "gene", cells=[(0, 1, 5), (1, 7, 2)], obs_rows=[0, 1])
    with (
        open_soma(tmp_path / "gene") as source,
        pytest.raises(InputDataError, match="a value for gene 7, which var does not have"),
    ):
        matrix_of(source)
    written_by_hand(tmp_path / "cell", cells=[(0, 1, 5), (9, 1, 2)], obs_rows=[0, 1])
    with (
        open_soma(tmp_path / "cell") as source,
        pytest.raises(InputDataError, match="holds 2 values, but only 1 are of cells in obs"),
    ):
        matrix_of(source)
    written_by_hand(tmp_path / "minus", cells=[(0, 1, 5), (1, 2, -3)], obs_rows=[0, 1])
    with (
        open_soma(tmp_path / "minus") as source,
        pytest.raises(InputDataError, match="row 1, column 2 is no raw count: -3 is negative"),
    ):
        matrix_of(source)


def test_a_damaged_file_is_an_error_of_ours(tmp_path, adata):
    path = tmp_path / "experiment"
    soma_io.from_anndata(str(path), adata, "RNA", X_layer_name="raw")
    fragments = path / "ms" / "RNA" / "X" / "raw" / "__fragments"
    for file in fragments.rglob("a0.tdb"):
        file.write_bytes(file.read_bytes()[:40])
    with open_soma(path) as source, pytest.raises(InputDataError, match="cannot be read"):
        matrix_of(source)


def test_a_passing_failure_of_s3_is_tried_again_and_others_are_not(monkeypatch):
    monkeypatch.setattr(soma_access, "WAITS", (0.0, 0.0, 0.0))
    tries = []

    def failing(times, message):
        def read():
            tries.append(1)
            if len(tries) <= times:
                raise tiledbsoma.SOMAError(message)
            return "found"

        tries.clear()
        return read

    assert patiently(failing(2, "[S3] Slow Down: 503"), "s3://bucket/e") == "found"
    assert len(tries) == 3
    with pytest.raises(ResourceError, match="in 4 tries"):
        patiently(failing(9, "S3 curlCode: 28, Timeout was reached"), "s3://bucket/e")
    assert len(tries) == 4
    with pytest.raises(UsageError, match="refuses access"):
        patiently(failing(9, "Access Denied with address"), "s3://bucket/e")
    assert len(tries) == 1
    with pytest.raises(InputDataError, match="cannot be read"):
        patiently(failing(9, "Timeout"), "/data/e")
    assert len(tries) == 1


def test_addresses_take_the_form_that_tiledb_wants(monkeypatch):
    assert normal_address("s3:/bucket/a/") == ("s3://bucket/a", None)
    assert normal_address("https://cells.s3.us-west-2.amazonaws.com/a/b") == (
        "s3://cells/a/b",
        "us-west-2",
    )
    assert normal_address("https://s3.eu-west-1.amazonaws.com/cells/a") == (
        "s3://cells/a",
        "eu-west-1",
    )
    assert normal_address("file:///data/e") == ("/data/e", None)
    assert recognises("tiledb://group/experiment")
    assert recognises("s3://bucket/experiment")
    assert not recognises("https://example.org/cells.h5ad")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    config = soma_context(region="eu-west-1", anonymous=True).tiledb_config
    assert config["vfs.s3.endpoint_override"] == "127.0.0.1:9000"
    assert config["vfs.s3.scheme"] == "http"
    assert config["vfs.s3.region"] == "eu-west-1"
    assert config["vfs.s3.no_sign_request"] == "true"


def test_without_tiledbsoma_the_extra_is_named(folder, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tiledbsoma", None)
    with (
        pytest.raises(MissingExtraError, match=r"pip install 'omics-data\[soma\]'"),
        open_soma(folder),
    ):
        pass


@pytest.fixture
def bucket(monkeypatch):
    import boto3
    import moto.server as server_module

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="soma")
    yield client
    server.stop()


def test_an_experiment_in_a_bucket_is_read(bucket, folder, adata):
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.upload_file(str(path), "soma", f"e/{path.relative_to(folder)}")
    with open_source("s3://soma/e", obs_filter="donor == 'd1'") as source:
        assert source.name == "s3://soma/e"
        assert (matrix_of(source) == adata.X.toarray()[20:40]).all()
    with (
        pytest.raises(MissingPathError, match="no SOMA experiment at s3://soma/other"),
        open_source("s3://soma/other"),
    ):
        pass
