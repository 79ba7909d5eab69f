"""`GeneTokenizer`: expressed genes of a cell to the field `genes` and fields of their values.

- A gene becomes a token id through one integer table per store: no string per cell.
- Genes outside the vocabulary are dropped, entry by entry, together with their values; of several
  genes of a store that are one gene of the vocabulary, the first is kept.
- The order of tokens is the order of entries in the CellBatch (a transform's business).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import ConfigError, UnknownNameError, nearest
from omics.data.transforms.read_depth import SOURCE_DEPTH, TARGET_DEPTH
from omics.tokenizers.fields import FieldSpec, encode_labels
from omics.tokenizers.gene_lookup import GeneCoverage, GeneLookup
from omics.tokenizers.token_batch import TokenBatch
from omics.tokenizers.value_field import ValueField
from omics.tokenizers.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omics.data import CellBatch, GeneTable
    from omics.data.matching.gene_tables import PairTable
    from omics.tokenizers.fields import LabelSpec

Array = np.ndarray[Any, np.dtype[Any]]

GENES = "genes"
# The pseudo-genes of read-depth-aware models, and the columns of obs that hold their values.
DEPTH_TOKENS = {"[S]": SOURCE_DEPTH, "[T]": TARGET_DEPTH}


class GeneTokenizer:
    """Turns a `CellBatch` into a `TokenBatch` with the field `genes` and fields of values.

    A cell becomes: the tokens of `prepend`, the depth tokens `[S]` and `[T]`, its genes, and the
    token of the role `sep`; each part but the genes only if asked for.

    Attributes:
        lookup: the vocabulary of genes and how stores are matched to it.
        values: the fields of values.
        prepend: special tokens that every cell begins with.
        depth_tokens: whether `[S]` and `[T]` follow them.
        append_sep: whether a cell ends with the token of the role `sep`.
        max_length: tokens that a cell may have, special ones included; None for no limit.

    Args:
        vocabulary: whose ordinary tokens are genes.
        symbols: of the genes, in the order of `vocabulary.names`; None takes the tokens.
        aliases: see `GeneLookup`.
        min_coverage: the share of genes (of the smaller side) that must match; below it `bind`
            refuses.
        values: the fields of values, at least one; a cell that is too long keeps the genes whose
            value in the first is highest.
        prepend: None takes the token of the role `cls`.
        depth_tokens: their values in continuous fields are `obs["S"]` and `obs["T"]` of a batch,
            as the transforms `read_depth_downsample` and `poisson_downsample` make them.
        append_sep: False by default.
        max_length: a longer cell keeps its genes of highest value, in their order; of equal
            values the gene that comes first in the store.

    Raises:
        ConfigError: a special token that the vocabulary lacks, no field of values or one name for
            two, a limit that leaves no place for genes.
    """

    kind = "gene"

    def __init__(
        self,
        vocabulary: Vocabulary,
        symbols: Sequence[str] | None = None,
        *,
        aliases: PairTable | None = None,
        min_coverage: float = 0.1,
        values: Sequence[ValueField] = (ValueField(),),
        prepend: Sequence[str] | None = None,
        depth_tokens: bool = False,
        append_sep: bool = False,
        max_length: int | None = None,
    ) -> None:
        self.lookup = GeneLookup(vocabulary, symbols, aliases=aliases, min_coverage=min_coverage)
        self.values = tuple(values)
        if prepend is None:
            prepend = [vocabulary.required("cls", needed_for="The first token of a cell (prepend)")]
        self.prepend = tuple(str(token) for token in prepend)
        self.depth_tokens = depth_tokens
        self.append_sep = append_sep
        self.max_length = max_length
        names = [GENES, *(each.name for each in self.values)]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ConfigError(
                f"The fields are {names}; beside {GENES!r} there must be one for values, each with "
                "a name of its own."
            )
        special = [vocabulary.name(each) for each in vocabulary.special_ids]
        for token in self._front:
            if token not in special:
                raise ConfigError(
                    f"A cell cannot begin with {token!r}: it is no special token of this "
                    f"vocabulary.{nearest(token, special)}"
                )
        self._back = (vocabulary.required("sep", needed_for="append_sep"),) if append_sep else ()
        if max_length is not None and max_length <= self.num_special:
            raise ConfigError(
                f"max_length is {max_length} and {self.num_special} tokens of each cell are "
                "special: no place is left for genes. Raise it."
            )
        self._frame()  # Bins without a special token are refused here, not with the first cell.

    @classmethod
    def from_list(
        cls, gene_ids: Sequence[str], symbols: Sequence[str] | None = None, **options: Any
    ) -> GeneTokenizer:
        """Return a tokenizer whose vocabulary is a list of genes, in our own layout.

        Args:
            gene_ids: Ensembl ids or symbols.
            symbols: of the same genes; None takes the ids.
            **options: of the class. With `depth_tokens`, `[S]` and `[T]` are added.
        """
        others = list(DEPTH_TOKENS) if options.get("depth_tokens") else []
        return cls(Vocabulary.of_names(gene_ids, other_specials=others), symbols, **options)

    @classmethod
    def from_genes(cls, genes: GeneTable, **options: Any) -> GeneTokenizer:
        """Return a tokenizer whose vocabulary is a store's gene table, in our own layout.

        Args:
            genes: the table.
            **options: as for `from_list`.
        """
        return cls.from_list(genes.ids.tolist(), genes.symbols.tolist(), **options)

    @property
    def vocabulary(self) -> Vocabulary:
        """Gene ids to token ids."""
        return self.lookup.vocabulary

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols of the vocabulary's genes, in the order of `vocabulary.names`."""
        return self.lookup.symbols

    @property
    def _front(self) -> tuple[str, ...]:
        return (*self.prepend, *(DEPTH_TOKENS if self.depth_tokens else ()))

    @property
    def num_special(self) -> int:
        """Tokens of every cell that stand for no gene."""
        return len(self._front) + int(self.append_sep)

    @property
    def fields(self) -> list[FieldSpec]:
        """The fields that `encode` makes; that of the genes is the first."""
        vocabulary = self.vocabulary
        genes = FieldSpec(
            name=GENES,
            kind="discrete",
            vocabulary_size=len(vocabulary),
            special_ids=vocabulary.special_ids,
            mask_id=vocabulary.id_of("mask"),
        )
        # Depth tokens have real values in continuous fields, and ids of their own among bins.
        around = (*self.prepend, *self._back)
        everywhere = (*self._front, *self._back)
        return [
            genes,
            *(
                each.spec(vocabulary, around if each.bins is None else everywhere)
                for each in self.values
            ),
        ]

    def token_of_gene(
        self, genes: GeneTable, gene_sums: Array | None = None
    ) -> tuple[Array, GeneCoverage]:
        """Match a store's genes; see `GeneLookup.match`.

        Args:
            genes: the store's table.
            gene_sums: [genes of the store], for the share of known counts.

        Returns:
            int32 [genes of the store] token ids, each once, -1 where unknown, and the coverage.

        Raises:
            InputDataError: too few genes in common.
        """
        table, coverage = self.lookup.match(genes, gene_sums)
        _, first = np.unique(table, return_index=True)
        once = np.full(len(table), -1, np.int32)
        once[first] = table[first]
        return once, coverage

    def bind(
        self,
        genes: GeneTable,
        *,
        labels: Sequence[LabelSpec] = (),
        gene_sums: Array | None = None,
    ) -> BoundGeneTokenizer:
        """Return an encoder for the batches of one store.

        Args:
            genes: the store's gene table.
            labels: label columns to encode from `CellBatch.obs`.
            gene_sums: [genes of the store], for the share of known counts in the coverage.

        Raises:
            InputDataError: too few genes in common.
        """
        table, coverage = self.token_of_gene(genes, gene_sums)
        return BoundGeneTokenizer(
            table=table,
            coverage=coverage,
            values=self.values,
            frame=self._frame(),
            depths=tuple(DEPTH_TOKENS.values()) if self.depth_tokens else (),
            max_genes=None if self.max_length is None else self.max_length - self.num_special,
            labels=tuple(labels),
        )

    def _frame(self) -> dict[str, tuple[Array, Array]]:
        vocabulary = self.vocabulary
        frame = {GENES: (vocabulary.ids(self._front), vocabulary.ids(self._back))}
        for each in self.values:
            parts = (each.special(vocabulary, part) for part in (self._front, self._back))
            frame[each.name] = tuple(parts)  # type: ignore[assignment]
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "kind": self.kind,
            **self.lookup.to_dict(),
            "values": [each.to_dict() for each in self.values],
            "prepend": list(self.prepend),
            "depth_tokens": self.depth_tokens,
            "append_sep": self.append_sep,
            "max_length": self.max_length,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> GeneTokenizer:
        """Return the tokenizer of a JSON form.

        Args:
            value: as made by `to_dict`.
        """
        return cls(
            Vocabulary.from_dict(value["vocabulary"]),
            value["symbols"],
            aliases=value["aliases"],
            min_coverage=float(value["min_coverage"]),
            values=[ValueField.from_dict(each) for each in value["values"]],
            prepend=value["prepend"],
            depth_tokens=bool(value["depth_tokens"]),
            append_sep=bool(value["append_sep"]),
            max_length=None if value["max_length"] is None else int(value["max_length"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundGeneTokenizer:
    """A gene tokenizer fitted to one store: integers in, integers out.

    Attributes:
        table: int32 [genes of the store], token ids, each at most once, -1 where unknown.
        coverage: how well the store's genes are known.
        values: the fields of values.
        frame: `{field: (before, after)}`, what stands in front of the genes of a cell and behind.
        depths: the columns of obs whose values the last tokens in front take in continuous fields.
        max_genes: how many genes a cell may keep; None for all.
        labels: the columns encoded from obs.
    """

    table: Array
    coverage: GeneCoverage
    values: tuple[ValueField, ...]
    frame: Mapping[str, tuple[Array, Array]]
    depths: tuple[str, ...]
    max_genes: int | None
    labels: tuple[LabelSpec, ...]

    @property
    def num_special(self) -> int:
        """Tokens of every cell that stand for no gene."""
        return sum(len(part) for part in self.frame[GENES])

    def measured_tokens(self) -> Array:
        """Return int64, sorted: the token ids of genes that the store measures at all."""
        return np.unique(self.table[self.table >= 0]).astype(np.int64)

    def encode(self, batch: CellBatch) -> TokenBatch:
        """Return the flat tokens of a batch.

        Args:
            batch: with the fields of values that transforms made, and the label columns.

        Returns:
            fields `genes` int32 and those of values; targets likewise, all of their genes and
            without special tokens.

        Raises:
            UnknownNameError: the batch lacks a field, a label column or the depths.
            InputDataError: a bin that the tokenizer does not have.
        """
        tokens = self._framed(batch, self._entries(batch, self.max_genes))
        if batch.targets is not None:
            tokens.targets = self._entries(batch.targets, None)
        tokens.labels = encode_labels(self.labels, batch.obs)
        return tokens

    def _entries(self, batch: CellBatch, max_genes: int | None) -> TokenBatch:
        """Return the tokens of the known genes alone."""
        ids = self.table[batch.genes]
        known = ids >= 0
        if not known.all():
            batch, ids = batch.keep_entries(known), ids[known]
        if max_genes is not None and len(batch) and int(batch.lengths.max()) > max_genes:
            keep = _highest(batch, self.values[0].read(batch), max_genes)
            batch, ids = batch.keep_entries(keep), ids[keep]
        fields = {GENES: ids, **{each.name: each.encode(batch) for each in self.values}}
        return TokenBatch(fields=fields, offsets=batch.indptr, rows=batch.rows)

    def _framed(self, batch: CellBatch, entries: TokenBatch) -> TokenBatch:
        """Return the tokens with the special ones around those of each cell."""
        if not self.num_special:
            return entries
        offsets = entries.offsets + self.num_special * np.arange(len(entries) + 1, dtype=np.int64)
        num_front = len(self.frame[GENES][0])
        is_entry = np.ones(int(offsets[-1]), np.bool_)
        places = [offsets[:-1] + index for index in range(num_front)]
        places += [offsets[1:] - index for index in range(self.num_special - num_front, 0, -1)]
        for place in places:
            is_entry[place] = False
        fields = {}
        for name, values in entries.fields.items():
            framed = np.empty(len(is_entry), values.dtype)
            framed[is_entry] = values
            for place, special in zip(places, np.concatenate(self.frame[name]), strict=True):
                framed[place] = special
            fields[name] = framed
        for column, place in zip(
            self.depths, places[num_front - len(self.depths) : num_front], strict=True
        ):
            if column not in batch.obs:
                raise UnknownNameError(
                    f"The cells carry no depth {column!r} for the tokens {' and '.join(DEPTH_TOKENS)}: "
                    "add read_depth_downsample (mode auto_align or equal at inference) to "
                    "data_module.transforms."
                )
            for each in self.values:
                if each.bins is None:
                    fields[each.name][place] = batch.obs[column]
        return TokenBatch(fields=fields, offsets=offsets, rows=entries.rows)


def _highest(batch: CellBatch, values: Array, limit: int) -> Array:
    """Return bool [nnz], True for the `limit` highest values of each cell.

    Of equal values the gene with the lower position in the store is kept, in whatever order the
    entries stand.
    """
    from omics.data.storage.gather import mark_top

    values = values.astype(np.float32, copy=False)  # A bin is below 2**24: it stays what it is.
    rises = np.ones(len(values), np.bool_)
    rises[1:] = batch.genes[1:] >= batch.genes[:-1]
    rises[batch.indptr[:-1][batch.lengths > 0]] = True
    if rises.all():
        return mark_top(batch.indptr, values, limit)
    from omics.data.transforms.ordering_loops import order_rows

    by_gene = np.empty(len(values), np.int64)
    order_rows(batch.indptr, batch.genes.astype(np.uint32), by_gene)
    keep = np.empty(len(values), np.bool_)
    keep[by_gene] = mark_top(batch.indptr, values[by_gene], limit)
    return keep
