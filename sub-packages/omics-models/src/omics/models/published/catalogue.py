"""The catalogue of published checkpoints: `catalogue.toml` as checked rows."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from omics.data.errors import UnknownNameError, nearest

KINDS = ("bmfm", "geneformer", "bioformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueRow:
    """One published checkpoint, or what is said of those of a kind that is not in the catalogue.

    Attributes:
        name: under which it is converted.
        kind: how it is read: `bmfm`, `geneformer` or `bioformers`.
        hub: repository of the Hugging Face hub; empty where there is none.
        folder: of the checkpoint inside the repository.
        files: patterns of what is fetched, inside that folder.
        parameters: its size, in words.
        licence: of the weights.
        preprocessing: what is done to the counts of a cell, in words.
        pooling: recommended by its authors: `first_token`, `pooling_layer`, `mean_pooling`, `mean`,
            or positions joined by `+`; None for what the checkpoint says itself.
        max_length: tokens of a cell, special ones included; None for the default of the kind.
        prepend: tokens that every cell begins with; empty for what its tokenizer says.
    """

    name: str
    kind: str
    hub: str = ""
    folder: str = ""
    files: tuple[str, ...] = ()
    parameters: str = ""
    licence: str = ""
    preprocessing: str = ""
    pooling: str | None = None
    max_length: int | None = None
    prepend: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain JSON."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


@cache
def catalogue() -> dict[str, CatalogueRow]:
    """Return the rows by name, in the order of the file."""
    text = files("omics.models.published").joinpath("catalogue.toml").read_text(encoding="utf-8")
    rows = {}
    for record in tomllib.loads(text)["checkpoint"]:
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        rows[record["name"]] = CatalogueRow(**values)
    return rows


def catalogue_row(name: str) -> CatalogueRow:
    """Return the row of a name, or the plain row of a kind.

    Args:
        name: of the catalogue, or one of `KINDS`.

    Raises:
        UnknownNameError: it is neither.
    """
    if name in KINDS:
        return CatalogueRow(name=name, kind=name)
    rows = catalogue()
    if name not in rows:
        raise UnknownNameError(
            f"There is no published checkpoint {name!r}.{nearest(name, [*rows, *KINDS])} "
            "`omics-models list` shows all of them."
        )
    return rows[name]


def row_of_hub(repo_id: str, folder: str) -> CatalogueRow | None:
    """Return the row of a repository of the hub, or None.

    Args:
        repo_id: `owner/name`.
        folder: inside it; empty for its top.
    """
    # The repositories for vLLM hold the same weights as safetensors.
    plain = repo_id.removesuffix(".vllm")
    found = (row for row in catalogue().values() if (row.hub, row.folder) == (plain, folder))
    return next(found, None)
