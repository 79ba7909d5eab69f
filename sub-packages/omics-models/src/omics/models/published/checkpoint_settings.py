"""`Settings`: what a checkpoint says about its model, read key by key and never more than asked for.

- Keys are looked up by name with the type that is expected: `auto_map`, class paths and whatever
  else lies in a `config.json` are not read at all.
- Records out of a pickle become plain values first, within a budget of entries and depth.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from omics.data.errors import InputDataError
from omics.models.published.pickle_values import (
    DamagedCheckpointError,
    Record,
    UnsafeCheckpointError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_JSON_BYTES = 1 << 26
MAX_DEPTH = 32
MAX_VALUES = 1_000_000
MAX_TEXT = 500


class Settings:
    """A mapping whose values are read with the type they must have.

    Attributes:
        values: plain values by key.
        where: what they lie in, for messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def whole(self, key: str, default: int | None = None, *, at_least: int = 1) -> int:
        """Return a whole number.

        Args:
            key: its name.
            default: where it is missing or null; None makes that an error.
            at_least: the smallest that makes sense.
        """
        value = self._given(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
            raise self._wrong(key, f"a whole number of at least {at_least}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number.

        Args:
            key: its name.
            default: where it is missing or null; None makes that an error.
        """
        value = self._given(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text.

        Args:
            key: its name.
            default: where it is missing or null; None makes that an error.
        """
        value = self._given(key, default)
        if not isinstance(value, str) or not value.isprintable() or len(value) > MAX_TEXT:
            raise self._wrong(key, "a plain text")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """Return true or false.

        Args:
            key: its name.
            default: where it is missing or null.
        """
        value = self._given(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def optional(self, key: str) -> Any:
        """Return a value that may be missing, as it is.

        Args:
            key: its name.
        """
        return self.values.get(key)

    def part(self, key: str) -> Settings:
        """Return the settings under a key; empty ones where it is missing or null.

        Args:
            key: its name.
        """
        value = self._given(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, "a table of names to values")
        return Settings(value, f"{self.where}: {key}")

    def parts(self, key: str) -> list[Settings]:
        """Return a list of settings; empty where it is missing or null.

        Args:
            key: its name.
        """
        value = self._given(key, [])
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise self._wrong(key, "a list of tables of names to values")
        return [Settings(each, f"{self.where}: {key}[{i}]") for i, each in enumerate(value)]

    def require(self, key: str, expected: Any, why: str) -> None:
        """Refuse a setting that changes what is computed in a way that is not there.

        Args:
            key: its name; missing and null are as expected.
            expected: the only value that is read.
            why: what any other value would need.

        Raises:
            InputDataError: it has another value.
        """
        value = self.values.get(key)
        if value is not None and value != expected:
            raise InputDataError(
                f"{self.where} has {key} = {repr(value)[:80]}: {why}, which this version does not "
                f"compute. Checkpoints with {key} = {expected!r} can be converted."
            )

    def _given(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise InputDataError(f"{self.where} lacks {key!r}, which the model cannot do without.")
        return value

    def _wrong(self, key: str, expected: str) -> InputDataError:
        return InputDataError(
            f"{self.where} has {key} = {str(self.values.get(key))[:80]!r}; it must be {expected}."
        )


def plain_values(value: Any, where: str) -> Any:
    """Return values out of a pickle as JSON has them: dictionaries, lists, texts, numbers.

    A record becomes the dictionary of its fields; one without (a member of an enumeration) becomes
    its argument.

    Args:
        value: as `read_pickle` made it.
        where: what it lies in, for messages.

    Raises:
        UnsafeCheckpointError: it is nested too deeply, in itself, or of too many parts.
    """
    left = [MAX_VALUES]

    def convert(each: Any, depth: int) -> Any:
        left[0] -= 1
        if depth > MAX_DEPTH or left[0] < 0:
            raise UnsafeCheckpointError(
                f"{where} is nested more than {MAX_DEPTH} deep or has more than {MAX_VALUES:,} "
                "parts, which no configuration is. Do not use this file."
            )
        if isinstance(each, Record):
            only = each.arguments[0] if len(each.arguments) == 1 and not each.fields else None
            return convert(each.fields if only is None else only, depth + 1)
        if isinstance(each, dict):
            return {str(key): convert(item, depth + 1) for key, item in each.items()}
        if isinstance(each, list | tuple):
            return [convert(item, depth + 1) for item in each]
        if isinstance(each, set):
            return sorted(str(item) for item in each)
        if isinstance(each, float) and not math.isfinite(each):
            return str(each)
        return each if isinstance(each, str | int | float | None) else type(each).__name__

    return convert(value, 0)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file.

    Args:
        path: the file.

    Raises:
        DamagedCheckpointError: it is too large, nested too deeply, or holds no JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"it is larger than {MAX_JSON_BYTES:,} bytes")
        value = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpointError(
            f"{path} holds no JSON that can be read ({error}). Take it from its source again."
        ) from error
    if not isinstance(value, dict):
        raise DamagedCheckpointError(f"{path} holds no JSON object. Take it from its source again.")
    return value
