"""Saving a tokenizer as `tokenizer.json` and loading it by its `kind`.

- The file is data: nothing in it names code; `kind` selects a row of the table below.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from omics.data.atomic_files import write_bytes
from omics.data.errors import ConfigError, MissingPathError, nearest
from omics.tokenizers.gene_bin_tokenizer import GeneBinTokenizer
from omics.tokenizers.gene_tokenizer import GeneTokenizer
from omics.tokenizers.rank_value_tokenizer import RankValueTokenizer
from omics.tokenizers.sequence_tokenizer import SequenceTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from omics.tokenizers.bound_tokenizer import CellTokenizer
    from omics.tokenizers.fields import FieldSpec

FILE_NAME = "tokenizer.json"
FORMAT_VERSION = 1


class Tokenizer(Protocol):
    """What every tokenizer offers besides its own `encode`."""

    kind: str

    @property
    def fields(self) -> list[FieldSpec]:
        """The fields of the TokenBatches it makes."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        ...


KINDS: dict[str, Callable[[Mapping[str, Any]], Tokenizer]] = {
    GeneBinTokenizer.kind: GeneBinTokenizer.from_dict,
    GeneTokenizer.kind: GeneTokenizer.from_dict,
    RankValueTokenizer.kind: RankValueTokenizer.from_dict,
    SequenceTokenizer.kind: SequenceTokenizer.from_dict,
}


def reads_cells(tokenizer: Tokenizer) -> TypeGuard[CellTokenizer]:
    """Say whether a tokenizer reads cells, as opposed to sequences.

    Args:
        tokenizer: any of the kinds.
    """
    return isinstance(tokenizer, GeneBinTokenizer | GeneTokenizer | RankValueTokenizer)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` into an existing folder.

    Args:
        tokenizer: any of the kinds.
        folder: where the file goes.
    """
    value = {"format_version": FORMAT_VERSION, **tokenizer.to_dict()}
    write_bytes(folder / FILE_NAME, (json.dumps(value, indent=1) + "\n").encode())


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a folder.

    Args:
        folder: with a `tokenizer.json`.

    Raises:
        MissingPathError: there is none.
        ConfigError: the file is not a tokenizer this version knows.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise MissingPathError(f"{path} does not exist; give the folder of a saved tokenizer.")
    try:
        value = json.loads(path.read_bytes())
        kind = value["kind"]
        version = value["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a tokenizer file ({error}).") from error
    if version != FORMAT_VERSION:
        raise ConfigError(f"{path} has format version {version}; this package reads 1.")
    if kind not in KINDS:
        raise ConfigError(f"{path} is of kind {kind!r}.{nearest(str(kind), sorted(KINDS))}")
    try:
        return KINDS[kind](value)
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} lacks or misuses the key {error} of a {kind} tokenizer."
        ) from error
