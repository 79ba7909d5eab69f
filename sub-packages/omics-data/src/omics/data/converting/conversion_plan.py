"""`make_plan`: everything about a conversion that can be known before the first cell is written.

- Every source is opened once: its counts are found, its tables read, its problems collected. All
  problems of all sources come in one message, and nothing has been written then.
- The plan has a digest over sources, options and the common gene table: an interrupted conversion
  goes on only if nothing of that has changed.
- Memory: the cell tables of all sources, and one gene table for sources whose tables are equal.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.converting.counts_location import choose_location, find_gene_problem
from omics.data.converting.obs_joining import join_frames
from omics.data.errors import InputDataError, OmicsError, UnknownNameError, UsageError
from omics.data.genes import gene_digest
from omics.data.matching.gene_matching import GeneMatch, GeneOptions, match_genes
from omics.data.matching.gene_remap import GeneMap
from omics.data.sources.matrix_sample import SAMPLE_BYTES
from omics.data.sources.registry import open_source
from omics.data.storage.store_format import FORMAT_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from omics.data.converting.source_listing import SourceSpec
    from omics.data.sources.protocol import Source, ValueStorage

SOURCE_COLUMNS = ("source", "source_file", "converted_from")
MIN_SAMPLE_BYTES = 4 * 2**20
MAX_PROBLEMS_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class PlannedSource:
    """A source as it will be converted.

    Attributes:
        path: as the user gave it.
        label: its name among the sources.
        options: for its reader.
        format_name: what it is.
        location: of the matrix.
        num_cells: rows.
        stamp: of the source when it was planned, as text.
        gene_map: the way into the common gene table; None leaves genes as they are.
        known: fingerprint and sums, where they are known from an earlier step; else None.
    """

    path: str | Path
    label: str
    options: Mapping[str, Any]
    format_name: str
    location: str
    num_cells: int
    stamp: str
    gene_map: GeneMap | None = None
    known: dict[str, Any] | None = None

    @property
    def file_name(self) -> str:
        """The last part of the path."""
        return str(self.path).rstrip("/").rsplit("/", maxsplit=1)[-1]


@dataclass(frozen=True, kw_only=True)
class ConversionPlan:
    """What will be converted, and into what.

    Attributes:
        sources: in the order of their cells.
        storage: `counts` or `float`.
        genes: var of the store.
        obs: the cell table of the store.
        match: how genes come together; None for one source whose genes stay as they are.
        source_column: the obs column that names the source of a cell; None for one source.
        duplicate_cell_names: cell names that occur more than once.
        skipped: paths in given folders that no reader recognises.
        notes: what a person should know, one sentence each.
        digest: sha256 (hex) of all that decides what is written.
    """

    sources: tuple[PlannedSource, ...]
    storage: ValueStorage
    genes: pd.DataFrame
    obs: pd.DataFrame
    match: GeneMatch | None
    source_column: str | None
    duplicate_cell_names: int
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    digest: str = ""

    @property
    def num_cells(self) -> int:
        """Cells of all sources."""
        return sum(each.num_cells for each in self.sources)


@dataclass(slots=True)
class _Looked:
    """What planning read from one source."""

    planned: PlannedSource
    obs: pd.DataFrame
    genes: pd.DataFrame
    remarks: tuple[str, ...]


@dataclass(slots=True)
class _GeneTables:
    """Gene tables, each kept once however many sources have it."""

    by_digest: dict[str, list[pd.DataFrame]] = field(default_factory=dict)

    def shared(self, frame: pd.DataFrame) -> pd.DataFrame:
        known = self.by_digest.setdefault(gene_digest(frame.index.tolist()), [])
        for other in known:
            if frame.equals(other) and frame.index.name == other.index.name:
                return other
        known.append(frame)
        return frame


def make_plan(
    specs: Sequence[SourceSpec],
    *,
    location: str,
    storage: ValueStorage,
    genes: GeneOptions,
    source_options: Mapping[str, Any],
    prefix_names: bool = False,
    skipped: Sequence[str] = (),
) -> ConversionPlan:
    """Look at all sources and decide what will be written.

    Args:
        specs: the sources, each with a name.
        location: of the counts in each, or `auto`.
        storage: `float` keeps values that are no counts.
        genes: how genes come together.
        source_options: for the reader of every source.
        prefix_names: put the name of its source before every cell name.
        skipped: paths that were passed over.

    Raises:
        OmicsError: a source cannot be converted; with several such sources, one InputDataError
            with all their problems.
    """
    looked = _look_at_all(
        specs, location=location, storage=storage, genes=genes, source_options=source_options
    )
    many = len(looked) > 1
    match, table = None, looked[0].genes
    planned = [each.planned for each in looked]
    if many or genes.change_one_source:
        match = match_genes({each.planned.label: each.genes for each in looked}, genes)
        table = match.genes
        maps = {id(each): GeneMap(each, len(table)) for each in match.maps}
        planned = [
            replace(each, gene_map=maps[id(positions)])
            for each, positions in zip(planned, match.maps, strict=True)
        ]
    column = _source_column(looked) if many else None
    frames = [_with_constants(each, spec, column) for each, spec in zip(looked, specs, strict=True)]
    if prefix_names:
        frames = [
            frame.set_axis(each.planned.label + ":" + frame.index.astype(str), axis=0)
            for frame, each in zip(frames, looked, strict=True)
        ]
    obs, notes = join_frames(frames)
    plan = ConversionPlan(
        sources=tuple(planned),
        storage=storage,
        genes=table,
        obs=obs,
        match=match,
        source_column=column,
        duplicate_cell_names=int(obs.index.duplicated().sum()),
        skipped=tuple(skipped),
        notes=(*_remarks(looked), *(match.notes if match else ()), *notes),
    )
    constants = [
        sorted((name, repr(value)) for name, value in spec.extra_obs.items()) for spec in specs
    ]
    return replace(plan, digest=_digest(plan, [prefix_names, column, constants]))


def _remarks(looked: list[_Looked]) -> list[str]:
    """Return what the sources say of themselves, each with its name where there are several."""
    named = len(looked) > 1
    return [
        f"{each.planned.label}: {remark}" if named else remark
        for each in looked
        for remark in each.remarks
    ]


def _look_at_all(
    specs: Sequence[SourceSpec],
    *,
    location: str,
    storage: ValueStorage,
    genes: GeneOptions,
    source_options: Mapping[str, Any],
) -> list[_Looked]:
    tables = _GeneTables()
    looked: list[_Looked] = []
    problems: list[OmicsError] = []
    budget = max(SAMPLE_BYTES // len(specs), MIN_SAMPLE_BYTES)
    for spec in specs:
        options = {**source_options, **spec.options}
        try:
            with open_source(spec.path, **options) as file:
                chosen = choose_location(
                    file,
                    spec.location or location,
                    allow_non_counts=storage == "float",
                    budget=budget,
                )
                found = _look(file, spec, location=chosen, options=options)
                if len(specs) == 1 and not genes.change_one_source:
                    for problem in find_gene_problem(file, chosen, found.genes):
                        raise InputDataError(problem)
        except (InputDataError, UnknownNameError, FileNotFoundError) as error:
            if not isinstance(error, OmicsError):
                raise
            problems.append(error)
        else:
            found.genes = tables.shared(found.genes)
            looked.append(found)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        shown = [f"({n}) {error}" for n, error in enumerate(problems[:MAX_PROBLEMS_SHOWN], 1)]
        rest = len(problems) - len(shown)
        more = f" And {rest:,} more." if rest else ""
        raise InputDataError(
            f"{len(problems):,} of {len(specs):,} sources cannot be converted; nothing was written. "
            + " ".join(shown)
            + more
        )
    return looked


def _look(file: Source, spec: SourceSpec, *, location: str, options: Mapping[str, Any]) -> _Looked:
    obs, genes = file.obs(), file.var(location)
    planned = PlannedSource(
        path=spec.path,
        label=spec.name or str(spec.path),
        options=options,
        format_name=file.format_name,
        location=location,
        num_cells=len(obs),
        stamp=repr(file.stamp()),
    )
    return _Looked(planned, obs, genes, file.remarks(location))


def _source_column(looked: list[_Looked]) -> str:
    for name in SOURCE_COLUMNS:
        if not any(name in each.obs.columns for each in looked):
            return name
    raise InputDataError(
        f"The sources have obs columns {', '.join(map(repr, SOURCE_COLUMNS))} already, so there is "
        "no name left for the column that tells which source a cell is from. Rename one of them."
    )


def _with_constants(looked: _Looked, spec: SourceSpec, column: str | None) -> pd.DataFrame:
    """Return obs with the columns that are the same for all cells of a source."""
    import pandas as pd

    constants = dict(spec.extra_obs)
    for name in constants:
        if name in looked.obs.columns:
            raise UsageError(
                f"{looked.planned.path} has an obs column {name!r} already; give the value of "
                "extra_obs another name."
            )
    if column is not None:
        constants[column] = looked.planned.label
    if not constants:
        return looked.obs
    frame = looked.obs.copy(deep=False)
    for name, value in constants.items():
        if isinstance(value, str):
            codes = np.zeros(len(frame), np.int8)
            frame[name] = pd.Categorical.from_codes(codes, pd.Index([value], dtype=object))
        elif value is None or isinstance(value, bool | int | float):
            frame[name] = pd.Series([value] * len(frame), index=frame.index, dtype=_dtype_of(value))
        else:
            raise UsageError(
                f"extra_obs[{name!r}] of {looked.planned.path} is a {type(value).__name__}; it must "
                "be text, a number, True, False or None."
            )
    return frame


def _dtype_of(value: Any) -> Any:
    return {bool: np.bool_, int: np.int64, float: np.float64}.get(type(value), object)


def _digest(plan: ConversionPlan, more: list[Any]) -> str:
    record = {
        "format": FORMAT_VERSION,
        "storage": plan.storage,
        "genes": gene_digest(plan.genes.index.tolist()),
        "match": None if plan.match is None else plan.match.digest,
        "more": more,
        "sources": [
            {
                "path": str(each.path)
                if "://" in str(each.path)
                else str(Path(each.path).absolute()),
                "label": each.label,
                "options": {name: repr(value) for name, value in each.options.items()},
                "location": each.location,
                "cells": each.num_cells,
                "stamp": each.stamp,
            }
            for each in plan.sources
        ],
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
