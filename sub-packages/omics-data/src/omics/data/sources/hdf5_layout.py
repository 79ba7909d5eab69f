"""Looks at the names in an HDF5 file, to tell which program wrote it, without touching its values.

- A file is opened as safely as for reading (`hdf5_safety`): asking what it is must not crash, hang
  or follow a link either. One that is refused has no names; whoever opens it says why.
- The answer for a file is kept while the file stays as it is: every reader of HDF5 asks for it.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from omics.data.errors import OmicsError, ResourceError
from omics.data.sources.hdf5_safety import open_safely

MAX_NAMES = 1000


def hdf5_names(path: str | Path) -> dict[str, frozenset[str]]:
    """Return what is at the root of an HDF5 file, and in the groups there.

    Args:
        path: anything.

    Returns:
        `{name: names in it}`, no names for what is no group; nothing for a file that is no HDF5,
        is damaged or refused. At most `MAX_NAMES` names are looked at in a group.

    Raises:
        ResourceError: no process can be started to look at the file first.
    """
    import h5py

    path = Path(path)
    if not path.is_file() or not h5py.is_hdf5(path):
        return {}
    found = path.stat()
    return _names(path.absolute(), found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=64)
def _names(path: Path, _size: int, _changed: int) -> dict[str, frozenset[str]]:
    import h5py

    try:
        with open_safely(path) as handle:
            return {
                name: frozenset(_first(node)) if isinstance(node, h5py.Group) else frozenset()
                for name, node in ((name, handle[name]) for name in _first(handle))
            }
    except ResourceError:
        raise
    except (OmicsError, OSError, RuntimeError, ValueError, KeyError):
        return {}


def _first(group: Any) -> list[str]:
    return list(islice(group, MAX_NAMES))
