"""`Rule`: what becomes of one key of an old configuration; tables of them are read from TOML.

- A rule says where the value goes, or why it is dropped; with both it changes its meaning, and the
  reason says how. The documentation pages are checked against the tables.
- A value may be dropped, or changed, on its own account: a converter then returns `Dropped` or
  `Changed` instead of a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

MAPPED, CHANGED, DROPPED = "mapped", "changed", "dropped"


@dataclass(frozen=True, slots=True)
class Dropped:
    """A value that is not carried over.

    Attributes:
        why: the reason.
    """

    why: str


@dataclass(frozen=True, slots=True)
class Changed:
    """A value that is carried over and means something else.

    Attributes:
        value: of ours.
        why: what changes.
    """

    value: Any
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What becomes of one key.

    Attributes:
        old: the key, with `[]` for the positions of lists.
        new: the key of ours; empty if it is dropped.
        why: why it is dropped, or what changes; empty if neither.
        convert: from the old value to ours; None for the value as it is.
        joint: a section puts it together with other keys.
    """

    old: str
    new: str = ""
    why: str = ""
    convert: Callable[[Any], Any] | None = None
    joint: bool = False

    @property
    def kind(self) -> str:
        """`mapped`, `changed` or `dropped`."""
        if not self.new:
            return DROPPED
        return CHANGED if self.why else MAPPED


def read_rules(
    path: Path, converters: Mapping[str, Callable[[Any], Any]]
) -> dict[str, dict[str, Rule]]:
    """Return the rules of a table, by section and old key.

    Args:
        path: of a packaged TOML file.
        converters: by the names that the file uses.

    Raises:
        ValueError: a key with two rules.
    """
    import tomllib

    sections: dict[str, dict[str, Rule]] = {}
    for section, parts in tomllib.loads(path.read_text(encoding="utf-8")).items():
        rules = []
        for old, row in parts.get("keys", {}).items():
            convert = converters[row["convert"]] if "convert" in row else None
            rules.append(Rule(old=old, **{**row, "convert": convert}))
        for group in parts.get("dropped", []):
            rules += [Rule(old=old, why=group["why"]) for old in group["keys"]]
        sections[section] = {rule.old: rule for rule in rules}
        if len(sections[section]) < len(rules):
            raise ValueError(f"{path}: [{section}] holds a key twice.")
    return sections


def one_of(names: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Return a converter of names by a table; what the table lacks is dropped, and says so.

    Args:
        names: old to ours.
    """

    def convert(value: Any) -> Any:
        if str(value) not in names:
            return Dropped(f"{value!r} is not known here; known are {', '.join(names)}")
        return names[str(value)]

    return convert
