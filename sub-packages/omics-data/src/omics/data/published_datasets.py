"""Published datasets as rows: what each is, where it was published, and the user's copy of it.

- The rows are in `published_datasets.toml`; the file that `OMICS_DATASETS` names adds rows of one's
  own, or replaces some. They hold facts only: what is not known is empty, and is not checked.
- Nothing is downloaded. A path is given, or the variable `OMICS_DATA_<NAME>` holds it.
- The table is in omics-data because both evaluation and training ask it, and a package imports only
  packages to its left.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omics.data.errors import (
    ConfigError,
    InputDataError,
    MissingPathError,
    UnknownNameError,
    nearest,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

OWN_ROWS = "OMICS_DATASETS"
VALUES = ("", "counts", "log-normalised")
TASKS = ("annotation", "integration", "perturbation", "pretraining")
DIGESTS = ("sha256", "md5")
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One published set of cells.

    Attributes:
        name: of the row, in small letters, digits and underscores.
        title: what the cells are.
        file: what to get.
        published: where it was published, in words.
        organism: such as `human`.
        task: what it is used for: `annotation`, `integration`, `perturbation` or `pretraining`.
        values: what the file holds, `counts` or `log-normalised`; empty when not known.
        cells: how many; 0 when not known.
        genes: how many; 0 when not known.
        labels: columns of obs with classes, the main one first.
        batch: the column of obs with batches; empty for none.
        split: the column of obs with the published split; empty for none.
        preprocessing: limits on the values of the file with which it is commonly used, by the names
            of `omics-data qc` (`min_counts`, ..., `max_mito`).
        digest: of the file, as `sha256:HEX` or `md5:HEX`; empty when not known, then not checked.
    """

    name: str
    title: str
    file: str
    published: str
    organism: str
    task: str
    values: str = ""
    cells: int = 0
    genes: int = 0
    labels: tuple[str, ...] = ()
    batch: str = ""
    split: str = ""
    preprocessing: Mapping[str, float] = field(default_factory=dict)
    digest: str = ""

    @property
    def variable(self) -> str:
        """The environment variable that holds the path of the user's copy."""
        return f"OMICS_DATA_{self.name.upper()}"

    @property
    def what_to_get(self) -> str:
        """One line: what the file is and where it is published."""
        size = f" ({self.cells:,} cells)" if self.cells else ""
        return f"get {self.file}{size}, published with {self.published}"

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain JSON, with its environment variable."""
        return {**asdict(self), "labels": list(self.labels), "variable": self.variable}


def read_datasets() -> dict[str, Dataset]:
    """Return all rows by name: the packaged ones, and those of the file `OMICS_DATASETS` names.

    Raises:
        MissingPathError: `OMICS_DATASETS` names a file that does not exist.
        ConfigError: a table that is not TOML, or a row with a key or value that it cannot have.
    """
    rows = read_table(Path(__file__).with_suffix(".toml"))
    own = os.environ.get(OWN_ROWS)
    if own:
        if not Path(own).is_file():
            raise MissingPathError(f"{OWN_ROWS} names {own}, which is no file.")
        rows |= read_table(Path(own))
    return rows


def read_table(path: Path) -> dict[str, Dataset]:
    """Return the rows of one TOML file, checked.

    Args:
        path: a file with a table for every dataset, named after it.

    Raises:
        ConfigError: see `read_datasets`.
    """
    import tomllib

    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML table of datasets ({error}).") from error
    return {name: _row(path, name, table) for name, table in tables.items()}


def find_dataset(name: str) -> Dataset:
    """Return one row.

    Args:
        name: of a dataset.

    Raises:
        UnknownNameError: there is no such row.
    """
    rows = read_datasets()
    if name not in rows:
        raise UnknownNameError(f"There is no dataset {name!r}.{nearest(name, tuple(rows))}")
    return rows[name]


def locate_dataset(name: str, path: str | Path | None = None) -> Path:
    """Return where the user's copy of a dataset is.

    Args:
        name: of a dataset.
        path: of the copy, or of the store made from it; None for what `OMICS_DATA_<NAME>` holds.

    Returns:
        The path, which exists. If it is a file and the row has a digest, the file has that digest;
        the bytes of a store are checked by the store itself.

    Raises:
        UnknownNameError: there is no such dataset.
        MissingPathError: no path is given, or nothing is there; says what to get, and where.
        InputDataError: the file is not the one that was published.
    """
    row = find_dataset(name)
    given = path or os.environ.get(row.variable)
    if not given:
        raise MissingPathError(
            f"No copy of the dataset {name!r} is given: {row.what_to_get}, and set {row.variable} "
            "to its path."
        )
    found = Path(given)
    if not found.exists():
        said = f"{row.variable} is {given}" if path is None else str(given)
        raise MissingPathError(
            f"{said}, which does not exist, for the dataset {name!r}: {row.what_to_get}."
        )
    if row.digest and found.is_file():
        _check_digest(row, found)
    return found


def _check_digest(row: Dataset, path: Path) -> None:
    kind, _, expected = row.digest.partition(":")
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as stream:
        while data := stream.read(_READ_BYTES):
            digest.update(data)
    if digest.hexdigest() != expected.lower():
        raise InputDataError(
            f"{path} is not the published file of the dataset {row.name!r}: its {kind} is "
            f"{digest.hexdigest()}, not {expected}. It is another version or a broken download: "
            f"{row.what_to_get}."
        )


def _row(path: Path, name: str, table: Any) -> Dataset:
    """Turn one table into a row; say which key is wrong, and how."""
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {name} is not a table; write [{name}] above its keys.")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(
            f"{path}: {name!r} is not a name of small letters, digits and underscores."
        )
    where = f"{path}, [{name}]"
    known = [item.name for item in fields(Dataset) if item.name != "name"]
    kinds: dict[str, type] = {
        "cells": int, "genes": int, "labels": list, "preprocessing": dict,
    }  # fmt: skip
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{where}: there is no key {key!r}.{nearest(key, known)}")
        kind = kinds.get(key, str)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ConfigError(f"{where}: {key} is {value!r}; it must be of type {kind.__name__}.")
    missing = [key for key in known[:5] if not table.get(key)]
    if missing:
        raise ConfigError(f"{where}: {', '.join(missing)} must be given.")
    for key, allowed in (("values", VALUES), ("task", TASKS)):
        if key in table and table[key] not in allowed:
            raise ConfigError(f"{where}: {key} is {table[key]!r}.{nearest(table[key], allowed)}")
    if not all(isinstance(label, str) for label in table.get("labels", ())):
        raise ConfigError(f"{where}: labels must be names of columns.")
    digest = table.get("digest", "")
    if digest and not re.fullmatch(rf"({'|'.join(DIGESTS)}):[0-9a-fA-F]+", digest):
        raise ConfigError(f"{where}: digest is {digest!r}; write it as sha256:HEX or md5:HEX.")
    _check_preprocessing(where, table.get("preprocessing", {}))
    return Dataset(name=name, **{**table, "labels": tuple(table.get("labels", ()))})


def _check_preprocessing(where: str, limits: dict[str, Any]) -> None:
    from omics.data.quality.thresholds import Thresholds

    known = [item.name for item in fields(Thresholds)]
    for key, value in limits.items():
        if key not in known:
            raise ConfigError(f"{where}: preprocessing has no limit {key!r}.{nearest(key, known)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{where}: preprocessing.{key} is {value!r}; it must be a number.")
    Thresholds(**limits)
