"""`Draft`: a configuration of ours while it is made from an old one, and what became of each key."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omics.train.migrating.migration_rules import CHANGED, DROPPED, MAPPED, Changed, Dropped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omics.train.migrating.migration_rules import Rule
    from omics.train.migrating.old_configuration import Leaf, OldConfiguration

NULL = "null: nothing is set"


@dataclass(slots=True)
class Entry:
    """What became of one value.

    Attributes:
        old: its path in the old file.
        value: that it had.
        kind: `mapped`, `changed` or `dropped`.
        new: the key of ours; empty if dropped.
        why: the reason, or what changed.
    """

    old: str
    value: Any
    kind: str
    new: str = ""
    why: str = ""


@dataclass(slots=True)
class Draft:
    """A configuration in the making.

    Attributes:
        old: what it is made from.
        config: ours, nested.
        entries: by path in the old file.
        defaults: keys of ours that were set because the old program had another default.
        steps: commands to run before, with what they are for.
    """

    old: OldConfiguration
    config: dict[str, Any] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    steps: list[tuple[str, str]] = field(default_factory=list)

    def take(self, leaf: Leaf, rule: Rule) -> None:
        """Carry one value over by its rule, and note what became of it.

        Args:
            leaf: of the old file.
            rule: of its pattern.
        """
        entry = Entry(leaf.path, leaf.value, rule.kind, rule.new, rule.why)
        self.entries[leaf.path] = entry
        if rule.kind == DROPPED:
            return
        if leaf.value is None:
            self.drop(leaf.path, NULL)
            return
        entry.new = with_positions(rule.new, leaf.path)
        if rule.joint:
            return
        value = leaf.value if rule.convert is None else rule.convert(leaf.value)
        if isinstance(value, Dropped):
            self.drop(leaf.path, value.why)
            return
        if isinstance(value, Changed):
            entry.kind, entry.why, value = CHANGED, value.why, value.value
        known = self.get(entry.new)
        if known is not None and known != value:
            self.drop(leaf.path, f"{entry.new} is {known!r} already, and holds for all")
            return
        self.set(entry.new, value)

    def drop(self, path: str, why: str) -> None:
        """Note that a value is not carried over after all.

        Args:
            path: in the old file; nothing happens if it is not there.
            why: the reason.
        """
        if path in self.entries:
            entry = self.entries[path]
            entry.kind, entry.new, entry.why = DROPPED, "", why

    def drop_all(self, prefix: str, why: str) -> None:
        """Drop every value that was to be carried over from a part of the old file.

        Args:
            prefix: of paths in the old file.
            why: the reason.
        """
        for path, entry in self.entries.items():
            if path.startswith(prefix) and entry.kind != DROPPED:
                self.drop(path, why)

    def change(self, path: str, why: str, new: str | None = None) -> None:
        """Note that a value means something else.

        Args:
            path: in the old file; nothing happens if it is not there, or dropped.
            why: what changes; empty for nothing.
            new: the key of ours, if it is another than that of the rule.
        """
        entry = self.entries.get(path)
        if entry is None or entry.kind == DROPPED:
            return
        entry.kind, entry.why = (CHANGED if why else MAPPED), why
        entry.new = entry.new if new is None else new

    def set(self, key: str, value: Any) -> None:
        """Set a key of ours.

        Args:
            key: dotted, with positions.
            value: plain.
        """
        place: Any = self.config
        parts = re.findall(r"[^.\[\]]+", key)
        for part, following in zip(parts, [*parts[1:], None], strict=True):
            new: Any = value if following is None else ([] if following.isdigit() else {})
            if isinstance(place, list):
                place += [{} for _ in range(int(part) + 1 - len(place))]
                if following is None:
                    place[int(part)] = value
                place = place[int(part)]
            elif following is None or part not in place:
                place[part] = new
                place = place[part]
            else:
                place = place[part]

    def get(self, key: str, default: Any = None) -> Any:
        """Return a key of ours.

        Args:
            key: dotted, with positions.
            default: where it is not set.
        """
        place: Any = self.config
        for part in re.findall(r"[^.\[\]]+", key):
            if isinstance(place, list) and part.isdigit() and int(part) < len(place):
                place = place[int(part)]
            elif isinstance(place, dict) and part in place:
                place = place[part]
            else:
                return default
        return place

    def remove(self, key: str) -> None:
        """Take a key of ours away, if it is set.

        Args:
            key: dotted, without positions.
        """
        above, _, last = key.rpartition(".")
        place = self.get(above) if above else self.config
        if isinstance(place, dict):
            place.pop(last, None)

    def set_defaults(self, values: Mapping[str, Any]) -> None:
        """Set keys of ours that the old file left to its program, whose defaults differ.

        Args:
            values: key of ours to the old default.
        """
        for key, value in values.items():
            if self.get(key) is None:
                self.set(key, value)
                self.defaults[key] = value


def with_positions(new: str, old_path: str) -> str:
    """Return a key with the positions of an old path in place of its `[]`.

    Args:
        new: such as `fields[].encoder`.
        old_path: such as `fields[1].encoder_kwargs.kind`.
    """
    positions = re.findall(r"\[\d+\]", old_path)
    for position in positions:
        new = new.replace("[]", position, 1)
    return new.replace("[]", "")
