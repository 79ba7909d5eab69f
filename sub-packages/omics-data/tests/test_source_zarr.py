"""An AnnData zarr store as a source: formats 2 and 3, lost chunks, damage and hostile stores."""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
from scipy import sparse

from omics.data.converting.conversion import convert
from omics.data.errors import InputDataError, MissingPathError, UnknownNameError
from omics.data.sources.registry import open_source
from omics.data.sources.source_zarr import open_zarr, recognises

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def rich(cells: int = 40, genes: int = 12) -> anndata.AnnData:
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.7, (cells, genes)).astype(np.float32)
    counts[3] = 0
    obs = pd.DataFrame(
        {
            "type": pd.Categorical(
                rng.choice(["B", "T", "NK"], cells), categories=["T", "B", "NK"]
            ),
            "stage": pd.Categorical(rng.choice(["a", "b"], cells), ["b", "a"], ordered=True),
            "one": pd.Categorical(["x"] * cells),
            "maybe": pd.array([None, 1, 2, 3] * (cells // 4), dtype="Int64"),
            "flag": rng.random(cells) < 0.5,
            "never": False,
            "number": rng.integers(1, 99, cells).astype(np.uint16),
            "share": rng.random(cells),
            "text": [f"t é{i}" for i in range(cells)],
        },
        index=[f"cell{i}" for i in range(cells)],
    )
    var = pd.DataFrame({"symbol": [f"S{i}" for i in range(genes)]}, [f"g{i}" for i in range(genes)])
    adata = anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=var)
    adata.raw = adata.copy()
    adata = adata[:, :9].copy()
    adata.layers["columns"] = sparse.csc_matrix(adata.X)
    adata.layers["dense"] = adata.X.toarray() + 1
    return adata


def stored(adata: anndata.AnnData, path: Path, version: int, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with anndata.settings.override(zarr_write_format=version):
            adata.write_zarr(path, **options)
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return the store of `rich()` in a format; tests that damage it take a copy."""
    folder = tmp_path_factory.mktemp("zarr")
    paths = {version: stored(rich(), folder / f"v{version}.zarr", version) for version in (2, 3)}
    return paths.__getitem__


@pytest.fixture
def copied(written: Callable[[int], Path], tmp_path: Path) -> Callable[[int], Path]:
    return lambda version: shutil.copytree(written(version), tmp_path / f"copy{version}.zarr")


def dense(source: Any, location: str, storage: Any = "float") -> np.ndarray[Any, Any]:
    matrix = source.matrix(location)
    blocks = list(matrix.blocks(storage))
    lengths = np.concatenate([np.diff(block[0]) for block in blocks])
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    genes = np.concatenate([block[1] for block in blocks])
    values = np.concatenate([block[2] for block in blocks])
    return sparse.csr_matrix((values, genes, indptr), matrix.shape).toarray()


@pytest.mark.parametrize("version", [2, 3])
def test_everything_arrives_as_anndata_reads_it(
    written: Callable[[int], Path], version: int
) -> None:
    adata = rich()
    with open_source(written(version)) as source:
        assert source.format_name == "AnnData zarr"
        assert set(source.matrices) == {"X", "raw.X", "layers/columns", "layers/dense"}
        assert not source.unreadable
        np.testing.assert_array_equal(dense(source, "X", "counts"), adata.X.toarray())
        np.testing.assert_array_equal(dense(source, "raw.X"), adata.raw.X.toarray())
        for name in ("columns", "dense"):
            expected = sparse.csr_matrix(adata.layers[name]).toarray()
            np.testing.assert_array_equal(dense(source, f"layers/{name}"), expected)
        pd.testing.assert_frame_equal(source.obs(), adata.obs, check_index_type=False)
        pd.testing.assert_frame_equal(source.var(), adata.var, check_index_type=False)
        assert list(source.var("raw.X").index) == list(adata.raw.var_names)
        assert source.obs_columns == list(adata.obs.columns)
        assert source.matrix("X").count_empty(10**6) == int((adata.X.sum(axis=1) == 0).sum())
        sample = source.matrix("X").sample(10**6)
        assert sample.complete
        assert sample.values.sum() == adata.X.sum()


@pytest.mark.parametrize("version", [2, 3])
def test_it_converts_like_the_h5ad_of_the_same_data(
    written: Callable[[int], Path], version: int, tmp_path: Path
) -> None:
    adata = rich()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_h5ad(tmp_path / "cells.h5ad")
    found = convert(written(version), tmp_path / "zarr.store")
    expected = convert(tmp_path / "cells.h5ad", tmp_path / "h5ad.store")
    assert found.genes.digest == expected.genes.digest
    rows = np.arange(len(expected))
    np.testing.assert_array_equal(
        found.take(rows).to_csr().toarray(), expected.take(rows).to_csr().toarray()
    )
    provenance = found.provenance["source"]
    assert provenance["format"] == "AnnData zarr"
    assert provenance["files"] == [f"v{version}.zarr"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("top", ["", "cells.zarr/"])
def test_a_zip_archive_is_read_in_place(
    written: Callable[[int], Path], tmp_path: Path, compression: int, top: str
) -> None:
    path = tmp_path / "cells.zarr.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(written(3).rglob("*")):
            if file.is_file():
                archive.write(file, f"{top}{file.relative_to(written(3))}")
    before = sorted(tmp_path.rglob("*"))
    with open_source(path) as source:
        np.testing.assert_array_equal(dense(source, "X"), rich().X.toarray())
        pd.testing.assert_frame_equal(source.obs(), rich().obs, check_index_type=False)
        assert source.stamp() == source.stamp()
    assert sorted(tmp_path.rglob("*")) == before


def test_stamp_and_fingerprint_see_what_is_read(copied: Callable[[int], Path]) -> None:
    path = copied(2)
    with open_zarr(path) as source:
        stamp, print_before = source.stamp(), source.fingerprint()
        (path / "obsm" / "note").write_text("embeddings are not read")
        assert source.stamp() == stamp
        (path / "obs" / "number" / "9").write_text("x")
        assert source.stamp() != stamp
    with open_zarr(path) as source:
        assert source.fingerprint() != print_before


def everything(path: Path) -> list[Any]:
    with open_zarr(path) as source:
        if source.unreadable:
            raise InputDataError(str(source.unreadable))
        tables = [source.obs(), source.var(), source.var("raw.X")]
        return [tables, {name: dense(source, name) for name in source.matrices}]


def same(left: list[Any], right: list[Any]) -> bool:
    tables = all(a.equals(b) for a, b in zip(left[0], right[0], strict=True))
    matrices = left[1].keys() == right[1].keys() and all(
        np.array_equal(left[1][name], right[1][name]) for name in left[1]
    )
    return tables and matrices


@pytest.mark.parametrize("version", [2, 3])
def test_any_one_file_lost_is_noticed_unless_it_held_plain_numbers(
    copied: Callable[[int], Path], version: int
) -> None:
    path = copied(version)
    expected = everything(path)
    parts = ("X", "raw/X/data", "obs", "layers")
    files = [file for part in parts for file in sorted((path / part).rglob("*")) if file.is_file()]
    silent = []
    for file in files:
        data = file.read_bytes()
        file.unlink()
        try:
            if not same(everything(path), expected):
                silent.append(str(file.relative_to(path)))
        except InputDataError:
            pass
        file.write_bytes(data)
    assert same(everything(path), expected)
    # Chunks of numbers that a writer may leave out when they are zeros.
    columns = ("flag", "number", "share", "maybe/mask", "maybe/values")
    chunk = {2: "0", 3: "c/0"}[version]
    allowed = {f"obs/{column}/{chunk}" for column in columns}
    assert set(silent) <= allowed, set(silent) - allowed
    assert len(files) > 40


@pytest.mark.parametrize("version", [2, 3])
def test_damaged_bytes_are_an_error_or_other_values_but_never_a_crash(
    copied: Callable[[int], Path], version: int
) -> None:
    path = copied(version)
    rng = np.random.default_rng(version)
    parts = ("X", "obs", "layers")
    files = [file for part in parts for file in sorted((path / part).rglob("*")) if file.is_file()]
    refused = 0
    for number in range(90):
        file = files[number % len(files)]
        data = bytearray(file.read_bytes())
        damaged = data.copy()
        for _ in range(int(rng.integers(1, 4))):
            damaged[int(rng.integers(min(len(data), 40 if number % 2 else len(data))))] ^= int(
                rng.integers(1, 256)
            )
        file.write_bytes(damaged[: int(rng.integers(len(data)))] if number % 5 == 0 else damaged)
        try:
            everything(path)
        except InputDataError as error:
            refused += 1
            assert str(path) in str(error) or "chunk" in str(error)  # noqa: PT017
        file.write_bytes(data)
    assert refused > 35


@pytest.mark.parametrize(
    ("counts", "location"),
    [
        (np.zeros((6, 4)), "X"),  # No entry at all: no chunk but that of nothing.
        (np.eye(6, 1) * 3 + np.ones((6, 1)), "X"),  # One gene: all indices are 0.
        (np.concatenate([np.zeros((5, 4)), np.ones((1, 4))]), "X"),
        (np.concatenate([np.zeros((5, 4)), np.ones((1, 4))]), "layers/columns"),
    ],
)
def test_chunks_of_zeros_that_the_writer_left_out_are_no_damage(
    tmp_path: Path, counts: np.ndarray[Any, Any], location: str
) -> None:
    adata = anndata.AnnData(sparse.csr_matrix(counts.astype(np.float32)))
    adata.layers["columns"] = sparse.csc_matrix(adata.X)
    path = stored(adata, tmp_path / "zeros.zarr", 3, chunks=(2,))
    with open_zarr(path) as source:
        np.testing.assert_array_equal(dense(source, location), counts)


def in_chunks(path: Path, length: int) -> None:
    """Write the sparse X of a format 3 store again in chunks of a few entries."""
    import zarr

    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    for name in ("data", "indices", "indptr"):
        values = group["X"][name][...]
        shutil.rmtree(path / "X" / name)
        group["X"].create_array(name, data=values, chunks=(length,))


@pytest.mark.parametrize("part", ["data", "indices", "indptr"])
def test_every_lost_chunk_of_a_sparse_matrix_is_noticed(
    copied: Callable[[int], Path], part: str
) -> None:
    path = copied(3)
    in_chunks(path, 7)
    with open_zarr(path) as source:
        np.testing.assert_array_equal(dense(source, "X"), rich().X.toarray())
    chunks = sorted((path / "X" / part / "c").iterdir())
    assert len(chunks) > 4
    for chunk in chunks:
        data = chunk.read_bytes()
        chunk.unlink()
        with (
            open_zarr(path) as source,
            pytest.raises(InputDataError, match=r"are not there|indptr"),
        ):
            dense(source, "X")
        chunk.write_bytes(data)


def test_a_column_of_nothing_but_empty_texts_is_refused_with_a_way_out(tmp_path: Path) -> None:
    adata = rich()
    adata.obs["empty"] = [""] * len(adata)
    with (
        open_zarr(stored(adata, tmp_path / "empty.zarr", 3)) as source,
        pytest.raises(InputDataError, match=r"obs/empty/categories .* empty texts, drop it"),
    ):
        source.obs()


def test_a_categorical_without_codes_is_refused(copied: Callable[[int], Path]) -> None:
    path = copied(3)
    (path / "obs/type/codes/c/0").unlink()
    with (
        open_zarr(path) as source,
        pytest.raises(InputDataError, match=r"obs/type/codes \(chunk 0\) .* its file is not there"),
    ):
        source.obs()


def test_a_dense_matrix_with_a_lost_chunk_is_refused_with_a_way_out(
    copied: Callable[[int], Path],
) -> None:
    path = copied(2)
    (path / "layers" / "dense" / "0.0").unlink()
    with open_zarr(path) as source:
        assert set(source.unreadable) == {"layers/dense"}
        with pytest.raises(InputDataError, match=r"1 of its chunks .* make it sparse"):
            source.matrix("layers/dense")


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


V2_EDITS: list[tuple[str, str, dict[str, Any], str]] = [
    ("X/data", "compressor", {"id": "pickle"}, "coded with 'pickle'"),
    ("X/data", "filters", [{"id": "pickle"}], "coded with 'pickle'"),
    ("X/data", "dtype", "|O", "Python objects"),
    ("X/data", "dtype", [["a", "<f4"]], "type .* is not read"),
    ("X/data", "shape", [-1], "shape is not a list"),
    ("X/data", "chunks", [0], "has chunks of"),
    ("X/data", "chunks", [2**40], "chunks of 4,398,046,511,104 bytes"),
    ("X/data", "shape", [2**40], "bytes are declared where"),
    ("X/data", "order", "K", "order of values"),
    ("X/data", "fill_value", "gAA=", "fill value"),
    ("X/indptr", "filters", [{"id": "vlen-utf8"}], "coded with 'vlen-utf8'"),
]


@pytest.mark.parametrize(("array", "key", "value", "words"), V2_EDITS)
def test_metadata_of_format_2_are_not_trusted(
    copied: Callable[[int], Path], array: str, key: str, value: Any, words: str
) -> None:
    path = copied(2)
    edit(path / array / ".zarray", lambda found: found.update({key: value}))
    with open_zarr(path) as source, pytest.raises(InputDataError, match=f"X of .*{words}"):
        dense(source, "X")


V3_EDITS: list[tuple[str, Any, str]] = [
    ("codecs", [{"name": "bytes"}, {"name": "numcodecs.pickle"}], "coded with 'pickle'"),
    ("codecs", [{"name": "numcodecs.json2"}], "not coded as plain bytes"),
    ("codecs", "zstd", "names no codecs"),
    ("data_type", {"name": "struct"}, "type .* is not read"),
    ("chunk_grid", {"name": "rectangular"}, "regular grid"),
    ("storage_transformers", [{"name": "remote"}], "regular grid"),
    ("chunk_key_encoding", {"name": "../../etc"}, "unknown kind"),
    ("chunk_key_encoding", {"name": "default", "configuration": {"separator": "/../"}}, "names of"),
    (
        "codecs",
        [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [1],
                    "codecs": [{"name": "bytes"}],
                    "index_codecs": [{"name": "bytes"}],
                },
            }
        ],
        "index of its shards has no checksum",
    ),
]


@pytest.mark.parametrize(("key", "value", "words"), V3_EDITS)
def test_metadata_of_format_3_are_not_trusted(
    copied: Callable[[int], Path], key: str, value: Any, words: str
) -> None:
    path = copied(3)
    edit(path / "X" / "data" / "zarr.json", lambda found: found.update({key: value}))
    with open_zarr(path) as source, pytest.raises(InputDataError, match=f"X of .*{words}"):
        dense(source, "X")


def test_a_text_column_that_would_be_unpickled_is_refused(copied: Callable[[int], Path]) -> None:
    path = copied(2)
    edit(path / "obs/text/.zarray", lambda found: found.update(filters=[{"id": "pickle"}]))
    with (
        open_zarr(path) as source,
        pytest.raises(InputDataError, match="would have to be unpickled"),
    ):
        source.obs()


@pytest.mark.parametrize("where", ["X/data/c/0", "obs/zarr.json", "layers"])
def test_symbolic_links_are_refused(copied: Callable[[int], Path], where: str) -> None:
    path = copied(3)
    target = path.parent / "elsewhere"
    (path / where).rename(target)
    (path / where).symlink_to(target)
    with pytest.raises(InputDataError, match=f"{where} is a symbolic link"), open_zarr(path):
        pass


def test_a_pipe_is_refused_without_waiting(copied: Callable[[int], Path]) -> None:
    path = copied(3)
    os.mkfifo(path / "X" / "pipe")
    with pytest.raises(InputDataError, match="X/pipe is a pipe"), open_zarr(path):
        pass


def mutated(found: Any, rng: np.random.Generator) -> Any:
    """Return JSON with one value somewhere in it replaced or taken out."""
    values = [None, 0, -1, 2**63, 1.5, "", "x", [], [0], [None], {}, {"name": "x"}, True, "|O"]
    if isinstance(found, dict | list) and found and rng.random() < 0.8:
        keys = list(found) if isinstance(found, dict) else list(range(len(found)))
        key = keys[int(rng.integers(len(keys)))]
        if rng.random() < 0.2:
            del found[key]
        else:
            found[key] = mutated(found[key], rng)
        return found
    return values[int(rng.integers(len(values)))]


@pytest.mark.parametrize("version", [2, 3])
def test_any_metadata_are_read_or_refused(copied: Callable[[int], Path], version: int) -> None:
    path = copied(version)
    rng = np.random.default_rng(version)
    names = {".zarray", ".zattrs", ".zgroup", "zarr.json"}
    files = [
        file
        for part in ("X", "obs", "layers")
        for file in sorted((path / part).rglob("*"))
        if file.name in names
    ]
    outcomes = {"read": 0, "refused": 0}
    for number in range(60):
        file = files[number % len(files)]
        data = file.read_bytes()
        file.write_text(json.dumps(mutated(json.loads(data), rng)))
        try:
            everything(path)
            outcomes["read"] += 1
        except InputDataError:
            outcomes["refused"] += 1
        file.write_bytes(data)
    assert min(outcomes.values()) > 5, outcomes


def test_the_cells_that_scanpy_ships_arrive_with_their_types(tmp_path: Path) -> None:
    adata = scanpy.datasets.pbmc68k_reduced()
    with open_zarr(stored(adata, tmp_path / "pbmc.zarr", 3)) as source:
        pd.testing.assert_frame_equal(source.obs(), adata.obs, check_names=False)
        pd.testing.assert_frame_equal(source.var(), adata.var, check_names=False)
        np.testing.assert_array_equal(dense(source, "raw.X"), adata.raw.X.toarray())
        np.testing.assert_array_equal(dense(source, "X"), np.asarray(adata.X))


def test_consolidated_metadata_are_not_believed(copied: Callable[[int], Path]) -> None:
    path = copied(3)
    edit(path / "zarr.json", lambda found: found.update(consolidated_metadata={"metadata": 1}))
    with open_zarr(path) as source:
        np.testing.assert_array_equal(dense(source, "X"), rich().X.toarray())


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("zarr.json", "[" * 100_000, "it is not JSON"),
        ("zarr.json", "<html>", "it is not JSON"),
        ("zarr.json", "[]", "not a JSON object"),
        ("obs/zarr.json", '{"node_type": "group", "attributes": 3}', "attributes are not a JSON"),
        ("X/extra/chunk", "x", "belongs to no array"),
    ],
)
def test_broken_metadata_files_are_named(
    copied: Callable[[int], Path], name: str, text: str, words: str
) -> None:
    path = copied(3)
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text(text)
    with pytest.raises(InputDataError, match=words) as raised, open_zarr(path):
        pass
    assert str(path) in str(raised.value)


def test_stores_of_other_programs_and_no_stores_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    assert recognises(tmp_path)
    with pytest.raises(InputDataError, match="zarr store but not one of AnnData"):
        open_zarr(tmp_path).__enter__()
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "array"}')
    with pytest.raises(InputDataError, match="is no zarr group"):
        open_zarr(tmp_path).__enter__()
    with pytest.raises(MissingPathError, match="There is no folder"):
        open_zarr(tmp_path / "gone").__enter__()
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("notes.txt", "x")
    assert not recognises(tmp_path / "other.zip")
    with pytest.raises(InputDataError, match="without a zarr store at its root"):
        open_zarr(tmp_path / "other.zip").__enter__()
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(InputDataError, match="neither a folder nor a zip archive"):
        open_zarr(tmp_path / "cut.zip").__enter__()


def test_a_damaged_archive_member_is_named(written: Callable[[int], Path], tmp_path: Path) -> None:
    path = tmp_path / "cells.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(written(2).rglob("*")):
            if file.is_file():
                archive.write(file, str(file.relative_to(written(2))))
        info = archive.getinfo("X/data/0")
    data = bytearray(path.read_bytes())
    data[info.header_offset + 60] ^= 1
    path.write_bytes(data)
    with open_zarr(path) as source, pytest.raises(InputDataError, match=r"X/data/0 cannot be read"):
        dense(source, "X")


def test_an_unknown_layer_is_answered_with_the_nearest(written: Callable[[int], Path]) -> None:
    with (
        open_zarr(written(3)) as source,
        pytest.raises(UnknownNameError, match="Did you mean 'layers/dense'"),
    ):
        source.matrix("layers/denes")
