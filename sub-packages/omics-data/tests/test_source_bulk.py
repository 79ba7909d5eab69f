"""Bulk matrices in text form: every usual layout arrives, every mistake is named with its line."""

from __future__ import annotations

import gzip
import io
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
from omics.data.errors import (
    InputDataError,
    MissingPathError,
    ResourceError,
    UnknownNameError,
    UsageError,
)
from omics.data.sources import bulk_values
from omics.data.sources.bulk_units import bulk_unit, transcripts_per_million
from omics.data.sources.registry import open_source
from omics.data.sources.source_bulk import open_bulk, recognises

SMALL = "gene\ts1\ts2\nTP53\t1\t0\nMYC\t3\t4\n"


def written(folder: Path, text: str | bytes, name: str = "m.tsv") -> Path:
    data = text.encode() if isinstance(text, str) else text
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def read_back(source: Any, kind: Any = "counts") -> np.ndarray[Any, Any]:
    matrix = source.matrix("X")
    out = np.zeros(matrix.shape)
    first = 0
    for indptr, genes, values in matrix.blocks(kind):
        cells = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        out[first + cells, genes] = values
        first += len(indptr) - 1
    assert first == matrix.shape[0]
    return out


def refusal(folder: Path, text: str | bytes, name: str = "m.tsv", **options: Any) -> str:
    path = written(folder, text, name)
    with pytest.raises(InputDataError, match=path.name) as caught, open_bulk(path, **options):
        pass
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tabs.tsv", SMALL),
        ("windows.txt", SMALL.replace("\n", "\r\n")),
        ("no_end.tsv", SMALL.rstrip("\n")),
        ("marked.tsv", "\ufeff" + SMALL),
        ("commas.csv", SMALL.replace("\t", ",")),
        ("packed.csv.gz", SMALL.replace("\t", ",")),
        ("semicolons.csv", SMALL.replace("\t", ";")),
        ("of_r.txt", '"s1" "s2"\n"TP53" 1 0\n"MYC" 3 4\n'),
        ("quoted.csv", '"","s1","s2"\n"TP53","1","0"\n"MYC","3","4"\n'),
        ("commented.tsv", "# made by hand\n# twice\n" + SMALL),
        ("hash_header.tsv", "#gene\ts1\ts2\nTP53\t1\t0\nMYC\t3\t4\n"),
        ("blank_lines.tsv", "\n\n" + SMALL + "\n\n"),
        ("gct.gct", "#1.2\n2\t2\nName\tDescription\ts1\ts2\nTP53\tx y\t1\t0\nMYC\tna\t3\t4\n"),
        ("turned.csv", "sample,TP53,MYC\ns1,1,3\ns2,0,4\n"),
        ("summaries.tsv", SMALL + "__no_feature\t7\t7\nN_unmapped\t1\t1\n"),
        ("no_name_at_all", SMALL),
    ],
)
def test_layouts(name: str, text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text, name)
    options = {"genes_in": "columns"} if name == "turned.csv" else {}
    assert recognises(path)
    with open_source(path, **options) as source:
        assert list(source.obs().index) == ["s1", "s2"]
        assert list(source.var().index) == ["TP53", "MYC"]
        assert (read_back(source) == [[1, 3], [0, 4]]).all()
        assert source.format_name == ("GCT" if name.endswith(".gct") else "text matrix")
        assert source.fingerprint()["files"] == [name]


def test_samples_in_rows_show_in_the_ids_and_keep_their_notes(tmp_path: Path) -> None:
    text = "sample,tissue,age,ACTB,GAPDH,TP53\nx,lung,1,2,3,4\ny,skin,5,6,7,8\n"
    # Age is a number, so it stands among the values; it has to be said what it is.
    with open_bulk(written(tmp_path, text)) as source:
        assert list(source.var().index) == ["age", "ACTB", "GAPDH", "TP53"]
        assert list(source.obs()["tissue"]) == ["lung", "skin"]
        assert source.obs_columns == ["tissue"]
    ensembl = "id\tENSG00000000001.3\tENSG00000000002.1\nx\t1\t2\ny\t0\t1\n"
    with open_bulk(written(tmp_path, ensembl)) as source:
        assert list(source.var().index) == ["ENSG00000000001", "ENSG00000000002"]
        assert list(source.var()["version"]) == ["3", "1"]
    with open_bulk(written(tmp_path, ensembl), genes_in="rows") as source:
        assert list(source.var().index) == ["x", "y"]


def test_notes_about_genes_become_columns_of_var(tmp_path: Path) -> None:
    counted = (
        "# Program:featureCounts\nGeneid\tChr\tStart\tEnd\tStrand\tLength\ta.bam\tb.bam\n"
        "G1\t1;1\t11;90\t20;99\t+;+\t120\t5\t0\nG2\t2\t1\t60\t-\t60\t0\t7\n"
    )
    with open_bulk(written(tmp_path, counted)) as source:
        assert list(source.obs().index) == ["a.bam", "b.bam"]
        assert list(source.var()["Length"]) == [120, 60]
        assert list(source.var()["Chr"]) == ["1;1", "2"]
        assert (read_back(source) == [[5, 0], [0, 7]]).all()
    gct = (
        "#1.2\n2\t1\nName\tDescription\ts\nENSG00000000001.3\tTP53\t1\nENSG00000000002.1\tMYC\t2\n"
    )
    with open_bulk(written(tmp_path, gct)) as source:
        assert list(source.var()["gene_symbol"]) == ["TP53", "MYC"]


def test_what_a_user_should_know_is_in_the_notes(tmp_path: Path) -> None:
    with open_bulk(written(tmp_path, SMALL)) as source:
        assert source.notes == ()
        assert source.unit == "counts"
    mangled = SMALL.replace("MYC", "1-Mar") + "__ambiguous\t1\t1\n2.31E+13\t1\t1\n"
    with open_bulk(written(tmp_path, mangled)) as source:
        assert "2 gene ids look like dates or numbers that a spreadsheet" in source.notes[0]
        assert "1-Mar" in source.notes[0]
        assert "1 lines that sum up reads outside genes were left out (__amb" in source.notes[1]
    expected_counts = SMALL.replace("4", "4.25")
    with open_bulk(written(tmp_path, expected_counts)) as source:
        assert "whether to round them is your decision" in source.notes[0]


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    separator=st.sampled_from("\t,"),
    fractions=st.booleans(),
    turned=st.booleans(),
)
def test_any_matrix_arrives_as_pandas_wrote_it(
    seed: int, rows: int, columns: int, separator: str, fractions: bool, turned: bool
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2**32, (rows, columns)) * (rng.random((rows, columns)) < 0.6)
    table = pd.DataFrame(values / 7 if fractions else values)
    table.index = pd.Index([f"r {i}" for i in range(rows)], name="id")
    table.columns = pd.Index([f'c"{i}' for i in range(columns)])
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk_values, "BLOCK_BYTES", 64)
        text = io.StringIO()
        table.to_csv(text, sep=separator)
        path = written(Path(folder), text.getvalue())
        with open_bulk(path, genes_in="columns" if turned else "rows") as source:
            expected = table if turned else table.T
            kind = "float" if fractions else "counts"
            found = read_back(source, kind)
            assert (found == expected.to_numpy(np.float32 if fractions else float)).all()
            assert list(source.obs().index) == list(expected.index)
            assert list(source.var().index) == list(expected.columns)


def test_counts_become_a_store_and_tpm_only_when_asked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(20, (8, 40))
    names = [f"ENSG{i:011}.{i % 9}" for i in range(40)]
    table = pd.DataFrame(counts.T, index=names, columns=[f"s{i}" for i in range(8)])
    path = tmp_path / "counts.tsv.gz"
    table.to_csv(path, sep="\t")
    store = convert(path, tmp_path / "store")
    assert store.shape == (8, 40)
    assert (store.take(np.arange(8)).to_csr().toarray() == counts).all()
    tpm = transcripts_per_million(counts, rng.integers(200, 5000, 40))
    path = tmp_path / "tpm.csv"
    pd.DataFrame(tpm.T, index=names, columns=table.columns).to_csv(path)
    with open_source(path) as source:
        assert "X looks like TPM or CPM" in source.notes[0]
    with pytest.raises(
        InputDataError, match=r"cells scaled to about 1,000,000.*--allow-non-counts"
    ):
        convert(path, tmp_path / "refused")
    store = convert(path, tmp_path / "floats", location="X", allow_non_counts=True)
    kept = store.take(np.arange(8)).to_csr().toarray()
    assert np.allclose(kept, tpm, rtol=1e-6)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "an empty file"),
        ("\n\n# only this\n", "holds no matrix"),
        ("gene\ts1\ts2\n", "has a header and no rows"),
        ("just one column\n".replace(" ", ""), "has no columns: its header is 'justonecolumn'"),
        (SMALL + "ACTB\t1\n", "line 4 has 2 columns where 3 belong (it begins 'ACTB')"),
        (SMALL + "ACTB\t1\t2\t3\n", "line 4 has 4 columns where 3 belong"),
        (SMALL + "ACTB\t1\tx1\n", "line 4 (ACTB), column 's2': 'x1' is not a number"),
        (SMALL + "ACTB\tNA\t1\n", "line 4 (ACTB), column 's1': the value is missing ('NA')"),
        (SMALL + "ACTB\t\t1\n", "the value is missing ('')"),
        (SMALL + "\t1\t1\n", "line 4, column 'gene': the id is missing"),
        (SMALL + "1-Mar\t1\t1\n1-Mar\t1\t1\n", "turned names such as MARCH1 and MARC1 into dates"),
        (SMALL.replace("s2", "s1"), "has two columns called 's1'"),
        ("gene;s1\nA;1,5\nB;2,5\n", "column 's1': '1,5' has a comma in a number"),
        ("A\t1\t1\nB\t2\t3\n", "has no header: its line 1 begins with values"),
        (",gene,s1\n0,A,1\n1,B,2\n", "The first column of"),
        ("gene\tkind\nA\tx\nB\ty\n", "has no column of values: 2 columns"),
        ("gene\ts1\n\xe9\t1\n".encode("latin-1"), "is not text in UTF-8"),
        (SMALL.encode() + b"A\t1\t1\n" * 60 + b"\xe9\t1\t1\n", "not text in UTF-8 from line 2 on"),
        ("#1.3\n1\t1\t0\t0\n", "GCT file of version 1.3; version 1.2 is read"),
        ("#1.2\n", "holds no matrix"),
        ("#1.2\n2\n", "where the numbers of rows and columns belong"),
        ("#1.2\n2\t2\n", "ends before its header"),
        (
            "#1.2\n3\t1\nName\tDescription\ts\nA\tx\t1\nB\tx\t2\n",
            "declares 3 rows and 1 samples but holds 2 and 1",
        ),
        (
            "gene_id\tlength\teffective_length\texpected_count\tTPM\nA\t9\t8\t1.5\t1\n",
            "the output of RSEM for one sample, not a matrix",
        ),
        ("Name\tLength\tEffectiveLength\tTPM\tNumReads\nA\t1\t1\t1\t1\n", "the output of Salmon"),
    ],
)
def test_mistakes_are_named(text: str | bytes, words: str, tmp_path: Path) -> None:
    assert words in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("cell", "words"),
    [("-1", "-1.0 is negative"), ("inf", "inf is not a number"), ("0.5", "0.5 is not a whole")],
)
def test_values_that_are_no_counts_are_refused_as_they_stream(
    cell: str, words: str, tmp_path: Path
) -> None:
    path = written(tmp_path, SMALL.replace("4", cell))
    expected = pytest.raises(InputDataError, match=f"row 1, column 1.*{words}")
    with open_bulk(path) as source, expected:
        read_back(source)


def test_repeated_genes_are_left_to_the_conversion_and_repeated_samples_refused(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, SMALL + "TP53\t1\t1\n")
    with open_bulk(path) as source:
        assert list(source.var().index) == ["TP53", "MYC", "TP53"]
    with pytest.raises(InputDataError, match="TP53"):
        convert(path, tmp_path / "store")
    turned = "id,G1,G2\nx,1,2\nx,3,4\n"
    assert "1 samples of" in refusal(tmp_path, turned, genes_in="columns")


def test_large_files_cut_short_are_refused(tmp_path: Path) -> None:
    text = "gene\ts1\n" + "".join(f"g{i}\t{i * 7919 % 1000}\n" for i in range(20_000))
    data = gzip.compress(text.encode())
    path = tmp_path / "cut.tsv.gz"
    for length in (len(data) // 2, len(data) - 9, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(InputDataError, match="cut short or damaged"), open_bulk(path):
            pass
    path.write_bytes(data)
    with open_bulk(path) as source:
        assert source.num_genes == 20_000


def test_options_and_places_that_do_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, SMALL)
    with pytest.raises(UsageError, match="genes_in is 'left'"), open_bulk(path, genes_in="left"):  # type: ignore[arg-type]
        pass
    gct = written(tmp_path, "#1.2\n1\t1\nName\tDescription\ts\nA\tx\t1\n", "a.gct")
    with pytest.raises(UsageError, match="genes in rows"), open_bulk(gct, genes_in="columns"):
        pass
    with pytest.raises(MissingPathError, match="absent"), open_bulk(tmp_path / "absent.tsv"):
        pass
    unknown = pytest.raises(UnknownNameError, match="no matrix 'counts'")
    with open_bulk(path, scratch=tmp_path) as source, unknown:
        source.matrix("counts")
    monkeypatch.setattr(bulk_values, "SPARE_BYTES", 2**62)
    with pytest.raises(ResourceError, match="Set TMPDIR to a folder"), open_bulk(path):
        pass


def test_other_files_are_not_recognised(tmp_path: Path) -> None:
    others: list[str | bytes] = [
        "",
        "<html>\t1\t2</html>",
        "%%MatrixMarket matrix coordinate\n3 3 1\n1 1 1\n",
        '{"a":\t1}',
        b"\x89HDF\r\n\x1a\n\t1\n",
        "SRA Accession,SRS Accession,Cells\nSRA1,SRS1,5\nSRA2,SRS2,6\n",
        "sample,tissue,age\na,lung,5\nb,skin,6\n",
        "AAAC-1\nAAAG-1\n",
        "ENSG1\tTP53\tGene Expression\nENSG2\tMYC\tGene Expression\n",
    ]
    for text in others:
        assert not recognises(written(tmp_path, text)), text
    assert not recognises(tmp_path)
    assert not recognises(tmp_path / "absent.tsv")
    packed = written(tmp_path, SMALL, "m.tsv.gz")
    packed.write_bytes(packed.read_bytes()[:15])
    assert not recognises(packed)


# --- units ---------------------------------------------------------------------------------------


def test_units_are_named_by_what_the_values_show() -> None:
    rng = np.random.default_rng(1)
    counts = rng.poisson(30, (3, 400)).astype(float) + 1
    tpm = transcripts_per_million(counts, rng.integers(300, 9000, 400))
    indptr = np.arange(4) * 400
    cases = {
        "counts": counts,
        "TPM or CPM": tpm,
        "log2(TPM + 1)": np.log2(tpm + 1),
        "ln(TPM + 1)": np.log1p(tpm),
        "log10(TPM + 1)": np.log10(tpm + 1),
        "FPKM or another unit": tpm * rng.random((3, 1)),
        "logarithms": np.log2(tpm * rng.random((3, 1)) + 1),
        "scaled values": tpm - 1e5,
        "expected counts": np.where(rng.random((3, 400)) < 0.7, counts, counts + 0.25),
    }
    for name, values in cases.items():
        assert bulk_unit(values.ravel(), indptr) == name
    assert bulk_unit(tpm[0], np.array([0, 400])) == "TPM or CPM"
    assert bulk_unit(np.empty(0)) == "unknown"
    assert bulk_unit(np.array([np.nan])) == "unknown"


def test_transcripts_per_million_by_hand_and_sparse() -> None:
    counts = np.array([[10, 20, 0], [0, 0, 0]])
    lengths = np.array([1000, 4000, 10])
    expected = np.array([[1e6 * 10 / 15, 1e6 * 5 / 15, 0], [0, 0, 0]])
    assert np.allclose(transcripts_per_million(counts, lengths), expected)
    found = transcripts_per_million(sparse.csr_matrix(counts), lengths)
    assert sparse.issparse(found)
    assert np.allclose(found.toarray(), expected)
    with pytest.raises(UsageError, match="2 gene lengths for 3 genes"):
        transcripts_per_million(counts, lengths[:2])
    with pytest.raises(UsageError, match="length of gene 1 is"):
        transcripts_per_million(counts, np.array([1, 0, 1]))
