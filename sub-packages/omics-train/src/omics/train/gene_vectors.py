"""Pre-trained vectors of genes: a table of anyone's, matched to a vocabulary by id or symbol.

- Text with a gene and its numbers on each line (gene2vec, with or without its first line `n d`),
  CSV or TSV with or without a header, Parquet; text may be gzipped. Of a table that
  `omics-eval embed --level gene` wrote, the columns `symbol` and `num_cells` are left out.
- Genes are matched by id (an Ensembl id also without its version) or by symbol, whichever finds
  more of the vocabulary. What is in doubt is refused: a gene twice, a value that is no number.
"""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError, MissingPathError
from omics.data.genes import without_version
from omics.train.freezing import freeze_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd

    from omics.models import OmicsModel
    from omics.models.gene_embedding import GeneNames
    from omics.tokenizers import CellTokenizer

Array = np.ndarray[Any, np.dtype[Any]]

NO_NUMBERS = ("symbol", "num_cells")


@dataclass(frozen=True, slots=True)
class GeneVectorTable:
    """Vectors by gene, as a file has them.

    Attributes:
        names: ids or symbols, each once.
        vectors: float32 [n, d].
    """

    names: Sequence[str]
    vectors: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedVectors:
    """The vectors of genes of a vocabulary.

    Attributes:
        tokens: int64 [m], token ids, ascending.
        vectors: float32 [m, d].
        matched_by: `id` or `symbol`.
        num_genes: of the vocabulary.
        frozen: whether training leaves these rows as they are.
    """

    tokens: Array
    vectors: Array
    matched_by: str
    num_genes: int
    frozen: bool

    def __str__(self) -> str:
        """Return one line for people."""
        kept = "kept as they are" if self.frozen else "trained further"
        return (
            f"{len(self.tokens):,} of the vocabulary's {self.num_genes:,} genes have pre-trained "
            f"vectors of {self.vectors.shape[1]} numbers (matched by {self.matched_by}), {kept}"
        )


def read_gene_vectors(path: str | Path) -> GeneVectorTable:
    """Read vectors of genes.

    Args:
        path: of the table.

    Raises:
        MissingPathError: there is no such file.
        InputDataError: it is no such table, or a gene occurs twice.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingPathError(f"There is no file {path} with vectors of genes.")
    frame = _parquet(path) if path.suffix == ".parquet" else _text(path)
    names = [str(name) for name in frame.iloc[:, 0]]
    columns = [
        column
        for position, column in enumerate(frame.columns)
        if position and str(column) not in NO_NUMBERS
    ]
    if not names or not columns:
        raise InputDataError(
            f"{path} holds {len(names)} genes with {len(columns)} numbers each. A line must be a "
            "gene, then its numbers, separated by blanks, tabs or commas."
        )
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise InputDataError(
            f"{path} names {len(twice)} genes more than once, first {twice[0]!r}. Keep one vector "
            "of each."
        )
    vectors = _numbers(frame[columns], names, path)
    return GeneVectorTable(names, vectors)


def match_vectors(
    table: GeneVectorTable, tokenizer: CellTokenizer, names: GeneNames, *, frozen: bool
) -> MatchedVectors:
    """Find the genes of a vocabulary in a table of vectors.

    Args:
        table: of vectors.
        tokenizer: with the vocabulary.
        names: of its tokens.
        frozen: whether training leaves the rows as they are.

    Raises:
        InputDataError: none of the genes is there.
    """
    tokens = tokenizer.vocabulary.ordinary_ids
    found = {
        "id": _rows_of(names.genes[tokens], table.names),
        "symbol": _rows_of(names.symbols[tokens], table.names),
    }
    matched_by = max(found, key=lambda way: int((found[way] >= 0).sum()))
    rows = found[matched_by]
    if not (rows >= 0).any():
        theirs = ", ".join(table.names[:3])
        ours = ", ".join(str(name) for name in names.genes[tokens[:3]])
        raise InputDataError(
            f"None of the vocabulary's {len(tokens):,} genes has a pre-trained vector: the table "
            f"has genes like {theirs}, the vocabulary genes like {ours}. Use vectors of the same "
            "species and kind of names."
        )
    known = rows >= 0
    return MatchedVectors(
        tokens=tokens[known].astype(np.int64),
        vectors=table.vectors[rows[known]],
        matched_by=matched_by,
        num_genes=len(tokens),
        frozen=frozen,
    )


def place_vectors(model: OmicsModel, field: str, vectors: MatchedVectors) -> str:
    """Put pre-trained vectors into the table of a field, and freeze their rows if asked to.

    Args:
        model: with a projected table of that width.
        field: of the genes.
        vectors: of genes of its vocabulary.

    Returns:
        The name of the parameter.
    """
    import torch

    name = f"embedding.fields.{field}.table.weight"
    table = model.get_parameter(name)
    rows = torch.from_numpy(vectors.tokens)
    with torch.no_grad():
        table[rows] = torch.from_numpy(vectors.vectors)
    if vectors.frozen:
        freeze_rows(table, rows)
    return name


def _rows_of(wanted: Iterable[str], names: Sequence[str]) -> Array:
    """Return the row of each wanted gene, -1 where there is none; versions do not matter."""
    row_of = {name: row for row, name in enumerate(names)}
    bare: dict[str, int] = {}
    for row, name in enumerate(names):
        # Two versions of a gene are two answers: neither is taken.
        bare[without_version(name)] = -1 if without_version(name) in bare else row
    return np.array(
        [row_of.get(str(name), bare.get(without_version(str(name)), -1)) for name in wanted],
        np.int64,
    )


def _text(path: Path) -> pd.DataFrame:
    import pandas as pd

    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as stream:
            lines = [stream.readline().rstrip("\r\n") for _ in range(2)]
        between = next((each for each in ("\t", ",") if each in lines[1]), r"\s+")
        first, second = (_split(line, between) for line in lines)
        # gene2vec begins with the number of genes and of numbers.
        has_counts = len(first) == 2 and all(x.isdecimal() for x in first) and len(second) != 2
        has_header = not has_counts and not all(_is_number(text) for text in first[1:])
        frame = pd.read_csv(
            path,
            sep=between,
            header=None,
            skiprows=int(has_counts or has_header),
            index_col=False,
            dtype={0: str},
            keep_default_na=False,
            float_precision="round_trip",
            encoding="utf-8-sig",
        )
        frame[0] = frame[0].str.strip()
        if has_header:
            frame.columns = pd.Index(first)
    except (OSError, UnicodeDecodeError, ValueError, pd.errors.ParserError) as error:
        reason = str(error).splitlines()[0]
        raise InputDataError(
            f"{path} is no table of vectors of genes ({reason}). A line must be a gene, then its "
            "numbers, as many on every line."
        ) from error
    if has_counts and [len(frame), frame.shape[1] - 1] != [int(x) for x in first]:
        raise InputDataError(
            f"{path} begins with {first[0]} genes and {first[1]} numbers, and holds {len(frame)} "
            f"and {frame.shape[1] - 1}. The file is cut short: fetch it again."
        )
    return frame


def _parquet(path: Path) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa

    try:
        return pd.read_parquet(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputDataError(f"{path} is not a Parquet file ({error}).") from error


def _numbers(frame: pd.DataFrame, names: Sequence[str], path: Path) -> Array:
    import pandas as pd

    values = frame.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = wrong[0]
        raise InputDataError(
            f"{path} has {frame.iloc[row, column]!r} as number {column + 1} of the gene "
            f"{names[row]!r}. Every gene needs as many numbers as the first."
        )
    return values.astype(np.float32)


def _split(line: str, between: str) -> list[str]:
    if between == r"\s+":
        return line.split()
    return [text.strip() for text in next(csv.reader([line], delimiter=between), [])]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
