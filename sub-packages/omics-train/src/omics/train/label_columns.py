"""Label columns of a run: entries of the configuration to specifications and heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import ConfigError, nearest
from omics.models.model_config import LabelHeadConfig
from omics.tokenizers import LabelSpec
from omics.tokenizers.ontology_labels import Ontology

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, np.dtype[Any]]

KINDS = ("class", "multilabel", "regression")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelColumn:
    """A column of obs that is learnt, and its head.

    Attributes:
        label_column_name: the column.
        kind: `class`, `multilabel` (labels of a cell joined by `|`) or `regression`.
        ontology_file: an `.obo` file: the labels are terms of it, and one that stands for several
            classes counts all of them.
        depth: layers of the head, 1 or 2.
        token: the head reads the hidden state at this position of the cell; null for the pooled row.
        gradient_reversal: above 0, the encoder learns to hide the label: gradients into it are
            multiplied by minus this.
        reversal_schedule: `constant`, or `dann`: the strength rises with the share p of the steps
            done, as 2 / (1 + exp(-10 p)) - 1 (Ganin and Lempitsky 2015).
        reversal_head_steps: steps of the reversed head for each step of the encoder. With one, the
            encoder hides the label from a head that knows little of it, and from no other reader.
    """

    label_column_name: str
    kind: str = "class"
    ontology_file: str | None = None
    depth: int = 1
    token: int | None = None
    gradient_reversal: float = 0.0
    reversal_schedule: str = "constant"
    reversal_head_steps: int = 1

    def __post_init__(self) -> None:
        """Check values that types cannot."""
        where = f"The label column {self.label_column_name!r} has"
        if self.kind not in KINDS:
            raise ConfigError(f"{where} kind {self.kind!r}.{nearest(self.kind, KINDS)}")
        if self.ontology_file is not None and self.kind != "class":
            raise ConfigError(f"{where} an ontology_file and kind {self.kind!r}; leave one out.")
        if not 0 <= self.gradient_reversal < np.inf:
            raise ConfigError(
                f"{where} gradient_reversal {self.gradient_reversal}; it must not be negative."
            )
        if self.reversal_schedule not in REVERSAL_SCHEDULES:
            raise ConfigError(
                f"{where} reversal_schedule {self.reversal_schedule!r}."
                f"{nearest(self.reversal_schedule, REVERSAL_SCHEDULES)}"
            )
        if self.reversal_schedule != "constant" and not self.gradient_reversal:
            raise ConfigError(
                f"{where} reversal_schedule {self.reversal_schedule!r} and no gradient_reversal, "
                "which says what the strength rises to."
            )

        if self.reversal_head_steps < 1 or (
            self.reversal_head_steps > 1 and not self.gradient_reversal
        ):
            raise ConfigError(
                f"{where} reversal_head_steps {self.reversal_head_steps} and gradient_reversal "
                f"{self.gradient_reversal}; steps are 1 or more, and more than 1 of a reversed head "
                "alone."
            )

    @classmethod
    def from_entry(cls, entry: Any) -> LabelColumn:
        """Return the column of an entry of `label_columns`.

        Args:
            entry: its name, or a mapping of the attributes.

        Raises:
            ConfigError: neither of these, an unknown key, a value of the wrong type.
        """
        if isinstance(entry, str):
            return cls(label_column_name=entry)
        if not isinstance(entry, Mapping) or "label_column_name" not in entry:
            raise ConfigError(
                f"label_columns holds {entry!r}; give the name of a column, or a mapping with "
                "label_column_name."
            )
        known = {each.name: str(each.type) for each in dataclasses.fields(cls)}
        for key, value in entry.items():
            if key not in known:
                raise ConfigError(
                    f"label_columns has no key {key!r}.{nearest(str(key), list(known))}"
                )
            if not isinstance(value, _TYPES[known[key]]) or isinstance(value, bool):
                raise ConfigError(f"label_columns: {key} is {value!r}; expected {known[key]}.")
        return cls(**entry)

    def spec(self, values: Array) -> LabelSpec:
        """Return what the values of the training cells say.

        Args:
            values: [n] of the training cells.

        Raises:
            InputDataError: they do not serve.
        """
        name = self.label_column_name
        if self.ontology_file is None:
            return LabelSpec.from_values(name, values, kind=self.kind)
        import pandas as pd

        distinct = pd.unique(pd.Series(values[~np.asarray(pd.isna(values))]))
        labels = sorted({str(value) for value in distinct})
        return Ontology.read(self.ontology_file).label_spec(name, labels)

    def head(self, spec: LabelSpec) -> LabelHeadConfig:
        """Return the head of the column.

        Args:
            spec: of its labels.
        """
        return LabelHeadConfig(
            name=spec.name,
            num_classes=spec.num_outputs,
            depth=self.depth,
            token=self.token,
            gradient_reversal=self.gradient_reversal,
        )


REVERSAL_SCHEDULES = ("constant", "dann")
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (int, float),
}


def label_columns(entries: Sequence[Any]) -> list[LabelColumn]:
    """Return the columns of `label_columns`.

    Args:
        entries: of the configuration.

    Raises:
        ConfigError: an entry that is wrong, or a column given twice.
    """
    columns = [LabelColumn.from_entry(entry) for entry in entries]
    names = [column.label_column_name for column in columns]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"label_columns holds {name!r} twice.")
    return columns
