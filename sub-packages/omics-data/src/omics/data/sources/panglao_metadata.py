"""`panglao_files`: which files of a PanglaoDB folder to read, and what is known of their cells.

- PanglaoDB comes as one R data file per sample and one table over all samples; a row of the table
  becomes columns of obs that are equal for all cells of the sample.
- Samples are chosen by plain conditions (`Species = Homo sapiens`), which are compared, never
  evaluated; all of them must hold.
- A sample without a file is reported, not passed over in silence; a folder usually holds a part.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omics.data.errors import (
    InputDataError,
    MissingPathError,
    UnknownNameError,
    UsageError,
    nearest,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd

METADATA_NAME = "metadata.csv"
STUDY_COLUMN = "SRA Accession"
SAMPLE_COLUMN = "SRS Accession"
UNUSED = "notused"
MAX_METADATA_BYTES = 256 * 2**20

_CONDITION = re.compile(r"\s*(`[^`]+`|[^=<>!`]+?)\s*(==|!=|<=|>=|=|<|>)\s*(.*?)\s*", re.DOTALL)
_ENDING = ".sparse.RData"
_NUMBER = r"-?(?:0|[1-9][0-9]{0,15})(?:\.[0-9]+)?"
_ACCESSION = re.compile(r"[A-Za-z0-9-]{1,64}")
_ORDERINGS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, kw_only=True)
class PanglaoSample:
    """A sample of PanglaoDB with its file.

    Attributes:
        path: the R data file.
        study: the SRA accession.
        sample: the SRS accession.
        extra_obs: every column of the metadata, `{name: value}`, equal for all cells: a number in
            columns of numbers (NaN where nothing is given), else text. All samples of a table
            have the same names and types.
    """

    path: Path
    study: str
    sample: str
    extra_obs: dict[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PanglaoSelection:
    """What a choice of samples found.

    Attributes:
        samples: those with a file, in the order of the metadata.
        missing: the file names of chosen samples that are not in the folder.
        unlisted: the names of R data files in the folder that the metadata does not mention.
    """

    samples: list[PanglaoSample]
    missing: list[str]
    unlisted: list[str]


def panglao_files(
    folder: str | Path,
    metadata: str | Path | None = None,
    *,
    where: str | Sequence[str] = (),
) -> list[PanglaoSample]:
    """Return the samples of a PanglaoDB folder that meet all conditions and have a file.

    Args:
        folder: with files `SRA..._SRS....sparse.RData`.
        metadata: the table of samples; by default `metadata.csv` in the folder or beside it.
        where: conditions `COLUMN OP VALUE`; see `panglao_selection`.

    Returns:
        The samples in the order of the metadata; see `panglao_selection` for those without a file.

    Raises:
        MissingPathError, InputDataError, UsageError, UnknownNameError: as `panglao_selection`; and
            InputDataError if no chosen sample has a file.
    """
    selection = panglao_selection(folder, metadata, where=where)
    if not selection.samples:
        examples = ", ".join(selection.missing[:3])
        raise InputDataError(
            f"No file in {folder} belongs to a chosen sample. "
            + (
                f"{len(selection.missing)} samples are chosen, but their files ({examples}, ...) "
                "are not there: fetch them, or choose others."
                if selection.missing
                else "No sample meets all conditions: loosen them."
            )
        )
    return selection.samples


def panglao_selection(
    folder: str | Path,
    metadata: str | Path | None = None,
    *,
    where: str | Sequence[str] = (),
) -> PanglaoSelection:
    """Choose samples of a PanglaoDB folder by their metadata.

    Args:
        folder: with files `SRA..._SRS....sparse.RData`.
        metadata: the table of samples; by default `metadata.csv` in the folder or beside it.
        where: conditions that all must hold, each `COLUMN OP VALUE` with OP one of `=`, `==`,
            `!=`, `<`, `<=`, `>`, `>=`. After `=` and `!=`, `A | B` stands for either value. Quotes
            round a value and backticks round a column are allowed, as are other capital letters and
            `_` for a space in the name of a column. `<` and its kin compare numbers.

    Returns:
        The samples with a file, the names of missing files, and the files nobody mentions. Rows
        whose SRS accession is `notused` are left out.

    Raises:
        MissingPathError: there is no such folder or table.
        InputDataError: the table lacks the accessions, repeats a sample, or is no table.
        UsageError: a condition cannot be understood.
        UnknownNameError: a condition names a column that is not there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingPathError(f"There is no folder {folder}.")
    path = _metadata_path(folder, metadata)
    table = _read_metadata(path)
    listed = {_file_name(row) for _, row in table.iterrows()}
    table = table[table[SAMPLE_COLUMN].str.lower() != UNUSED]
    _check_accessions(table, path)
    numeric = {str(name) for name in table.columns if _is_numeric(table[name])}
    conditions = [where] if isinstance(where, str) else list(where)
    for condition in conditions:
        table = table[_mask(table, condition, path)]
    samples: list[PanglaoSample] = []
    missing: list[str] = []
    for _, row in table.iterrows():
        name = _file_name(row)
        if (folder / name).is_file():
            samples.append(_sample(folder / name, row, numeric))
        else:
            missing.append(name)
    present = sorted(each.name for each in folder.glob(f"*{_ENDING}"))
    return PanglaoSelection(
        samples=samples,
        missing=missing,
        unlisted=[name for name in present if name not in listed],
    )


def _metadata_path(folder: Path, metadata: str | Path | None) -> Path:
    if metadata is not None:
        if not Path(metadata).is_file():
            raise MissingPathError(f"There is no file {metadata}.")
        return Path(metadata)
    for place in (folder, folder.parent):
        if (place / METADATA_NAME).is_file():
            return place / METADATA_NAME
    raise MissingPathError(
        f"There is no {METADATA_NAME} in {folder} or beside it; give the table of PanglaoDB samples."
    )


def _read_metadata(path: Path) -> pd.DataFrame:
    """Return the table, all columns as text, empty where nothing is given."""
    import pandas as pd

    if path.stat().st_size > MAX_METADATA_BYTES:
        raise InputDataError(f"{path} is too large for a table of samples.")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (ValueError, pd.errors.ParserError) as error:
        raise InputDataError(f"{path} is not a table in CSV form ({error}).") from error
    table.columns = table.columns.str.strip()
    for column in (STUDY_COLUMN, SAMPLE_COLUMN):
        if column not in table.columns:
            raise InputDataError(
                f"{path} has no column {column!r}, which names the files of PanglaoDB."
                + nearest(column, [str(each) for each in table.columns])
            )
    if table.columns.has_duplicates:
        twice = table.columns[table.columns.duplicated()][0]
        raise InputDataError(f"{path} has two columns called {twice!r}; rename one.")
    return table.apply(lambda column: column.str.strip())


def _check_accessions(table: pd.DataFrame, path: Path) -> None:
    """Refuse accessions that repeat or could name a file elsewhere."""
    for row, study, sample in table[[STUDY_COLUMN, SAMPLE_COLUMN]].itertuples():
        if not (_ACCESSION.fullmatch(study) and _ACCESSION.fullmatch(sample)):
            raise InputDataError(
                f"{path} has the accessions {study!r} and {sample!r} in row {row + 1} of its "
                "table; they name a file and may hold letters, digits and hyphens only."
            )
    repeated = table.duplicated([STUDY_COLUMN, SAMPLE_COLUMN])
    if repeated.any():
        raise InputDataError(
            f"{path} lists the sample {_file_name(table[repeated].iloc[0])} twice; remove one row."
        )


def _file_name(row: pd.Series[Any]) -> str:
    return f"{row[STUDY_COLUMN]}_{row[SAMPLE_COLUMN]}{_ENDING}"


def _sample(path: Path, row: pd.Series[Any], numeric: set[str]) -> PanglaoSample:
    extra: dict[str, str | float] = {}
    for name, value in row.items():
        number = str(name) in numeric
        extra[str(name)] = float(value or "nan") if number else str(value)
    return PanglaoSample(
        path=path, study=row[STUDY_COLUMN], sample=row[SAMPLE_COLUMN], extra_obs=extra
    )


def _is_numeric(column: pd.Series[str]) -> bool:
    """Tell whether a column holds numbers and nothing else; codes with leading zeros are text."""
    filled = column[column != ""]
    return bool(len(filled)) and bool(filled.str.fullmatch(_NUMBER).all())


# --- conditions ----------------------------------------------------------------------------------


def _mask(table: pd.DataFrame, condition: str, path: Path) -> pd.Series[bool]:
    parts = _CONDITION.fullmatch(condition)
    if parts is None or not parts[3]:
        raise UsageError(
            f"The condition {condition!r} cannot be understood: write COLUMN = VALUE, with =, !=, "
            "<, <=, > or >= between them, and one condition at a time."
        )
    column = table[_column(table, parts[1].strip("` "), path)]
    sign, text = parts[2], parts[3]
    if sign in _ORDERINGS:
        return _ordered(column, sign, text, condition)
    values = [_unquoted(each.strip()) for each in _alternatives(text)]
    found = column.isin(values)
    return ~found if sign == "!=" else found


def _column(table: pd.DataFrame, name: str, path: Path) -> str:
    def plain(text: str) -> str:
        return text.replace("_", " ").casefold().strip()

    names = [str(each) for each in table.columns]
    if name in names:
        return name
    close = [each for each in names if plain(each) == plain(name)]
    if len(close) != 1:
        raise UnknownNameError(f"{path} has no column {name!r}." + nearest(name, names))
    return close[0]


def _alternatives(text: str) -> list[str]:
    # A bar inside quotes belongs to the value.
    return re.findall(r"""(?:"[^"]*"|'[^']*'|[^|])+""", text)


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    if text[:1] in {'"', "'"}:
        raise UsageError(
            f"The value {text} opens a quote and does not close it at its end; write one condition "
            "at a time, without `and` and `or`."
        )
    return text


def _ordered(column: pd.Series[str], sign: str, text: str, condition: str) -> pd.Series[bool]:
    import pandas as pd

    try:
        limit = float(_unquoted(text))
    except ValueError:
        raise UsageError(
            f"The condition {condition!r} compares with {text!r}, which is not a number; {sign} "
            "compares numbers only."
        ) from None
    numbers = pd.to_numeric(column.str.replace(",", "", regex=False), errors="coerce")
    found: pd.Series[bool] = _ORDERINGS[sign](numbers, limit)
    return found
