"""10x Genomics data as a source: `.h5` files and `matrix.mtx` folders of both generations."""

from __future__ import annotations

import gzip
import warnings
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy
import scipy.io
from scipy import sparse

from omics.data.converting.conversion import convert
from omics.data.errors import InputDataError, MissingPathError, UnknownNameError
from omics.data.sources.registry import open_source
from omics.data.sources.source_10x_folder import open_10x_folder
from omics.data.sources.source_10x_hdf5 import open_10x_hdf5, recognises

if TYPE_CHECKING:
    from pathlib import Path

CELLS, GENES, ANTIBODIES = 30, 12, 4
IDS = [f"ENSG{i:011d}" for i in range(GENES)] + [f"CD{i}" for i in range(ANTIBODIES)]
SYMBOLS = [f"G{i // 2}" for i in range(GENES)] + [f"CD{i}_TotalSeq" for i in range(ANTIBODIES)]
TYPES = ["Gene Expression"] * GENES + ["Antibody Capture"] * ANTIBODIES
BARCODES = [f"ACGT{i:04d}-1" for i in range(CELLS)]


def counts(seed: int = 0, features: int = GENES + ANTIBODIES) -> Any:
    matrix = np.random.default_rng(seed).poisson(0.5, (CELLS, features))
    matrix[5] = 0
    return sparse.csr_array(matrix.astype(np.int32))


def fill(group: h5py.Group, matrix: Any, barcodes: list[str] | None = None) -> None:
    """Write cells x features as 10x does: features x barcodes in columns."""
    group["barcodes"] = np.array(barcodes or BARCODES, "S")
    for name in ("data", "indices", "indptr"):
        group.create_dataset(name, data=getattr(matrix, name), chunks=(16,), compression="gzip")
    group["shape"] = np.array(matrix.shape[::-1], np.int32)


def v3(path: Path, matrix: Any = None) -> Path:
    matrix = counts() if matrix is None else matrix
    number = matrix.shape[1]
    with h5py.File(path, "w") as handle:
        fill(handle.create_group("matrix"), matrix)
        features = handle.create_group("matrix/features")
        columns = {"id": IDS, "name": SYMBOLS, "feature_type": TYPES, "genome": ["GRCh38"] * 16}
        for name, values in columns.items():
            features[name] = np.array(values[:number], "S")
        features["_all_tag_keys"] = np.array(["genome"], "S")
    return path


def v2(path: Path, **genomes: Any) -> Path:
    with h5py.File(path, "w") as handle:
        for name, (matrix, barcodes) in genomes.items():
            fill(handle.create_group(name), matrix, barcodes)
            handle[name]["genes"] = np.array([f"{name}_{i}" for i in IDS[:GENES]], "S")
            handle[name]["gene_names"] = np.array(SYMBOLS[:GENES], "S")
    return path


def folder(path: Path, matrix: Any = None, *, old: bool = False, prefix: str = "") -> Path:
    """Write a folder of CellRanger 3, or an `old` one of CellRanger 2."""
    matrix = counts() if matrix is None else matrix
    path.mkdir(exist_ok=True)
    end = "" if old else ".gz"
    rows = zip(IDS, SYMBOLS, TYPES, strict=True)
    lines = ["\t".join(row[: 2 if old else 3]) for row in rows][: matrix.shape[1]]
    put(path / f"{prefix}{'genes' if old else 'features'}.tsv{end}", "\n".join(lines) + "\n")
    put(path / f"{prefix}barcodes.tsv{end}", "\n".join(BARCODES) + "\n")
    text = path / "text"
    # By barcode, then by feature, as CellRanger writes.
    scipy.io.mmwrite(text, sparse.coo_array(matrix.T.tocsc()), field="integer", comment="10x")
    put(path / f"{prefix}matrix.mtx{end}", text.with_suffix(".mtx").read_text())
    text.with_suffix(".mtx").unlink()
    return path


def put(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def dense(source: Any, location: str = "X", storage: Any = "counts") -> np.ndarray[Any, Any]:
    matrix = source.matrix(location)
    blocks = list(matrix.blocks(storage))
    indptr = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(b[0]) for b in blocks]))])
    genes, values = (np.concatenate([block[i] for block in blocks]) for i in (1, 2))
    return sparse.csr_array((values, genes, indptr), matrix.shape).toarray()


@pytest.mark.parametrize("kind", ["h5", "folder"])
def test_genes_are_x_and_antibodies_a_matrix_of_their_own(tmp_path: Path, kind: str) -> None:
    path = v3(tmp_path / "v3.h5") if kind == "h5" else folder(tmp_path / "v3")
    expected = counts().toarray()
    with open_source(path) as source:
        assert list(source.matrices) == ["X", "Antibody Capture"]
        np.testing.assert_array_equal(dense(source), expected[:, :GENES])
        np.testing.assert_array_equal(dense(source, "Antibody Capture"), expected[:, GENES:])
        var, obs = source.var(), source.obs()
        assert list(var.index) == IDS[:GENES]
        assert list(var["gene_symbol"]) == SYMBOLS[:GENES]
        assert set(var["feature_type"]) == {"Gene Expression"}
        assert list(source.var("Antibody Capture").index) == IDS[GENES:]
        assert (list(obs.index), list(obs.columns), source.obs_columns) == (BARCODES, [], [])
        assert (source.num_cells, source.num_genes) == (CELLS, GENES)
        for location, part in (
            ("X", expected[:, :GENES]),
            ("Antibody Capture", expected[:, GENES:]),
        ):
            matrix = source.matrix(location)
            sample = matrix.sample(10**6)
            assert (sample.complete, sample.values.sum()) == (True, part.sum())
            assert matrix.count_empty(10**6) == (part.sum(axis=1) == 0).sum()
            assert matrix.count_empty(10) is None
            later = list(matrix.blocks(first_cell=20))
            assert sum(len(block[0]) - 1 for block in later) == CELLS - 20
        with pytest.raises(UnknownNameError, match="Did you mean 'Antibody Capture'"):
            source.var("Antibody capture")
        assert source.fingerprint()["bytes"] == sum(each.stat().st_size for each in source.files)
    store = convert(path, tmp_path / "cells.store")
    np.testing.assert_array_equal(store.take(np.arange(CELLS)).to_csr().toarray(), expected[:, :12])
    assert list(store.genes.symbols) == SYMBOLS[:GENES]


@pytest.mark.parametrize("old", [False, True])
def test_a_folder_is_read_as_scanpy_reads_it(tmp_path: Path, old: bool) -> None:
    path = folder(tmp_path / "mtx", counts(features=GENES), old=old)
    theirs = scanpy.read_10x_mtx(path, var_names="gene_ids")
    with open_source(path) as source:
        assert source.matrix("X").encoding == "coordinate"
        np.testing.assert_array_equal(dense(source), theirs.X.toarray())
        assert list(source.var().index) == list(theirs.var_names)
        assert list(source.obs().index) == list(theirs.obs_names)
        assert source.matrix("X").stored_entries == theirs.X.nnz


def test_an_h5_file_is_read_as_scanpy_reads_it(tmp_path: Path) -> None:
    path = v3(tmp_path / "v3.h5", counts(features=GENES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Symbols repeat, as they do in real files.
        theirs = scanpy.read_10x_h5(path)
    with open_source(path) as source:
        np.testing.assert_array_equal(dense(source), theirs.X.toarray())
        assert list(source.var()["gene_symbol"]) == list(theirs.var_names)
        assert list(source.var()["genome"]) == list(theirs.var["genome"])


def test_one_genome_of_cellranger_2_is_x(tmp_path: Path) -> None:
    path = v2(tmp_path / "v2.h5", hg19=(counts(features=GENES), BARCODES))
    with open_source(path) as source:
        np.testing.assert_array_equal(dense(source), counts(features=GENES).toarray())
        assert source.var().loc[f"hg19_{IDS[3]}", "gene_symbol"] == SYMBOLS[3]


def test_several_genomes_of_the_same_barcodes_are_matrices(tmp_path: Path) -> None:
    human, mouse = counts(1, GENES), counts(2, GENES)
    path = v2(tmp_path / "v2.h5", hg19=(human, BARCODES), mm10=(mouse, BARCODES))
    with open_source(path) as source:
        assert set(source.matrices) == {"genomes/hg19", "genomes/mm10"}
        np.testing.assert_array_equal(dense(source, "genomes/mm10"), mouse.toarray())
        assert source.var("genomes/hg19").index[0] == f"hg19_{IDS[0]}"
    with open_source(path, genome="mm10") as source:
        np.testing.assert_array_equal(dense(source), mouse.toarray())
    with (
        pytest.raises(UnknownNameError, match=r"no genome 'mm1'. Did you mean 'mm10'"),
        open_10x_hdf5(path, genome="mm1"),
    ):
        pass


def test_genomes_of_different_barcodes_need_a_choice(tmp_path: Path) -> None:
    others = [f"T{name}" for name in BARCODES]
    path = v2(
        tmp_path / "v2.h5",
        hg19=(counts(1, GENES), BARCODES),
        mm10=(counts(2, GENES), others),
    )
    with pytest.raises(InputDataError, match="genomes with different barcodes"), open_source(path):
        pass
    with open_source(path, genome="mm10") as source:
        assert list(source.obs().index) == others


def test_antibodies_alone_are_no_genes(tmp_path: Path) -> None:
    path = v3(tmp_path / "v3.h5", counts(features=GENES))
    with h5py.File(path, "r+") as handle:
        del handle["matrix/features/feature_type"]
        handle["matrix/features/feature_type"] = np.array(["Antibody Capture"] * GENES, "S")
    with open_source(path) as source:
        assert list(source.matrices) == ["Antibody Capture"]
        assert source.num_genes == GENES


@pytest.mark.parametrize("name", ["data", "indices", "indptr", "shape", "barcodes", "features"])
def test_an_h5_file_with_a_part_missing_is_refused(tmp_path: Path, name: str) -> None:
    path = v3(tmp_path / "v3.h5")
    with h5py.File(path, "r+") as handle:
        del handle["matrix"][name]
    with pytest.raises(InputDataError, match=rf"no {name}|needs barcodes|no genes"):
        open_source(path).__enter__()


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        (
            "shape",
            np.array([16, 31]),
            "shape of 16 x 31, but there are 16 features and 30 barcodes",
        ),
        ("barcodes", np.array(BARCODES[1:], "S"), "16 features and 29 barcodes"),
        ("features/id", np.array([*IDS[:15], ""], "S"), "lack a name in row 15"),
        ("features/id", np.array([b"\xe9"] * 16), "not text in UTF-8"),
        ("features/genome", np.array(["x"] * 3, "S"), "'genome' has 3 values for 16 features"),
        ("features/id", np.zeros((4, 4)), "are no list"),
    ],
)
def test_h5_tables_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, values: Any, words: str
) -> None:
    path = v3(tmp_path / "v3.h5")
    with h5py.File(path, "r+") as handle:
        del handle["matrix"][name]
        handle["matrix"][name] = values
    with pytest.raises(InputDataError, match=words), open_10x_hdf5(path):
        pass


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("indices", lambda values: values + 9, r"outside|is at column"),
        ("data", lambda values: -values, "is negative"),
        ("indptr", lambda values: values[::-1], "indptr"),
        ("data", lambda values: values[:-1], "values for"),
    ],
)
def test_a_broken_h5_matrix_is_refused_when_read(
    tmp_path: Path, name: str, change: Any, words: str
) -> None:
    path = v3(tmp_path / "v3.h5")
    with h5py.File(path, "r+") as handle:
        values = change(handle["matrix"][name][()])
        del handle["matrix"][name]
        handle["matrix"][name] = values
    for location in ("X", "Antibody Capture"):
        with open_10x_hdf5(path) as source, pytest.raises(InputDataError, match=words):
            dense(source, location)
    if name in {"indices", "indptr"}:
        with open_10x_hdf5(path) as source, pytest.raises(InputDataError):
            source.matrix("X").sample(10**6)


def test_links_to_other_files_are_not_followed_to_see_what_a_file_is(tmp_path: Path) -> None:
    v3(tmp_path / "v3.h5")
    path = tmp_path / "linked.h5"
    with h5py.File(path, "w") as handle:
        handle["matrix"] = h5py.ExternalLink("v3.h5", "matrix")
    assert not recognises(path)
    with pytest.raises(InputDataError, match="a link to another file"), open_10x_hdf5(path):
        pass


# --- folders -------------------------------------------------------------------------------------


def test_samples_of_one_folder_are_chosen_by_their_matrix(tmp_path: Path) -> None:
    first, second = counts(1, GENES), counts(2, GENES)
    folder(tmp_path / "geo", first, prefix="GSM1_")
    path = folder(tmp_path / "geo", second, prefix="GSM2_")
    with pytest.raises(InputDataError, match=r"holds 2 matrices .*/GSM1_matrix.mtx.gz"):
        open_source(path).__enter__()
    with open_source(path / "GSM2_matrix.mtx.gz") as source:
        np.testing.assert_array_equal(dense(source), second.toarray())
        assert [each.name[:5] for each in source.files] == ["GSM2_"] * 3
    with open_source(path, prefix="GSM1_") as source:
        np.testing.assert_array_equal(dense(source), first.toarray())
    with pytest.raises(UnknownNameError, match=r"prefix 'GSM_'. Did you mean"):
        open_10x_folder(path, prefix="GSM_").__enter__()


@pytest.mark.parametrize("order", ["by gene", "at random"])
def test_entries_in_any_order_are_read_alike(
    tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path / "mtx", old=True)
    head, body = [], []
    for line in (path / "matrix.mtx").read_text().splitlines():
        (body if len(head) > 2 else head).append(line)
    if order == "by gene":
        body.sort(key=lambda line: int(line.split()[0]))
    else:
        np.random.default_rng(0).shuffle(body)
    (path / "matrix.mtx").write_text("\r\n".join([*head, *body]))
    for module in ("entry_spool", "matrix_blocks"):
        monkeypatch.setattr(f"omics.data.sources.{module}.BLOCK_ENTRIES", 40)
    with open_source(path) as source:
        np.testing.assert_array_equal(dense(source), counts().toarray())
        assert source.matrix("X").sample(10**6).indptr is None
    assert not [
        each for each in path.iterdir() if "tsv" not in each.name and "mtx" not in each.name
    ]


def test_cells_by_genes_is_told_from_genes_by_cells(tmp_path: Path) -> None:
    path = folder(tmp_path / "mtx", counts(features=GENES), old=True)
    scipy.io.mmwrite(path / "matrix.mtx", sparse.coo_array(counts(features=GENES)), field="integer")
    with open_source(path) as source:
        np.testing.assert_array_equal(dense(source), counts(features=GENES).toarray())


def test_whole_numbers_written_as_real_ones_are_counts(tmp_path: Path) -> None:
    path = folder(tmp_path / "mtx", old=True)
    real = sparse.coo_array(counts().T.astype(float))
    scipy.io.mmwrite(path / "matrix.mtx", real, field="real")
    with open_source(path) as source:
        np.testing.assert_array_equal(dense(source), counts().toarray())
        assert source.matrix("X").dtype == np.float64
    real.data[7] = 0.5
    scipy.io.mmwrite(path / "matrix.mtx", real, field="real")
    with (
        open_source(path) as source,
        pytest.raises(InputDataError, match=r"X of .* 0.5 is not a whole number"),
    ):
        dense(source)


def test_duplicate_entries_are_summed_and_zeros_left_out(tmp_path: Path) -> None:
    path = folder(tmp_path / "mtx", old=True)
    head = "%%MatrixMarket matrix coordinate integer general\n16 30 4\n"
    (path / "matrix.mtx").write_text(f"{head}3 1 5\n1 1 2\n3 1 4\n2 4 0\n")
    with open_source(path) as source:
        found = dense(source)
        assert (found[0, 0], found[0, 2], found.sum()) == (2, 9, 11)
        assert sum(len(block[1]) for block in source.matrix("X").blocks()) == 2


BAD_FOLDERS: list[tuple[str, str | None, str]] = [
    ("genes.tsv", None, "no features.tsv or genes.tsv"),
    ("barcodes.tsv", None, "no barcodes.tsv"),
    ("barcodes.tsv.gz", "x\n", "has 2 files of barcodes"),
    ("features.tsv", "x\n", "has 2 files of features"),
    ("matrix.mtx.gz", "x\n", "has 2 files of matrix"),
    ("barcodes.tsv", "AA\nCC\n", "there are 16 features in genes.tsv and 2 barcodes"),
    ("barcodes.tsv", "<!DOCTYPE html>\n<html>", "is a web page"),
    ("barcodes.tsv", "", "is an empty file"),
    ("genes.tsv", "a\tb\n" * 3 + "\tb\n", "lack a name in row 3"),
    ("genes.tsv", "a\tb\na\tb\tc\td\n", "is no table of names"),
    ("matrix.mtx", "<html></html>", "looks like a web page"),
    ("matrix.mtx", "", "looks like an empty file"),
]


@pytest.mark.parametrize(("name", "text", "words"), BAD_FOLDERS)
def test_folders_that_do_not_fit_together_are_refused(
    tmp_path: Path, name: str, text: str | None, words: str
) -> None:
    path = folder(tmp_path / "mtx", old=True)
    if text is None:
        (path / name).unlink()
    else:
        put(path / name, text)
    with pytest.raises(InputDataError, match=words) as raised, open_source(path):
        pass
    assert str(path) in str(raised.value)


def test_names_are_text_as_they_stand(tmp_path: Path) -> None:
    path = folder(tmp_path / "mtx", counts(features=GENES), old=True)
    names = ["NA", "null", '"quoted"', "1", "#x", "é", *IDS[6:GENES]]
    lines = "".join(f"{name}\tMARCH1\r\n" for name in names)
    (path / "genes.tsv").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    with open_source(path) as source:
        expected = pd.DataFrame({"gene_symbol": ["MARCH1"] * GENES}, index=names)
        pd.testing.assert_frame_equal(source.var(), expected, check_index_type=False)
    (path / "genes.tsv").write_bytes(b"\xe9\n" * GENES)
    with pytest.raises(InputDataError, match=r"no table of names: .*utf-8"), open_source(path):
        pass


def test_a_matrix_of_another_name_and_nothing_at_all(tmp_path: Path) -> None:
    path = folder(tmp_path / "mtx", old=True)
    (path / "matrix.mtx").rename(path / "counts.mtx")
    with pytest.raises(InputDataError, match="without names of cells and genes"):
        open_source(path / "counts.mtx").__enter__()
    with pytest.raises(MissingPathError, match="There is no file or folder"):
        open_10x_folder(tmp_path / "gone").__enter__()
    cut = folder(tmp_path / "cut")
    (cut / "barcodes.tsv.gz").write_bytes((cut / "barcodes.tsv.gz").read_bytes()[:-9])
    with pytest.raises(InputDataError, match=r"barcodes.tsv.gz cannot be unpacked"):
        open_source(cut).__enter__()


def test_cells_without_any_entry_stay(tmp_path: Path) -> None:
    path = folder(tmp_path / "mtx", sparse.csr_array((CELLS, GENES), dtype=np.int32), old=True)
    with open_source(path) as source:
        assert dense(source).shape == (CELLS, GENES)
        assert source.matrix("X").count_empty(1000) == CELLS
        assert source.matrix("X").sample(1000).complete
