"""`TokenBatch`: flat tokens and offsets, what an encoder reads.

- No row is padded: cell `i` owns tokens `offsets[i]:offsets[i + 1]` of every field.
- The same class holds numpy arrays (made by a tokenizer) or torch tensors (`to_torch`).
- Padding exists in one function, `padded`, for encoders that cannot do without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.tokenizers.device_copies import on_device

if TYPE_CHECKING:
    import torch

    Array = np.ndarray[Any, np.dtype[Any]]

# numpy arrays before `to_torch`, torch tensors after it: the code in between is the same.
Values = Any


@dataclass(slots=True)
class TokenBatch:
    """`n` cells or sequences with `T` tokens in all.

    Attributes:
        fields: `{name: [T]}`, token ids of discrete fields, float32 of continuous ones.
        offsets: int64 [n + 1], where each cell begins.
        rows: int64 [n], the cells' rows in their store.
        labels: `{column: [n, ...]}`, as `LabelSpec.encode` makes them: class numbers, -100 where
            unlabelled.
        targets: None, or the ragged tokens of the same cells that a loss asks for.
    """

    fields: dict[str, Values]
    offsets: Values
    rows: Values
    labels: dict[str, Values] = field(default_factory=dict)
    targets: TokenBatch | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit each other."""
        if len(self.offsets) != len(self.rows) + 1:
            raise ValueError(f"{len(self.offsets)} offsets do not describe {len(self.rows)} cells.")
        lengths = {name: len(values) for name, values in self.fields.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"Fields of unequal length: {lengths}.")

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.rows)

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all cells."""
        return len(next(iter(self.fields.values())))

    @property
    def lengths(self) -> Values:
        """int64 [n], the number of tokens of each cell."""
        return self.offsets[1:] - self.offsets[:-1]

    def cell_of_token(self) -> Array:
        """Return int64 [T], the position of the cell that owns each token (numpy only)."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    def with_fields(self, **fields: Values) -> TokenBatch:
        """Return the batch with some fields replaced.

        Args:
            **fields: `[T]` each.
        """
        return replace(self, fields={**self.fields, **fields})

    def to_torch(self, device: torch.device | str = "cpu") -> TokenBatch:
        """Return the batch as torch tensors, sharing memory on the CPU.

        Args:
            device: where the tensors go; copies to another device do not block.
        """

        def convert(values: Values) -> torch.Tensor:
            return on_device(values, device)

        return TokenBatch(
            fields={name: convert(values) for name, values in self.fields.items()},
            offsets=convert(self.offsets),
            rows=convert(self.rows),
            labels={name: convert(values) for name, values in self.labels.items()},
            targets=None if self.targets is None else self.targets.to_torch(device),
        )

    def padded(self, name: str, *, pad_value: float = 0) -> tuple[Array, Array]:
        """Return one field as a rectangle, for encoders that cannot read flat tokens.

        Args:
            name: the field.
            pad_value: what fills the rest of a row.

        Returns:
            values [n, longest] and mask bool [n, longest], True at real tokens.
        """
        lengths = np.asarray(self.lengths)
        mask = np.arange(int(lengths.max(initial=0)))[None, :] < lengths[:, None]
        values = np.asarray(self.fields[name])
        rectangle = np.full(mask.shape, pad_value, values.dtype)
        rectangle[mask] = values
        return rectangle, mask
