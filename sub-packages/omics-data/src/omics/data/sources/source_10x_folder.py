"""A folder of `matrix.mtx`, features (or genes) and barcodes, as CellRanger writes it.

- The files are found by the end of their names, compressed or not, behind one prefix: GEO keeps
  many samples in a folder as `GSM123_matrix.mtx.gz` and so on. The path of one matrix chooses it.
- Features x barcodes is the usual way round; cells x genes, which some programs write, is told from
  it by the numbers of names.
"""

from __future__ import annotations

import contextlib
import io
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, MissingPathError, UnknownNameError, nearest
from omics.data.sources.gene_subset import column_places
from omics.data.sources.hdf5_safety import describe_bytes
from omics.data.sources.market_matrix import MarketMatrix
from omics.data.sources.matrix_market import is_matrix_market, open_text, read_header
from omics.data.sources.table_columns import listed
from omics.data.sources.tenx_features import TenxSource, decoded_names, split_by_type

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]

MAX_TABLE_TEXT = 2**30

_NAME = re.compile(r"(?P<prefix>.*?)(?P<part>matrix\.mtx|(features|genes|barcodes)\.tsv)(\.gz)?")
_PARTS = {"matrix.mtx": "matrix", "barcodes.tsv": "barcodes"}
_COLUMNS = ("gene_symbol", "feature_type", "chromosome", "start", "end")


def recognises(path: str | Path) -> bool:
    """Say whether this is a folder with a `...matrix.mtx`, or a Matrix Market file.

    Args:
        path: anything.
    """
    path = Path(path)
    if path.is_dir():
        return bool(_matrices(path))
    return is_matrix_market(path) or (path.is_file() and _part(path.name) == "matrix")


@contextlib.contextmanager
def open_10x_folder(path: str | Path, *, prefix: str | None = None) -> Iterator[Source10xFolder]:
    """Open a 10x folder for reading.

    Args:
        path: the folder, or the matrix file in it.
        prefix: what the names begin with, where the folder holds several samples.

    Yields:
        The source, usable until the end of the block.

    Raises:
        MissingPathError: there is nothing at the path.
        UnknownNameError: no matrix has that prefix.
        InputDataError: a file is missing, damaged or of another kind, or the numbers of features
            and barcodes do not fit the matrix.
    """
    yield Source10xFolder(Path(path), _find_files(Path(path), prefix))


class Source10xFolder(TenxSource):
    """An open 10x folder; see `TenxSource`.

    Args:
        path: the folder or the matrix file.
        files: the matrix, features and barcodes.
    """

    format_name = "10x folder"

    def __init__(self, path: Path, files: tuple[Path, Path, Path]) -> None:
        self.files = files
        header = read_header(files[0])
        barcodes = decoded_names(_read_table(files[2]).iloc[:, 0].to_numpy(), "barcodes", files[2])
        features = _feature_table(files[1])
        kinds = split_by_type(features)
        tables = {location: features.iloc[columns] for location, columns in kinds.items()}
        super().__init__(str(path), barcodes, tables)
        there = (len(features), len(barcodes))
        if header.shape not in {there, there[::-1]}:
            raise InputDataError(
                f"{files[0]} has {header.shape[0]:,} rows and {header.shape[1]:,} columns, but there "
                f"are {there[0]:,} features in {files[1].name} and {there[1]:,} barcodes in "
                f"{files[2].name}. They belong to different data, or one was cut or edited."
            )
        self.matrices = {
            location: MarketMatrix(
                path=files[0],
                location=location,
                header=header,
                places=column_places(columns, len(features)),
                shape=(len(barcodes), len(columns)),
                cells_first=header.shape != there,
            )
            for location, columns in kinds.items()
        }


def _part(name: str) -> str:
    found = _NAME.fullmatch(name)
    return _PARTS.get(found["part"], "features") if found else ""


def _matrices(folder: Path) -> dict[str, list[Path]]:
    """Return the matrix files of a folder by their prefix."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match and match["part"] == "matrix.mtx" and path.is_file():
            found.setdefault(match["prefix"], []).append(path)
    return found


def _find_files(path: Path, prefix: str | None) -> tuple[Path, Path, Path]:
    """Return the matrix, features and barcodes."""
    if not path.exists():
        raise MissingPathError(f"There is no file or folder {path}.")
    folder = path
    if not path.is_dir():
        match = _NAME.fullmatch(path.name)
        if match is None or match["part"] != "matrix.mtx":
            raise InputDataError(
                f"{path} is a matrix without names of cells and genes. Call it matrix.mtx (or "
                f"SAMPLE_matrix.mtx.gz) and put barcodes.tsv and features.tsv beside it."
            )
        folder, prefix = path.parent, match["prefix"]
    matrices = _matrices(folder)
    if prefix is None and len(matrices) > 1:
        raise InputDataError(
            f"{folder} holds {len(matrices):,} matrices (beginning with {listed(matrices)}). Give the "
            f"path of one of them, such as {next(iter(matrices.values()))[0]}."
        )
    if prefix is not None and prefix not in matrices:
        raise UnknownNameError(
            f"{folder} has no matrix with the prefix {prefix!r}.{nearest(prefix, list(matrices))}"
        )
    prefix = next(iter(matrices), "") if prefix is None else prefix
    found: dict[str, list[Path]] = {"matrix": [], "features": [], "barcodes": []}
    for each in sorted(folder.iterdir()):
        match = _NAME.fullmatch(each.name)
        if match and match["prefix"] == prefix and each.is_file():
            found[_part(each.name)].append(each)
    if not path.is_dir():
        found["matrix"] = [path]
    for part, name in (("features", "features.tsv or genes.tsv"), ("barcodes", "barcodes.tsv")):
        if not found[part]:
            raise InputDataError(
                f"{folder} has {prefix}matrix.mtx but no {prefix}{name} (compressed or not) beside "
                f"it, so its {part} have no names. Fetch all three files."
            )
    for part, paths in found.items():
        if len(paths) > 1:
            raise InputDataError(
                f"{folder} has {len(paths)} files of {part}: "
                f"{', '.join(each.name for each in paths)}. Keep one of them."
            )
    return found["matrix"][0], found["features"][0], found["barcodes"][0]


def _feature_table(path: Path) -> pd.DataFrame:
    table = _read_table(path)
    ids = decoded_names(table.iloc[:, 0].to_numpy(), "features", path)
    columns = {
        _COLUMNS[number] if number < len(_COLUMNS) else f"column {number + 2}": table.iloc[
            :, number + 1
        ].to_numpy()
        for number in range(table.shape[1] - 1)
    }
    import pandas as pd

    return pd.DataFrame(columns, index=pd.Index(ids, dtype=object))


def _read_table(path: Path) -> pd.DataFrame:
    """Return a table of text without a header, as it stands in the file."""
    import pandas as pd

    try:
        with open_text(path) as stream:
            data = stream.read(MAX_TABLE_TEXT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputDataError(
            f"{path} cannot be unpacked ({error}). The download or copy did not finish or was "
            f"damaged; fetch it again."
        ) from error
    look = describe_bytes(data[:512])
    if len(data) > MAX_TABLE_TEXT or not data.strip() or look.startswith(("a web page", "a git")):
        found = f"{look}" if len(data) <= MAX_TABLE_TEXT else f"more than {MAX_TABLE_TEXT:,} bytes"
        raise InputDataError(f"{path} is no table of names: it is {found}. Fetch it again.")
    try:
        return pd.read_csv(
            io.BytesIO(data.rstrip(b"\r\n")),
            sep="\t",
            header=None,
            dtype=str,
            quoting=3,
            na_filter=False,
            skip_blank_lines=False,
            encoding="utf-8-sig",
        )
    except (pd.errors.ParserError, UnicodeDecodeError, ValueError) as error:
        raise InputDataError(
            f"{path} is no table of names: {str(error).strip()}. Fetch it again."
        ) from error
