"""The CELLxGENE census as a source: `census:VERSION/ORGANISM`.

- A version (`stable`, `latest`, or a date) is looked up in the census's list of releases, which
  says where its SOMA database lies; all else is the SOMA reader.
- Only primary cells are read by default: the same cell is in the census once for every dataset
  that holds it.
- A table of dataset ids and splits restricts a reading to the datasets of one split; ids that the
  version does not have are an error, since such a table is made for one version.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omics.data.errors import (
    InputDataError,
    MissingPathError,
    ResourceError,
    UnknownNameError,
    UsageError,
    nearest,
)
from omics.data.sources.soma_access import is_remote, normal_address, soma_context
from omics.data.sources.soma_tables import members
from omics.data.sources.source_soma import (
    SourceSoma,
    listed_columns,
    now,
    opened,
    reading_ended,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RELEASES = "https://census.cellxgene.cziscience.com/cellxgene-census/v1/release.json"
PRIMARY_ONLY = "is_primary_data == True"
FORMAT_NAME = "CELLxGENE census"

_ADDRESS = re.compile(r"census:/{0,2}([^/]+)/([^/]+)/?")
_MAX_RELEASE_BYTES = 4 * 2**20
_PATIENCE_S = 20
_MAX_ALIASES = 5


def recognises(path: str | Path) -> bool:
    """Say whether this is an address such as `census:2025-01-30/homo_sapiens`."""
    return os.fspath(path).startswith("census:")


@contextlib.contextmanager
def open_census(
    path: str | Path,
    *,
    obs_filter: str | None = None,
    var_filter: str | None = None,
    obs_columns: Sequence[str] | str | None = None,
    measurement: str = "RNA",
    all_cells: bool = False,
    dataset_split: str | Path | None = None,
    releases: str | None = None,
) -> Iterator[SourceSoma]:
    """Open one organism of a version of the census.

    Args:
        path: `census:VERSION/ORGANISM`: a date, `stable` or `latest`; `homo_sapiens` or
            `mus_musculus`.
        obs_filter: only cells for which this holds too, such as `tissue_general == 'lung'`.
        var_filter: only genes for which this holds.
        obs_columns: the columns of obs to read, as a list or separated by commas; None reads all.
        measurement: which measurement.
        all_cells: take cells that are not primary data as well.
        dataset_split: `FILE:NAME`, a CSV or Parquet table with the columns `dataset_id` and
            `split`, and the split whose datasets are read.
        releases: the address of the list of releases, where there is a mirror.

    Yields:
        The source; `name` is its full address.

    Raises:
        MissingExtraError: tiledbsoma is not installed.
        UsageError: the address, a filter or the table's option cannot be read.
        UnknownNameError: there is no such version, organism or split.
        InputDataError: no cell passes, or the table names datasets that the version lacks.
        ResourceError: the census cannot be reached.
    """
    parts = _ADDRESS.fullmatch(os.fspath(path))
    if parts is None:
        raise UsageError(
            f"{path} is not an address of the census; give census:VERSION/ORGANISM, such as "
            "census:2025-01-30/homo_sapiens."
        )
    version, release = find_release(parts[1], releases=releases)
    address, region = _place_of(release, version)
    context = soma_context(region=region, anonymous=is_remote(address))
    with opened(address, context=context, moment=now()) as root:
        experiment = _organism(root, parts[2], version)
        conditions = [] if all_cells else [PRIMARY_ONLY]
        if dataset_split is not None:
            conditions.append(_dataset_condition(root, dataset_split, version))
        if obs_filter is not None:
            conditions.append(f"({obs_filter})" if conditions else obs_filter)
        source = SourceSoma(
            experiment,
            address=f"{address}/census_data/{parts[2]}",
            measurement=measurement,
            obs_filter=" and ".join(conditions) or None,
            var_filter=var_filter,
            obs_columns=listed_columns(obs_columns),
            format_name=f"{FORMAT_NAME} {version}",
        )
        with reading_ended(source):
            yield source


def find_release(version: str, *, releases: str | None = None) -> tuple[str, dict[str, Any]]:
    """Look up a version of the census.

    Args:
        version: a date, or a name such as `stable`.
        releases: the address of the list of releases; by default that of the census.

    Returns:
        The version as a date, and what the list says of it.

    Raises:
        UnknownNameError: there is no such version; the message names the nearest.
        ResourceError: the list cannot be fetched, or is not one.
    """
    source = releases or RELEASES
    table = _fetched(source)
    name: Any = version
    for _ in range(_MAX_ALIASES):
        entry = table.get(name) if isinstance(name, str) else None
        if isinstance(entry, dict):
            return str(name), entry
        if entry is None:
            break
        name = entry
    known = sorted(table, reverse=True)
    close = _nearest_date(version, known)
    hint = f" The nearest is {close!r}." if close else nearest(version, known)
    raise UnknownNameError(f"The census has no version {version!r}.{hint}")


def _nearest_date(version: str, known: list[str]) -> str | None:
    """Return the version whose date is nearest to a date that is none of them."""
    import datetime as dt

    try:
        wanted = dt.date.fromisoformat(version)
        dates = [
            (abs((dt.date.fromisoformat(name) - wanted).days), name)
            for name in known
            if re.fullmatch(r"\d{4}-\d{2}-\d{2}", name)
        ]
    except ValueError:
        return None
    return min(dates)[1] if dates else None


def _fetched(source: str) -> dict[str, Any]:
    if not source.startswith(("https://", "http://")):
        raise UsageError(f"The list of releases must be an http(s) address, not {source!r}.")
    try:
        with urllib.request.urlopen(source, timeout=_PATIENCE_S) as answer:  # noqa: S310 - checked
            data = answer.read(_MAX_RELEASE_BYTES + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ResourceError(
            f"The list of census releases at {source} cannot be fetched ({reason}). Check the "
            "network, or open the database itself by its s3:// address or a local copy."
        ) from None
    try:
        table = json.loads(data) if len(data) <= _MAX_RELEASE_BYTES else None
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise ResourceError(f"What {source} gives is not the list of census releases.")
    return table


def _place_of(release: dict[str, Any], version: str) -> tuple[str, str | None]:
    place = release.get("soma")
    if not isinstance(place, dict) or not isinstance(place.get("uri"), str):
        raise ResourceError(f"The list of releases does not say where census {version} lies.")
    address, region = normal_address(place["uri"])
    return address, place.get("s3_region") or region


def _organism(root: Any, organism: str, version: str) -> Any:
    known = members(root["census_data"]) if "census_data" in members(root) else []
    if not known:
        raise InputDataError(f"The database of census {version} holds no census_data.")
    if organism not in known:
        raise UnknownNameError(
            f"Census {version} has no organism {organism!r}." + nearest(organism, known)
        )
    return root["census_data"][organism]


def _dataset_condition(root: Any, dataset_split: str | Path, version: str) -> str:
    """Return the filter that keeps the datasets of one split."""
    text, colon, name = os.fspath(dataset_split).rpartition(":")
    if not colon or not text:
        raise UsageError(
            f"{str(dataset_split)!r} names no split; give FILE:NAME, as in datasets.csv:train."
        )
    ids = datasets_of(text, name)
    known = _known_datasets(root)
    absent = sorted(set(ids) - known) if known else []
    if absent:
        raise InputDataError(
            f"{len(absent):,} of {len(ids):,} datasets of split {name!r} in {text} are not in "
            f"census {version} ({absent[0]}, ...). Use the table made for this version."
        )
    return f"dataset_id in {ids!r}"


def _known_datasets(root: Any) -> set[str]:
    info = root["census_info"] if "census_info" in members(root) else None
    if info is None or "datasets" not in members(info):
        return set()
    table = info["datasets"].read(column_names=["dataset_id"]).concat()
    return set(table.column("dataset_id").to_pylist())


def datasets_of(path: str | Path, split: str) -> list[str]:
    """Return the dataset ids of one split of a table.

    Args:
        path: CSV or Parquet with the columns `dataset_id` and `split`.
        split: such as `train`.

    Returns:
        Unique ids, sorted.

    Raises:
        MissingPathError: there is no such file.
        InputDataError: it has no such columns.
        UnknownNameError: no dataset is of that split; the message names those there are.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingPathError(f"There is no table of datasets {path}.")
    ids, splits = _columns(path)
    found = sorted({each for each, part in zip(ids, splits, strict=True) if part == split})
    if not found:
        names = sorted({part for part in splits if part})
        raise UnknownNameError(f"{path} has no split {split!r}." + nearest(split, names))
    return found


def _columns(path: Path) -> tuple[list[str], list[str]]:
    wanted = ("dataset_id", "split")
    lacking = InputDataError(f"{path} is not a table with the columns dataset_id and split.")
    if path.read_bytes()[:4] == b"PAR1":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path, columns=list(wanted))
            ids, splits = (table.column(name).to_pylist() for name in wanted)
        except (pa.ArrowException, KeyError, OSError):
            raise lacking from None
    else:
        try:
            with path.open(newline="", encoding="utf-8-sig") as stream:
                rows = list(csv.DictReader(stream))
            ids, splits = ([row[name] for row in rows] for name in wanted)
        except (KeyError, UnicodeDecodeError, csv.Error):
            raise lacking from None
    return [str(each) for each in ids], ["" if each is None else str(each) for each in splits]
