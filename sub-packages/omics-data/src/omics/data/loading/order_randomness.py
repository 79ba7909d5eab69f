"""How random an order is: the entropy of labels within its minibatches, against true random.

- Atlases are stored in runs (cells of one batch, then of the next), so what a minibatch holds tells
  how well an order mixes: a batch from one run has 0 bits, a true random one as many as chance
  gives to a batch of that size.
- Only labels are needed, no counts: a hundred million cells can be simulated in a minute.
- Minibatches are sampled, not all looked at. Memory: the order (8 bytes a row) and the labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import ConfigError, UnknownNameError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omics.data.loading.row_order import RowOrder

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRandomness:
    """How random the minibatches of an order were found to be.

    Attributes:
        batch_size: cells of a minibatch.
        num_batches: minibatches that were looked at.
        entropy: bits, the mean over minibatches, by label.
        random: the same of as many minibatches of cells drawn at random without replacement.
    """

    batch_size: int
    num_batches: int
    entropy: dict[str, float]
    random: dict[str, float]

    def share(self, label: str) -> float:
        """Return the entropy of a label as a share of that of true random (1 where that is 0).

        Args:
            label: one of those that were measured.
        """
        return self.entropy[label] / self.random[label] if self.random[label] else 1.0


def order_randomness(
    order: RowOrder,
    labels: Mapping[str, Array],
    *,
    batch_size: int = 64,
    seed: int = 0,
    num_batches: int = 1000,
) -> OrderRandomness:
    """Measure how random the minibatches of epoch 0 of an order are.

    Args:
        order: to measure; its obs columns are looked up in `labels`.
        labels: integers [n] in the order of the store, by name: for instance codes of the cell
            type and of the batch a cell comes from (`store.obs.codes(name)[0]`).
        batch_size: cells of a minibatch.
        seed: of the order and of the sample of minibatches.
        num_batches: how many minibatches to look at, evenly spaced; fewer if there are fewer.

    Returns:
        The mean entropy of each label within a minibatch, and that of true random minibatches.

    Raises:
        ConfigError: labels of different lengths, or an epoch without a full minibatch.
    """
    table = _LabelTable(labels)
    rows = order.bind(table, None).epoch(seed, 0)
    available = len(rows) // batch_size
    if not available or batch_size < 1 or num_batches < 1:
        raise ConfigError(
            f"An epoch of {len(rows)} cells has no minibatch of {batch_size} cells, or none of "
            f"{num_batches} minibatches is to be looked at."
        )
    num_batches = min(num_batches, available)
    chosen = np.arange(num_batches, dtype=np.int64) * available // num_batches
    taken = rows[chosen[:, None] * batch_size + np.arange(batch_size)]
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 1])))
    size = min(batch_size, len(table))
    drawn = [
        generator.choice(len(table), size, replace=False, shuffle=False) for _ in range(num_batches)
    ]
    fair = np.stack(drawn)
    return OrderRandomness(
        batch_size=batch_size,
        num_batches=num_batches,
        entropy={name: _mean_entropy(values[taken]) for name, values in labels.items()},
        random={name: _mean_entropy(values[fair]) for name, values in labels.items()},
    )


def _mean_entropy(values: Array) -> float:
    """Return the mean over rows of the entropy, in bits, of the values [b, n] within a row."""
    num_rows, size = values.shape
    ascending = np.sort(values, axis=1)
    begins = np.ones((num_rows, size), bool)
    begins[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
    counts = np.diff(np.append(np.flatnonzero(begins), num_rows * size))
    return float(np.log2(size) - np.sum(counts * np.log2(counts)) / (num_rows * size))


class _LabelTable:
    """Labels as the table of cells that an order is bound to."""

    def __init__(self, labels: Mapping[str, Array]) -> None:
        self._labels = labels
        sizes = {name: len(values) for name, values in labels.items()}
        if len(set(sizes.values())) != 1:
            raise ConfigError(f"Labels must be of equal length, at least one; they have {sizes}.")
        self._size = next(iter(sizes.values()))

    def __len__(self) -> int:
        return self._size

    @property
    def obs(self) -> _LabelTable:
        return self

    def __getitem__(self, name: str) -> Array:
        if name not in self._labels:
            raise UnknownNameError(
                f"There are no labels {name!r}.{nearest(name, list(self._labels))}"
            )
        return self._labels[name]

    def codes(self, name: str) -> tuple[Array, Array]:
        values = np.asarray(self[name])
        return values, np.arange(values.max(initial=-1) + 1)
