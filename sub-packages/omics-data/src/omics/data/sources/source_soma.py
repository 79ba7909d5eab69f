"""A TileDB-SOMA experiment as a source: a local folder, `s3://...`, `gs://...` or `tiledb://...`.

- Filters on cells and genes are SOMA's own (an axis query): only what passes is read, in the
  order of `soma_joinid`.
- The experiment is opened at one moment in time, so what others write meanwhile is not seen.
- Locations are the names of the X layers of one measurement (`RNA` by default).
- Memory: 8 bytes for each cell, the columns of obs that are read, and what `soma_matrix` says.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import time
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from omics.data.errors import InputDataError, UnknownNameError, UsageError, nearest
from omics.data.sources.soma_access import (
    explained,
    is_remote,
    normal_address,
    patiently,
    soma_context,
    tiledbsoma,
)
from omics.data.sources.soma_matrix import SomaMatrix
from omics.data.sources.soma_tables import SomaTable, members
from omics.data.sources.table_columns import listed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]

DEFAULT_MEASUREMENT = "RNA"
# Values a second that one thread reads from a fast disk or a near bucket, for estimates.
READ_RATE = 3_000_000
# A value as u8 with its gene as u16, and checksums.
_STORE_BYTES = 3.1
_COUNTED = "nnz"
_GROUP_FILES = ("__tiledb_group.tdb", "__group")


@dataclass(frozen=True, kw_only=True)
class SizeStatement:
    """What reading a source will take, before it begins.

    Attributes:
        cells: that pass the filters.
        genes: that pass the filters.
        entries: values to read.
        exact: `entries` is counted, not estimated from the mean of all cells.
        store_bytes: about how large the store will be.
        rate: values a second that `seconds` assumes.
        seconds: about how long reading takes at that rate.
    """

    cells: int
    genes: int
    entries: int
    exact: bool
    store_bytes: int
    rate: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the statement as plain JSON."""
        return asdict(self)

    @property
    def text(self) -> str:
        """The statement as one line."""
        about = "" if self.exact else "about "
        minutes = self.seconds / 60
        takes = f"{self.seconds:,.0f} s" if minutes < 2 else f"{minutes:,.0f} min"
        if minutes > 120:
            takes = f"{minutes / 60:,.1f} h"
        return (
            f"{self.cells:,} cells x {self.genes:,} genes, {about}{self.entries:,} values; the "
            f"store will take about {self.store_bytes / 1e6:,.0f} MB, reading about {takes} at "
            f"{self.rate / 1e6:g} million values a second"
        )


def recognises(path: str | Path) -> bool:
    """Say whether this is the address of a database, or a folder that TileDB wrote."""
    address, _ = normal_address(path)
    if is_remote(address):
        return True
    return any(Path(address, name).exists() for name in _GROUP_FILES)


@contextlib.contextmanager
def open_soma(
    path: str | Path,
    *,
    measurement: str = DEFAULT_MEASUREMENT,
    obs_filter: str | None = None,
    var_filter: str | None = None,
    obs_joinids: Sequence[int] | Array | None = None,
    obs_columns: Sequence[str] | str | None = None,
    region: str | None = None,
    timestamp: int | str | None = None,
    anonymous: bool = False,
) -> Iterator[SourceSoma]:
    """Open a SOMA experiment for reading.

    Args:
        path: a folder or an address.
        measurement: which of its measurements.
        obs_filter: only cells for which this holds, such as `tissue == 'lung'`.
        var_filter: only genes for which this holds.
        obs_joinids: only the cells with these `soma_joinid`.
        obs_columns: the columns of obs to read, as a list or separated by commas; None reads all.
        region: of S3.
        timestamp: as it was then: milliseconds since 1970, or a date such as `2025-01-30`.
        anonymous: do not sign S3 requests, as for public buckets.

    Yields:
        The source, usable until the end of the block.

    Raises:
        MissingExtraError: tiledbsoma is not installed.
        MissingPathError: there is nothing at the address.
        UsageError: a filter or timestamp that cannot be read.
        UnknownNameError: a measurement or column that does not exist.
        InputDataError: what is there is not an experiment, or no cell passes the filter.
        ResourceError: the place cannot be reached.
    """
    address, found_region = normal_address(path)
    context = soma_context(region=region or found_region, anonymous=anonymous)
    moment = _milliseconds(timestamp)
    with opened(address, context=context, moment=moment) as experiment:
        source = SourceSoma(
            experiment,
            address=address,
            measurement=measurement,
            obs_filter=obs_filter,
            var_filter=var_filter,
            obs_joinids=obs_joinids,
            obs_columns=listed_columns(obs_columns),
            timestamp=None if timestamp is None else moment,
        )
        with reading_ended(source):
            yield source


@contextlib.contextmanager
def reading_ended(source: SourceSoma) -> Iterator[None]:
    """End what threads still read of a source when the block ends, before it is closed.

    Args:
        source: the source.
    """
    try:
        yield
    finally:
        for matrix in source.matrices.values():
            matrix.stop_reading()


@contextlib.contextmanager
def opened(address: str, *, context: Any, moment: int) -> Iterator[Any]:
    """Open any SOMA object.

    Args:
        address: from `normal_address`.
        context: from `soma_context`.
        moment: the time at which it is seen, in milliseconds since 1970.

    Yields:
        The object.
    """
    soma = tiledbsoma()

    def open_it() -> Any:
        try:
            return soma.open(address, context=context, tiledb_timestamp=moment)
        except (TypeError, ValueError) as error:
            raise explained(error, address) from error

    with patiently(open_it, address) as found:
        yield found


def now() -> int:
    """Return the time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def listed_columns(columns: Sequence[str] | str | None) -> list[str] | None:
    """Return column names given as a list, or as text with commas.

    Args:
        columns: the names.
    """
    if isinstance(columns, str):
        return [name.strip() for name in columns.split(",") if name.strip()]
    return None if columns is None else list(columns)


def _milliseconds(timestamp: int | str | None) -> int:
    if timestamp is None:
        return now()
    if isinstance(timestamp, int) or timestamp.isdecimal():
        return int(timestamp)
    try:
        moment = dt.datetime.fromisoformat(timestamp)
    except ValueError:
        raise UsageError(
            f"The timestamp {timestamp!r} is neither milliseconds since 1970 nor a date such as "
            "2025-01-30 or 2025-01-30T12:00:00."
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return int(moment.timestamp() * 1000)


class SourceSoma:
    """An open SOMA experiment.

    Args:
        experiment: the open SOMA object.
        address: of it, for messages.
        measurement: which of its measurements.
        obs_filter: see `open_soma`.
        var_filter: see `open_soma`.
        obs_joinids: see `open_soma`.
        obs_columns: see `open_soma`.
        timestamp: what the user asked for, in milliseconds since 1970.
        format_name: what it is.

    Attributes:
        name: the address.
        format_name: `TileDB-SOMA`.
        num_cells: cells that pass the filter.
        num_genes: genes that pass the filter.
        matrices: the X layers of the measurement, by name.
        unreadable: further layers, `{name: why}`.
    """

    def __init__(
        self,
        experiment: Any,
        *,
        address: str,
        measurement: str,
        obs_filter: str | None = None,
        var_filter: str | None = None,
        obs_joinids: Sequence[int] | Array | None = None,
        obs_columns: Sequence[str] | None = None,
        timestamp: int | None = None,
        format_name: str = "TileDB-SOMA",
    ) -> None:
        self.name = address
        self.format_name = format_name
        _require_experiment(experiment, address)
        self._query = {
            "measurement": measurement,
            "obs_filter": obs_filter,
            "var_filter": var_filter,
            "obs_joinids": None if obs_joinids is None else _digest(np.asarray(obs_joinids)),
            "timestamp": timestamp,
        }
        self._frame = experiment.obs
        found = patiently(lambda: _measurement(experiment, measurement, address), address)
        self._obs = SomaTable(
            experiment.obs,
            axis="obs",
            address=address,
            value_filter=obs_filter,
            joinids=obs_joinids,
            columns=obs_columns,
        )
        self._var = SomaTable(found.var, axis="var", address=address, value_filter=var_filter)
        self.num_cells = len(self._obs)
        self.num_genes = len(self._var)
        self.matrices: dict[str, SomaMatrix] = {}
        self.unreadable: dict[str, str] = {}
        self._find_matrices(found)
        _ = self._fingerprint  # Of the moment it was opened, as all that will be read.

    def _find_matrices(self, measurement: Any) -> None:
        soma = tiledbsoma()
        layers = patiently(lambda: measurement.X, self.name) if "X" in measurement else {}
        # Entries of X are counted by obs only where the count was made of the whole cell.
        counted = None if self._var.filtered else self._obs.numbers(_COUNTED)
        for location in sorted(layers):
            array = patiently(partial(layers.__getitem__, location), self.name)
            dense = isinstance(array, soma.DenseNDArray)
            if not dense and not isinstance(array, soma.SparseNDArray):
                self.unreadable[location] = f"it is a {type(array).__name__}, not an array"
                continue
            self.matrices[location] = SomaMatrix(
                path=self.name,
                location=location,
                encoding="dense" if dense else "coordinate",
                shape=(self.num_cells, self.num_genes),
                array=array,
                cells=self._obs.joinids,
                genes=self._var.joinids,
                lengths=None if dense else counted,
                all_cells=not self._obs.filtered,
                all_genes=not self._var.filtered,
                table_cells=int(self._frame.count),
            )
        if not self.matrices and not self.unreadable:
            raise InputDataError(
                f"The measurement {self._query['measurement']!r} of {self.name} has no X layer."
            )

    def matrix(self, location: str) -> SomaMatrix:
        """Return a layer by its name.

        Args:
            location: such as `raw` or `X/raw`.

        Raises:
            UnknownNameError: there is no such layer; the message lists those there are.
            InputDataError: it is there but cannot be read.
        """
        name = location.removeprefix("X/")
        if name in self.unreadable:
            raise InputDataError(f"{name} of {self.name} cannot be read: {self.unreadable[name]}.")
        if name not in self.matrices:
            raise UnknownNameError(
                f"{self.name} has no layer {location!r}." + nearest(name, list(self.matrices))
            )
        return self.matrices[name]

    @property
    def obs_columns(self) -> list[str]:
        """The names of the columns of obs that are read."""
        return list(self._obs.columns)

    def obs(self) -> pd.DataFrame:
        """Return the cell table; its index holds the cell names."""
        return self._obs.to_pandas()

    def var(self, location: str = "X") -> pd.DataFrame:
        """Return the gene table; every layer has the same genes.

        Args:
            location: of a matrix.
        """
        del location
        return self._var.to_pandas()

    def table_bytes(self) -> int:
        """Return about how many bytes the tables take in memory, text not counted."""
        cells = self.num_cells * (len(self._obs.columns) + 2)
        return 8 * (cells + self.num_genes * (len(self._var.columns) + 2))

    def remarks(self, location: str) -> tuple[str, ...]:
        """Return how much there is to read, and about how long that takes."""
        return (self.size_statement(location).text,)

    def stamp(self) -> Any:
        """Return what differs when the source is opened again after a change.

        While it is open nothing changes: what is read is of one moment.
        """
        return json.dumps(self._fingerprint, sort_keys=True)

    def fingerprint(self) -> dict[str, Any]:
        """Return the address, the query and the sizes of what it gave, as plain JSON.

        A local folder adds a digest of the names and sizes of its files. For another machine give
        a timestamp if it must be certain that two readings saw the same.
        """
        return dict(self._fingerprint)

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "address": self.name,
            **self._query,
            "cells": self.num_cells,
            "genes": self.num_genes,
            "joinids": _digest(self._obs.joinids),
            "layers": {
                name: None if each.encoding == "dense" else int(each.array.nnz)
                for name, each in self.matrices.items()
            },
        }
        if not is_remote(self.name):
            found["files"] = _folder_digest(Path(self.name))
        return found

    def size_statement(
        self, location: str | None = None, *, rate: int = READ_RATE
    ) -> SizeStatement:
        """Say what reading a layer will take.

        Args:
            location: of the layer; None takes the first.
            rate: values a second.
        """
        matrix = self.matrix(location or next(iter(self.matrices)))
        exact = matrix.stored_entries
        guess = matrix.mean_entries * self.num_cells
        guess *= 1 if matrix.all_genes else self.num_genes / max(self._all_genes(matrix), 1)
        entries = int(guess) if exact is None else exact
        return SizeStatement(
            cells=self.num_cells,
            genes=self.num_genes,
            entries=entries,
            exact=exact is not None,
            store_bytes=int(entries * _STORE_BYTES + 24 * self.num_cells),
            rate=rate,
            seconds=entries / rate,
        )

    def _all_genes(self, matrix: SomaMatrix) -> int:
        return int(matrix.array.shape[1])


def _require_experiment(found: Any, address: str) -> None:
    if isinstance(found, tiledbsoma().Experiment):
        return
    inside = members(found)
    if "census_data" in inside:
        organisms = listed(members(found["census_data"]))
        raise InputDataError(
            f"{address} is a census of several experiments; give one of them: "
            f"{address}/census_data/ORGANISM, with one of {organisms}."
        )
    holds = f" It holds {listed(inside)}." if inside else ""
    raise InputDataError(
        f"{address} is a SOMA {type(found).__name__}, not an experiment.{holds} Give the address "
        "of an experiment, which has obs and ms."
    )


def _measurement(experiment: Any, name: str, address: str) -> Any:
    known = members(experiment.ms)
    if name not in known:
        raise UnknownNameError(f"{address} has no measurement {name!r}." + nearest(name, known))
    return experiment.ms[name]


def _digest(numbers: Array) -> str:
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(numbers.astype("<i8")).data)


def _folder_digest(folder: Path) -> str:
    """Return a digest of the names and sizes of all files; TileDB never changes a file."""
    digest = xxhash.xxh3_128()
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
    return digest.hexdigest()
