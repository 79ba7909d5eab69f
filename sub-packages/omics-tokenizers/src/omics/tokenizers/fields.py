"""`FieldSpec` and `LabelSpec`: the words of multi-field work.

- A field is one value per token (its gene, its expression); a label is one value per cell.
- A continuous field holds values >= 0; the value of a special token is -(token id + 1), so one
  array carries both and no second mask travels beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import ConfigError, InputDataError, UnknownNameError, nearest
from omics.tokenizers.vocabulary import special_value

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Array = np.ndarray[Any, np.dtype[Any]]

FIELD_KINDS = ("discrete", "continuous")
LABEL_KINDS = ("class", "multilabel", "regression", "hierarchy")
SEPARATOR = "|"
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
        token_values: of a discrete field of bins, the number that each id stands for, NaN for
            special ones; empty where ids stand for no numbers.
    """

    name: str
    kind: str
    vocabulary_size: int
    special_ids: tuple[int, ...]
    mask_id: int | None
    token_values: tuple[float, ...] = ()
    # The same as an array: a vocabulary of genes and bins has tens of thousands.
    _number_of: Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the kind and the ids."""
        object.__setattr__(self, "_number_of", np.array(self.token_values, np.float32))
        if self.kind not in FIELD_KINDS:
            raise ConfigError(
                f"Field {self.name!r} has kind {self.kind!r}; use one of {FIELD_KINDS}."
            )
        used = (*self.special_ids, *(() if self.mask_id is None else (self.mask_id,)))
        if any(not 0 <= each < self.vocabulary_size for each in used):
            raise ConfigError(
                f"Field {self.name!r} has {self.vocabulary_size} ids and special ones at {used}."
            )
        if self.token_values and len(self.token_values) != self.vocabulary_size:
            raise ConfigError(
                f"Field {self.name!r} has {self.vocabulary_size} ids and "
                f"{len(self.token_values)} values for them."
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

    def numbers(self, values: Array) -> Array:
        """Return float32 [T], what values stand for: of bins their numbers, NaN for special tokens.

        Args:
            values: [T] of this field, which holds values or bins of values.
        """
        if self.kind == "continuous":
            return np.asarray(values, np.float32)
        return np.asarray(self._number_of[values])

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
    """What is known of each cell, from a column of obs.

    Attributes:
        name: the obs column.
        classes: the class names in the order of the model's outputs; of a regression, none.
        kind: `class` (one of the classes), `multilabel` (any number of them, joined by `|`),
            `regression` (a number) or `hierarchy` (one of the classes, or a node above several).
        nodes: of a hierarchy: `{name of a node: positions of the classes below it}`.
    """

    name: str
    classes: tuple[str, ...]
    kind: str = "class"
    nodes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the kind."""
        if self.kind not in LABEL_KINDS:
            raise ConfigError(
                f"Label column {self.name!r} has kind {self.kind!r}."
                f"{nearest(self.kind, LABEL_KINDS)}"
            )
        if self.nodes and self.kind != "hierarchy":
            raise ConfigError(f"Label column {self.name!r} has nodes but is no hierarchy.")

    @classmethod
    def from_values(cls, name: str, values: Array, *, kind: str = "class") -> LabelSpec:
        """Return the specification of a column: its distinct values, sorted.

        Args:
            name: the obs column.
            values: [n] strings, or numbers read as names; None and NaN mean unlabelled.
            kind: `class`, `multilabel` or `regression`; a hierarchy comes from an ontology.

        Raises:
            InputDataError: fewer than two classes; of a regression, no number.
        """
        if kind == "regression":
            spec = cls(name=name, classes=(), kind=kind)
            if not np.isfinite(spec.encode(values)).any():
                raise InputDataError(
                    f"Label column {name!r} holds no number in the training cells."
                )
            return spec
        distinct = _distinct(values)
        if kind == "multilabel":
            distinct = [part for value in distinct for part in value.split(SEPARATOR)]
        classes = tuple(sorted(set(distinct)))
        if len(classes) < 2:
            found = f"only {classes[0]!r}" if classes else "no value at all"
            raise InputDataError(
                f"Label column {name!r} holds {found} in the training cells; "
                "a classifier needs at least two classes. Choose another column or split."
            )
        return cls(name=name, classes=classes, kind=kind)

    @property
    def num_outputs(self) -> int:
        """Outputs that a head needs."""
        return 1 if self.kind == "regression" else len(self.classes)

    def encode(self, values: Array) -> Array:
        """Return the labels of cells as a loss reads them.

        Args:
            values: [n], as given to `from_values`.

        Returns:
            Of classes and nodes (which follow the classes) int64 [n] numbers, -100 for missing
            values and names unseen in training; of a regression float32 [n], NaN where missing; of
            several labels float32 [n, C], 1 for each label of a cell and NaN in all places where
            none is known.

        Raises:
            InputDataError: a regression label that is no number.
        """
        if self.kind == "regression":
            return self._numbers(values)
        if self.kind == "multilabel":
            return self._several(values)
        names = (*self.classes, *self.nodes)
        number = {name: position for position, name in enumerate(names)}
        return _codes(values, lambda name: number.get(name, UNLABELLED), UNLABELLED)

    def below(self) -> Array:
        """Return bool [C + nodes, C]: which classes each class (itself) and node stands for."""
        below = np.zeros((len(self.classes) + len(self.nodes), len(self.classes)), np.bool_)
        below[: len(self.classes)] = np.eye(len(self.classes), dtype=np.bool_)
        for row, positions in enumerate(self.nodes.values(), start=len(self.classes)):
            below[row, list(positions)] = True
        return below

    def roll_up(self, probabilities: Array) -> Array:
        """Return [n, nodes], the probability of each node: the sum of those of the classes below.

        Args:
            probabilities: [n, C] of the classes.
        """
        return probabilities @ self.below()[len(self.classes) :].T.astype(probabilities.dtype)

    def to_json(self) -> Any:
        """Return the JSON form: a list of classes where there is nothing else to say."""
        if self.kind == "class":
            return list(self.classes)
        nodes = {name: list(positions) for name, positions in self.nodes.items()}
        return {"kind": self.kind, "classes": list(self.classes), "nodes": nodes}

    @classmethod
    def from_json(cls, name: str, value: Any) -> LabelSpec:
        """Return the specification of a JSON form.

        Args:
            name: the obs column.
            value: as made by `to_json`.
        """
        if isinstance(value, Mapping):
            return cls(
                name=name,
                classes=tuple(value["classes"]),
                kind=value["kind"],
                nodes={node: tuple(positions) for node, positions in value["nodes"].items()},
            )
        return cls(name=name, classes=tuple(value))

    def _numbers(self, values: Array) -> Array:
        import pandas as pd

        numbers = pd.to_numeric(pd.Series(values), errors="coerce").to_numpy(np.float32)
        wrong = ~np.isfinite(numbers) & _labelled(values)
        if wrong.any():
            raise InputDataError(
                f"Label column {self.name!r} is a regression and holds "
                f"{values[int(np.argmax(wrong))]!r}, which is no finite number. Mend the column, "
                "or leave out its kind to classify."
            )
        return numbers

    def _several(self, values: Array) -> Array:
        number = {name: position for position, name in enumerate(self.classes)}
        rows = [np.full(len(self.classes), np.nan, np.float32)]
        row_of = {}
        for name in _distinct(values):  # Distinct combinations, not cells.
            known = [number[part] for part in name.split(SEPARATOR) if part in number]
            if known:
                row_of[name] = len(rows)
                rows.append(np.zeros(len(self.classes), np.float32))
                rows[-1][known] = 1
        return np.stack(rows)[_codes(values, lambda name: row_of.get(name, 0), 0)]


def labelled_rows(labels: Array) -> Array:
    """Return int64, the positions of cells that have a label.

    Args:
        labels: as made by `LabelSpec.encode`.
    """
    if labels.dtype.kind == "f":
        unknown = np.isnan(labels)
        return np.flatnonzero(~(unknown if unknown.ndim == 1 else unknown.any(axis=1)))
    return np.flatnonzero(labels != UNLABELLED)


def _distinct(values: Array) -> list[str]:
    import pandas as pd

    return sorted({str(value) for value in pd.unique(pd.Series(values[_labelled(values)]))})


def _codes(values: Array, number: Callable[[str], int], missing: int) -> Array:
    """Return int64 [n], a number for each value by its name."""
    import pandas as pd

    # Python sees the few distinct values only, never one value per cell.
    keep = _labelled(values)
    codes = np.full(len(values), missing, np.int64)
    inverse, distinct = pd.factorize(values[keep])
    if len(distinct):
        codes[keep] = np.array([number(str(name)) for name in distinct], np.int64)[inverse]
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
