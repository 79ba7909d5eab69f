"""Transforms that turn the values of a cell into whole numbers, for models with value tokens.

- A bin is added as an int32 field. Bin 0 is that of zeros, and of nothing else except where the
  method itself puts small values there (`bin_linear`, `bin_integer`); zeros have no part in the
  edges of the other bins.
- Bins are made from counts, or from a field that an earlier transform added (`source`). Quantiles
  are the same for counts and for any increasing function of them: counts are faster.
- Values are read as whole numbers or float32, and all arithmetic is in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from omics.data.errors import ConfigError
from omics.data.keyed_random import stream_key
from omics.data.transforms.entry_values import COUNTS, entry_values, is_whole, order_keys
from omics.data.transforms.transform_registry import READS_COUNTS, TransformRecord, register

if TYPE_CHECKING:
    from typing import Any

    from omics.data.cell_batch import CellBatch

    Array = np.ndarray[Any, np.dtype[Any]]

MAX_BINS = 65_536


class _Bins(TransformRecord):
    """What all binnings share: a source, a field, a number of bins."""

    __slots__ = ()

    num_bins: int
    source: str
    field_name: str

    def kinds(self) -> frozenset[str]:
        """Return what it does."""
        return frozenset({READS_COUNTS} if self.source == COUNTS else ())

    def fields_read(self) -> tuple[str, ...]:
        """Return the field that it makes bins of."""
        return () if self.source == COUNTS else (self.source,)

    def fields_added(self) -> tuple[str, ...]:
        """Return the field that it adds."""
        return (self.field_name,)

    def _check(self, least: int = 2) -> None:
        if not least <= self.num_bins <= MAX_BINS:
            raise ConfigError(
                f"{self.name}.num_bins is {self.num_bins}; it must be from {least} to {MAX_BINS:,}."
            )

    def _bins(self, batch: CellBatch, values: Array, seed: int, epoch: int) -> Array:
        """Return int32 [nnz]."""
        raise TypeError(f"{type(self).__name__} must define _bins.")

    def __call__(self, batch: CellBatch, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch with the field; see `Transform`."""
        values = entry_values(batch, self.source)
        return batch.with_field(self.field_name, self._bins(batch, values, seed, epoch))


@register
@dataclass(frozen=True, slots=True)
class EqualWidthBins(_Bins):
    """Bins of equal width: 1 + floor((value - low) / width), at most num_bins; 0 for zeros.

    Attributes:
        num_bins: bins of non-zero values; a model needs one more token for bin 0.
        low: where bin 1 begins; None takes the smallest non-zero value of each cell.
        high: where the last bin ends; None takes the largest value of each cell.
        source: `counts` or a field.
        field_name: of the field that is added.
    """

    name: ClassVar[str] = "bin_equal_width"
    training_only: ClassVar[bool] = False

    num_bins: int
    low: float | None = None
    high: float | None = None
    source: str = COUNTS
    field_name: str = "bin"

    def __post_init__(self) -> None:
        """Check the parameters."""
        self._check(least=1)
        if (self.low is None) != (self.high is None):
            raise ConfigError("bin_equal_width needs both low and high, or neither.")
        if self.low is not None and self.high is not None:
            finite = math.isfinite(self.low) and math.isfinite(self.high)
            if not (finite and self.low < self.high):
                raise ConfigError(f"low is {self.low} and high {self.high}; low must be below.")

    def _bins(self, batch: CellBatch, values: Array, seed: int, epoch: int) -> Array:
        from omics.data.transforms.binning_loops import width_bin_rows

        low = math.nan if self.low is None else self.low
        high = math.nan if self.high is None else self.high
        out = np.empty(len(values), np.int32)
        width_bin_rows(batch.indptr, values, (low, high, self.num_bins), out)
        return out


@register
@dataclass(frozen=True, slots=True)
class QuantileBins(_Bins):
    """The binning of scGPT (Cui et al. 2024): quantiles of the non-zero values of each cell.

    There are `num_bins - 1` edges, the quantiles at equal steps from 0 to 1. A value that k edges
    are below and m edges are at most becomes a bin from k + 1 to m, at random when there are
    several: as many counts are equal, ties are spread over the bins they fill. Bins are 1 to
    num_bins - 1; zeros are 0.

    Attributes:
        num_bins: bins, that of zeros included.
        source: `counts` or a field.
        field_name: of the field that is added.
    """

    name: ClassVar[str] = "bin_quantile"
    training_only: ClassVar[bool] = False

    num_bins: int = 51
    source: str = COUNTS
    field_name: str = "bin"

    def __post_init__(self) -> None:
        """Check the parameters."""
        self._check(least=3)

    def _bins(self, batch: CellBatch, values: Array, seed: int, epoch: int) -> Array:
        key = stream_key(seed=seed, epoch=epoch, stream=self.name)
        quantiles = np.linspace(0, 1, self.num_bins - 1)
        return _quantile_bins(batch, values, (quantiles, self.num_bins - 1, True, batch.rows, key))


@register
@dataclass(frozen=True, slots=True)
class PercentileBins(_Bins):
    """Percentiles of the non-zero values of each cell, equal values in one bin.

    There are `num_bins + 1` edges, the percentiles at equal steps from 0 to 100. The bin of a value
    is how many edges are at most it, at most num_bins; zeros are 0. It is the `percentile` binning
    of the BiomedSciAI models.

    Attributes:
        num_bins: bins of non-zero values; a model needs one more token for bin 0.
        source: `counts` or a field.
        field_name: of the field that is added.
    """

    name: ClassVar[str] = "bin_percentile"
    training_only: ClassVar[bool] = False

    num_bins: int = 10
    source: str = COUNTS
    field_name: str = "bin"

    def __post_init__(self) -> None:
        """Check the parameters."""
        self._check(least=1)

    def _bins(self, batch: CellBatch, values: Array, seed: int, epoch: int) -> Array:
        quantiles = np.linspace(0, 100, self.num_bins + 1) / 100
        no_key = np.uint64(0)
        return _quantile_bins(batch, values, (quantiles, self.num_bins, False, batch.rows, no_key))


@register
@dataclass(frozen=True, slots=True)
class IntegerBins(_Bins):
    """The value rounded up, from 0 to num_bins - 1 (`int_cast` of the BiomedSciAI models).

    Attributes:
        num_bins: bins, that of zeros included; larger values share the last.
        source: `counts` or a field.
        field_name: of the field that is added.
    """

    name: ClassVar[str] = "bin_integer"
    training_only: ClassVar[bool] = False

    num_bins: int = 10
    source: str = COUNTS
    field_name: str = "bin"

    def __post_init__(self) -> None:
        """Check the parameters."""
        self._check()

    def _bins(self, batch: CellBatch, values: Array, seed: int, epoch: int) -> Array:
        return _clipped(np.ceil(values.astype(np.float64)), self.num_bins)


@register
@dataclass(frozen=True, slots=True)
class LogBins(_Bins):
    """The logarithmic binning of Bioformers: small counts exactly, larger ones by doublings.

    A value v up to `cutoff` keeps its own bin; a larger one gets
    cutoff + ceil((log2 v - log2 cutoff) / bin_size). With the defaults 1 to 8 are exact and each
    further bin is a third of a doubling. Values between whole numbers (after a normalisation)
    are rounded up, as they are above the cutoff.

    Attributes:
        num_bins: bins, that of zeros included; larger values share the last. 64 reach counts of
            2**21 with the defaults.
        cutoff: the largest value that has a bin of its own.
        bin_size: the width of further bins, in doublings.
        source: `counts` or a field.
        field_name: of the field that is added.
    """

    name: ClassVar[str] = "bin_log"
    training_only: ClassVar[bool] = False

    num_bins: int = 64
    cutoff: int = 8
    bin_size: float = 1 / 3
    source: str = COUNTS
    field_name: str = "bin"

    def __post_init__(self) -> None:
        """Check the parameters."""
        self._check()
        _check_bin_size(self.bin_size)
        if self.cutoff < 1:
            raise ConfigError(f"cutoff is {self.cutoff}; it must be at least 1.")

    def _bins(self, batch: CellBatch, values: Array, seed: int, epoch: int) -> Array:
        bins = np.ceil(values.astype(np.float64))
        large = np.flatnonzero(values > self.cutoff)
        doublings = np.log2(values[large].astype(np.float64)) - math.log2(self.cutoff)
        bins[large] = self.cutoff + np.ceil(doublings / self.bin_size)
        return _clipped(bins, self.num_bins)


@register
@dataclass(frozen=True, slots=True)
class LinearBins(_Bins):
    """The linear binning of Bioformers: floor(value / bin_size).

    Values below `bin_size` fall into bin 0, like zeros.

    Attributes:
        num_bins: bins, that of zeros included; larger values share the last.
        bin_size: the width of a bin.
        source: `counts` or a field.
        field_name: of the field that is added.
    """

    name: ClassVar[str] = "bin_linear"
    training_only: ClassVar[bool] = False

    num_bins: int = 64
    bin_size: float = 1 / 3
    source: str = COUNTS
    field_name: str = "bin"

    def __post_init__(self) -> None:
        """Check the parameters."""
        self._check()
        _check_bin_size(self.bin_size)

    def _bins(self, batch: CellBatch, values: Array, seed: int, epoch: int) -> Array:
        return _clipped(np.floor(values.astype(np.float64) / self.bin_size), self.num_bins)


def _quantile_bins(
    batch: CellBatch, values: Array, binning: tuple[Array, int, bool, Array, np.uint64]
) -> Array:
    """Return int32 [nnz], the bins of `quantile_bin_rows`."""
    from omics.data.transforms.binning_loops import COUNTED, quantile_bin_rows

    order = np.empty(0, np.int64)
    if len(values) and not (is_whole(values) and int(values.max()) < COUNTED):
        from omics.data.transforms.ordering_loops import order_rows

        order = np.empty(len(values), np.int64)
        order_rows(batch.indptr, order_keys(values), order)
    out = np.empty(len(values), np.int32)
    quantile_bin_rows((batch.indptr, batch.genes), values, order, binning, out)
    return out


def _clipped(bins: Array, num_bins: int) -> Array:
    """Return bins as int32 from 0 to num_bins - 1; that of NaN is 0."""
    return np.asarray(np.fmin(np.fmax(bins, 0), num_bins - 1), np.int32)


def _check_bin_size(bin_size: float) -> None:
    if not (math.isfinite(bin_size) and bin_size > 0):
        raise ConfigError(f"bin_size is {bin_size}; it must be a positive number.")
