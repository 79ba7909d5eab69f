"""Reading and writing `.h5ad` files whole, as the verbs of omics-eval do.

- A file is checked by omics.data before AnnData sees it: nothing outside it is ever read.
- An output appears under its name when it is complete, or not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from omics.data.errors import InputDataError

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData


def read_cells(path: str | Path) -> AnnData:
    """Read an `.h5ad` file into memory.

    Args:
        path: the file.

    Raises:
        MissingPathError: there is no such file.
        InputDataError: it is not an AnnData file, or damaged.
    """
    import anndata

    from omics.data.sources.hdf5_safety import open_safely

    with open_safely(path) as handle:
        lacking = [name for name in ("obs", "var") if name not in handle]
    if lacking:
        raise InputDataError(
            f"{path} is an HDF5 file but not an .h5ad file: it has no table {lacking[0]!r}."
        )
    try:
        return anndata.read_h5ad(path)
    except Exception as error:
        if not _is_of_anndata(error, OSError, KeyError, ValueError, TypeError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputDataError(
            f"{path} cannot be read as an AnnData file: {reason}. Look at it with "
            f"`omics-data check`, or write it again with AnnData."
        ) from error


def write_cells(adata: AnnData, path: str | Path) -> None:
    """Write an `.h5ad` file, atomically; a file that exists is replaced.

    Args:
        adata: the cells.
        path: of the file.

    Raises:
        InputDataError: the object holds something that an `.h5ad` file cannot.
    """
    from omics.data.atomic_files import replace_file

    with replace_file(path) as temporary:
        try:
            adata.write_h5ad(temporary)
        except Exception as error:
            if not _is_of_anndata(error, TypeError, ValueError):
                raise
            raise InputDataError(
                f"The cells cannot be written to {path}: {str(error).splitlines()[0]}. Remove what "
                "AnnData cannot store (often an object in uns or a mixed column of obs)."
            ) from error


def _is_of_anndata(error: Exception, *built_in: type[Exception]) -> bool:
    """Return whether anndata raised an error: one of those built in, or, by version, its own."""
    return isinstance(error, built_in) or type(error).__module__.startswith("anndata.")
