"""`RowOrder`: in which order an epoch visits the cells, a pure function of (seed, epoch).

- Nothing is carried from epoch to epoch: any epoch can be asked for at any time, on any rank,
  which is what makes a run resumable from three integers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import ConfigError

if TYPE_CHECKING:
    Array = np.ndarray[Any, np.dtype[Any]]


class RowOrder:
    """The order of some rows over epochs.

    Args:
        rows: int64 [n], the rows of one epoch.
        shuffle: visit them in a new random order each epoch, instead of as given.
        seed: of the shuffling, not negative.

    Raises:
        ConfigError: the seed is negative.
    """

    def __init__(self, rows: Array, shuffle: bool, seed: int) -> None:
        if seed < 0:
            raise ConfigError(f"The seed is {seed}; it must not be negative.")
        self.rows = np.asarray(rows, dtype=np.int64)
        self.shuffle = shuffle
        self.seed = seed

    def __len__(self) -> int:
        """Return the number of rows of an epoch."""
        return len(self.rows)

    def epoch(self, epoch: int) -> Array:
        """Return the rows in the order of one epoch.

        Args:
            epoch: not negative.

        Returns:
            int64 [n], every row as often as it was given.

        Raises:
            ConfigError: the epoch is negative.
        """
        if epoch < 0:
            raise ConfigError(f"The epoch is {epoch}; it must not be negative.")
        if not self.shuffle:
            return self.rows
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch])))
        return generator.permutation(self.rows)
