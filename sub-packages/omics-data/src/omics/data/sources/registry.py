"""`open_source`: finds out what a path is and opens it with the reader for it.

- A kind is recognised by what is there, never by the ending of a name alone; `SOURCE_KINDS` is
  asked in its order and the first that recognises the path opens it.
- What no reader recognises is described by its first bytes (most are broken downloads).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omics.data.errors import InputDataError, MissingPathError, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from omics.data.sources.protocol import Source


@dataclass(frozen=True, slots=True)
class SourceKind:
    """A kind of source.

    Attributes:
        name: what users call it.
        module: `omics.data.sources.<module>`, which has `recognises(path) -> bool` (cheap: a name,
            a listing, a few bytes; False for what is not there).
        opener: the name in it of a context manager that takes the path, and options as keywords,
            and yields a `Source`.
    """

    name: str
    module: str
    opener: str


# The reader for any other file comes last: its messages say what a file looks like.
SOURCE_KINDS = (
    # Folders and addresses, then files of other formats.
    SourceKind("CELLxGENE census (census:VERSION/ORGANISM)", "census", "open_census"),
    SourceKind("TileDB-SOMA experiment", "source_soma", "open_soma"),
    SourceKind("bionemo SCDL folder", "source_scdl", "open_scdl"),
    SourceKind("AnnData zarr", "source_zarr", "open_zarr"),
    SourceKind("10x HDF5", "source_10x_hdf5", "open_10x_hdf5"),
    SourceKind("10x folder (matrix.mtx)", "source_10x_folder", "open_10x_folder"),
    SourceKind("loom", "source_loom", "open_loom"),
    SourceKind("R data file", "source_rdata", "open_rdata"),
    SourceKind("bulk matrix (TSV, CSV, GCT)", "source_bulk", "open_bulk"),
    SourceKind("omics store", "source_store", "open_store_source"),
    SourceKind("h5ad", "source_h5ad", "open_h5ad"),
)


@contextlib.contextmanager
def open_source(path: str | Path, **options: Any) -> Iterator[Source]:
    """Open a source of cells, whatever its kind.

    Args:
        path: a file, a folder, or an address such as `s3://...`.
        options: for the reader; those it does not know are a UsageError.

    Yields:
        The source, usable until the end of the block.

    Raises:
        MissingPathError: there is nothing at the path.
        InputDataError: nothing here reads it, or its reader refuses it.
    """
    for kind in SOURCE_KINDS:
        reader = import_module(f"omics.data.sources.{kind.module}")
        if reader.recognises(path):
            opener = getattr(reader, kind.opener)
            _check_options(kind, opener, options)
            with opener(path, **options) as source:
                yield source
            return
    if not Path(path).exists():
        raise MissingPathError(f"There is no file or folder {path}.")
    if not Path(path).is_dir():
        raise UsageError(f"{path} is a pipe or a device, not a file; copy it to a file first.")
    known = ", ".join(kind.name for kind in SOURCE_KINDS)
    raise InputDataError(
        f"{path} is no source of cells: it is none of {known}. Give a file or folder of these."
    )


def _check_options(
    kind: SourceKind, opener: Callable[..., Any], options: Mapping[str, Any]
) -> None:
    """Refuse an option that the reader of this kind does not have."""
    known = [
        name
        for name, parameter in signature(opener).parameters.items()
        if parameter.kind is Parameter.KEYWORD_ONLY
    ]
    for name in options:
        if name not in known:
            raise UsageError(
                f"The reader for {kind.name} has no option {name!r}.{nearest(name, known)}"
            )
