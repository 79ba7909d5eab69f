"""What `convert` is given, as a list of sources: one path, several, or a folder of them.

- A folder that is a source itself (10x, zarr, a store, ...) is that source; any other folder stands
  for the sources below it, in the order of their names. What is no source is listed as skipped.
- Names of sources come from file names; where these repeat, folders are added until they differ.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import KW_ONLY, dataclass, field
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from omics.data.errors import UsageError
from omics.data.sources.registry import SOURCE_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_ANY_FILE = "h5ad"


@dataclass(frozen=True)
class SourceSpec:
    """A source of cells, with what is to be known about it.

    Attributes:
        path: a file, a folder or an address.
        name: what the source is called in the column `source`; by default made of the path.
        location: where its counts are; None takes what `convert` was told.
        extra_obs: values that become constant columns of obs, `{column: text, number or flag}`.
        options: for its reader.
    """

    path: str | Path
    _: KW_ONLY
    name: str | None = None
    location: str | None = None
    extra_obs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


AnySource = str | Path | SourceSpec


def list_sources(
    source: AnySource | Sequence[AnySource], *, leave_out: Path | None = None
) -> tuple[list[SourceSpec], list[str]]:
    """Return the single sources of what was given.

    Args:
        source: a path, a `SourceSpec`, or several of these; folders of sources are looked into.
        leave_out: a path that is not looked into (the store that is to be written).

    Returns:
        The sources in their order, each with a name of its own, and the paths below folders that
        no reader recognises.

    Raises:
        UsageError: there is no source, or one is given twice.
    """
    given = [source] if isinstance(source, str | Path | SourceSpec) else list(source)
    if not given:
        raise UsageError("No source is given. Name at least one file or folder.")
    hidden = None if leave_out is None else leave_out.resolve()
    specs: list[SourceSpec] = []
    skipped: list[str] = []
    for each in given:
        spec = each if isinstance(each, SourceSpec) else SourceSpec(each)
        if _is_folder_of_sources(spec.path):
            found = list(_below(Path(spec.path), hidden, skipped))
            # An empty folder is handed on: opening it says what belongs there.
            specs += [_like(spec, path) for path in found] or [spec]
        else:
            specs.append(spec)
    _refuse_twice(specs)
    return [
        SourceSpec(
            spec.path,
            name=name,
            location=spec.location,
            extra_obs=spec.extra_obs,
            options=spec.options,
        )
        for spec, name in zip(specs, _unique_names(specs), strict=True)
    ], skipped


def _like(spec: SourceSpec, path: Path) -> SourceSpec:
    return SourceSpec(path, location=spec.location, extra_obs=spec.extra_obs, options=spec.options)


def _is_folder_of_sources(path: str | Path) -> bool:
    return "://" not in str(path) and Path(path).is_dir() and not _recognised(Path(path))


def _recognised(path: Path) -> bool:
    """Tell whether a reader would open this path for what is in it."""
    for kind in SOURCE_KINDS:
        if kind.name != _ANY_FILE:
            reader = import_module(f"omics.data.sources.{kind.module}")
            if reader.recognises(path):
                return True
    # A broken .h5ad file is a source too: it must be refused, not passed over.
    return path.is_file() and (path.suffix == ".h5ad" or _begins_as_hdf5(path))


def _begins_as_hdf5(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(_HDF5_SIGNATURE)) == _HDF5_SIGNATURE


def _below(folder: Path, leave_out: Path | None, skipped: list[str]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or (leave_out is not None and path.resolve() == leave_out):
            continue
        if _recognised(path):
            yield path
        elif path.is_dir() and not path.is_symlink():
            yield from _below(path, leave_out, skipped)
        else:
            skipped.append(str(path))


def _refuse_twice(specs: list[SourceSpec]) -> None:
    seen: set[tuple[str, str, str | None]] = set()
    for spec in specs:
        place = str(spec.path) if "://" in str(spec.path) else str(Path(spec.path).resolve())
        key = place, repr(sorted(spec.options.items())), spec.location
        if key in seen:
            raise UsageError(f"{spec.path} is given twice; its cells would be there twice.")
        seen.add(key)


def _unique_names(specs: list[SourceSpec]) -> list[str]:
    """Return a name for each source: the stem, with as many folders as tell it from the others."""
    paths = [PurePosixPath(str(spec.path).rstrip("/")) for spec in specs]
    names = [spec.name or path.stem for spec, path in zip(specs, paths, strict=True)]
    for depth in range(2, max(len(path.parts) for path in paths) + 1):
        used = Counter(names)
        if len(used) == len(names):
            return names
        names = [
            name if spec.name or used[name] == 1 else "/".join([*path.parts[-depth:-1], path.stem])
            for spec, path, name in zip(specs, paths, names, strict=True)
        ]
    seen: Counter[str] = Counter()
    for position, name in enumerate(names):
        seen[name] += 1
        if seen[name] > 1:
            names[position] = f"{name}-{seen[name]}"
    return names
