"""Translating a configuration of bmfm or Bioformers into one of ours, with a report of every key.

- The file is plain data (`plain_data`); rules from a table say what becomes of each key; sections
  put together what several keys say; the result is checked against the schema of a run.
- A key that no rule knows is an error that names the nearest one: nothing is lost in silence.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omics.data.errors import ConfigError, nearest
from omics.train.migrating import bioformers_settings, bmfm_sections, bmfm_values
from omics.train.migrating.composed_file import read_composed
from omics.train.migrating.migration_draft import Draft, Entry
from omics.train.migrating.migration_rules import DROPPED, Rule, read_rules
from omics.train.migrating.old_configuration import OldConfiguration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Sections of a bmfm file; every other name at its top is a variable of the file itself.
BMFM_SECTIONS = ("seed", "tokenizer", "fields", "label_columns", "data_module", "model", "trainer", "task")  # fmt: skip
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Migration:
    """A translated configuration.

    Attributes:
        kind: `bmfm` or `bioformers`.
        config: ours, as plain data in the order of the schema.
        entries: what became of each value of the old file, in its order.
        defaults: keys of ours that were set because the old program had another default.
        steps: commands to run before, with what they are for.
    """

    kind: str
    config: dict[str, Any]
    entries: tuple[Entry, ...]
    defaults: Mapping[str, Any]
    steps: tuple[tuple[str, str], ...]

    @property
    def verb(self) -> str:
        """The verb of `omics-train` that runs it."""
        first = self.config["task"][0]
        if first != "train":
            return str(first)
        return "finetune" if self.config.get("label_columns") else "pretrain"

    def to_yaml(self, source: str) -> str:
        """Return the configuration as a file for `omics-train -cd FOLDER -cn NAME`.

        Args:
            source: name of the old file, for the comment at the top.
        """
        import yaml

        body = yaml.safe_dump(
            {"defaults": ["base", "_self_"], **self.config},
            sort_keys=False,
            allow_unicode=True,
            width=100,
        )
        return f"# Made by `omics-train migrate` from {source} ({self.kind}).\n{body}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON."""
        return {
            "kind": self.kind,
            "verb": self.verb,
            "config": self.config,
            "keys": [dataclasses.asdict(entry) for entry in self.entries],
            "defaults": dict(self.defaults),
            "before": [{"command": command, "what": what} for command, what in self.steps],
        }


@cache
def rules_of(kind: str) -> dict[str, dict[str, Rule]]:
    """Return the table of a kind of configuration, by section and old key.

    Args:
        kind: `bmfm` or `bioformers`.
    """
    converters = {"bmfm": bmfm_values, "bioformers": bioformers_settings}[kind].CONVERTERS
    return read_rules(_HERE / f"{kind}_keys.toml", converters)


def migrate(path: str | Path) -> Migration:
    """Translate a configuration file.

    Args:
        path: a bmfm configuration (YAML) or Bioformers' settings (JSON).

    Returns:
        The configuration of ours, which composes, and what became of every key.

    Raises:
        MissingPathError: there is no such file.
        ConfigError: no plain data, of another program, a key that is not known, or a value that
            does not fit where it goes.
    """
    path = Path(path)
    content = read_composed(path)
    kind = _kind(path, content)
    if kind == "bmfm" and isinstance(content.get("task"), dict):
        content = {**content, "task": [content["task"]]}
    old = OldConfiguration.of(path, content)
    rules = {key: rule for section in rules_of(kind).values() for key, rule in section.items()}
    draft = Draft(old)
    unknown = []
    for leaf in old.leaves(_is_leaf(rules)):
        top = re.split(r"[.\[]", leaf.pattern)[0]
        if leaf.pattern in rules:
            draft.take(leaf, rules[leaf.pattern])
        elif kind == "bmfm" and top not in BMFM_SECTIONS and leaf.pattern == top:
            said = "its value was put where it was used" if top in old.used else "nothing uses it"
            draft.entries[leaf.path] = Entry(
                leaf.path, leaf.value, DROPPED, why=f"a variable of the file: {said}"
            )
        elif leaf.value not in ({}, [], None):
            unknown.append(leaf.pattern)
    if unknown:
        hints = [f"{key!r}.{nearest(key, [*rules])}" for key in unknown]
        raise ConfigError(
            f"{path} has keys that {kind} does not have, or that are not known here: "
            f"{' '.join(hints)} Correct them, or take them out of the file."
        )
    {"bmfm": bmfm_sections.finish, "bioformers": bioformers_settings.finish}[kind](draft)
    config = _checked(path, draft)
    return Migration(
        kind, config, tuple(draft.entries.values()), draft.defaults, tuple(draft.steps)
    )


def _kind(path: Path, content: Any) -> str:
    if isinstance(content, dict):
        settings = rules_of("bioformers")["settings"]
        if "dataset_name" in content and sum(key in settings for key in content) > len(content) / 2:
            return "bioformers"
        if any(section in content for section in BMFM_SECTIONS):
            return "bmfm"
    raise ConfigError(
        f"{path} is neither a bmfm configuration ({', '.join(BMFM_SECTIONS)}) nor Bioformers' "
        "settings (dataset_name, hvg_num, mask_ratio, ...)."
    )


def _is_leaf(rules: Mapping[str, Rule]) -> Callable[[str, Any], bool]:
    above = {pattern for key in rules for pattern in _parents(key)}

    def is_leaf(pattern: str, value: Any) -> bool:
        return pattern in rules and not (isinstance(value, dict) and pattern in above)

    return is_leaf


def _parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _checked(path: Path, draft: Draft) -> dict[str, Any]:
    """Return the configuration in the order of the schema, after its types were checked."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from omics.train.run_config import RunConfig

    config = _ordered(draft.config, RunConfig())
    try:
        OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.create(config))
    except OmegaConfBaseException as error:
        where = getattr(error, "full_key", None) or ""
        source = [entry.old for entry in draft.entries.values() if entry.new == where]
        raise ConfigError(
            f"{path}: {str(error).splitlines()[0]}, for {where or 'a key of ours'}"
            + (f", from {', '.join(source)}." if source else ".")
        ) from error
    _refuse_calls(path, config, "")
    return config


def _ordered(values: dict[str, Any], schema: Any) -> dict[str, Any]:
    """Return values in the order of a schema, what it lacks at the end."""
    names = [item.name for item in dataclasses.fields(schema)]
    ordered = {}
    for name in [*(name for name in names if name in values), *(set(values) - set(names))]:
        value, section = values[name], getattr(schema, name, None)
        is_section = dataclasses.is_dataclass(section) and isinstance(value, dict)
        ordered[name] = _ordered(value, section) if is_section else value
    return ordered


def _refuse_calls(path: Path, value: Any, where: str) -> None:
    """Refuse calls of resolvers that only the old program had."""
    if isinstance(value, dict):
        for key, each in value.items():
            _refuse_calls(path, each, f"{where}.{key}" if where else key)
    elif isinstance(value, list):
        for position, each in enumerate(value):
            _refuse_calls(path, each, f"{where}[{position}]")
    elif isinstance(value, str):
        for call in re.findall(r"\$\{([^}:]*)", value):
            if call != "oc.env":
                raise ConfigError(
                    f"{path}: {where} would be {value!r}, and only ${{oc.env:NAME}} is known here. "
                    "Write the value itself."
                )
