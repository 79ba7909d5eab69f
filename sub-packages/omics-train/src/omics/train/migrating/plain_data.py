"""Configuration files of other programs as plain data: nothing in them is run, or can exhaust us.

- Mappings with names as keys, lists, texts, numbers, booleans and null; every YAML tag is refused.
- Size, depth and the number of values after aliases are bounded, and a key given twice is an error:
  YAML would take the last one in silence.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import yaml

from omics.data.errors import ConfigError, MissingPathError

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 1_000_000
MAX_DEPTH = 40
MAX_VALUES = 20_000

# As Hydra reads numbers: YAML 1.1 alone takes 1e-12 for a text.
_FLOAT = re.compile(
    r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
    |\.[0-9_]+(?:[eE][-+][0-9]+)?
    |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)


def read_plain(path: Path) -> Any:
    """Return what a YAML or JSON file says.

    Args:
        path: `.json` for JSON; anything else is read as YAML.

    Raises:
        MissingPathError: there is no such file.
        ConfigError: it is no plain data, or too large, too deep, or not text.
    """
    if not path.is_file():
        raise MissingPathError(f"There is no configuration file {path}.")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(
            f"{path} has {path.stat().st_size:,} bytes; a configuration of more than {MAX_BYTES:,} "
            "is not read. Give the configuration alone."
        )
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            value = json.loads(text, object_pairs_hook=_without_repeats)
        else:
            loader = _PlainLoader(text)
            try:
                value = loader.get_single_data()
            finally:
                loader.dispose()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text in UTF-8 ({error.reason}).") from error
    except (yaml.YAMLError, json.JSONDecodeError, _NotPlainError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}.") from error
    except RecursionError as error:
        raise ConfigError(f"{path} cannot be read: {_TOO_DEEP}.") from error
    return _Copy(path).of(value, depth=0)


_TOO_DEEP = f"it is nested deeper than {MAX_DEPTH} levels"


class _NotPlainError(Exception):
    """Something in a file that is not plain data; says what and where."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise _NotPlainError(f"the key {name!r} is given twice")
    return dict(pairs)


class _PlainLoader(yaml.SafeLoader):
    """YAML without tags and dates, of bounded depth, without repeated keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's way to say it
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag not in {"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float"}
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            line = event.start_mark.line + 1
            raise _NotPlainError(
                f"line {line} has the tag {event.tag!r}, and tags are refused: write plain values"
            )
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _NotPlainError(_TOO_DEEP)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1 and name != "<<":
                line = node.start_mark.line + 1
                raise _NotPlainError(
                    f"the key {name!r} is given twice in the mapping of line {line}"
                )
        return super().construct_mapping(node, deep=deep)


_PlainLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


class _Copy:
    """A copy in which every alias has become a value of its own, up to a number of values."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left = MAX_VALUES

    def of(self, value: Any, *, depth: int) -> Any:
        """Return the copy of a value."""
        self.left -= 1
        if self.left < 0:
            raise ConfigError(
                f"{self.path} holds more than {MAX_VALUES:,} values, aliases written out. Give the "
                "configuration alone."
            )
        if depth > MAX_DEPTH:
            raise ConfigError(f"{self.path} cannot be read: {_TOO_DEEP}.")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise ConfigError(f"{self.path} has the key {key!r}, which is not a name.")
            return {key: self.of(each, depth=depth + 1) for key, each in value.items()}
        if isinstance(value, list):
            return [self.of(each, depth=depth + 1) for each in value]
        if value is None or isinstance(value, str | int | float):
            return value
        raise ConfigError(
            f"{self.path} holds a {type(value).__name__}, {value!r}; put it in quotes to make it a "
            "text."
        )
