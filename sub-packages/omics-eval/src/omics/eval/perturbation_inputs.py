"""Measured and predicted screens read from files: groups, genes and scales that fit each other.

- Measured cells come from a store or an `.h5ad` file, predictions from an `.h5ad` file or a Parquet
  table; of predictions a row is a cell or already the mean of a perturbation.
- Genes are matched by id or symbol. What a prediction has no value of stays NaN: nothing is filled in.
- With a split, controls are those of the training cells, and no perturbation may both teach and be
  tested.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.cell_source import open_cells
from omics.data.errors import (
    InputDataError,
    MissingPathError,
    UnknownNameError,
    UsageError,
    nearest,
)
from omics.data.genes import SYMBOL_COLUMNS, GeneTable
from omics.data.perturbation_names import SEPARATOR, same_names
from omics.data.splits import SPLIT_NAMES, load_split
from omics.data.storage.store_format import CURRENT_NAME
from omics.eval.cell_files import read_cells
from omics.eval.comparison import check_cells
from omics.eval.pseudobulk import Pseudobulks, pseudobulk_of_counts, pseudobulk_of_values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from omics.data.splits import SplitTable

Array = np.ndarray[Any, np.dtype[Any]]

COUNTS = "counts"
# What values may be, and the base of their logarithm.
LOG_BASES: dict[str, float | None] = {
    "log-e": math.e,
    "log-2": 2.0,
    "log-10": 10.0,
    "linear": None,
}
VALUES = (COUNTS, *LOG_BASES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenColumns:
    """Where a table of cells says what was done to each.

    Attributes:
        perturbation: column of the perturbations.
        control: its value for controls.
        separator: between the parts of a combination; empty where names are not taken apart.
        covariate: column such as the cell line, within which perturbations are compared; None for
            none.
    """

    perturbation: str
    control: str
    separator: str = SEPARATOR
    covariate: str | None = None

    def wanted(self, columns: Sequence[str], where: object) -> list[str]:
        """Return the columns that are read.

        Args:
            columns: that there are.
            where: they are, for messages.

        Raises:
            UnknownNameError: no such column.
        """
        wanted = [name for name in (self.perturbation, self.covariate) if name is not None]
        for name in wanted:
            if name not in columns:
                raise UnknownNameError(
                    f"{where} has no column {name!r} that says what was done to each row."
                    f"{nearest(name, tuple(columns))}"
                )
        return wanted

    def groups(self, table: Mapping[Any, Any]) -> _Groups:
        """Return the perturbation and covariate of each row of a table.

        Args:
            table: by column.
        """
        names = same_names(table[self.perturbation], control=self.control, separator=self.separator)
        if self.covariate is None:
            return _Groups(names, None)
        return _Groups(names, np.asarray(table[self.covariate], dtype=object))


@dataclass(frozen=True, slots=True)
class _Groups:
    names: Array
    covariate: Array | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeasuredScreen:
    """What was measured of perturbations.

    Attributes:
        columns: what the groups are.
        genes: of the cells.
        bulks: [k] of controls and perturbations.
        is_tested: bool [k], of a split; None without one.
    """

    columns: ScreenColumns
    genes: GeneTable
    bulks: Pseudobulks
    is_tested: Array | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PredictedScreen:
    """What was predicted of perturbations, beside the genes of a measured screen.

    Attributes:
        names: object [k], the perturbations.
        covariates: object [k].
        values: float64 [k, g] on the scale of the measured pseudobulks; NaN where there is nothing.
        num_other_genes: genes of the prediction that were not measured.
    """

    names: Array
    covariates: Array
    values: Array
    num_other_genes: int = 0


def read_measured(
    path: str | Path,
    columns: ScreenColumns,
    *,
    values: str = COUNTS,
    split: str | Path | None = None,
    query: str = "test",
) -> MeasuredScreen:
    """Read measured cells to pseudobulks.

    Args:
        path: a store or what `omics-data convert` reads for raw counts; an `.h5ad` file for others.
        columns: of obs.
        values: `counts`, or what X holds: `log-e`, `log-2`, `log-10` (of 1 + expression), `linear`.
        split: a split table of these cells: perturbations of its training cells teach, those of
            `query` are tested, others are left out.
        query: the split that is tested.

    Raises:
        MissingPathError: there is nothing at a path.
        UnknownNameError: no such column, split or kind of values.
        UsageError: the split to test is the one that teaches, or a store that is said not to hold
            counts.
        InputDataError: no controls, values that are not what was said, or a perturbation in training
            that is tested.
    """
    _check_values(values)
    if query == "train":
        raise UsageError("The training cells teach the baselines: test validation or test cells.")
    if values == COUNTS:
        with open_cells(path) as store:
            obs = {name: store.obs[name] for name in columns.wanted(store.obs.columns, path)}
            groups = columns.groups(obs)
            table = None if split is None else load_split(split, store)
            groups, tested = _divided(groups, columns, table, query)
            _require_controls(groups, columns, path)
            bulks = pseudobulk_of_counts(store, groups.names, covariate=groups.covariate)
            genes = store.genes
    else:
        if (Path(path) / CURRENT_NAME).exists():
            raise UsageError(f"{path} is a store, which holds raw counts and no {values} values.")
        cells = read_cells(path)
        groups = columns.groups(_obs(cells, columns, path))
        table = None if split is None else load_split(split)
        if table is not None:
            check_cells(cells, table)
        groups, tested = _divided(groups, columns, table, query)
        _require_controls(groups, columns, path)
        bulks = pseudobulk_of_values(
            cells.X, groups.names, log_base=LOG_BASES[values], covariate=groups.covariate
        )
        genes = _genes_of(cells)
    if tested is None:
        return MeasuredScreen(columns=columns, genes=genes, bulks=bulks, is_tested=None)
    pairs = zip(bulks.covariates.tolist(), bulks.names.tolist(), strict=True)
    is_tested = np.array([pair in tested for pair in pairs], bool)
    return MeasuredScreen(columns=columns, genes=genes, bulks=bulks, is_tested=is_tested)


def read_predicted(
    path: str | Path, measured: MeasuredScreen, *, values: str = "log-e"
) -> PredictedScreen:
    """Read predicted cells, or means of perturbations, beside measured ones.

    Args:
        path: `.h5ad` (X, with the columns in obs), or `.parquet` (the columns, and one a gene).
        measured: whose genes and scale are taken.
        values: what the predicted values are, see `read_measured`.

    Raises:
        MissingPathError: there is no such file.
        UnknownNameError: no such column or kind of values.
        UsageError: another kind of file.
        InputDataError: no gene in common, two columns of one gene, or values that are not what was
            said.
    """
    _check_values(values)
    path = Path(path)
    if path.suffix == ".parquet":
        groups, names, matrix = _read_table(path, measured)
    elif path.suffix == ".h5ad":
        cells = read_cells(path)
        groups = measured.columns.groups(_obs(cells, measured.columns, path))
        names, matrix = cells.var_names.astype(str).tolist(), cells.X
    else:
        raise UsageError(f"{path} holds no predictions: give an .h5ad or a .parquet file.")
    position_of = measured.genes.position_of_name
    places = np.array([position_of.get(name, -1) for name in names], np.int64)
    known = np.flatnonzero(places >= 0)
    if not len(known):
        raise InputDataError(
            f"None of the {len(names):,} genes of {path}, such as {names[:2]}, is among the "
            f"{len(measured.genes):,} measured ones, such as {measured.genes.ids[:2].tolist()}. Name "
            "genes by the ids or symbols of the measured cells."
        )
    twice = np.flatnonzero(np.bincount(places[known]) > 1)
    if len(twice):
        raise InputDataError(
            f"{path} has several columns of {len(twice)} genes, such as "
            f"{str(measured.genes.ids[twice[0]])!r}: keep one of each."
        )
    if values == COUNTS:
        bulks = pseudobulk_of_counts(matrix, groups.names, covariate=groups.covariate)
    else:
        bulks = pseudobulk_of_values(
            matrix, groups.names, log_base=LOG_BASES[values], covariate=groups.covariate
        )
    aligned = np.full((len(bulks), len(measured.genes)), np.nan)
    aligned[:, places[known]] = bulks.values_on(measured.bulks.log_base)[:, known]
    return PredictedScreen(
        names=bulks.names,
        covariates=bulks.covariates,
        values=aligned,
        num_other_genes=len(names) - len(known),
    )


def _read_table(path: Path, measured: MeasuredScreen) -> tuple[_Groups, list[str], Array]:
    """Return groups, names of genes and values of a Parquet table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise MissingPathError(f"There is no file {path}.")
    try:
        table = pq.ParquetFile(path).read().to_pandas()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise InputDataError(f"{path} cannot be read as a Parquet table: {reason}.") from error
    columns = [str(name) for name in table.columns]
    table.columns = columns
    if len(set(columns)) < len(columns):
        raise InputDataError(f"{path} has columns of the same name: keep one of each.")
    groups = measured.columns.groups(table[measured.columns.wanted(columns, path)])
    named = {measured.columns.perturbation, measured.columns.covariate}
    genes = [name for name in columns if name not in named and table[name].dtype.kind in "fiu"]
    return groups, genes, table[genes].to_numpy(np.float64)


def _divided(
    groups: _Groups, columns: ScreenColumns, split: SplitTable | None, query: str
) -> tuple[_Groups, set[tuple[str, str]] | None]:
    """Return groups without cells that a split leaves out, and the (covariate, name) it tests."""
    import pandas as pd

    if split is None:
        return groups, None
    trains = np.isin(np.arange(len(split)), split.rows("train"))
    asks = np.isin(np.arange(len(split)), split.rows(query))
    is_control = groups.names == columns.control
    names = groups.names.copy()
    names[~(trains | (asks & ~is_control))] = None
    covariate = np.full(len(names), "", dtype=object)
    if groups.covariate is not None:
        covariate = groups.covariate
    table = pd.DataFrame({"c": covariate, "g": names, "asks": asks}).dropna()
    sides = table.groupby([table["c"].astype(str), "g"])["asks"].agg(["min", "max"])
    both = sides.index[sides["min"] != sides["max"]]
    if len(both):
        raise InputDataError(
            f"{len(both)} perturbations, such as {both[0][1]!r}, have training cells and {query} cells: "
            "what is tested was seen. Make a split with `omics-data split --perturbation`, which never "
            "divides one."
        )
    tested = {(str(c), str(g)) for c, g in sides.index[sides["max"]]}
    if not tested:
        raise InputDataError(f"No perturbed cell is in the split {query!r} ({SPLIT_NAMES}).")
    return _Groups(names, groups.covariate), tested


def _require_controls(groups: _Groups, columns: ScreenColumns, where: object) -> None:
    if (groups.names == columns.control).any():
        return
    known = sorted({str(each) for each in groups.names[groups.names != None]})  # noqa: E711
    raise InputDataError(
        f"No cell of {where} that may be learned from is a control: the column "
        f"{columns.perturbation!r} has no {columns.control!r} there.{nearest(columns.control, known)}"
    )


def _obs(cells: AnnData, columns: ScreenColumns, where: object) -> Any:
    return cells.obs[columns.wanted(list(cells.obs.columns), where)]


def _genes_of(cells: AnnData) -> GeneTable:
    symbols = {name: cells.var[name].to_numpy() for name in SYMBOL_COLUMNS if name in cells.var}
    return GeneTable(cells.var_names.astype(str).tolist(), symbols)


def _check_values(values: str) -> None:
    if values not in VALUES:
        raise UnknownNameError(f"There are no values {values!r}.{nearest(values, VALUES)}")
