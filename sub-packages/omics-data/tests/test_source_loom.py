"""A loom file as a source: chunks of every kind, attributes as tables, clear refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from omics.data.converting.conversion import convert
from omics.data.errors import InputDataError, UnknownNameError
from omics.data.sources.registry import open_source
from omics.data.sources.source_loom import open_loom

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CELLS, GENES = 50, 20
SPLICED = "layers/spliced"


def counts(seed: int = 0) -> np.ndarray[Any, Any]:
    matrix = np.random.default_rng(seed).poisson(0.4, (CELLS, GENES))
    matrix[7] = 0
    return matrix.astype(np.float32)


def written(
    folder: Path, chunks: Any = (8, 8), change: Callable[[Any], None] | None = None
) -> Path:
    path = folder / "cells.loom"
    with h5py.File(path, "w") as handle:
        packing = {"compression": "gzip"} if chunks else {}
        handle.create_dataset("matrix", data=counts().T, chunks=chunks, **packing)
        handle.create_dataset("layers/spliced", data=counts(1).T.astype(np.uint16), chunks=chunks)
        text = h5py.string_dtype()
        rows = handle.create_group("row_attrs")
        rows.create_dataset("Gene", data=[f"G{i // 2}" for i in range(GENES)], dtype=text)
        rows.create_dataset("Accession", data=[f"ENSG{i}" for i in range(GENES)], dtype=text)
        rows["Chromosome"] = np.array([b"X"] * GENES)
        columns = handle.create_group("col_attrs")
        columns.create_dataset("CellID", data=[f"c{i}" for i in range(CELLS)], dtype=text)
        columns["Clusters"] = np.arange(CELLS, dtype=np.int64) % 3
        columns["share"] = np.linspace(0, 1, CELLS)
        columns["PCA"] = np.zeros((CELLS, 2))
        handle.create_group("attrs")["LOOM_SPEC_VERSION"] = "3.0.0"
        if change is not None:
            change(handle)
    return path


def dense(source: Any, location: str = "X", storage: Any = "counts") -> np.ndarray[Any, Any]:
    matrix = source.matrix(location)
    blocks = list(matrix.blocks(storage))
    indptr = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(b[0]) for b in blocks]))])
    genes, values = (np.concatenate([block[i] for block in blocks]) for i in (1, 2))
    return sparse.csr_array((values, genes, indptr), matrix.shape).toarray()


# Chunks in both directions, along the genes, along the cells, and none.
@pytest.mark.parametrize("chunks", [(8, 8), (20, 4), (1, 50), (3, 50), None])
@pytest.mark.parametrize("small_blocks", [False, True])
def test_matrix_and_layers_arrive_turned_round(
    tmp_path: Path, chunks: Any, small_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small_blocks:
        for module in ("dense_bands", "matrix_blocks"):
            monkeypatch.setattr(f"omics.data.sources.{module}.DENSE_BLOCK_BYTES", 6 * GENES * 4)
        monkeypatch.setattr("omics.data.sources.entry_spool.BLOCK_ENTRIES", 60)
    with open_source(written(tmp_path, chunks)) as source:
        assert source.format_name == "loom"
        np.testing.assert_array_equal(dense(source), counts())
        np.testing.assert_array_equal(dense(source, SPLICED), counts(1))
        sample = source.matrix("X").sample(10**6)
        assert (sample.complete, sample.values.sum()) == (True, counts().sum())
        later = list(source.matrix("X").blocks(first_cell=45))
        assert sum(len(block[0]) - 1 for block in later) == 5
        assert source.matrix("X").count_empty(10**6) is None


def test_chunks_along_all_cells_are_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("dense_bands", "matrix_blocks"):
        monkeypatch.setattr(f"omics.data.sources.{module}.DENSE_BLOCK_BYTES", 6 * GENES * 4)
    with open_loom(written(tmp_path, (2, 50))) as source:
        matrix = source.matrix("X")
        read, seen = type(matrix).read_values, []

        def counted(self: Any, where: Any) -> Any:
            seen.append(where)
            return read(self, where)

        monkeypatch.setattr(type(matrix), "read_values", counted)
        np.testing.assert_array_equal(dense(source), counts())
    tiles = [where for where in seen if isinstance(where, tuple)]
    assert [(t[0].start, t[0].stop, t[1].start) for t in tiles] == [
        (0, CELLS, gene) for gene in range(0, GENES, 2)
    ]


def test_attributes_of_one_value_are_columns_and_others_are_listed(tmp_path: Path) -> None:
    with open_loom(written(tmp_path)) as source:
        obs, var = source.obs(), source.var()
        index = pd.Index([f"c{i}" for i in range(CELLS)], dtype=object)
        expected = pd.DataFrame(
            {"Clusters": np.arange(CELLS) % 3, "share": np.linspace(0, 1, CELLS)}, index=index
        )
        pd.testing.assert_frame_equal(obs[["Clusters", "share"]], expected)
        assert sorted(source.obs_columns) == ["Clusters", "share"]
        assert list(var.index) == [f"ENSG{i}" for i in range(GENES)]
        assert list(var["gene_symbol"]) == [f"G{i // 2}" for i in range(GENES)]
        assert list(var["Chromosome"]) == ["X"] * GENES
        assert source.left_out == {"col_attrs/PCA": f"its shape is ({CELLS}, 2), not ({CELLS},)"}
        assert source.table_bytes() > 0
    with open_loom(tmp_path / "cells.loom", gene_ids="Gene", cell_names="Clusters") as source:
        assert source.var().index[3] == "G1"
        assert source.obs().index[4] == "1"
        with pytest.raises(UnknownNameError, match=r"no matrix 'layers/splice'. Did you mean"):
            source.var("layers/splice")
    with pytest.raises(UnknownNameError, match=r"no attribute 'gene' in row_attrs. Did you mean"):
        open_loom(tmp_path / "cells.loom", gene_ids="gene").__enter__()


def test_a_file_without_names_gets_numbers(tmp_path: Path) -> None:
    def bare(handle: Any) -> None:
        del handle["row_attrs"], handle["col_attrs"]
        handle.create_group("row_attrs")
        handle["col_attrs/n"] = np.arange(CELLS)

    with open_source(written(tmp_path, change=bare)) as source:
        assert list(source.var().index) == [str(i) for i in range(GENES)]
        assert source.obs()["n"].tolist() == list(range(CELLS))


def test_it_converts(tmp_path: Path) -> None:
    store = convert(written(tmp_path), tmp_path / "cells.store")
    np.testing.assert_array_equal(store.take(np.arange(CELLS)).to_csr().toarray(), counts())
    assert list(store.genes.symbols)[:3] == ["G0", "G0", "G1"]
    other = convert(tmp_path / "cells.loom", tmp_path / "s.store", location=SPLICED)
    np.testing.assert_array_equal(other.take(np.arange(CELLS)).to_csr().toarray(), counts(1))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    def odd(handle: Any) -> None:
        handle["layers/short"] = np.zeros((GENES, 3))
        handle.create_group("layers/group")

    with open_source(written(tmp_path, change=odd)) as source:
        assert set(source.unreadable) == {"layers/short", "layers/group"}
        with pytest.raises(InputDataError, match="shape is 20 x 3, but the matrix has 20 genes"):
            source.matrix("layers/short")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.5, r"row 9, column 4 .* 0.5 is not a whole number"),
        (-1, r"row 9, column 4 .* is negative"),
        (np.nan, r"row 9, column 4: nan"),
    ],
)
@pytest.mark.parametrize("chunks", [(8, 8), (1, 50)])
def test_values_that_are_no_counts_are_refused_with_their_place(
    tmp_path: Path, value: float, words: str, chunks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("dense_bands", "matrix_blocks"):
        monkeypatch.setattr(f"omics.data.sources.{module}.DENSE_BLOCK_BYTES", 6 * GENES * 4)

    def spoil(handle: Any) -> None:
        handle["matrix"][4, 9] = value

    with (
        open_source(written(tmp_path, chunks, spoil)) as source,
        pytest.raises(InputDataError, match=words),
    ):
        dense(source)


def test_hostile_and_broken_files_are_refused(tmp_path: Path) -> None:
    def external(handle: Any) -> None:
        del handle["layers"]
        handle["layers"] = h5py.ExternalLink("/etc/hostname", "x")

    with pytest.raises(InputDataError, match="a link to another file"):
        open_source(written(tmp_path, change=external)).__enter__()

    def flat(handle: Any) -> None:
        del handle["matrix"]
        handle["matrix"] = np.zeros(5)

    with pytest.raises(InputDataError, match=r"no matrix of genes and cells"):
        open_source(written(tmp_path, change=flat)).__enter__()

    def latin(handle: Any) -> None:
        handle["row_attrs/bad"] = np.array([b"\xe9"] * GENES)

    with (
        open_source(written(tmp_path, change=latin)) as source,
        pytest.raises(InputDataError, match=r"The table var of .* cannot be read"),
    ):
        source.var()
    path = tmp_path / "cells.loom"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputDataError, match=r"cannot be opened|cannot be read"):
        open_source(path).__enter__()
