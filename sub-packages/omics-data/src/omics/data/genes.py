"""`GeneTable`: the genes of a store, in the order their positions refer to.

- Ids are unique and printable, so that a position, an id and the digest mean the same thing.
- The digest names a gene vocabulary: models and splits keep it to recognise their genes.
"""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Array = np.ndarray[Any, np.dtype[Any]]

_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{11}(\.\d+)?(_PAR_Y)?")
_VERSION = re.compile(r"(ENS[A-Z]*G\d{11})\.\d+(_PAR_Y)?")
MAX_ID_LENGTH = 1000
_CONTROL = re.compile(r"[\x00-\x1f]")

SYMBOL_COLUMNS = ("symbol", "gene_symbol", "gene_name", "feature_name")


class GeneTable:
    """The genes of a store: unique ids and further columns.

    Args:
        ids: [n], one printable, non-empty, unique string per gene.
        columns: further values per gene, `{name: [n]}`.

    Raises:
        InputDataError: ids are empty, repeated or hold control characters, or a column has
            another length.
    """

    def __init__(
        self, ids: Sequence[str] | Array, columns: Mapping[str, Array] | None = None
    ) -> None:
        names = [str(each) for each in ids]
        _check_ids(names)
        self.ids: Array = np.array(names, dtype=np.str_)
        self.columns: dict[str, Array] = dict(columns or {})
        for name, values in self.columns.items():
            if len(values) != len(names):
                raise InputDataError(
                    f"The gene column {name!r} has {len(values)} values for {len(names)} genes."
                )

    def __len__(self) -> int:
        """Return the number of genes."""
        return len(self.ids)

    def __repr__(self) -> str:
        """Return a short description."""
        return f"GeneTable({len(self)} genes, columns {sorted(self.columns)})"

    @cached_property
    def symbols(self) -> Array:
        """String [n]: the first of the usual symbol columns, else the ids.

        A gene without a symbol keeps its id.
        """
        for name in SYMBOL_COLUMNS:
            if name in self.columns:
                given = [str(each) if _is_text(each) else "" for each in self.columns[name]]
                filled = [a or b for a, b in zip(given, self.ids.tolist(), strict=True)]
                return np.array(filled, dtype=np.str_)
        return self.ids

    @cached_property
    def digest(self) -> str:
        """The sha256 (hex) of the ids joined by newlines, in UTF-8."""
        return gene_digest(self.ids.tolist())

    def positions(self, names: Iterable[str]) -> Array:
        """Return where genes are.

        Args:
            names: [m] gene ids; may repeat.

        Returns:
            int64 [m], the position of each id, -1 where it is absent.
        """
        found = self._position_of
        return np.array([found.get(str(name), -1) for name in names], dtype=np.int64)

    @cached_property
    def position_of_name(self) -> dict[str, int]:
        """The position of each id and symbol; ids win, of repeated symbols the first."""
        return {
            **{name: place for place, name in reversed(list(enumerate(self.symbols.tolist())))},
            **self._position_of,
        }

    @cached_property
    def _position_of(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.ids.tolist())}


def gene_id_system(ids: Sequence[str] | Array) -> str:
    """Say which kind of identifier most of these are.

    Args:
        ids: gene ids.

    Returns:
        `Ensembl ids` (with or without versions), `Entrez ids` (plain numbers), or `gene symbols`,
        which stands for every other kind of name too; `gene symbols` when there are none.
    """
    ensembl = sum(_ENSEMBL.fullmatch(name) is not None for name in ids)
    if 2 * ensembl > len(ids):
        return "Ensembl ids"
    numbers = sum(name.isascii() and name.isdigit() for name in ids)
    return "Entrez ids" if 2 * numbers > len(ids) else "gene symbols"


def without_version(name: str) -> str:
    """Return an Ensembl gene id without its version; any other name as it is.

    `_PAR_Y` stays: it tells the copy of a gene on chromosome Y from the one on X.

    Args:
        name: a gene id.
    """
    found = _VERSION.fullmatch(name)
    return name if found is None else found[1] + (found[2] or "")


def gene_digest(ids: Iterable[str]) -> str:
    """Return the sha256 (hex) of gene ids joined by newlines, in UTF-8.

    Args:
        ids: in the order of their positions.
    """
    return hashlib.sha256("\n".join(ids).encode("utf-8", "surrogatepass")).hexdigest()


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _check_ids(names: list[str]) -> None:
    """Refuse ids that could not be told apart later."""
    # A look at all of them in one go: this runs for every table that is opened.
    longest = max(names, key=len, default="")
    if len(longest) > MAX_ID_LENGTH:
        raise InputDataError(
            f"A gene id has {len(longest):,} characters ({longest[:40]!r}...); {MAX_ID_LENGTH:,} is "
            "the limit. Mend the var index of the source."
        )
    if "" in names or _CONTROL.search("".join(names)):
        for position, name in enumerate(names):
            if name and not _CONTROL.search(name):
                continue
            raise InputDataError(
                f"The id of gene {position} is {name!r}: gene ids must not be empty or hold "
                "control characters. Mend the var index of the source."
            )
    if len(set(names)) != len(names):
        seen: set[str] = set()
        repeated = {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]
        examples = ", ".join(repr(name) for name in sorted(repeated)[:3])
        raise InputDataError(
            f"{len(repeated)} gene ids occur more than once ({examples}). Gene ids must be "
            "unique: make them so in the source (for instance with var_names_make_unique)."
        )
