"""Pseudobulks: the mean expression of groups of cells, whatever scale their values are on.

- A mean over cells is taken where counts are proportional to what is measured, never over logs: logs
  are undone, the mean is taken, and the same log is applied again. The base is said, not guessed:
  log2 values undone by expm1 give a number that looks like a mean and is none.
- Sums are kept, not cells: a store is read once, in blocks. Memory is 24 bytes a group and gene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, UnknownNameError, UsageError, nearest
from omics.data.storage.store import CellStore
from omics.eval.baselines import TARGET_SUM, are_counts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scipy.sparse import csr_matrix

    SparseMatrix = csr_matrix

Array = np.ndarray[Any, np.dtype[Any]]

# No expression per million is higher: beyond it, values are not logs to the base that was said.
_HIGHEST = 1e7
_BLOCK_CELLS = 4096


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pseudobulks:
    """Mean expression of groups of cells.

    Attributes:
        names: object [k], the name of each group, ascending within a covariate.
        covariates: object [k], the covariate of each group; empty texts without a covariate.
        values: float64 [k, g], log_base(1 + mean), or the mean itself without a base.
        num_cells: int64 [k].
        log_base: of the logarithm; None for none.
        cell_means: float64 [k, g], mean over cells of the values as they are, logs if they are logs.
        cell_variances: float64 [k, g], their sample variance; NaN for a group of one cell.
    """

    names: Array
    covariates: Array
    values: Array
    num_cells: Array
    log_base: float | None
    cell_means: Array
    cell_variances: Array

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.names)

    def take(self, groups: Array) -> Pseudobulks:
        """Return some of the groups.

        Args:
            groups: int [m] places, or bool [k].
        """
        return replace(
            self,
            names=self.names[groups],
            covariates=self.covariates[groups],
            values=self.values[groups],
            num_cells=self.num_cells[groups],
            cell_means=self.cell_means[groups],
            cell_variances=self.cell_variances[groups],
        )

    def row(self, name: str) -> Pseudobulks:
        """Return one group, of pseudobulks without a covariate or of one covariate.

        Args:
            name: of the group.

        Raises:
            UnknownNameError: there is no such group.
        """
        place = np.flatnonzero(self.names == name)
        if len(place) != 1:
            raise UnknownNameError(
                f"There are {len(place)} groups {name!r} where one is meant."
                f"{nearest(name, sorted({str(each) for each in self.names}))}"
            )
        return self.take(place)

    def values_on(self, log_base: float | None) -> Array:
        """Return float64 [k, g], the pseudobulks on another scale.

        Args:
            log_base: of the logarithm wanted; None for none.

        Raises:
            InputDataError: a mean of -1 or less has no logarithm.
        """
        if log_base == self.log_base:
            return self.values
        return logged(unlogged(self.values, self.log_base), log_base)


def pseudobulk_of_counts(
    cells: CellStore | SparseMatrix | Array, groups: Array, *, covariate: Array | None = None
) -> Pseudobulks:
    """Return ln(1 + 10,000 * mean over cells of count / total of the cell) of each group.

    Args:
        cells: n cells: a store, read in blocks, or raw counts [n, g].
        groups: object [n], the group of each cell, such as its perturbation; None for a cell that
            is left out.
        covariate: object [n], such as the cell line: groups are formed within each; None for none.

    Raises:
        InputDataError: numbers that are not counts.
        UsageError: not one group for each cell, or no cell with a group.
    """
    sums = _Sums.of(groups, covariate, *_shape(cells))
    for rows, counts in _blocks(cells, sums.codes):
        if not are_counts(counts.data):
            raise InputDataError(
                "The cells hold numbers that are not counts (whole, finite and not negative), and "
                "raw counts were said. If they are logs or normalised, say so: `omics-eval perturb "
                "--truth-values` and `--prediction-values`, or `pseudobulk_of_values`."
            )
        totals = np.asarray(counts.sum(axis=1), np.float64).ravel()
        scale = TARGET_SUM / np.where(totals > 0, totals, 1.0)
        linear = counts.astype(np.float64)
        linear.data *= np.repeat(scale, np.diff(counts.indptr))
        sums.add(rows, linear=linear, shown=_with_data(linear, np.log1p(linear.data)))
    return sums.pseudobulks(log_base=math.e)


def pseudobulk_of_values(
    cells: SparseMatrix | Array,
    groups: Array,
    *,
    log_base: float | None,
    covariate: Array | None = None,
) -> Pseudobulks:
    """Return log(1 + mean over cells) of each group, of values that are log(1 + expression).

    Args:
        cells: [n, g] values, NaN for none: a group in which a gene lacks one has NaN of it.
        groups: object [n], the group of each cell, such as its perturbation; None for a cell that
            is left out.
        log_base: of the logarithm that the values are of, such as `math.e`, 2 or 10; None for values
            that are no logarithms, whose plain mean is taken.
        covariate: object [n], such as the cell line: groups are formed within each; None for none.

    Raises:
        InputDataError: values that are infinite, or too high for logarithms to that base.
        UsageError: a base that is none, not one group for each cell, or no cell with a group.
    """
    if log_base is not None and not (math.isfinite(log_base) and log_base > 1):
        raise UsageError(f"log_base is {log_base}; it is a number above 1, such as 2, or None.")
    sums = _Sums.of(groups, covariate, *_shape(cells))
    for rows, shown in _blocks(cells, sums.codes):
        linear = _with_data(shown, unlogged(shown.data.astype(np.float64), log_base))
        sums.add(rows, linear=linear, shown=shown.astype(np.float64))
    return sums.pseudobulks(log_base=log_base)


def unlogged(values: Array, log_base: float | None) -> Array:
    """Return base^value - 1 of float64 values of any shape; the values themselves without a base.

    Args:
        values: logarithms of 1 + expression; NaN stays.
        log_base: their base.

    Raises:
        InputDataError: infinite values, or values that no expression has.
    """
    highest = float(np.nanmax(values, initial=0.0, where=~np.isnan(values)))
    if not np.isfinite(highest) or np.isneginf(values).any():
        raise InputDataError("The cells hold infinite values. Look for a logarithm of 0.")
    if log_base is None:
        return values
    if highest * math.log(log_base) > math.log(_HIGHEST):
        base = "e" if log_base == math.e else f"{log_base:g}"
        raise InputDataError(
            f"The cells hold {highest:g}, which as a logarithm to base {base} would be an expression "
            f"above {_HIGHEST:,.0f}. Say what the values are: raw counts, logarithms to another base, "
            "or no logarithms."
        )
    return np.asarray(np.expm1(values * math.log(log_base)))


def logged(values: Array, log_base: float | None) -> Array:
    """Return log_base(1 + value) of float64 values of any shape; the values themselves without one.

    Args:
        values: expression above -1; NaN stays.
        log_base: of the logarithm.

    Raises:
        InputDataError: a value of -1 or less.
    """
    if log_base is None:
        return values
    if (values <= -1).any():
        raise InputDataError(
            f"An expression of {float(np.nanmin(values)):g} has no logarithm of 1 + it. Predicted "
            "expression must not be negative; what is a difference to controls is not scored."
        )
    return np.asarray(np.log1p(values) / math.log(log_base))


@dataclass(slots=True, kw_only=True, eq=False)
class _Sums:
    """Sums over the cells of each group and gene."""

    codes: Array
    names: Array
    covariates: Array
    linear: Array
    shown: Array
    squares: Array

    @classmethod
    def of(cls, groups: Array, covariate: Array | None, num_cells: int, num_genes: int) -> _Sums:
        import pandas as pd

        columns = [
            np.full(len(groups), "", dtype=object) if covariate is None else covariate,
            groups,
        ]
        if any(len(column) != num_cells for column in columns):
            raise UsageError(
                f"{len(groups)} groups come with {num_cells} cells: give one for every cell."
            )
        table = pd.DataFrame(
            {
                name: pd.Series(list(each), dtype=object)
                for name, each in zip("cg", columns, strict=True)
            }
        )
        known = table.notna().all(axis=1).to_numpy()
        if not known.any():
            raise UsageError("No cell has a group, so there is no mean. Give cells with a group.")
        named = table[known].astype(str)
        named["code"] = named.groupby(["c", "g"], sort=True).ngroup()
        codes = np.full(num_cells, -1, np.int64)
        codes[known] = named["code"]
        first = named.drop_duplicates("code").sort_values("code")
        shape = (len(first), num_genes)
        return cls(
            codes=codes,
            names=first["g"].to_numpy(object),
            covariates=first["c"].to_numpy(object),
            linear=np.zeros(shape),
            shown=np.zeros(shape),
            squares=np.zeros(shape),
        )

    def add(self, rows: Array, *, linear: SparseMatrix, shown: SparseMatrix) -> None:
        """Add cells.

        Args:
            rows: int64 [m], which they are; each has a group.
            linear: [m, g] what the mean is of.
            shown: [m, g] the values as they are.
        """
        from scipy.sparse import csr_matrix

        place = (self.codes[rows], np.arange(len(rows)))
        member = csr_matrix((np.ones(len(rows)), place), shape=(len(self.names), len(rows)))
        squares = _with_data(shown, shown.data**2)
        for total, values in ((self.linear, linear), (self.shown, shown), (self.squares, squares)):
            summed = (member @ values).tocoo()
            total[summed.row, summed.col] += summed.data  # each group and gene is there once

    def pseudobulks(self, *, log_base: float | None) -> Pseudobulks:
        num_cells = np.bincount(self.codes[self.codes >= 0], minlength=len(self.names))
        number = num_cells[:, None].astype(np.float64)
        means = self.shown / number
        spread = np.maximum(self.squares - number * means**2, 0.0)
        # What is left of equal values is rounding.
        spread[spread <= 1e-12 * self.squares] = 0.0
        variances = np.full_like(spread, np.nan)
        np.divide(spread, number - 1, out=variances, where=number > 1)
        return Pseudobulks(
            names=self.names,
            covariates=self.covariates,
            values=logged(self.linear / number, log_base),
            num_cells=num_cells.astype(np.int64),
            log_base=log_base,
            cell_means=means,
            cell_variances=variances,
        )


def _shape(cells: CellStore | SparseMatrix | Array) -> tuple[int, int]:
    rows, genes = cells.shape
    return int(rows), int(genes)


def _blocks(
    cells: CellStore | SparseMatrix | Array, codes: Array
) -> Iterator[tuple[Array, SparseMatrix]]:
    """Yield the rows of cells that have a group, and their values as CSR, in blocks."""
    from scipy.sparse import csr_matrix

    wanted = codes >= 0
    if isinstance(cells, CellStore):
        for block in cells.blocks():
            kept = np.flatnonzero(wanted[block.rows])
            yield block.rows[kept], block.to_csr()[kept]
        return
    rows = np.flatnonzero(wanted)
    for begin in range(0, len(rows), _BLOCK_CELLS):
        chosen = rows[begin : begin + _BLOCK_CELLS]
        yield chosen, csr_matrix(cells[chosen])


def _with_data(matrix: SparseMatrix, data: Array) -> SparseMatrix:
    """Return a CSR matrix with other values at the same places."""
    from scipy.sparse import csr_matrix

    return csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)
