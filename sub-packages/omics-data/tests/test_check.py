"""`check_file` tells on one screen what a file holds and what to type next."""

from __future__ import annotations

import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy
import scipy.io
from scipy import sparse

from omics.data import check_file, convert, synthesize
from omics.data.converting.check import FileReport, FolderReport, StoreReport
from omics.data.errors import CorruptStoreError, InputDataError, UsageError
from omics.data.sources import guarded_reading, hdf5_safety


def written(adata: anndata.AnnData, folder: Path, name: str = "cells.h5ad") -> Path:
    path = folder / name
    adata.write_h5ad(path)
    return path


def checked(path: Path) -> FileReport:
    report = check_file(path)
    assert isinstance(report, FileReport)
    json.dumps(report.to_dict(), allow_nan=False)
    return report


def test_a_file_with_counts(tmp_path: Path) -> None:
    adata = synthesize(80, 60, seed=1, mean_genes=20)
    adata.X = sparse.csr_matrix(adata.X.toarray() * (np.arange(80) != 3)[:, None])
    path = written(adata, tmp_path, "my cells.h5ad")
    report = checked(path)
    assert report.counts_location == "X"
    assert report.empty_cells == 1
    assert report.problems == ()
    assert report.genes is not None
    assert report.genes.kind == "Ensembl ids"
    labels = {each.name: each.num_distinct for each in report.obs_columns if each.may_be_label}
    assert labels == {"cell_type": 5, "batch": 2, "donor": 4}
    text = report.text()
    assert "80 cells x 60 genes" in text
    assert f"{adata.X.nnz:,} non-zeros" in text
    assert "raw counts (whole numbers, max" in text
    assert text.endswith(
        f"next\n  omics-data convert '{path}' '{tmp_path}/my cells.store'\n"
        f"  omics-data split '{tmp_path}/my cells.store' '{tmp_path}/my cells.split.parquet' "
        f"--stratify cell_type"
    )
    assert len(text.splitlines()) < 40
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_a_real_file_without_counts_says_where_they_may_be() -> None:
    path = Path(scanpy.__file__).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"
    report = checked(path)
    assert report.counts_location is None
    assert {each.location: each.summary.kind for each in report.matrices} == {
        "X": "scaled",
        "raw.X": "log1p",
    }
    assert report.next_commands == ()
    text = report.text()
    assert "! No raw counts. Give the file with raw counts" in text
    assert "obs column 'n_counts' tells that there were counts before normalisation" in text
    assert "\nnext" not in text


def test_the_place_of_the_counts_is_marked(tmp_path: Path) -> None:
    adata = synthesize(50, 40, seed=1, mean_genes=20)
    adata.layers["counts"] = adata.X.copy()
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    scanpy.pp.log1p(adata)
    text = checked(written(adata, tmp_path)).text()
    (marked,) = [line for line in text.splitlines() if "<- counts" in line]
    assert marked.split()[0] == "layers/counts"
    assert "log(1 + x) of counts scaled to about 10,000" in text


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        (["ENSG00000000003", "ENSMUSG00000000001", "ENSG00000000005"], "Ensembl ids"),
        (["ENSG00000000003.15", "ENSG00000000005.6", "ENSG1.x"], "mixed"),
        (["ENSG00000000003.15", "ENSG00000000005.6"], "Ensembl ids with versions"),
        (["7157", "672", "675"], "Entrez ids"),
        (["TP53", "BRCA1", "7SK"], "gene symbols"),
        (["0", "1", "2"], "row numbers"),
    ],
)
def test_the_kind_of_gene_ids_is_named(ids: list[str], kind: str, tmp_path: Path) -> None:
    counts = sparse.csr_matrix(np.eye(len(ids), dtype=np.float32) * 3)
    adata = anndata.AnnData(counts, var=pd.DataFrame(index=ids))
    report = checked(written(adata, tmp_path))
    assert report.genes is not None
    assert report.genes.kind == kind
    assert any("genes have no names" in each for each in report.problems) == (kind == "row numbers")


def test_duplicates_are_counted_and_stand_in_the_way(tmp_path: Path) -> None:
    adata = synthesize(30, 20, seed=1)
    path = written(adata, tmp_path)
    with h5py.File(path, "r+") as handle:
        for table in ("obs", "var"):
            node = handle[f"{table}/_index"]
            # anndata 0.13 writes nullable text, a group that holds the values.
            node = node["values"] if isinstance(node, h5py.Group) else node
            node[5] = node[4]
    report = checked(path)
    assert report.genes is not None
    assert (report.genes.num_duplicates, report.duplicate_cell_names) == (1, 1)
    assert "1 gene ids of var of" in report.problems[0]
    assert report.next_commands == ()


@pytest.mark.parametrize("layout", ["csc", "dense"])
def test_other_layouts_are_estimated(layout: str, tmp_path: Path) -> None:
    adata = synthesize(40, 30, seed=1)
    nnz = adata.X.nnz
    adata.X = adata.X.tocsc() if layout == "csc" else adata.X.toarray()
    report = checked(written(adata, tmp_path))
    assert report.matrices[0].entries == nnz
    assert report.matrices[0].entries_are_exact
    assert report.empty_cells is None
    assert "empty cells not known" in report.text()


def test_the_estimated_size_is_near_the_real_one(tmp_path: Path) -> None:
    path = written(synthesize(2000, 500, seed=1), tmp_path)
    store = convert(path, tmp_path / "s")
    assert checked(path).store_bytes == pytest.approx(store.num_bytes, rel=0.2)


def test_a_damaged_table_is_a_problem_not_an_end(tmp_path: Path) -> None:
    path = written(synthesize(30, 20, seed=1), tmp_path)
    with h5py.File(path, "r+") as handle:
        handle["obs"].attrs["column-order"] = ["gone"]
    report = checked(path)
    assert report.counts_location == "X"
    assert "table obs of" in report.problems[0]
    assert report.next_commands == ()


def test_a_damaged_matrix_is_a_problem_not_an_end(tmp_path: Path) -> None:
    path = written(synthesize(30, 20, seed=1), tmp_path)
    with h5py.File(path, "r+") as handle:
        del handle["X/indptr"]
    report = checked(path)
    assert report.problems[0] == "X: it has no list 'indptr'."
    assert "matrices\n  none" in report.text()


def test_many_columns_are_cut_to_a_screen(tmp_path: Path) -> None:
    adata = synthesize(30, 20, seed=1)
    for number in range(40):
        adata.obs[f"score {number}"] = np.random.default_rng(number).random(30)
    text = checked(written(adata, tmp_path)).text()
    assert "and 23 more columns" in text
    assert "cell_type" in text


def test_at_most_the_sample_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omics.data.converting.check.MATRIX_BYTES", 190_000)
    monkeypatch.setattr("omics.data.converting.check.OFFSETS_BYTES", 10_000)
    monkeypatch.setattr("omics.data.converting.check.TOTALS_BYTES", 10_000)
    adata = synthesize(3000, 200, seed=1, mean_genes=100)
    path = tmp_path / "a.h5ad"
    adata.write_h5ad(path, compression="gzip")
    read: list[Any] = []
    from omics.data.sources.matrix_blocks import MatrixSource

    original = MatrixSource.read

    def counted(self: MatrixSource, dataset: Any, where: Any) -> Any:
        found = original(self, dataset, where)
        read.append(found.nbytes)
        return found

    monkeypatch.setattr(MatrixSource, "read", counted)
    report = checked(path)
    assert report.counts_location == "X"
    assert 0 < sum(read) <= 200_000 < 4 * adata.X.nnz
    assert report.empty_cells is None


def test_a_store_is_described(tmp_path: Path) -> None:
    adata = synthesize(50, 30, seed=1)
    convert(written(adata, tmp_path), tmp_path / "s")
    report = check_file(tmp_path / "s")
    assert isinstance(report, StoreReport)
    assert report.num_entries == adata.X.nnz
    assert report.median_sum == np.median(np.asarray(adata.X.sum(axis=1)))
    json.dumps(report.to_dict(), allow_nan=False)
    assert "from    X of cells.h5ad" in report.text()


def test_a_folder_without_sources_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.bin").write_bytes(b"\0\1")
    with pytest.raises(InputDataError, match="is no source of cells"):
        check_file(tmp_path)


def test_a_damaged_store_is_called_damaged(tmp_path: Path) -> None:
    convert(written(synthesize(20, 15, seed=1), tmp_path), tmp_path / "s")
    (tmp_path / "s" / "CURRENT").unlink()
    with pytest.raises(CorruptStoreError, match="CURRENT is missing"):
        check_file(tmp_path / "s")


# --- other kinds of sources ----------------------------------------------------------------------


def as_10x_folder(adata: anndata.AnnData, folder: Path) -> Path:
    path = folder / "sample.v2"
    path.mkdir()
    with gzip.open(path / "matrix.mtx.gz", "wb") as file:
        scipy.io.mmwrite(file, sparse.coo_matrix(adata.X.T.astype(int)))
    lines = [f"{gene}\tS{gene}\tGene Expression\n" for gene in adata.var_names]
    (path / "features.tsv.gz").write_bytes(gzip.compress("".join(lines).encode()))
    (path / "barcodes.tsv.gz").write_bytes(gzip.compress("\n".join(adata.obs_names).encode()))
    return path


def as_zarr(adata: anndata.AnnData, folder: Path) -> Path:
    path = folder / "cells.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(path)
    return path


def as_10x_hdf5(adata: anndata.AnnData, folder: Path) -> Path:
    path = folder / "sample.h5"
    matrix = sparse.csr_matrix(adata.X).astype(np.int32)
    with h5py.File(path, "w") as handle:
        group = handle.create_group("matrix")
        group["data"], group["indices"] = matrix.data, matrix.indices.astype(np.int64)
        group["indptr"] = matrix.indptr.astype(np.int64)
        group["shape"] = np.array([adata.n_vars, adata.n_obs], np.int32)
        group["barcodes"] = np.array(adata.obs_names, "S")
        features = group.create_group("features")
        features["id"] = features["name"] = np.array(adata.var_names, "S")
        features["feature_type"] = np.array(["Gene Expression"] * adata.n_vars, "S")
        features["genome"] = np.array(["GRCh38"] * adata.n_vars, "S")
    return path


def as_loom(adata: anndata.AnnData, folder: Path) -> Path:
    path = folder / "cells.loom"
    with h5py.File(path, "w") as handle:
        handle["matrix"] = adata.X.toarray().T
        handle["row_attrs/Gene"] = np.array(adata.var_names, "S")
        handle["col_attrs/CellID"] = np.array(adata.obs_names, "S")
        for name in ("layers", "row_graphs", "col_graphs", "attrs"):
            handle.create_group(name)
        handle["attrs/LOOM_SPEC_VERSION"] = "3.0.0"
    return path


def as_text(adata: anndata.AnnData, folder: Path) -> Path:
    path = folder / "bulk.tsv"
    frame = pd.DataFrame(
        adata.X.toarray().T.astype(int), index=adata.var_names, columns=adata.obs_names
    )
    frame.to_csv(path, sep="\t", index_label="gene")
    return path


@pytest.mark.parametrize("write", [as_10x_folder, as_zarr, as_10x_hdf5, as_loom, as_text])
def test_every_kind_of_source_is_explained(write: Any, tmp_path: Path) -> None:
    adata = synthesize(40, 30, seed=1, mean_genes=15)
    path = write(adata, tmp_path)
    report = checked(path)
    assert (report.num_cells, report.num_genes) == (40, 30)
    assert report.counts_location == "X"
    assert report.genes is not None
    assert report.genes.kind == "Ensembl ids"
    assert report.file_bytes
    text = report.text()
    assert text.startswith(f"{path}   {report.format_name}   ")
    assert (
        report.next_commands[0]
        == f"omics-data convert {path} {report.next_commands[0].split()[-1]}"
    )
    assert convert(path, report.next_commands[0].split()[-1]).shape == (40, 30)


def test_a_folder_of_sources_is_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    (folder / "deep").mkdir(parents=True)
    for name in ("a", "deep/b"):
        synthesize(20, 15, seed=1).write_h5ad(folder / f"{name}.h5ad")
    as_10x_folder(synthesize(10, 15, seed=2), folder)
    (folder / "readme.bin").write_bytes(b"\0\1\2")
    report = check_file(folder)
    assert isinstance(report, FolderReport)
    json.dumps(report.to_dict(), allow_nan=False)
    assert [each.num_cells for each in report.sources] == [20, 20, 10]
    text = report.text()
    assert "folder of 3 sources" in text
    assert "50 cells" in text
    assert "1 files are no sources" in text
    assert report.next_commands == (f"omics-data convert {folder} {folder}.store",)
    (folder / "a.h5ad").write_bytes(b"<html>")
    broken = check_file(folder)
    assert isinstance(broken, FolderReport)
    assert "a web page" in broken.text()
    assert broken.next_commands == ()


def test_options_go_to_the_reader(tmp_path: Path) -> None:
    path = as_10x_hdf5(synthesize(20, 15, seed=1), tmp_path)
    assert check_file(path, source_options={"genome": None}).to_dict()["counts_location"] == "X"
    with pytest.raises(UsageError, match=r"has no option 'genom'\. Did you mean 'genome'"):
        check_file(path, source_options={"genom": "x"})


# --- how much is read ----------------------------------------------------------------------------


def large_file(path: Path) -> None:
    """Write 1.6 GB of matrix, nearly all of them holes, and tables of 300,000 cells."""
    cells, entries = 300_000, 200_000_000
    with h5py.File(path, "w") as handle:
        group = handle.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "shape": [cells, 1000]})
        for name, dtype in (("data", "f4"), ("indices", "i4")):
            kind = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            kind.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            kind.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            space = h5py.h5s.create_simple((entries,))
            h5py.h5d.create(
                group.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, kind
            )
            group[name][:50_000] = 1
        group["indptr"] = np.linspace(0, entries, cells + 1).astype(np.int64)
        for name, length in (("obs", cells), ("var", 1000)):
            table = handle.create_group(name)
            table.attrs.update(
                {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
            )
            columns = ["text", "number"] if name == "obs" else []
            table.attrs["column-order"] = np.array(columns, h5py.string_dtype())
            kind = "gene" if name == "var" else "cell of a long name"
            table["_index"] = np.array([f"{kind} {row}" for row in range(length)], object)
            for column in columns:
                table[column] = np.array(["x" * 30] * length, object)


def run_here(request: dict[str, Any], _limits: Any) -> Any:
    assert request["task"].endswith(":touch_file")
    result = hdf5_safety.touch_file(request["path"], **request["options"])
    return guarded_reading._Outcome(reply={"result": result})


def bytes_read() -> int:
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel tells only on Linux")
def test_at_most_64_mb_of_any_file_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.h5ad"
    large_file(path)
    assert path.stat().st_size > 1.6e9
    # What the guarding child reads is counted too: here it is this process.
    monkeypatch.setattr(guarded_reading, "_run", run_here)
    check_file(written(synthesize(20, 15, seed=1), tmp_path))
    before = bytes_read()
    report = checked(path)
    assert 2**20 < bytes_read() - before < 64 * 2**20
    assert report.num_cells == 300_000
    assert not report.tables_read
    assert report.duplicate_cell_names is None
    assert [each.name for each in report.obs_columns] == ["text", "number"]
    assert report.genes is not None
    text = report.text()
    assert "names not read" in text
    assert "(the table is too large for a look: names only)" in text
    assert report.next_commands[1].endswith(".split.parquet")


def test_a_large_file_without_an_index_is_named_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_text(synthesize(20, 15, seed=1), tmp_path)
    monkeypatch.setattr("omics.data.converting.check.MAX_READ_BYTES", 100)
    report = checked(path)
    assert (report.num_cells, report.matrices) == (None, ())
    assert "size of the matrix not known" in report.text()
    assert "This format has no index" in report.text()
    assert report.next_commands == (f"omics-data convert {path} {tmp_path}/bulk.store",)


# --- evidence, genes, words ----------------------------------------------------------------------


def test_what_speaks_for_the_place_of_the_counts_is_said(tmp_path: Path) -> None:
    adata = synthesize(50, 40, seed=1, mean_genes=20)
    adata.obs["total_counts"] = np.asarray(adata.X.sum(axis=1)).ravel()
    chosen = adata[:, :30].copy()
    scanpy.pp.normalize_total(chosen, target_sum=1e4)
    scanpy.pp.log1p(chosen)
    chosen.raw = adata
    chosen.layers["spliced"] = sparse.csr_matrix(adata.X[:, :30])
    report = checked(written(chosen, tmp_path))
    assert report.counts_location == "raw.X"
    assert report.evidence == (
        (
            "X holds log1p values, log(1 + x) of counts scaled to about 10,000; the raw counts are "
            "in raw.X."
        ),
        "raw.X has 40 genes of its own, X 30: the store will have those of raw.X.",
        "Whole numbers are in layers/spliced too; raw.X is taken.",
        "The sums of its cells are those of the obs column 'total_counts'.",
    )
    assert all(f"  {sentence}" in report.text() for sentence in report.evidence)
    fewer = adata[:, :20].copy()
    report = checked(written(fewer, tmp_path, "fewer.h5ad"))
    assert "genes were left out since" in report.evidence[0]


def test_lost_counts_that_can_be_computed_are_hinted_at(tmp_path: Path) -> None:
    adata = synthesize(50, 40, seed=1, mean_genes=20)
    adata.obs["n_counts"] = np.asarray(adata.X.sum(axis=1)).ravel()
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    scanpy.pp.log1p(adata)
    (_, hint) = checked(written(adata, tmp_path)).problems
    assert "X undone, times n_counts / 10,000, gives whole numbers" in hint


def test_names_that_would_command_a_terminal_are_shown_as_escapes(tmp_path: Path) -> None:
    adata = synthesize(20, 15, seed=1)
    adata.var_names = [f"\x1b[31mgene{number}" for number in range(15)]
    adata.obs["\x1b]0;title\x07"] = np.arange(20)
    adata.obs["c" * 500] = np.arange(20)
    adata.layers["\x1b[2J"] = adata.X
    text = checked(written(adata, tmp_path)).text()
    assert "\x1b" not in text
    assert "\\x1b[31mgene0" in text
    assert max(map(len, text.splitlines())) < 1600


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_prints_the_report(as_json: bool, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from omics.data.command_line import make_app
    from omics.data.commands.check_command import add_to

    path = written(synthesize(20, 15, seed=1), tmp_path)
    (tmp_path / "list.txt").write_text("ENSG00000000001\nnone\n")
    app = make_app("omics-data", "x")
    add_to(app)
    app.command("other")(lambda: None)
    options = ["--genes", str(tmp_path / "list.txt"), *(["--json"] if as_json else [])]
    done = CliRunner().invoke(app, ["check", str(path), *options])
    assert done.exit_code == 0, done.output
    if as_json:
        assert json.loads(done.output)["genes"]["coverage"]["listed"] == 2
    else:
        assert "of 2 listed genes (" in done.output


def test_a_store_tells_its_layout_and_rank_view(tmp_path: Path, write_store: Any) -> None:
    plain = write_store(tmp_path / "plain", np.eye(3))
    other = write_store(
        tmp_path / "packed", np.eye(3), layout="packed", rank_medians={"gene0": 1.0}
    )
    assert "values  counts (uint8), plain; median" in check_file(plain.path).text()
    report = check_file(other.path)
    assert "values  counts (uint16), packed, with a rank view; median" in report.text()
    assert report.to_dict()["has_rank_view"] is True
