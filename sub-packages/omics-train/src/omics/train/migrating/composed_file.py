"""Files with a `defaults` list of Hydra, composed from the files beside them.

- Only what bmfm's files use: names beside the file, `group: name` in folders, `_self_`. Mappings are
  merged, everything else is replaced, as Hydra does it.
- Nothing outside the folder of the file is read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from omics.data.errors import ConfigError
from omics.train.migrating.plain_data import read_plain

if TYPE_CHECKING:
    from pathlib import Path

# Nodes that the old program registers itself: they hold types, no values.
SCHEMAS = frozenset({"base_scbert_config"})
_MAX_NESTED = 8


def read_composed(path: Path) -> Any:
    """Return a configuration with what its `defaults` name.

    Args:
        path: of the file.

    Raises:
        MissingPathError: there is no such file.
        ConfigError: no plain data, or `defaults` that name what is not there.
    """
    return _composed(path, nested=0)


def _composed(path: Path, *, nested: int) -> Any:
    if nested > _MAX_NESTED:
        raise ConfigError(f"{path}: its `defaults` name each other in a circle.")
    own = read_plain(path)
    if not isinstance(own, dict) or "defaults" not in own:
        return own
    defaults = own.pop("defaults")
    if not isinstance(defaults, list):
        raise ConfigError(f"{path}: `defaults` is {defaults!r}; it must be a list.")
    merged: Any = {}
    for entry in [*defaults, *([] if "_self_" in defaults else ["_self_"])]:
        if entry == "_self_":
            merged = _merged(merged, own)
        elif isinstance(entry, str):
            if entry not in SCHEMAS:
                file = _file(path, "", entry)
                merged = _merged(merged, _composed(file, nested=nested + 1))
        elif isinstance(entry, dict) and len(entry) == 1:
            ((group, name),) = entry.items()
            group = group.removeprefix("override ").removeprefix("optional ").strip()
            if name is not None:
                file = _file(path, group, name)
                merged = _merged(merged, {group: _composed(file, nested=nested + 1)})
        else:
            raise ConfigError(f"{path}: `defaults` holds {entry!r}, which is no name.")
    return merged


def _file(path: Path, group: str, name: Any) -> Path:
    """Return the file that an entry names; it must be there."""
    shown = f"{group}: {name}" if group else str(name)
    if not re.fullmatch(r"[\w-]*", group) or not re.fullmatch(r"[\w.-]+", str(name)):
        raise ConfigError(
            f"{path}: `defaults` names {shown!r}, which is no file beside it. Give the composed "
            "configuration that the old program prints with --cfg job."
        )
    file = path.parent / group / f"{name}.yaml"
    if not file.is_file():
        raise ConfigError(
            f"{path}: `defaults` names {shown!r}, and there is no {file}. Give the file in its "
            "folder, or the composed configuration that the old program prints with --cfg job."
        )
    return file


def _merged(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return {
            **below,
            **{key: _merged(below.get(key), value) for key, value in above.items()},
        }
    return above
