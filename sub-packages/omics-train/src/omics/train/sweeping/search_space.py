"""The values that a sweep may try: `KEY=log:1e-5:1e-3`, `KEY=choice:2,4`, read and proposed.

| what | values |
|---|---|
| `uniform:LOW:HIGH` | numbers |
| `log:LOW:HIGH` | numbers, their logarithm uniform |
| `int:LOW:HIGH` | whole numbers, both ends included |
| `logint:LOW:HIGH` | the same, their logarithm uniform |
| `choice:A,B,...` | any values as `KEY=A` takes them; lists in brackets |
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omics.data.errors import UsageError, nearest

if TYPE_CHECKING:
    import optuna

RANGES = ("uniform", "log", "int", "logint")
KINDS = (*RANGES, "choice")
# A comma outside brackets and braces, one level deep.
_BETWEEN = re.compile(r",(?![^\[{]*[\]}])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One key and what it may be.

    Attributes:
        key: of the configuration.
        kind: one of `KINDS`.
        low: of a range.
        high: of a range, included.
        choices: of `choice`.
    """

    key: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Parameter:
        """Return the parameter that a user wrote.

        Args:
            text: such as `trainer.learning_rate=log:1e-5:1e-3`.

        Raises:
            UsageError: it is no parameter, or has nothing to choose from.
        """
        key, equals, said = text.partition("=")
        kind, _, values = said.partition(":")
        if not equals or not key or not values:
            raise UsageError(
                f"--parameter {text!r} is not of the form KEY=KIND:VALUES, such as "
                "trainer.learning_rate=log:1e-5:1e-3 or model.num_layers=choice:2,4."
            )
        if kind not in KINDS:
            raise UsageError(f"--parameter {text!r} has the kind {kind!r}.{nearest(kind, KINDS)}")
        if kind == "choice":
            choices = tuple(each.strip() for each in _BETWEEN.split(values))
            if len(choices) < 2 or len(set(choices)) < len(choices) or not all(choices):
                raise UsageError(
                    f"--parameter {text!r} leaves nothing to choose: give two values or more, each "
                    "once."
                )
            return cls(key=key, kind=kind, choices=choices)
        low, high = _ends(text, kind, values)
        return cls(key=key, kind=kind, low=low, high=high)

    @property
    def tried_first(self) -> tuple[str, ...]:
        """Values that show whether the key takes such values: all choices, or both ends."""
        if self.kind == "choice":
            return self.choices
        ends = (self.low, self.high)
        return tuple(str(int(end) if self.kind.endswith("int") else end) for end in ends)

    def propose(self, trial: optuna.Trial) -> str:
        """Return the value of a trial, as `KEY=` takes it.

        Args:
            trial: of the study.
        """
        if self.kind == "choice":
            return str(trial.suggest_categorical(self.key, list(self.choices)))
        is_log = self.kind.startswith("log")
        if self.kind.endswith("int"):
            return str(trial.suggest_int(self.key, int(self.low), int(self.high), log=is_log))
        return repr(trial.suggest_float(self.key, self.low, self.high, log=is_log))


def parse_parameters(texts: list[str]) -> list[Parameter]:
    """Return the parameters of a sweep.

    Args:
        texts: as users wrote them.

    Raises:
        UsageError: there are none, one is wrong, or a key comes twice.
    """
    found = [Parameter.parse(text) for text in texts]
    if not found:
        raise UsageError(
            "A sweep needs what it may try: --parameter trainer.learning_rate=log:1e-5:1e-3."
        )
    keys = [each.key for each in found]
    for key in keys:
        if keys.count(key) > 1:
            raise UsageError(f"--parameter {key} comes twice: give it once.")
    return found


def _ends(text: str, kind: str, values: str) -> tuple[float, float]:
    parts = values.split(":")
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        raise UsageError(
            f"--parameter {text!r} has no two ends: give {kind}:LOW:HIGH, two numbers."
        ) from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(
            f"--parameter {text!r} is an empty range: the first end must be the lower."
        )
    if kind.endswith("int") and not (low.is_integer() and high.is_integer()):
        raise UsageError(f"--parameter {text!r} has ends that are no whole numbers.")
    if kind.startswith("log") and low <= 0:
        raise UsageError(f"--parameter {text!r} has a logarithm: its ends must be above 0.")
    return low, high
