"""`OldConfiguration`: the values of an old file by dotted path, references put in place.

- `${key}` and `${list[0].key}` refer to the old file and are replaced, because that file goes away.
  `${oc.env:NAME}` and other calls stay as they are.
- A path has positions (`fields[1].field_name`), its pattern has none (`fields[].field_name`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omics.data.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

_REFERENCE = re.compile(r"\$\{([^${}:]+)\}")
_MAX_HOPS = 30
_MAX_REPLACED = 20_000
_MAX_TEXT = 20_000
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value of the old file.

    Attributes:
        path: with positions.
        pattern: without.
        value: plain.
    """

    path: str
    pattern: str
    value: Any


@dataclass(slots=True)
class OldConfiguration:
    """The values of an old file.

    Attributes:
        path: of the file, for messages.
        values: its content, references replaced.
        used: names that references begin with.
    """

    path: Path
    values: dict[str, Any]
    used: set[str] = field(default_factory=set)
    _replaced_values: int = 0

    @classmethod
    def of(cls, path: Path, content: Mapping[str, Any]) -> OldConfiguration:
        """Return the configuration of a file.

        Args:
            path: of the file.
            content: plain data.

        Raises:
            ConfigError: a reference to what is not there, or in a circle.
        """
        found = cls(path, dict(content))
        found.values = found._replaced(found.values, hops=0)
        return found

    def get(self, path: str, default: Any = None) -> Any:
        """Return the value at a dotted path.

        Args:
            path: such as `data_module.dataset_kwargs.expose_zeros`.
            default: where there is none, or null.
        """
        value = _lookup(self.values, path)
        return default if value is _ABSENT or value is None else value

    def items(self, path: str) -> list[dict[str, Any]]:
        """Return the mappings of a list.

        Args:
            path: of the list.
        """
        found = self.get(path, [])
        return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []

    def leaves(self, is_leaf: Callable[[str, Any], bool]) -> Iterator[Leaf]:
        """Yield every value.

        Args:
            is_leaf: whether a value at a pattern is taken as a whole.
        """
        yield from _leaves(self.values, "", "", is_leaf)

    def _replaced(self, value: Any, *, hops: int) -> Any:
        self._replaced_values += 1
        if hops > _MAX_HOPS:
            raise ConfigError(f"{self.path}: its references refer to each other in a circle.")
        if self._replaced_values > _MAX_REPLACED or (
            isinstance(value, str) and len(value) > _MAX_TEXT
        ):
            raise ConfigError(f"{self.path} grows too large when its references are replaced.")
        if isinstance(value, dict):
            return {key: self._replaced(each, hops=hops) for key, each in value.items()}
        if isinstance(value, list):
            return [self._replaced(each, hops=hops) for each in value]
        if not isinstance(value, str):
            return value
        whole = _REFERENCE.fullmatch(value)
        if whole:
            return self._replaced(self._referred(whole[1]), hops=hops + 1)
        inserted = _REFERENCE.sub(lambda found: _text(self._referred(found[1])), value)
        return value if inserted == value else self._replaced(inserted, hops=hops + 1)

    def _referred(self, name: str) -> Any:
        name = name.strip()
        value = _lookup(self.values, name)
        if value is _ABSENT:
            raise ConfigError(
                f"{self.path} refers to ${{{name}}}, which it does not hold. Set it in the file, or "
                "give the composed configuration that the old program prints with --cfg job."
            )
        self.used.add(re.split(r"[.\[]", name)[0])
        return value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "null" if value is None else str(value)


def _lookup(values: Any, path: str) -> Any:
    for part in re.findall(r"[^.\[\]]+", path):
        if isinstance(values, dict) and part in values:
            values = values[part]
        elif isinstance(values, list) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
        else:
            return _ABSENT
    return values


def _leaves(
    value: Any, path: str, pattern: str, is_leaf: Callable[[str, Any], bool]
) -> Iterator[Leaf]:
    if pattern and is_leaf(pattern, value):
        yield Leaf(path, pattern, value)
    elif isinstance(value, dict) and value:
        for key, each in value.items():
            dot = "." if path else ""
            yield from _leaves(each, f"{path}{dot}{key}", f"{pattern}{dot}{key}", is_leaf)
    elif isinstance(value, list) and value:
        for position, each in enumerate(value):
            yield from _leaves(each, f"{path}[{position}]", f"{pattern}[]", is_leaf)
    else:
        yield Leaf(path, pattern, value)
