"""Transforms that show a model how deeply a cell was read, and train it to see deeper.

- In training a cell is thinned, its depth now (S) and its true depth (T) are told, and the label of
  each gene is its value at the true depth. At inference nothing is thinned; T says what depth is
  asked for. Both are one transform with a `mode`: the mode of inference belongs in the
  preprocessing, `downsample` among the steps of training, and it then replaces what the other made.
- A batch holds no special tokens, so S and T are values per cell in `batch.obs` (`S` and `T`,
  float32, already ln(1 + total)). A tokenizer with the pseudo-genes `[S]` and `[T]` puts them in
  front of a cell: two tokens whose value in the expression field is `obs["S"]` and `obs["T"]`,
  marked special so that they are never masked wherever they stand.
- Genes that lose all their counts stay, with count 0 and value 0: their label is what the model
  is to find.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from omics.data.errors import ConfigError
from omics.data.keyed_random import stream_key
from omics.data.storage.row_statistics import sums_by_cell
from omics.data.transforms.entry_values import whole_counts
from omics.data.transforms.normalizing import log_normalized
from omics.data.transforms.transform_registry import (
    ALIGNS_DEPTH,
    CHANGES_COUNTS,
    NORMALISES,
    READS_COUNTS,
    TransformRecord,
    check_choice,
    register,
)

if TYPE_CHECKING:
    from typing import Any

    from omics.data.cell_batch import CellBatch

    Array = np.ndarray[Any, np.dtype[Any]]

SOURCE_DEPTH = "S"
TARGET_DEPTH = "T"
MODES = ("downsample", "equal", "auto_align")


class _ReadDepth(TransformRecord):
    """What the two ways of thinning share: modes, the depths S and T, the label."""

    __slots__ = ()

    mode: str
    max_total: int | None
    keep_targets: bool
    field_name: str
    label_field_name: str

    def _check(self) -> None:
        check_choice(self.mode, MODES, f"{self.name}.mode")
        if (self.max_total is not None) != (self.mode == "auto_align"):
            raise ConfigError(
                f"{self.name}.max_total is {self.max_total} with mode {self.mode!r}: give it with "
                "mode 'auto_align', the largest total of the data or the depth to aim for, and "
                "with no other."
            )
        if self.max_total is not None and self.max_total < 1:
            raise ConfigError(f"{self.name}.max_total is {self.max_total}; it must be positive.")
        if self.keep_targets and self.mode != "downsample":
            raise ConfigError(
                f"{self.name}.keep_targets keeps the cell as it was before thinning, and mode "
                f"{self.mode!r} does not thin."
            )
        if self.field_name == self.label_field_name:
            raise ConfigError(f"{self.name}: field_name and label_field_name must differ.")

    @property
    def training_only(self) -> bool:
        """Whether it is left out of inference: with mode `downsample`."""
        return self.mode == "downsample"

    def kinds(self) -> frozenset[str]:
        """Return what it does."""
        own = {CHANGES_COUNTS} if self.mode == "downsample" else {ALIGNS_DEPTH}
        return frozenset({NORMALISES, READS_COUNTS} | own)

    def fields_added(self) -> tuple[str, ...]:
        """Return the fields that it adds; the label with mode `downsample` alone."""
        labels = (self.label_field_name,) if self.mode == "downsample" else ()
        return (self.field_name, *labels)

    def _thin(self, batch: CellBatch, counts: Array, seed: int, epoch: int) -> Array:
        """Return uint32 [nnz], fewer counts."""
        raise TypeError(f"{type(self).__name__} must define _thin.")

    def _value(self, batch: CellBatch, counts: Array) -> Array:
        """Return float32 [nnz], what the model is shown of counts."""
        raise TypeError(f"{type(self).__name__} must define _value.")

    def __call__(self, batch: CellBatch, *, seed: int, epoch: int) -> CellBatch:
        """Return the batch with values and depths; see `Transform`."""
        counts = whole_counts(batch, self.name)
        target = source = sums_by_cell(batch.indptr, counts)
        values = self._value(batch, counts)
        done = batch
        if self.mode == "downsample":
            thinned = self._thin(batch, counts, seed, epoch)
            source = sums_by_cell(batch.indptr, thinned)
            done = replace(
                batch.with_field(self.label_field_name, values),
                counts=thinned.astype(batch.counts.dtype),
            )
            values = self._value(batch, thinned)
            if self.keep_targets and batch.targets is None:
                done = done.with_targets(batch)
        elif self.max_total is not None:
            target = np.full(len(batch), self.max_total)
        depths = {
            SOURCE_DEPTH: np.log1p(source).astype(np.float32),
            TARGET_DEPTH: np.log1p(target).astype(np.float32),
        }
        return replace(done.with_field(self.field_name, values), obs={**batch.obs, **depths})


@register
@dataclass(frozen=True, slots=True)
class ReadDepthDownsample(_ReadDepth):
    """Read-depth-aware modelling: thin deep cells in training, name a depth at inference.

    With mode `downsample`, a cell of at least `threshold` counts is thinned with probability one
    half: a share b is drawn from Beta(2, 2) and each count x becomes a draw from Binomial(x, b); a
    cell that would lose all its counts stays as it is. The scheme is that of scFoundation (Hao et
    al. 2024). Added are the fields `expression`, ln(1 + target_sum x / total) of the thinned
    counts, and `label_expression`, the same of the counts as they were; the counts of the batch
    are the thinned ones; S = ln(1 + thinned total) and T = ln(1 + total) in obs.

    With mode `equal` nothing is thinned and T = S. With `auto_align` nothing is thinned and
    T = ln(1 + max_total) for all cells. Neither adds the label.

    Attributes:
        mode: `downsample` (training only), `equal` or `auto_align`.
        max_total: with `auto_align`, the largest total of the data, or any depth to aim for.
        threshold: the total from which a cell may be thinned.
        target_sum: what counts are scaled to sum to, before the logarithm.
        keep_targets: also put the batch as it was in `targets`, unless it has targets already.
        field_name: of the values.
        label_field_name: of the labels.
    """

    name: ClassVar[str] = "read_depth_downsample"

    mode: str = "downsample"
    max_total: int | None = None
    threshold: int = 1000
    target_sum: float = 1e4
    keep_targets: bool = False
    field_name: str = "expression"
    label_field_name: str = "label_expression"

    def __post_init__(self) -> None:
        """Check the parameters."""
        self._check()
        if not (math.isfinite(self.target_sum) and self.target_sum > 0):
            raise ConfigError(f"target_sum is {self.target_sum}; it must be a positive number.")
        if self.threshold < 0:
            raise ConfigError(f"threshold is {self.threshold}; it must not be negative.")

    def _thin(self, batch: CellBatch, counts: Array, seed: int, epoch: int) -> Array:
        from omics.data.transforms.read_depth_loops import thin_rows

        cell_key, entry_key = (
            stream_key(seed=seed, epoch=epoch, stream=f"{self.name}.{part}")
            for part in ("cell", "entry")
        )
        thinned = np.empty_like(counts)
        drawing = (batch.rows, cell_key, entry_key, self.threshold)
        thin_rows(batch.indptr, batch.genes, counts, drawing, thinned)
        return thinned

    def _value(self, batch: CellBatch, counts: Array) -> Array:
        return log_normalized(batch.indptr, counts, target_sum=self.target_sum)


@register
@dataclass(frozen=True, slots=True)
class PoissonDownsample(_ReadDepth):
    """Thins all cells by Poisson noise, to train a model to remove it (as scPRINT does).

    With mode `downsample` and r = 0.55 * renoise, each count x becomes 0 with probability r and
    otherwise x less a draw from Poisson(r x), at least 0; a cell that would lose all its counts
    stays as it is. Added are the fields `expression`, ln(1 + x) of the thinned counts, and
    `label_expression`, the same of the counts as they were (there is no scaling to a total); S and
    T are as in `read_depth_downsample`, and so are the other modes.

    Attributes:
        mode: `downsample` (training only), `equal` or `auto_align`.
        max_total: with `auto_align`, the largest total of the data, or any depth to aim for.
        renoise: how much is taken away, above 0 and at most 1.
        keep_targets: also put the batch as it was in `targets`, unless it has targets already.
        field_name: of the values.
        label_field_name: of the labels.
    """

    name: ClassVar[str] = "poisson_downsample"

    mode: str = "downsample"
    max_total: int | None = None
    renoise: float = 0.6
    keep_targets: bool = False
    field_name: str = "expression"
    label_field_name: str = "label_expression"

    def __post_init__(self) -> None:
        """Check the parameters."""
        self._check()
        if not 0 < self.renoise <= 1:
            raise ConfigError(f"renoise is {self.renoise}; it must be above 0 and at most 1.")

    def _thin(self, batch: CellBatch, counts: Array, seed: int, epoch: int) -> Array:
        from omics.data.transforms.read_depth_loops import thin_rows_by_poisson

        key = stream_key(seed=seed, epoch=epoch, stream=self.name)
        thinned = np.empty_like(counts)
        drawing = (batch.rows, key, 0.55 * self.renoise)
        thin_rows_by_poisson(batch.indptr, batch.genes, counts, drawing, thinned)
        return thinned

    def _value(self, batch: CellBatch, counts: Array) -> Array:
        return np.log1p(counts.astype(np.float32))
