"""Tables of gene tokens: `ensembl_id, symbol, token_id, median`, as Geneformer's are published.

- A row whose name stands in brackets (`<pad>`, `[MASK]`) is a special token and has no median.
- Everything is checked on reading, and an error names the line: a wrong table would give tokens
  that look right and mean other genes.
"""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.atomic_files import write_bytes
from omics.data.errors import InputDataError
from omics.data.matching.gene_tables import table_rows
from omics.tokenizers.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, np.dtype[Any]]

COLUMNS = ("ensembl_id", "symbol", "token_id", "median")
# What published vocabularies call the special tokens; in one that has no separator, the end of the
# sequence is where it would stand.
ROLE_OF_NAME = {
    "pad": "pad",
    "unk": "unk",
    "cls": "cls",
    "sep": "sep",
    "eos": "sep",
    "mask": "mask",
}
_SPECIAL = re.compile(r"<(.+)>|\[(.+)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneTokens:
    """A vocabulary of genes with their symbols and medians.

    Attributes:
        vocabulary: the tokens in the order of their ids.
        symbols: of the genes, in the order of `vocabulary.names`.
        medians: float64 [genes], in the same order; NaN where there is none.
    """

    vocabulary: Vocabulary
    symbols: tuple[str, ...]
    medians: Array


def special_role(token: str) -> str | None:
    """Return the role of a token by its name: None for a gene, empty for a special one without.

    Args:
        token: such as `<pad>`, `[CLS]`, `[S]` or `ENSG00000000003`.
    """
    found = _SPECIAL.fullmatch(token)
    if found is None:
        return None
    return ROLE_OF_NAME.get((found[1] or found[2]).lower(), "")


def vocabulary_by_names(tokens: Sequence[str]) -> Vocabulary:
    """Return a vocabulary whose special tokens are told by their names.

    Args:
        tokens: in id order.
    """
    specials: dict[str, str] = {}
    others = []
    for token in tokens:
        role = special_role(token)
        if role and role not in specials:
            specials[role] = token
        elif role is not None:
            others.append(token)
    return Vocabulary(tokens, specials=specials, other_specials=others)


def read_gene_tokens(path: str | Path) -> GeneTokens:
    """Read a table of gene tokens.

    Args:
        path: a TSV or CSV file with the columns `ensembl_id, symbol, token_id, median`, in any
            order and among others. Token ids run from 0 without gaps; a gene without a median has
            an empty one.

    Raises:
        MissingPathError: there is no such file.
        InputDataError: it is no such table; the message names the line.
    """
    path = Path(path)
    rows = table_rows(path)
    header = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise InputDataError(
            f"{path} has no column {missing[0]!r}; its header"
            f"{f' (line {rows[0][0]})' if rows else ''} is {', '.join(header)[:100]!r}. A table of "
            f"gene tokens has the columns {', '.join(COLUMNS)}."
        )
    at = [header.index(name) for name in COLUMNS]
    found: dict[int, tuple[int, str, str, float]] = {}  # by token id: line, gene, symbol, median
    line_of: dict[str, int] = {}
    for line, cells in rows[1:]:
        where = f"Line {line} of {path}"
        if len(cells) != len(header):
            raise InputDataError(
                f"{where} has {len(cells)} columns where {len(header)} belong. Mend that line."
            )
        gene, symbol, number, median = (cells[index].strip() for index in at)
        token_id = _token_id(number, where)
        if not gene:
            raise InputDataError(f"{where} has no {COLUMNS[0]}. Give the id of the gene.")
        if token_id in found:
            raise InputDataError(
                f"{where} gives {gene!r} the token id {token_id}, which line {found[token_id][0]} "
                f"gives to {found[token_id][1]!r}. Each token id belongs to one gene."
            )
        if gene in line_of:
            raise InputDataError(
                f"{where} repeats {gene!r} of line {line_of[gene]}. Give each gene once."
            )
        line_of[gene] = line
        found[token_id] = (line, gene, symbol, _median(median, gene, where))
    _check_ids(found, path)
    ordered = [found[token_id] for token_id in range(len(found))]
    vocabulary = vocabulary_by_names([gene for _, gene, _, _ in ordered])
    genes = [ordered[index] for index in vocabulary.ordinary_ids.tolist()]
    return GeneTokens(
        vocabulary=vocabulary,
        symbols=tuple(symbol or gene for _, gene, symbol, _ in genes),
        medians=np.array([median for *_, median in genes], np.float64),
    )


def _token_id(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InputDataError(
            f"{where} has the token id {text[:40]!r}; it must be a whole number from 0."
        )
    return int(text)


def _median(text: str, gene: str, where: str) -> float:
    if not text:
        return math.nan
    try:
        median = float(text)
    except ValueError:
        median = math.nan
    if special_role(gene) is not None or not 0 < median < math.inf:
        raise InputDataError(
            f"{where} has the median {text[:40]!r} for {gene!r}: medians are positive numbers of "
            "genes. Leave it empty where there is none."
        )
    return median


def _check_ids(found: dict[int, tuple[int, str, str, float]], path: Path) -> None:
    if not any(special_role(gene) is None for _, gene, _, _ in found.values()):
        raise InputDataError(f"{path} holds no gene. Give one gene a line.")
    gap = next((number for number in range(len(found)) if number not in found), None)
    if gap is not None:
        raise InputDataError(
            f"{path} has {len(found)} token ids up to {max(found)}, and none is {gap}. Token ids "
            "run from 0 without gaps; give the whole table."
        )


def write_gene_tokens(path: str | Path, genes: GeneTokens) -> None:
    """Write a table that `read_gene_tokens` reads, whole or not at all.

    Args:
        path: the file to create or replace.
        genes: the vocabulary with symbols and medians.
    """
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    vocabulary = genes.vocabulary
    place = {token: number for number, token in enumerate(vocabulary.names)}
    for token_id, token in enumerate(vocabulary.tokens):
        number = place.get(token)
        symbol = "" if number is None else genes.symbols[number]
        median = math.nan if number is None else float(genes.medians[number])
        writer.writerow([token, symbol, token_id, "" if math.isnan(median) else repr(median)])
    write_bytes(path, text.getvalue().encode())
