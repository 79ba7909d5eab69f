"""Reads the sparse matrices of an R data file (`save` in R), the form of PanglaoDB.

- Every `dgCMatrix` of the file, genes x cells as R programs keep them, is a matrix under the name
  of its variable (PanglaoDB: `sm`, and `sm2` beside it for some protocols). Other objects are
  named with their class, and never turned into anything.
- The `rdata` library takes the serialisation apart; none of its converters runs, and nothing in
  the file is evaluated. Its input is a stream that ends where the file ends and counts what is
  built, so a hostile file costs bounded memory: unpacking, objects, expansions and nesting.
- R keeps a file in one piece, so it is unpacked in memory: about three times the unpacked size,
  of at most `MAX_UNPACKED_BYTES`.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import warnings
import zlib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import (
    InputDataError,
    MissingExtraError,
    MissingPathError,
    UnknownNameError,
    nearest,
)
from omics.data.sources.ensembl_names import gene_frame
from omics.data.sources.memory_matrix import csr_matrix_of
from omics.data.sources.protocol import FileSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd

    from omics.data.sources.matrix_blocks import MatrixSource

Array = np.ndarray[Any, np.dtype[Any]]

MAX_UNPACKED_BYTES = 8 * 2**30
# Counts of cells as R writes them shrink tenfold, not more than a hundredfold.
MAX_EXPANSION = 200
HARMLESS_BYTES = 64 * 2**20
# Each costs about a kilobyte while the file is taken apart; a matrix has one per gene and cell.
MAX_OBJECTS = 600_000

_MAGIC_LENGTH = 5
_BINARY = (b"RDX2\n", b"RDX3\n")
_OTHER_FORMS = (b"RDA2\n", b"RDA3\n", b"RDB2\n", b"RDB3\n")
_READ_BYTES = 2**20
_OPENERS: tuple[tuple[bytes, Callable[..., Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\x00", lzma.open),
)
_DECOMPRESSION_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)
# What the library raises for a stream that is no serialisation of R objects.
_PARSER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
_MAIN_NAMES = ("sm", "sm2")
_SAVE_AGAIN = 'Save the matrix of counts alone: save(sm, file = "counts.RData").'
_ENCODINGS = {"utf-8": "utf-8", "latin1": "latin-1", "iso-8859-1": "latin-1", "ascii": "utf-8"}


def recognises(path: str | Path) -> bool:
    """Say whether a path is an R data file, from its first bytes.

    Args:
        path: anything.
    """
    path = Path(path)
    if not path.is_file():
        return False
    try:
        with _unpacked(path) as stream:
            return stream.read(_MAGIC_LENGTH) in _BINARY + _OTHER_FORMS
    except _DECOMPRESSION_ERRORS:
        return False


@contextlib.contextmanager
def open_rdata(path: str | Path, *, max_bytes: int = MAX_UNPACKED_BYTES) -> Iterator[SourceRdata]:
    """Open an R data file for reading.

    Args:
        path: the file, plain or compressed by gzip, bzip2 or xz.
        max_bytes: how large the unpacked file may be.

    Yields:
        The source, usable until the end of the block.

    Raises:
        MissingPathError: there is no such file.
        MissingExtraError: the library `rdata` is not installed.
        InputDataError: the file is damaged, too large, or holds no sparse matrix.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingPathError(f"There is no file {path}.")
    yield SourceRdata(path, _parse(path, _unpack(path, max_bytes)))


class SourceRdata(FileSource):
    """An R data file with sparse matrices of genes x cells.

    Args:
        path: the file.
        parsed: its content as the library `rdata` parsed it.

    Attributes:
        path: the file.
        name: the path as text.
        format_name: `RData`.
        files: the file alone.
        num_cells: columns of the main matrix (`sm` if there is one, else the first).
        num_genes: rows of the main matrix.
        matrices: the matrices with the cells of the main one, by the name of their variable.
        unreadable: the other variables, `{name: why}`.
    """

    format_name = "RData"

    def __init__(self, path: Path, parsed: Any) -> None:
        self.path = path
        self.name = str(path)
        self.files = (path,)
        self.matrices: dict[str, MatrixSource] = {}
        self.unreadable: dict[str, str] = {}
        self._genes: dict[str, list[str]] = {}
        self._cells: list[str] = []
        found: dict[str, _ColumnMatrix] = {}
        reader = _ObjectReader(parsed)
        with _readable(path):
            for name, thing in reader.variables():
                try:
                    found[name] = reader.column_matrix(thing)
                except InputDataError as error:
                    self.unreadable[name] = str(error)
        if not found:
            listed = "; ".join(f"{name}: {why}" for name, why in self.unreadable.items())
            raise InputDataError(
                f"{path} is an R data file without a sparse matrix of class dgCMatrix "
                f"({listed or 'it holds nothing'}). {_SAVE_AGAIN}"
            )
        main = next((name for name in _MAIN_NAMES if name in found), next(iter(found)))
        for name in sorted(found, key=lambda each: each != main):
            self._add(name, found[name])
        self.main = main
        self.num_cells, self.num_genes = self.matrices[main].shape

    def _add(self, name: str, found: _ColumnMatrix) -> None:
        cells = found.cells or [f"cell{number}" for number in range(found.shape[1])]
        if self.matrices and cells != self._cells:
            main = next(iter(self.matrices))
            self.unreadable[name] = f"its cells are not those of {main}"
            return
        self._cells, self._genes[name] = cells, found.genes
        self.matrices[name] = csr_matrix_of(
            found.values,
            found.indices,
            found.indptr,
            num_genes=found.shape[0],
            path=self.path,
            location=name,
        )

    @property
    def obs_columns(self) -> list[str]:
        """The names of the columns of obs: none, R keeps the names of cells only."""
        return []

    def matrix(self, location: str) -> MatrixSource:
        """Return a matrix by the name of its variable in R.

        Args:
            location: such as `sm`.

        Raises:
            UnknownNameError: there is no such variable; the message lists those there are.
            InputDataError: it is there but is no matrix that can be read.
        """
        if location in self.unreadable:
            raise InputDataError(
                f"{location} of {self.path} cannot be read: {self.unreadable[location]}."
            )
        if location not in self.matrices:
            raise UnknownNameError(
                f"{self.path} has no matrix {location!r}."
                + nearest(location, [*self.matrices, *self.unreadable])
            )
        return self.matrices[location]

    def obs(self) -> pd.DataFrame:
        """Return the cell table: no columns; its index holds the names of the cells."""
        import pandas as pd

        return pd.DataFrame(index=pd.Index(self._cells, dtype=object))

    def var(self, location: str = "X") -> pd.DataFrame:
        """Return the gene table of a matrix.

        Args:
            location: the name of the matrix; by default of the main one.

        Returns:
            The index holds Ensembl ids without version where that tells the genes apart, else the
            names as they are. Columns as in `gene_frame`.
        """
        return gene_frame(self._genes.get(location, self._genes[self.main]))

    def table_bytes(self) -> int:
        """Return about how many bytes the tables take in memory, text not counted."""
        return 8 * (self.num_cells + 4 * self.num_genes)


# --- unpacking -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[Any]:
    with path.open("rb") as stream:
        head = stream.read(6)
    opener: Callable[..., Any] = next(
        (opener for magic, opener in _OPENERS if head.startswith(magic)), open
    )
    with opener(path, "rb") as stream:
        yield stream


def _unpack(path: Path, max_bytes: int) -> bytearray:
    """Return the unpacked file; its size is known before memory is taken for it."""
    allowed = min(max_bytes, max(HARMLESS_BYTES, MAX_EXPANSION * path.stat().st_size))
    try:
        with _unpacked(path) as stream:
            size = 0
            while data := stream.read(_READ_BYTES):
                size += len(data)
                if size > allowed:
                    raise InputDataError(_too_large(path, allowed, max_bytes))
        unpacked = bytearray(size)
        with _unpacked(path) as stream:
            filled = stream.readinto(unpacked) or 0
            while filled < size and (more := stream.readinto(memoryview(unpacked)[filled:])):
                filled += more
    except InputDataError:
        raise
    except _DECOMPRESSION_ERRORS as error:
        raise InputDataError(
            f"{path} cannot be unpacked ({error}). It was cut short or damaged: fetch it again."
        ) from error
    if filled != size:
        raise InputDataError(f"{path} changed while it was read; open it again.")
    return unpacked


def _too_large(path: Path, allowed: int, max_bytes: int) -> str:
    if allowed == max_bytes:
        return (
            f"{path} holds more than {max_bytes:,} bytes when unpacked, which an R data file needs "
            "in memory in one piece. Save parts of the matrix, or write it as .h5ad or 10x files."
        )
    return (
        f"{path} ({path.stat().st_size:,} bytes) unpacks to more than {allowed:,} bytes, which no "
        "matrix of counts does. If you trust the file, save it from R without compression."
    )


# --- the serialisation ---------------------------------------------------------------------------


def _parse(path: Path, data: bytearray) -> Any:
    magic = bytes(data[:_MAGIC_LENGTH])
    if magic in _OTHER_FORMS:
        raise InputDataError(
            f"{path} was written by R as text or in the byte order of one machine. Load it in R and "
            "save it again with the defaults of save()."
        )
    if magic not in _BINARY or bytes(data[5:7]) != b"X\n":
        raise InputDataError(f"{path} is not an R data file as save() writes it.")
    try:
        library = import_module("rdata.parser")
        parser_class = import_module("rdata.parser._xdr").ParserXDR
    except ImportError as error:
        raise MissingExtraError(
            "Reading R data files needs the library rdata: pip install 'omics-data[rdata]'."
        ) from error
    stream = _CountedStream(memoryview(data)[7:])
    expansions = _Expansions(library.DEFAULT_ALTREP_MAP, limit=len(data))
    parser = parser_class(
        memoryview(b""), expand_altrep=True, altrep_constructor_dict=expansions.constructors
    )
    parser.file = stream
    with _readable(path), warnings.catch_warnings():
        # It warns of parts it leaves out; none of those belongs to a matrix.
        warnings.simplefilter("ignore")
        parsed = parser.parse_all()
    if stream.remaining:
        raise InputDataError(
            f"{path} goes on for {stream.remaining:,} bytes after its R objects end. The file is "
            "damaged; fetch it again."
        )
    return parsed


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except InputDataError:
        raise
    except _RefusedError as error:
        raise InputDataError(f"{path} {error}") from error
    except RecursionError as error:
        raise InputDataError(
            f"{path} holds R objects nested too deeply for a matrix. {_SAVE_AGAIN}"
        ) from error
    except _PARSER_ERRORS as error:
        raise InputDataError(
            f"{path} is not a sound R data file ({type(error).__name__}: {error}). Fetch it again, "
            f"or load it in R and save it again. {_SAVE_AGAIN}"
        ) from error


class _RefusedError(Exception):
    """A stream that must not be followed further; the message goes on after the path."""


class _CountedStream:
    """The bytes of a file for the parser: no read past the end, a bounded number of objects."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0
        self._reads = 0

    @property
    def remaining(self) -> int:
        return len(self._data) - self._position

    def read(self, size: int) -> bytes:
        self._reads += 1
        # An object costs at least one read, most of them two.
        if self._reads > 2 * MAX_OBJECTS:
            raise _RefusedError(f"holds more than {MAX_OBJECTS:,} R objects. {_SAVE_AGAIN}")
        if not 0 <= size <= self.remaining:
            raise _RefusedError(
                f"ends in the middle of an R object: {size:,} bytes are announced where "
                f"{self.remaining:,} are left. The file was cut short or damaged; fetch it again."
            )
        begin = self._position
        self._position += size
        return bytes(self._data[begin : self._position])


class _Expansions:
    """The compact forms of vectors in R, which a few bytes can make as long as they like."""

    def __init__(self, known: Any, *, limit: int) -> None:
        self._left = max(limit, 2**20)
        self.constructors = {
            name: self._bounded(name, constructor) for name, constructor in known.items()
        }

    def _bounded(self, name: bytes, constructor: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def expand(state: Any) -> Any:
            if name.startswith(b"compact_"):
                length = float(state.value[0])
            else:
                length = len(state.value[0].value)
            if not 0 <= length <= self._left:
                raise _RefusedError(
                    f"holds a compact vector of {length:,.0f} elements, too many for its size."
                )
            self._left -= int(length)
            return constructor(state)

        return expand


class _ColumnMatrix:
    """The parts of a dgCMatrix [genes, cells]."""

    def __init__(self, slots: dict[str, Any], reader: _ObjectReader) -> None:
        dimensions = reader.integers(slots, "Dim")
        if dimensions.shape != (2,) or (dimensions < 0).any():
            raise InputDataError("its Dim are not two lengths")
        self.shape = (int(dimensions[0]), int(dimensions[1]))
        self.indptr = reader.integers(slots, "p")
        self.indices = reader.integers(slots, "i")
        self.values = reader.vector(slots, "x", "f")
        if len(self.indptr) != self.shape[1] + 1:
            raise InputDataError(
                f"it has {len(self.indptr):,} column offsets for {self.shape[1]:,} cells"
            )
        names = reader.names(slots)
        for axis, what in ((0, "genes"), (1, "cells")):
            if names[axis] and len(names[axis]) != self.shape[axis]:
                raise InputDataError(
                    f"it has {len(names[axis]):,} names for {self.shape[axis]:,} {what}"
                )
        self.genes, self.cells = names
        if self.shape[0] and not self.genes:
            raise InputDataError("its rows have no names, so its genes are not known")


class _ObjectReader:
    """Finds vectors in the tree of parsed R objects."""

    def __init__(self, parsed: Any) -> None:
        self._root = parsed.object
        encoding = str(parsed.extra.encoding or "utf-8").lower()
        self._encoding = _ENCODINGS.get(encoding, "utf-8")

    def variables(self) -> Iterator[tuple[str, Any]]:
        """Return the variables that were saved."""
        return self._pairs(self._root)

    def column_matrix(self, thing: Any) -> _ColumnMatrix:
        """Return the matrix that an R object is, or raise saying what it is instead."""
        attributes = dict(self._pairs(thing.attributes))
        named = attributes.get("class")
        found = self._texts(named)[0] if named is not None and named.value else ""
        if found != "dgCMatrix" or thing.info.type.name != "S4":
            described = f"class {found}" if found else f"type {thing.info.type.name}"
            raise InputDataError(f"it is an R object of {described}, not a dgCMatrix")
        return _ColumnMatrix(attributes, self)

    def integers(self, slots: dict[str, Any], name: str) -> Array:
        """Return a vector of integers without missing ones."""
        return self.vector(slots, name, "i")

    def vector(self, slots: dict[str, Any], name: str, kind: str) -> Array:
        """Return a vector of a kind of numbers (`i` or `f`)."""
        thing = slots.get(name)
        values = None if thing is None else thing.value
        if not isinstance(values, np.ndarray) or values.dtype.kind != kind or values.ndim != 1:
            raise InputDataError(f"its slot {name!r} is not a list of numbers")
        if isinstance(values, np.ma.MaskedArray):
            raise InputDataError(f"its slot {name!r} has missing values (NA)")
        return np.asarray(values)

    def names(self, slots: dict[str, Any]) -> tuple[list[str], list[str]]:
        """Return the names of rows and of columns; none where there are none."""
        thing = slots.get("Dimnames")
        if thing is None or thing.info.type.name != "VEC" or len(thing.value) != 2:
            raise InputDataError("its slot 'Dimnames' is not a pair of lists of names")
        rows, columns = (self._texts(each) for each in thing.value)
        return rows, columns

    def _pairs(self, node: Any) -> Iterator[tuple[str, Any]]:
        """Go through a pairlist: (name, value) of each part."""
        while node is not None and node.info.type.name == "LIST":
            value, following = node.value
            if node.tag is not None:
                yield self._symbol(node.tag), value
            node = following

    def _symbol(self, node: Any) -> str:
        if node.info.type.name == "REF":
            node = node.referenced_object
        return self._text(node.value)

    def _texts(self, node: Any) -> list[str]:
        if node.info.type.name in {"NILVALUE", "NIL"}:
            return []
        if node.info.type.name != "STR":
            raise InputDataError(f"names are of type {node.info.type.name}, not text")
        return [self._text(each) for each in node.value]

    def _text(self, node: Any) -> str:
        if node.value is None:
            raise InputDataError("a name is missing (NA)")
        marked = int(node.info.gp)
        encoding = "latin-1" if marked & 4 else "utf-8" if marked & 8 else self._encoding
        try:
            return str(bytes(node.value).decode(encoding))
        except UnicodeDecodeError as error:
            raise InputDataError(f"the name {node.value!r} is not text in {encoding}") from error
