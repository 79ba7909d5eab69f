"""Reads a JSON list of transforms, such as the `preprocessing.json` of a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from omics.data.errors import ConfigError, MissingPathError
from omics.data.transforms import check_transforms, transform_from_dict

if TYPE_CHECKING:
    from omics.data.transforms import Transform


def read_transforms(path: str | Path) -> list[Transform]:
    """Return the transforms of a file, in order.

    Args:
        path: a JSON list of `{"name": ..., parameters}`, alone or under the key `transforms`.

    Raises:
        MissingPathError: there is no such file.
        ConfigError: it is no such list, or its transforms do not fit each other.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingPathError(f"There is no file {path} with transforms.")
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}). Give a list of transforms.") from None
    steps = value.get("transforms") if isinstance(value, dict) else value
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ConfigError(
            f'{path} holds no list of transforms, such as [{{"name": "log_normalize"}}]. Give one.'
        )
    transforms = [transform_from_dict(step) for step in steps]
    check_transforms(transforms)
    return transforms
