"""`GeneErrors`: how well each gene is predicted, as sums that stay on the device.

- The errors that adaptive masking follows, and a table for people: error by gene beside that of
  saying the gene's mean in all cells.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torchmetrics

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from omics.train.losses import Examples

Array = np.ndarray[Any, np.dtype[Any]]


class GeneErrors(torchmetrics.Metric):
    """Sums by gene over a validation, of all processes once computed.

    For values: number, error, squared error, value, squared value; and number and error where the
    value is above 0. For tokens the error is 0 where the likeliest token is the true one, else 1.

    Attributes:
        joined: float64 [columns, ids], the sums of all processes at the last `join`.

    Args:
        num_ids: size of the gene vocabulary.
    """

    full_state_update = False
    sums: torch.Tensor
    columns = ("number", "error", "squared_error", "value", "squared_value", "expressed", "missed")

    def __init__(self, num_ids: int) -> None:
        super().__init__()
        sums = torch.zeros(len(self.columns), num_ids, dtype=torch.float64)
        self.add_state("sums", default=sums, dist_reduce_fx="sum")
        self.joined = sums

    def update(self, about: str, examples: Examples) -> None:
        """Add the predictions of one batch.

        Args:
            about: `values` or `tokens`.
            examples: with their genes.
        """
        truth, genes = examples.truth, examples.genes
        assert genes is not None
        if about == "tokens":
            error = (examples.predicted.argmax(-1) != truth).double()
            value = torch.ones_like(error)
        else:
            value = truth.double()
            error = (examples.predicted.double() - value).abs()
        expressed = (value > 0).double()
        rows = torch.stack(
            [
                torch.ones_like(error),
                error,
                error.square(),
                value,
                value.square(),
                expressed,
                error * expressed,
            ]
        )
        self.sums.index_add_(1, genes, rows)

    def compute(self) -> torch.Tensor:
        """Return the sums, float64 [columns, ids]."""
        return self.sums

    def restore(self, sums: torch.Tensor) -> None:
        """Go on from the sums of a validation that is over.

        Args:
            sums: float64 [columns, ids], as made by `compute`.
        """
        self.reset()
        self.sums.copy_(sums)
        self._update_count = 1

    def means(self) -> Array:
        """Return float64 [ids], the mean error of each gene; NaN where there is none."""
        number, error = self._read()[:2]
        return np.divide(error, number, out=np.full(len(number), np.nan), where=number > 0)

    def join(self) -> None:
        """Add up over all processes, which must all call this; reading waits for nobody then."""
        with warnings.catch_warnings():
            # That a process had nothing to add is nobody's concern.
            warnings.simplefilter("ignore", UserWarning)
            self.joined = self.compute()

    def _read(self) -> Array:
        sums: Array = self.joined.cpu().numpy()
        return sums

    def write(self, path: Path, *, names: Sequence[str], symbols: Sequence[str]) -> None:
        """Write a row for each gene that was predicted, as Parquet.

        Columns: `gene`, `symbol`, `predictions`, `mean_value`, `mae`, `mse`, `expressed` (number of
        predictions where the value is above 0), `mae_expressed`, and `mse_of_mean`, the squared
        error of saying the gene's mean in all of these cells.

        Args:
            path: the file.
            names: of the ids.
            symbols: of the ids.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        from omics.data.atomic_files import replace_file

        sums = self._read()
        chosen = np.flatnonzero(sums[0] > 0)
        number, error, squared, value, squared_value, expressed, missed = sums[:, chosen]
        mean = value / number
        table = pa.table(
            {
                "gene": pa.array([names[i] for i in chosen.tolist()], pa.string()),
                "symbol": pa.array([symbols[i] for i in chosen.tolist()], pa.string()),
                "predictions": number.astype(np.int64),
                "mean_value": mean,
                "mae": error / number,
                "mse": squared / number,
                "expressed": expressed.astype(np.int64),
                "mae_expressed": np.divide(
                    missed, expressed, out=np.full(len(number), np.nan), where=expressed > 0
                ),
                "mse_of_mean": np.maximum(squared_value / number - mean**2, 0.0),
            }
        )
        with replace_file(path) as temporary:
            pq.write_table(table, temporary, write_page_checksum=True)
