"""R data files: sparse matrices arrive as R holds them; nothing hostile or broken gets through."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scipy import sparse

from omics.data.converting.conversion import convert
from omics.data.errors import (
    InputDataError,
    MissingExtraError,
    MissingPathError,
    UnknownNameError,
)
from omics.data.sources import source_rdata
from omics.data.sources.registry import open_source
from omics.data.sources.source_rdata import open_rdata, recognises

NIL = struct.pack(">i", 254)
HEAD = b"RDX3\nX\n" + struct.pack(">3i", 3, 0x40301, 0x30500) + struct.pack(">i", 5) + b"UTF-8"
HEAD_2 = b"RDX2\nX\n" + struct.pack(">3i", 2, 0x30601, 0x20300)
HAS_ATTRIBUTES, HAS_TAG, IS_OBJECT = 0x200, 0x400, 0x100


class Writer:
    """Writes objects; symbols that were written before become references, as in R."""

    def __init__(self, head: bytes = HEAD) -> None:
        self.head = head
        self._symbols: list[str] = []

    def char(self, text: str | bytes | None, *, flags: int = 64) -> bytes:
        if text is None:
            return struct.pack(">ii", 9, -1)
        data = text.encode() if isinstance(text, str) else text
        return struct.pack(">ii", 9 | flags << 12, len(data)) + data

    def symbol(self, name: str) -> bytes:
        if name in self._symbols:
            return struct.pack(">i", 255 | (self._symbols.index(name) + 1) << 8)
        self._symbols.append(name)
        return struct.pack(">i", 1) + self.char(name)

    def integers(self, values: Any) -> bytes:
        return struct.pack(">ii", 13, len(values)) + np.asarray(values, ">i4").tobytes()

    def numbers(self, values: Any) -> bytes:
        return struct.pack(">ii", 14, len(values)) + np.asarray(values, ">f8").tobytes()

    def texts(self, values: Any, *, flags: int = 0) -> bytes:
        chars = b"".join(self.char(each) for each in values)
        return struct.pack(">ii", 16 | flags, len(values)) + chars

    def vector(self, parts: list[bytes]) -> bytes:
        return struct.pack(">ii", 19, len(parts)) + b"".join(parts)

    def pairs(self, parts: dict[str, Any]) -> bytes:
        """Write a pairlist; a value is a function that writes it, to keep symbols in order."""
        out = b""
        for name, write in parts.items():
            out += struct.pack(">i", 2 | HAS_TAG) + self.symbol(name) + write()
        return out + NIL

    def s4(self, name: str, slots: dict[str, Any]) -> bytes:
        def klass() -> bytes:
            package = self.pairs
            return self.texts([name], flags=HAS_ATTRIBUTES) + package(
                {"package": lambda: self.texts(["Matrix"])}
            )

        flags = 25 | IS_OBJECT | HAS_ATTRIBUTES | 16 << 12
        return struct.pack(">i", flags) + self.pairs({**slots, "class": klass})

    def matrix(self, counts: Any, genes: Any, cells: Any, **changed: Any) -> bytes:
        """Write counts [cells, genes] as a dgCMatrix of genes x cells; slots may be changed."""
        stored = sparse.csr_matrix(counts)
        stored.sort_indices()
        slots = {
            "i": lambda: self.integers(stored.indices),
            "p": lambda: self.integers(stored.indptr),
            "Dim": lambda: self.integers([stored.shape[1], stored.shape[0]]),
            "Dimnames": lambda: self.vector(
                [NIL if each is None else self.texts(each) for each in (genes, cells)]
            ),
            "x": lambda: self.numbers(stored.data),
            "factors": lambda: self.vector([]),
        }
        name = changed.pop("klass", "dgCMatrix")
        slots.update(changed)
        return self.s4(name, {key: each for key, each in slots.items() if each is not None})

    def file(self, variables: dict[str, Any]) -> bytes:
        return self.head + self.pairs(variables)


def panglao_bytes(counts: Any, genes: Any, cells: Any, **changed: Any) -> bytes:
    """Return an R data file with one matrix `sm`."""
    writer = Writer()
    return writer.file({"sm": lambda: writer.matrix(counts, genes, cells, **changed)})


REAL = sorted(Path(os.environ.get("OMICS_REAL_DATA") or os.devnull).glob("**/*.RData"))
GENES = ["TP53_ENSG00000141510.16", "MYC_ENSG00000136997.17", "X_ENSG00000000001.1", "odd"]
CELLS = ["AAAC", "AAAG", "AAAT"]
COUNTS = np.array([[1, 0, 3, 0], [0, 0, 0, 0], [7, 2, 0, 5]])


def written(folder: Path, data: bytes) -> Path:
    path = folder / "SRA1_SRS2.sparse.RData"
    path.write_bytes(data)
    return path


def read_back(matrix: Any, kind: Any = "counts") -> np.ndarray[Any, Any]:
    out = np.zeros(matrix.shape)
    first = 0
    for indptr, genes, values in matrix.blocks(kind):
        cells = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        out[first + cells, genes] = values
        first += len(indptr) - 1
    assert first == matrix.shape[0]
    return out


def read_all(path: Path, **options: Any) -> None:
    with open_rdata(path, **options) as source:
        for matrix in source.matrices.values():
            list(matrix.blocks())


def read_checked(path: Path) -> None:
    with open_rdata(path) as source:
        for name, matrix in source.matrices.items():
            for indptr, genes, values in matrix.blocks("float"):
                assert indptr[-1] == len(genes) == len(values)
                assert not len(genes) or genes.max() < matrix.shape[1]
            assert len(source.var(name)) == matrix.shape[1]


def refusal(data: bytes, folder: Path, **options: Any) -> str:
    path = written(folder, data)
    with pytest.raises(InputDataError, match="SRA1_SRS2") as caught:
        read_all(path, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, bz2.compress, lzma.compress], ids=["plain", "gzip", "bz2", "xz"]
)
def test_a_matrix_arrives_with_its_names(pack: Any, tmp_path: Path) -> None:
    path = written(tmp_path, pack(panglao_bytes(COUNTS, GENES, CELLS)))
    assert recognises(path)
    with open_source(path) as source:
        assert source.format_name == "RData"
        assert (source.num_cells, source.num_genes) == (3, 4)
        assert list(source.obs().index) == CELLS
        assert list(source.var("sm").index) == [
            "ENSG00000141510",
            "ENSG00000136997",
            "ENSG00000000001",
            "odd",
        ]
        assert list(source.var("sm")["gene_symbol"]) == ["TP53", "MYC", "X", "odd"]
        assert (read_back(source.matrix("sm")) == COUNTS).all()
        assert source.fingerprint()["files"] == [path.name]
        assert source.table_bytes() > 0


def test_two_matrices_and_the_older_format(tmp_path: Path) -> None:
    writer = Writer(HEAD_2)
    data = writer.file(
        {
            "sm2": lambda: writer.matrix(COUNTS * 2, GENES, CELLS),
            "sm": lambda: writer.matrix(COUNTS[:, :3] / 2, GENES[:3], CELLS),
            "other": lambda: writer.matrix(COUNTS[:2], GENES, CELLS[:2]),
            "note": lambda: writer.texts(["hello"]),
        }
    )
    with open_rdata(written(tmp_path, data)) as source:
        assert list(source.matrices) == ["sm", "sm2"]
        assert source.num_genes == 3
        assert len(source.var()) == 3
        assert len(source.var("sm2")) == 4
        assert (read_back(source.matrix("sm2")) == 2 * COUNTS).all()
        assert (read_back(source.matrix("sm"), "float") == COUNTS[:, :3] / 2).all()
        assert source.unreadable["other"] == "its cells are not those of sm"
        with pytest.raises(InputDataError, match="it is an R object of type STR"):
            source.matrix("note")
        with pytest.raises(UnknownNameError, match="Did you mean 'sm2'"):
            source.matrix("sm22")


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(0, 6),
    columns=st.integers(0, 6),
    named=st.booleans(),
)
def test_any_matrix_arrives(seed: int, rows: int, columns: int, named: bool) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 2**31, (rows, columns)) * (rng.random((rows, columns)) < 0.5)
    genes = rng.choice(["A", "é", "", "A_ENSG00000000001.1", "B_ENSG00000000001.2"], columns)
    cells = [f"c{row}" for row in range(rows)] if named else None
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), panglao_bytes(counts, genes.tolist(), cells))
        with open_rdata(path) as source:
            assert (read_back(source.matrix("sm")) == counts).all()
            assert len(source.var()) == columns
            assert list(source.obs().index) == (cells or [f"cell{row}" for row in range(rows)])


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_files_arrive_as_the_library_converts_them(path: Path, tmp_path: Path) -> None:
    import rdata

    with pytest.warns(UserWarning, match="dgCMatrix"):
        expected = rdata.read_rda(path)["sm"]
    shape = tuple(expected.Dim[::-1])
    matrix = sparse.csr_matrix((expected.x, expected.i, expected.p), shape)
    with open_source(path) as source:
        found = read_back(source.matrix("sm"), "float")
        assert (found == matrix.toarray().astype(np.float32)).all()
        assert source.var().index.str.fullmatch("ENSG[0-9]{11}(_PAR_Y)?").all()
        assert source.var().index.is_unique
    with pytest.raises(InputDataError, match="--counts sm --allow-non-counts"):
        convert(path, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    store = convert(path, tmp_path / "kept", location="sm", allow_non_counts=True)
    assert store.shape == shape
    assert store.take(np.arange(shape[0])).counts.dtype == np.float32


# --- bad input -----------------------------------------------------------------------------------


def test_other_classes_are_named_with_what_to_do(tmp_path: Path) -> None:
    data = panglao_bytes(COUNTS, GENES, CELLS, klass="Seurat")
    message = refusal(data, tmp_path)
    assert "sm: it is an R object of class Seurat, not a dgCMatrix" in message
    assert "save(sm, file" in message
    assert "it holds nothing" in refusal(Writer().file({}), tmp_path)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"i": None}, "its slot 'i' is not a list of numbers"),
        ({"x": lambda: Writer().integers([1] * 5)}, "its slot 'x' is not a list of numbers"),
        ({"i": lambda: Writer().integers([0, 2, -(2**31), 1, 3])}, "missing values"),
        ({"i": lambda: Writer().integers([0, 2, 0, 1, 4])}, "outside 0 to 3"),
        ({"i": lambda: Writer().integers([0, 2, 0, 1])}, "5 values for 4 indices"),
        ({"p": lambda: Writer().integers([0, 2, 5])}, "3 column offsets for 3 cells"),
        ({"p": lambda: Writer().integers([0, 3, 2, 5])}, "does not ascend"),
        ({"p": lambda: Writer().integers([0, 2, 2, 4])}, "indptr ends at 4"),
        ({"Dim": lambda: Writer().integers([-4, 3])}, "its Dim are not two lengths"),
        ({"Dim": lambda: Writer().integers([4, 3, 2])}, "its Dim are not two lengths"),
        ({"Dim": lambda: Writer().integers([9, 3])}, "4 names for 9 genes"),
        ({"Dimnames": lambda: Writer().vector([NIL])}, "not a pair of lists of names"),
        ({"Dimnames": lambda: Writer().vector([NIL, NIL])}, "its genes are not known"),
        ({"Dimnames": lambda: Writer().vector([Writer().integers([1]), NIL])}, "INT, not text"),
        ({"Dimnames": lambda: Writer().vector([Writer().texts([None] * 4), NIL])}, "name is missi"),
        (
            {"Dimnames": lambda: Writer().vector([Writer().texts([b"\xff"] * 4), NIL])},
            "not text in",
        ),
        ({"x": lambda: Writer().numbers([1, 2, np.nan, 1, 1])}, "nan is not a number"),
        ({"x": lambda: Writer().numbers([1, 2, -1, 1, 1])}, "-1.0 is negative"),
    ],
)
def test_broken_matrices_are_refused(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in refusal(panglao_bytes(COUNTS, GENES, CELLS, **changed), tmp_path)


def test_latin_names_are_read_by_their_mark(tmp_path: Path) -> None:
    writer = Writer()
    names = struct.pack(">ii", 16, 4) + writer.char(b"\xe9", flags=4) * 4
    data = panglao_bytes(COUNTS, GENES, CELLS, Dimnames=lambda: writer.vector([names, NIL]))
    with open_rdata(written(tmp_path, data)) as source:
        assert list(source.var().index) == ["é"] * 4


def test_files_cut_short_anywhere_are_refused(tmp_path: Path) -> None:
    data = panglao_bytes(COUNTS, GENES, CELLS)
    for length in range(7, len(data)):
        refusal(data[:length], tmp_path)
    assert "goes on for 3 bytes" in refusal(data + b"abc", tmp_path)
    packed = gzip.compress(data)
    message = refusal(packed[: len(packed) - 9], tmp_path)
    assert "cut short or damaged" in message


PLAIN = panglao_bytes(COUNTS, GENES, CELLS)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=st.lists(
        st.tuples(st.integers(len(HEAD), len(PLAIN) - 1), st.integers(0, 255)),
        min_size=1,
        max_size=4,
    )
)
@example(changes=[(len(HEAD), 255)])
def test_changed_bytes_never_do_more_than_change_values(changes: list[tuple[int, int]]) -> None:
    data = bytearray(PLAIN)
    for position, value in changes:
        data[position] = value
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(InputDataError):
        read_checked(written(Path(folder), bytes(data)))


def test_bombs_are_refused_before_they_take_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_rdata, "HARMLESS_BYTES", 2**20)
    for pack in (gzip.compress, bz2.compress, lzma.compress):
        message = refusal(pack(HEAD + bytes(2**22)), tmp_path)
        assert "unpacks to more than 1,048,576 bytes" in message
    large = HEAD + np.random.default_rng(0).bytes(2**16)
    assert "holds more than 1,000 bytes" in refusal(large, tmp_path, max_bytes=1000)


def test_compact_vectors_cannot_grow_beyond_the_file(tmp_path: Path) -> None:
    writer = Writer()

    def huge() -> bytes:
        info = writer.pairs({}).removesuffix(NIL)
        for part in (writer.symbol("compact_intseq"), writer.symbol("base"), writer.integers([13])):
            info += struct.pack(">i", 2) + part
        state = writer.numbers([2.0**40, 1, 1])
        return struct.pack(">i", 238) + info + NIL + state + NIL

    message = refusal(writer.file({"sm": huge}), tmp_path)
    assert "compact vector of 1,099,511,627,776 elements" in message


def test_deep_nesting_and_many_objects_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = HEAD + struct.pack(">ii", 19, 1) * 100_000 + NIL
    assert "nested too deeply" in refusal(deep, tmp_path)
    monkeypatch.setattr(source_rdata, "MAX_OBJECTS", 1000)
    many = HEAD + struct.pack(">ii", 19, 5000) + NIL * 5000
    assert "more than 1,000 R objects" in refusal(many, tmp_path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"RDA3\nA\n3\n", "as text or in the byte order of one machine"),
        (b"RDB3\nB\n", "as text or in the byte order of one machine"),
        (b"RDX3\nA\n", "is not an R data file as save"),
        (HEAD.replace(b"\0\0\0\3", b"\0\0\0\7"), "not a sound R data file"),
        (HEAD + struct.pack(">ii", 13, -1), "-4 bytes are announced"),
        (HEAD + struct.pack(">ii", 14, 2**31 - 1), "17,179,869,176 bytes are announced"),
        (HEAD + struct.pack(">i", 99), "not a sound R data file"),
    ],
)
def test_other_forms_are_refused(data: bytes, words: str, tmp_path: Path) -> None:
    assert words in refusal(data, tmp_path)


def test_other_files_are_not_recognised(tmp_path: Path) -> None:
    assert not recognises(tmp_path)
    assert not recognises(tmp_path / "absent.RData")
    for data in (b"", b"RDX", b"<html>", gzip.compress(b"hello")[:-3], b"\x1f\x8bnonsense"):
        assert not recognises(written(tmp_path, data))
    with pytest.raises(MissingPathError, match="absent"), open_rdata(tmp_path / "absent.RData"):
        pass


def test_without_the_library_the_message_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rdata.parser", None)
    path = written(tmp_path, PLAIN)
    with (
        pytest.raises(MissingExtraError, match=r"pip install 'omics-data\[rdata\]'"),
        open_rdata(path),
    ):
        pass
