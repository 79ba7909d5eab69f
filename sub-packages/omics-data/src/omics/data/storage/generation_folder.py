"""The folder of a store as writers see it: what may be replaced, what was left, what comes next.

- Only folders that hold a store, or nothing but a writer's leftovers, are ever written to.
"""

from __future__ import annotations

import os
import re
import secrets
from typing import TYPE_CHECKING

from omics.data.atomic_files import LOCK_NAME, remove_path
from omics.data.errors import ExistingPathError, OmicsError
from omics.data.storage.mapped_file import read_small
from omics.data.storage.store_format import (
    CURRENT_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Manifest,
    generation_name,
    parse_current,
)

if TYPE_CHECKING:
    from pathlib import Path

_GENERATION = re.compile(r"gen-([1-9][0-9]*)")
_LEFTOVER = re.compile(r"\.gen-[1-9][0-9]*\.tmp|\.CURRENT\.[0-9a-f]+\.tmp")


def refuse_foreign(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that holds a store we may not replace, or anything that is not a store.

    Args:
        path: the store folder, which need not exist.
        overwrite: whether a store there may be replaced.

    Raises:
        ExistingPathError: it may not be written to.
    """
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise ExistingPathError(f"{path} exists and is not a folder. Choose another path.")
    names = [each.name for each in path.iterdir()]
    generations = [name for name in names if _GENERATION.fullmatch(name)]
    if generations:
        if not overwrite:
            raise ExistingPathError(
                f"{path} holds a store already. Choose another path or allow overwriting (--overwrite)."
            )
        return
    foreign = [name for name in names if name != LOCK_NAME and not _LEFTOVER.fullmatch(name)]
    if foreign:
        raise ExistingPathError(
            f"{path} exists and is not a store (it holds {foreign[0]!r}). Choose another path."
        )


def next_generation(path: Path) -> tuple[str, int]:
    """Return the store's uuid (a new one if it has none) and the next free generation.

    Args:
        path: the store folder.
    """
    numbers = [
        int(match[1]) for each in path.iterdir() if (match := _GENERATION.fullmatch(each.name))
    ]
    current = path / CURRENT_NAME
    try:
        generation, _ = parse_current(read_small(current, 200), current)
        manifest_path = path / generation_name(generation) / MANIFEST_NAME
        manifest = Manifest.from_bytes(read_small(manifest_path, MAX_MANIFEST_BYTES), manifest_path)
    except OmicsError:  # No store yet, or a damaged one that is about to be replaced.
        return secrets.token_hex(16), max(numbers, default=0) + 1
    return manifest.store_uuid, max(numbers) + 1


def remove_leftovers(path: Path, keep: str | None = None) -> None:
    """Remove what crashed writers left and, given the current generation, all older ones.

    Args:
        path: the store folder.
        keep: the folder name of the current generation, or of one that is being continued.
    """
    for each in path.iterdir():
        if each.name == keep:
            continue
        old = keep is not None and not keep.startswith(".") and _GENERATION.fullmatch(each.name)
        if old or _LEFTOVER.fullmatch(each.name):
            remove_path(each)
