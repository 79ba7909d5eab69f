"""SCDL folders arrive as their h5ad files were; a folder that contradicts itself is refused."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from omics.data.converting.conversion import convert
from omics.data.errors import InputDataError, MissingPathError, UnknownNameError
from omics.data.sources.registry import open_source
from omics.data.sources.source_scdl import open_scdl, recognises

CODES = {"u1": 1, "u2": 2, "u4": 3, "u8": 4, "f2": 5, "f4": 6, "f8": 7}


def smallest(largest: int) -> str:
    return next(name for name in ("u1", "u2", "u4") if largest <= np.iinfo(name).max)


def header_bytes(
    arrays: dict[str, tuple[int, int]], *, version: tuple[int, ...] = (0, 1, 0)
) -> bytes:
    out = b"SCDL" + bytes(version) + b"\1" + struct.pack(">II", 1, len(arrays))
    for name, (length, code) in arrays.items():
        out += struct.pack(">I", len(name)) + name.encode() + struct.pack(">QIB", length, code, 0)
    out += struct.pack(">I", 1)
    for name, files in (("var_features", ["var_features/version.npy"]),):
        out += struct.pack(">I", len(name)) + name.encode() + struct.pack(">QII", 1, 8, len(files))
        out += b"".join(struct.pack(">I", len(each)) + each.encode() for each in files) + b"\0"
    return out


def write_tables(folder: Path, tables: list[pd.DataFrame], ends: list[int]) -> None:
    folder.mkdir()
    width = len(str(len(tables)))
    for number, table in enumerate(tables):
        table.to_parquet(folder / f"dataframe_{number:0{width}d}.parquet", index=False)
    np.save(folder / "cumulative_sum_index.npy", np.array([-1, *ends]))
    np.save(folder / "version.npy", np.array("0.1.3"))


def write_scdl(
    path: Path, parts: list[tuple[Any, pd.DataFrame]], obs: pd.DataFrame, *, dtype: str = "f4"
) -> Path:
    """Write [cells, genes] matrices with their gene tables as one folder, as bionemo-scdl does."""
    matrices = [sparse.csr_matrix(counts) for counts, _ in parts]
    values = np.concatenate([each.data for each in matrices]).astype(dtype)
    columns = np.concatenate([each.indices for each in matrices])
    lengths = np.concatenate([np.diff(each.indptr) for each in matrices])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    column_type = smallest(max(len(table) for _, table in parts))
    row_type = smallest(len(values))
    path.mkdir()
    values.tofile(path / "data.npy")
    columns.astype(column_type).tofile(path / "col_ptr.npy")
    offsets.astype(row_type).tofile(path / "row_ptr.npy")
    (path / "header.sch").write_bytes(
        header_bytes(
            {
                "DATA": (len(values), CODES[dtype]),
                "ROWPTR": (len(offsets), CODES[row_type]),
                "COLPTR": (len(columns), CODES[column_type]),
            }
        )
    )
    (path / "version.json").write_text('"0.1.3"')
    (path / "metadata.json").write_text(json.dumps({"num_rows": matrices[0].shape[0]}))
    ends = np.cumsum([each.shape[0] for each in matrices]).tolist()
    write_tables(path / "var_features", [table for _, table in parts], ends)
    write_tables(path / "obs_features", [obs], [len(obs)])
    return path


def genes(names: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"feature_name": ["x"] * len(names), "feature_id": names})


COUNTS = np.array([[1, 0, 3, 0], [0, 0, 0, 0], [7, 2, 0, 5]])
OBS = pd.DataFrame({"cell_type": ["b", "a", "b"], "age": [1, 2, 3]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_scdl(tmp_path / "cells", [(COUNTS, genes(["A", "B", "C", "D"]))], OBS)


def read_back(matrix: Any) -> np.ndarray[Any, Any]:
    out = np.zeros(matrix.shape)
    first = 0
    for indptr, positions, values in matrix.blocks("counts"):
        cells = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        out[first + cells, positions] = values
        first += len(indptr) - 1
    assert first == matrix.shape[0]
    return out


def refusal(folder: Path) -> str:
    with pytest.raises(InputDataError, match="cells") as caught:
        read_everything(folder)
    return str(caught.value)


def read_everything(folder: Path) -> None:
    with open_scdl(folder) as source:
        read_back(source.matrix("X"))
        source.obs()


def test_a_folder_arrives_with_its_tables(folder: Path) -> None:
    assert recognises(folder)
    with open_source(folder) as source:
        assert source.format_name == "SCDL"
        assert (source.num_cells, source.num_genes) == (3, 4)
        assert (read_back(source.matrix("X")) == COUNTS).all()
        assert list(source.var().index) == ["A", "B", "C", "D"]
        assert list(source.obs()["cell_type"]) == ["b", "a", "b"]
        assert list(source.obs().index) == ["cell0", "cell1", "cell2"]
        assert source.obs_columns == ["cell_type", "age"]
        assert "taken from the column 'feature_id'" in source.notes[0]
        assert "data.npy" in source.fingerprint()["files"]
        with pytest.raises(UnknownNameError, match="Known: 'X'"):
            source.matrix("raw.X")


def test_a_read_only_folder_becomes_a_store(folder: Path, tmp_path: Path) -> None:
    for path in folder.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    folder.chmod(0o555)
    store = convert(folder, tmp_path / "store")
    assert (store.take(np.arange(3)).to_csr().toarray() == COUNTS).all()
    assert list(store.genes.ids) == ["A", "B", "C", "D"]
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(sorted(CODES)),
    sizes=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), min_size=1, max_size=4),
)
def test_any_parts_are_joined_by_gene(seed: int, dtype: str, sizes: list[tuple[int, int]]) -> None:
    rng = np.random.default_rng(seed)
    parts: list[tuple[Any, pd.DataFrame]] = []
    expected: list[pd.DataFrame] = []
    for cells, columns in sizes:
        counts = rng.integers(0, 200, (cells, columns)) * (rng.random((cells, columns)) < 0.5)
        names = rng.permutation([f"g{number}" for number in range(9)])[:columns].tolist()
        parts.append((counts, genes(names)))
        expected.append(pd.DataFrame(counts, columns=names))
    joined = pd.concat(expected).fillna(0)
    obs = pd.DataFrame({"number": range(len(joined))})
    with tempfile.TemporaryDirectory() as place:
        path = write_scdl(Path(place) / "cells", parts, obs, dtype=dtype)
        with open_scdl(path) as source:
            found = pd.DataFrame(read_back(source.matrix("X")), columns=source.var().index)
            assert set(found.columns) == set(joined.columns)
            assert (found[joined.columns].to_numpy() == joined.to_numpy()).all()
            assert len(source.obs()) == len(joined)


def test_ids_come_from_the_first_column_that_tells_genes_apart(tmp_path: Path) -> None:
    table = pd.DataFrame({"chromosome": ["1", "1"], "length": [5, 6], "name": ["P", "Q"]})
    for number, (columns, ids) in enumerate(
        (
            (["chromosome", "length", "name"], ["P", "Q"]),
            (["chromosome", "length"], ["gene0", "gene1"]),
        )
    ):
        path = write_scdl(tmp_path / f"cells{number}", [(np.eye(2), table[columns])], OBS[:2])
        with open_scdl(path) as source:
            assert list(source.var().index) == ids
            assert source.notes[0].endswith(
                "the column 'name' of its gene table" if number == 0 else "gene0, gene1, ..."
            )


def test_genes_of_several_files_without_ids_are_refused(tmp_path: Path) -> None:
    table = pd.DataFrame({"length": [1, 2]})
    path = write_scdl(tmp_path / "cells", [(np.eye(2), table)] * 2, pd.concat([OBS, OBS[:1]]))
    assert "no column of their gene tables has an id for every gene" in refusal(path)


def test_a_repeated_gene_within_a_part_is_no_id(tmp_path: Path) -> None:
    table = pd.DataFrame({"feature_id": ["A", "A"], "symbol": ["P", "Q"]})
    path = write_scdl(tmp_path / "cells", [(np.eye(2), table)], OBS[:2])
    with open_scdl(path) as source:
        assert list(source.var().index) == ["P", "Q"]


# --- what the reference reader takes for data, or dies of ----------------------------------------


def test_without_a_header_nothing_is_guessed(folder: Path) -> None:
    (folder / "header.sch").unlink()
    assert recognises(folder)
    assert "which alone says of what type the values in data.npy are" in refusal(folder)


def test_values_cast_behind_the_back_of_the_header_are_refused(folder: Path) -> None:
    values = np.fromfile(folder / "data.npy", "f4")
    values.astype("f8").tofile(folder / "data.npy")
    message = refusal(folder)
    assert "header says 5 values of type float32, which are 20 bytes" in message
    assert "40 bytes are 5 values of uint64 or float64" in message


def test_arrays_extended_behind_the_back_of_the_header_are_refused(folder: Path) -> None:
    with (folder / "data.npy").open("ab") as file:
        file.write(bytes(12))
    assert "cast or extended without its header being told" in refusal(folder)


def test_genes_of_raw_beside_the_table_of_x_are_refused(folder: Path) -> None:
    genes(["A", "B"]).to_parquet(folder / "var_features" / "dataframe_0.parquet", index=False)
    assert "row 0 has an entry at column 2, outside 0 to 1" in refusal(folder)


def test_the_stale_number_of_rows_of_a_merged_folder_does_not_matter(folder: Path) -> None:
    (folder / "metadata.json").write_text('{"num_rows": 1}')
    with open_scdl(folder) as source:
        assert source.num_cells == 3


def test_files_cut_short_anywhere_are_refused(folder: Path, tmp_path: Path) -> None:
    names = ["header.sch", "data.npy", "row_ptr.npy", "col_ptr.npy"]
    names += ["var_features/cumulative_sum_index.npy", "obs_features/dataframe_0.parquet"]
    for name in names:
        whole = (folder / name).read_bytes()
        # The list of features behind the arrays of the header is not needed.
        end = whole.index(b"COLPTR") + 19 if name == "header.sch" else len(whole)
        for length in range(0, end, 1 if end < 200 else 37):
            (folder / name).write_bytes(whole[:length])
            refusal(folder)
        (folder / name).write_bytes(whole)
    read_everything(folder)


@pytest.mark.parametrize(
    "name",
    [
        "data.npy",
        "row_ptr.npy",
        "col_ptr.npy",
        "var_features",
        "var_features/dataframe_0.parquet",
        "obs_features/cumulative_sum_index.npy",
    ],
)
def test_missing_parts_are_refused(folder: Path, name: str) -> None:
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert recognises(folder)
    refusal(folder)


def test_a_pipe_in_place_of_an_array_does_not_hang(folder: Path) -> None:
    (folder / "data.npy").unlink()
    os.mkfifo(folder / "data.npy")
    assert "not a regular file" in refusal(folder)


def test_without_tables_of_cells_there_are_names_only(folder: Path) -> None:
    shutil.rmtree(folder / "obs_features")
    with open_scdl(folder) as source:
        assert source.obs().shape == (3, 0)
        assert source.obs_columns == []


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"SCDX" + bytes(20), "does not begin with SCDL"),
        (header_bytes({}, version=(0, 2, 0)), "is of version 0.2.0; versions up to 0.1 are read"),
        (header_bytes({}), "does not list the array DATA; it lists none"),
        (header_bytes({"DATA": (5, 8)}), "the array DATA is of type 8, which is none of numbers"),
        (b"SCDL" + bytes((0, 1, 0, 2)) + bytes(8), "is of byte order 2 and kind 0"),
        (b"SCDL" + bytes((0, 1, 0, 1)) + struct.pack(">III", 1, 1, 2**31), "a name of 2,147,483,6"),
        (
            b"SCDL" + bytes((0, 1, 0, 1)) + struct.pack(">III", 1, 2**31, 1) + b"\xff" * 30,
            "a name in it is not text",
        ),
        (
            b"SCDL"
            + bytes((0, 1, 0, 1))
            + struct.pack(">II", 1, 2)
            + (struct.pack(">I", 4) + b"DATA" + struct.pack(">QIB", 5, 6, 0)) * 2,
            "lists the array DATA twice",
        ),
    ],
)
def test_broken_headers_are_refused(folder: Path, header: bytes, words: str) -> None:
    (folder / "header.sch").write_bytes(header)
    assert words in refusal(folder)


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        ([0, 2, 1, 5], "does not ascend"),
        ([1, 2, 2, 5], "does not ascend"),
        ([0, 2, 2, 4], "indptr ends at 4"),
        ([0, 2, 2, 9], "does not ascend from 0 to the number of values"),
    ],
)
def test_broken_offsets_are_refused(folder: Path, offsets: list[int], words: str) -> None:
    np.array(offsets, "u1").tofile(folder / "row_ptr.npy")
    assert words in refusal(folder)


def test_parts_that_do_not_belong_together_are_refused(folder: Path) -> None:
    index = folder / "var_features" / "cumulative_sum_index.npy"
    np.save(index, np.array([-1, 2]))
    assert "belong to 2 rows, but the matrix has 3" in refusal(folder)
    np.save(index, np.array([-1, 2, 3]))
    assert "holds 1 tables (dataframe_*.parquet) where its index lists 2" in refusal(folder)
    np.save(index, np.array([0, 3]))
    assert "is not the index of tables" in refusal(folder)
    np.save(index, np.array([-1, 3], dtype=object), allow_pickle=True)
    assert "cannot be read" in refusal(folder)
    np.save(index, np.array([-1, 3]))
    OBS[:2].to_parquet(folder / "obs_features" / "dataframe_0.parquet", index=False)
    assert "has 2 rows for 3 cells" in refusal(folder)


def test_other_folders_are_not_recognised(tmp_path: Path) -> None:
    assert not recognises(tmp_path)
    assert not recognises(tmp_path / "absent")
    (tmp_path / "data.npy").write_bytes(b"")
    assert not recognises(tmp_path)
    assert not recognises(tmp_path / "data.npy")
    with pytest.raises(MissingPathError, match="absent"), open_scdl(tmp_path / "absent"):
        pass
