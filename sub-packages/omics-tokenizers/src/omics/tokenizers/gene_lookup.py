"""`GeneLookup`: which gene of a store is which token of a vocabulary, and how many are known.

- One integer table per store: no string is looked at per cell.
- Genes are matched by id (an Ensembl id also without its version), by a column of ids, or by
  symbol, whichever finds most of the vocabulary; never by a mixture, which would be guessing.
  Those left over are looked up in a table of aliases, if there is one.
- A symbol that several genes of either side have says nothing and matches none; so does an alias of
  several genes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import ConfigError, InputDataError
from omics.data.genes import without_version
from omics.data.matching.gene_matching import ENSEMBL_COLUMNS
from omics.data.matching.gene_tables import read_pairs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from omics.data import GeneTable
    from omics.data.matching.gene_tables import PairTable
    from omics.tokenizers.vocabulary import Vocabulary

Array = np.ndarray[Any, np.dtype[Any]]

_NUM_EXAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneCoverage:
    """How well a store's genes and a vocabulary meet.

    Attributes:
        matched_by: how many genes of the store were found in which way: `id`,
            `id without version`, `column 'gene_ids'` (or another), `symbol`, `alias`.
        num_known: genes of the vocabulary that the store has.
        num_store: genes of the store.
        num_vocabulary: genes of the vocabulary.
        counts_known: the share of the store's counts that known genes hold; None if not asked.
        unknown: genes of the store that are not in the vocabulary, a few: those with the highest
            counts if these were given, else the first.
    """

    matched_by: Mapping[str, int]
    num_known: int
    num_store: int
    num_vocabulary: int
    counts_known: float | None = None
    unknown: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one line for people."""
        ways = {way: number for way, number in self.matched_by.items() if number}
        named = [f"{way} ({number:,})" if len(ways) > 1 else way for way, number in ways.items()]
        how = f" (matched by {', '.join(named)})" if ways else ""
        counts = ""
        if self.counts_known is not None:
            nearly = 0.9995 <= self.counts_known < 1
            share = "> 99.9" if nearly else f"{100 * self.counts_known:.1f}"
            counts = f" and hold {share} % of its counts"
        return (
            f"{self.num_known:,} of the vocabulary's {self.num_vocabulary:,} genes are among the "
            f"{self.num_store:,} genes of the store{how}{counts}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON."""
        return {
            "matched_by": dict(self.matched_by),
            "num_known": self.num_known,
            "num_store": self.num_store,
            "num_vocabulary": self.num_vocabulary,
            "counts_known": self.counts_known,
            "unknown": list(self.unknown),
        }


class GeneLookup:
    """Finds the genes of stores in a vocabulary.

    Attributes:
        vocabulary: whose ordinary tokens are genes.
        symbols: other names of the same genes, in the order of `vocabulary.names`.
        aliases: (alias, gene) pairs; the gene is named as in the vocabulary or by its symbol.
        min_coverage: the share of genes (of the smaller side) that must match.

    Args:
        vocabulary: whose ordinary tokens are genes.
        symbols: None takes the tokens themselves.
        aliases: older or other names of genes: a table with the columns `alias` and `gene`, a
            mapping or pairs; None for none.
        min_coverage: from 0 to 1.

    Raises:
        ConfigError: symbols and genes differ in number, or the coverage is no share.
        MissingPathError: there is no such table of aliases.
        InputDataError: it is no such table.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        symbols: Sequence[str] | None = None,
        *,
        aliases: PairTable | None = None,
        min_coverage: float = 0.1,
    ) -> None:
        self.vocabulary = vocabulary
        self.symbols = vocabulary.names if symbols is None else tuple(str(s) for s in symbols)
        if len(self.symbols) != len(vocabulary.names):
            raise ConfigError(
                f"{len(self.symbols)} symbols for {len(vocabulary.names)} gene ids. Give one for "
                "each gene."
            )
        if not 0 <= min_coverage <= 1:
            raise ConfigError(f"min_coverage is {min_coverage}; it must be a share from 0 to 1.")
        self.aliases = tuple(read_pairs(aliases, ("alias", "gene"))) if aliases is not None else ()
        self.min_coverage = min_coverage

    def match(self, genes: GeneTable, gene_sums: Array | None = None) -> tuple[Array, GeneCoverage]:
        """Find a store's genes.

        Args:
            genes: the store's table.
            gene_sums: [genes of the store], what each holds; for the share of known counts.

        Returns:
            int32 [genes of the store] token ids, -1 where unknown (several genes may come to one
            token), and the coverage.

        Raises:
            InputDataError: less than `min_coverage` of the possible matches was found.
        """
        found = max(self._ways(genes), key=lambda way: way[1].num_known)
        table, coverage = found
        coverage = self._with_counts(table, coverage, genes, gene_sums)
        # A panel is small beside a vocabulary and a toy vocabulary beside a store: the smaller
        # of the two is what could have matched.
        possible = min(coverage.num_store, coverage.num_vocabulary)
        if coverage.num_known < max(1.0, self.min_coverage * possible):
            raise InputDataError(
                f"Only {coverage}; at least {self.min_coverage:.0%} is needed. The store has genes "
                f"like {_examples(genes.ids.tolist())}; the vocabulary has genes like "
                f"{_examples(self.vocabulary.names)}. Use the same species and the same kind of "
                "gene ids (Ensembl or symbols), or a vocabulary with symbols."
            )
        return table, coverage

    def _ways(self, genes: GeneTable) -> list[tuple[Array, GeneCoverage]]:
        """Return the table and the coverage of each way to match that finds something new."""
        ids = genes.ids.tolist()
        by_id = dict(zip(self.vocabulary.names, self.vocabulary.ordinary_ids.tolist(), strict=True))
        ways = [self._by_id(ids, by_id, "id")]
        if ways[0][1].num_known == len(by_id):
            return ways
        for column in ENSEMBL_COLUMNS:
            if column in genes.columns:
                texts = _texts(genes.columns[column])
                ways.append(self._by_id(texts, by_id, f"column {column!r}"))
        symbols = genes.symbols.tolist()
        # An index may hold symbols beside a column of them, which may be older or empty.
        ways += [
            self._by_symbol(names) for names in ([symbols] if symbols == ids else [symbols, ids])
        ]
        return ways

    def _by_id(
        self, names: list[str], by_id: Mapping[str, int], way: str
    ) -> tuple[Array, GeneCoverage]:
        table = np.array([by_id.get(name, -1) for name in names], np.int32)
        exact = int((table >= 0).sum())
        bare = _unique((without_version(name), token) for name, token in by_id.items())
        rest = np.flatnonzero(table < 0).tolist()
        for index in rest:
            table[index] = bare.get(without_version(names[index]), -1)
        matched = {way: exact, "id without version": int((table >= 0).sum()) - exact}
        return self._with_aliases(table, [without_version(name) for name in names], matched)

    def _by_symbol(self, names: list[str]) -> tuple[Array, GeneCoverage]:
        times = Counter(names)
        ours = self._tokens_of_symbols()
        table = np.array(
            [ours.get(name, -1) if times[name] == 1 else -1 for name in names], np.int32
        )
        matched = {"symbol": int((table >= 0).sum())}
        return self._with_aliases(table, names, matched)

    def _tokens_of_symbols(self) -> dict[str, int]:
        tokens = self.vocabulary.ordinary_ids.tolist()
        return _unique(
            (symbol, token) for symbol, token in zip(self.symbols, tokens, strict=True) if symbol
        )

    def _with_aliases(
        self, table: Array, names: list[str], matched: dict[str, int]
    ) -> tuple[Array, GeneCoverage]:
        """Look up what is still unknown among the aliases, and count."""
        if self.aliases:
            tokens = dict(zip(self.vocabulary.names, self.vocabulary.ordinary_ids, strict=True))
            tokens = {**self._tokens_of_symbols(), **tokens}
            meant = _unique(
                (alias, int(tokens[gene])) for alias, gene in self.aliases if gene in tokens
            )
            for index in np.flatnonzero(table < 0).tolist():
                table[index] = meant.get(names[index], -1)
            matched["alias"] = int((table >= 0).sum()) - sum(matched.values())
        return table, GeneCoverage(
            matched_by=matched,
            num_known=len(np.unique(table[table >= 0])),
            num_store=len(table),
            num_vocabulary=len(self.vocabulary.names),
        )

    @staticmethod
    def _with_counts(
        table: Array, coverage: GeneCoverage, genes: GeneTable, gene_sums: Array | None
    ) -> GeneCoverage:
        unknown = np.flatnonzero(table < 0)
        share = None
        if gene_sums is not None:
            total = float(gene_sums.sum())
            share = float(gene_sums[table >= 0].sum()) / total if total else None
            unknown = unknown[np.argsort(-gene_sums[unknown], kind="stable")]
        examples = tuple(str(name) for name in genes.ids[unknown[:_NUM_EXAMPLES]])
        return replace(coverage, counts_known=share, unknown=examples)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        same = self.symbols == self.vocabulary.names
        return {
            "vocabulary": self.vocabulary.to_dict(),
            "symbols": None if same else list(self.symbols),
            "aliases": [list(pair) for pair in self.aliases],
            "min_coverage": self.min_coverage,
        }


def _unique(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return name to token for the names that stand for one token only."""
    first: dict[str, int] = {}
    several = set()
    for name, token in pairs:
        if first.setdefault(name, token) != token:
            several.add(name)
    return {name: token for name, token in first.items() if name not in several}


def _texts(values: Array) -> list[str]:
    return [value if isinstance(value, str) else "" for value in values.tolist()]


def _examples(names: Sequence[str]) -> str:
    return ", ".join(str(name) for name in names[:_NUM_EXAMPLES])
