"""The optional libraries of quality control: imported where needed, missed with one clear line."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from omics.data.errors import MissingExtraError


def import_extra(name: str) -> Any:
    """Import a module of the extra `qc`.

    Args:
        name: such as `scanpy` or `dask.array`.

    Returns:
        The module.

    Raises:
        MissingExtraError: it is not installed; the message names the pip command.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.split(".", maxsplit=1)[0]
        raise MissingExtraError(
            f"Quality control needs {package}, which cannot be imported ({error}). Run: "
            "pip install 'omics-data[qc]'"
        ) from error
