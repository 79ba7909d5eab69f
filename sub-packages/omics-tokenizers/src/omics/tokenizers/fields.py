"""`FieldSpec` and `LabelSpec`: the words of multi-field work.

- A field is one value per token (its gene, its expression); a label is one value per cell.
- A continuous field holds values >= 0; the value of a special token is -(token id + 1), so one
  array carries both and no second mask travels beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import ConfigError, InputDataError, UnknownNameError, nearest
from omics.tokenizers.vocabulary import special_value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Array = np.ndarray[Any, np.dtype[Any]]

FIELD_KINDS = ("discrete", "continuous")
UNLABELLED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSpec:
    """One value per token.

    Attributes:
        name: such as `genes` or `expression`.
        kind: `discrete` (token ids) or `continuous` (values >= 0, specials negative).
        vocabulary_size: number of ids of a discrete field; of a continuous one, the largest
            special id that can occur in it, plus 1.
        special_ids: the ids of special tokens; in a continuous field `-(id + 1)` stands for them.
        mask_id: the one of them that hides a value; None if the field has none.
    """

    name: str
    kind: str
    vocabulary_size: int
    special_ids: tuple[int, ...]
    mask_id: int | None

    def __post_init__(self) -> None:
        """Check the kind and the ids."""
        if self.kind not in FIELD_KINDS:
            raise ConfigError(
                f"Field {self.name!r} has kind {self.kind!r}; use one of {FIELD_KINDS}."
            )
        used = (*self.special_ids, *(() if self.mask_id is None else (self.mask_id,)))
        if any(not 0 <= each < self.vocabulary_size for each in used):
            raise ConfigError(
                f"Field {self.name!r} has {self.vocabulary_size} ids and special ones at {used}."
            )

    def is_special(self, values: Array) -> Array:
        """Return bool [T], True at special tokens.

        Args:
            values: [T] of this field.
        """
        if self.kind == "continuous":
            return np.asarray(values < 0)
        table = np.zeros(self.vocabulary_size, np.bool_)
        table[list(self.special_ids)] = True
        return np.asarray(table[values])

    def mask_value(self) -> float:
        """Return what a hidden value becomes.

        Raises:
            ConfigError: the field has no mask token.
        """
        if self.mask_id is None:
            raise ConfigError(
                f"The field {self.name!r} cannot be masked: its vocabulary has no special token "
                "with the role 'mask'. Use a vocabulary that has one."
            )
        return self.mask_id if self.kind == "discrete" else special_value(self.mask_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSpec:
    """One class per cell, from a column of obs.

    Attributes:
        name: the obs column.
        classes: the class names in the order of the model's outputs.
    """

    name: str
    classes: tuple[str, ...]

    @classmethod
    def from_values(cls, name: str, values: Array) -> LabelSpec:
        """Return the specification of a column: its distinct values, sorted.

        Args:
            name: the obs column.
            values: [n] strings, or numbers read as names; None and NaN mean unlabelled.

        Raises:
            InputDataError: fewer than two classes.
        """
        import pandas as pd

        distinct = pd.unique(pd.Series(values[_labelled(values)]))
        classes = tuple(sorted({str(value) for value in distinct}))
        if len(classes) < 2:
            found = f"only {classes[0]!r}" if classes else "no value at all"
            raise InputDataError(
                f"Label column {name!r} holds {found} in the training cells; "
                "a classifier needs at least two classes. Choose another column or split."
            )
        return cls(name=name, classes=classes)

    def encode(self, values: Array) -> Array:
        """Return int64 [n] class numbers; -100 for missing values and classes unseen in training.

        Args:
            values: [n], as given to `from_values`.
        """
        import pandas as pd

        # Python sees the few distinct values only, never one value per cell.
        keep = _labelled(values)
        codes = np.full(len(values), UNLABELLED, np.int64)
        inverse, distinct = pd.factorize(values[keep])
        number = {name: position for position, name in enumerate(self.classes)}
        table = np.array([number.get(str(name), UNLABELLED) for name in distinct], np.int64)
        if len(distinct):
            codes[keep] = table[inverse]
        return codes


def encode_labels(labels: Sequence[LabelSpec], obs: Mapping[str, Array]) -> dict[str, Array]:
    """Return `{column: int64 [n]}`, the class numbers of some cells.

    Args:
        labels: the columns.
        obs: `{column: [n]}`, values of the cells.

    Raises:
        UnknownNameError: the cells lack a column.
    """
    for label in labels:
        if label.name not in obs:
            raise UnknownNameError(
                f"The cells carry no column {label.name!r}.{nearest(label.name, sorted(obs))}"
            )
    return {label.name: label.encode(obs[label.name]) for label in labels}


def _labelled(values: Array) -> Array:
    import pandas as pd

    return ~np.asarray(pd.isna(values))
