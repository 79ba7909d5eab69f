"""`GeneTokenizer`: expressed genes of a cell to the fields `genes` and `expression`.

- A gene becomes a token id through one integer table per store: no string per cell.
- Genes outside the vocabulary are dropped, entry by entry, together with their values.
- The order of tokens is the order of entries in the CellBatch (a transform's business).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import ConfigError, InputDataError, UnknownNameError, nearest
from omics.tokenizers.fields import FieldSpec, LabelSpec
from omics.tokenizers.token_batch import TokenBatch
from omics.tokenizers.vocabulary import Vocabulary, special_value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omics.data import CellBatch, GeneTable

Array = np.ndarray[Any, np.dtype[Any]]

GENES = "genes"
EXPRESSION = "expression"


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneCoverage:
    """How well a store's genes and a vocabulary meet.

    Attributes:
        matched_by: `id` or `symbol`, whichever matched more genes.
        num_known: genes of the store that are in the vocabulary.
        num_store: genes of the store.
        num_vocabulary: genes of the vocabulary.
    """

    matched_by: str
    num_known: int
    num_store: int
    num_vocabulary: int

    def __str__(self) -> str:
        """Return one line for people."""
        return (
            f"{self.num_known} of the vocabulary's {self.num_vocabulary} genes are among the "
            f"{self.num_store} genes of the store (matched by {self.matched_by})"
        )


class GeneTokenizer:
    """Turns a `CellBatch` into a `TokenBatch` with the fields `genes` and `expression`.

    Attributes:
        vocabulary: gene ids to token ids.
        symbols: the symbols of the vocabulary's genes, in the order of `vocabulary.names`.
        prepend_cls: whether a cell begins with the token of the role `cls`.
        min_coverage: the share of genes (of the smaller side) that must match; below it `bind`
            refuses.
    """

    kind = "gene"

    def __init__(
        self,
        vocabulary: Vocabulary,
        symbols: Sequence[str] | None = None,
        *,
        prepend_cls: bool = True,
        min_coverage: float = 0.1,
    ) -> None:
        self.vocabulary = vocabulary
        self.symbols = tuple(str(s) for s in (vocabulary.names if symbols is None else symbols))
        if len(self.symbols) != len(self.vocabulary.names):
            raise ConfigError(
                f"{len(self.symbols)} symbols for {len(self.vocabulary.names)} gene ids."
            )
        if prepend_cls:
            vocabulary.required("cls", needed_for="prepend_cls")
        self.prepend_cls = prepend_cls
        self.min_coverage = min_coverage

    @classmethod
    def from_list(
        cls, gene_ids: Sequence[str], symbols: Sequence[str] | None = None, **options: Any
    ) -> GeneTokenizer:
        """Return a tokenizer whose vocabulary is a list of genes, in our own layout.

        Args:
            gene_ids: Ensembl ids or symbols.
            symbols: of the same genes; None takes the ids.
            **options: `prepend_cls`, `min_coverage`.
        """
        return cls(Vocabulary.of_names(gene_ids), symbols, **options)

    @classmethod
    def from_genes(cls, genes: GeneTable, **options: Any) -> GeneTokenizer:
        """Return a tokenizer whose vocabulary is a store's gene table, in our own layout.

        Args:
            genes: the table.
            **options: `prepend_cls`, `min_coverage`.
        """
        return cls.from_list(genes.ids.tolist(), genes.symbols.tolist(), **options)

    @property
    def fields(self) -> list[FieldSpec]:
        """The fields that `encode` makes."""
        vocabulary = self.vocabulary
        mask = vocabulary.id_of("mask")
        used = [vocabulary.id_of(role) for role in ("pad", "cls", "mask")]
        in_values = tuple(sorted({each for each in used if each is not None}))
        return [
            FieldSpec(
                name=GENES,
                kind="discrete",
                vocabulary_size=len(vocabulary),
                special_ids=vocabulary.special_ids,
                mask_id=mask,
            ),
            FieldSpec(
                name=EXPRESSION,
                kind="continuous",
                vocabulary_size=max(in_values, default=0) + 1,
                special_ids=in_values,
                mask_id=mask,
            ),
        ]

    def token_of_gene(self, genes: GeneTable) -> tuple[Array, GeneCoverage]:
        """Match a store's genes, by id or by symbol, whichever finds more of the vocabulary.

        Args:
            genes: the store's table.

        Returns:
            int32 [genes of the store] token ids, -1 where unknown, and the coverage.

        Raises:
            InputDataError: less than `min_coverage` of the possible matches was found.
        """
        by_id = self._ids_of_genes(genes.ids)
        tables = {"id": by_id}
        if (by_id >= 0).sum() < len(self.vocabulary.names):
            tables["symbol"] = self._by_symbol(genes.symbols)
        matched_by = max(tables, key=lambda name: int((tables[name] >= 0).sum()))
        table = tables[matched_by]
        coverage = GeneCoverage(
            matched_by=matched_by,
            num_known=int((table >= 0).sum()),
            num_store=len(table),
            num_vocabulary=len(self.vocabulary.names),
        )
        # A panel is small beside a vocabulary and a toy vocabulary beside a store: the smaller
        # of the two is what could have matched.
        possible = min(coverage.num_store, coverage.num_vocabulary)
        if coverage.num_known < max(1.0, self.min_coverage * possible):
            have = ", ".join(str(g) for g in genes.ids[:3])
            want = ", ".join(self.vocabulary.names[:3])
            raise InputDataError(
                f"Only {coverage}; at least {self.min_coverage:.0%} is needed. The store has ids "
                f"like {have}; the vocabulary has ids like {want}. Use the same species and the "
                "same kind of gene ids (Ensembl or symbols)."
            )
        return table, coverage

    def _ids_of_genes(self, names: Array) -> Array:
        ids = self.vocabulary.ids(names)
        ids[self.vocabulary.is_special[ids] & (ids >= 0)] = -1
        return ids

    def _by_symbol(self, names: Array) -> Array:
        # A symbol shared by several genes of either side says nothing: it is left out.
        def unique(values: Sequence[str]) -> dict[str, int]:
            first: dict[str, int] = {}
            twice = set()
            for index, value in enumerate(values):
                if value in first:
                    twice.add(value)
                first.setdefault(value, index)
            return {value: index for value, index in first.items() if value not in twice}

        ours = unique(self.symbols)
        theirs = unique([str(name) for name in names])
        table = np.full(len(names), -1, np.int32)
        for symbol, index in theirs.items():
            if symbol in ours:
                table[index] = self.vocabulary.ordinary_ids[ours[symbol]]
        return table

    def bind(
        self, genes: GeneTable, *, labels: Sequence[LabelSpec] = (), field: str = EXPRESSION
    ) -> BoundGeneTokenizer:
        """Return an encoder for the batches of one store.

        Args:
            genes: the store's gene table.
            labels: label columns to encode from `CellBatch.obs`.
            field: the field of the CellBatch that becomes the expression of a token.

        Raises:
            InputDataError: too few genes in common.
        """
        table, coverage = self.token_of_gene(genes)
        return BoundGeneTokenizer(
            table=table,
            coverage=coverage,
            cls_id=self.vocabulary.id_of("cls") if self.prepend_cls else None,
            labels=tuple(labels),
            field=field,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "kind": self.kind,
            "vocabulary": self.vocabulary.to_dict(),
            "symbols": list(self.symbols),
            "prepend_cls": self.prepend_cls,
            "min_coverage": self.min_coverage,
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
            prepend_cls=bool(value["prepend_cls"]),
            min_coverage=float(value["min_coverage"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundGeneTokenizer:
    """A gene tokenizer fitted to one store: integers in, integers out.

    Attributes:
        table: int32 [genes of the store], token ids, -1 where unknown.
        coverage: how well the store's genes are known.
        cls_id: the token that every cell begins with; None for none.
        labels: the columns encoded from obs.
        field: the field of the CellBatch that becomes `expression`.
    """

    table: Array
    coverage: GeneCoverage
    cls_id: int | None
    labels: tuple[LabelSpec, ...]
    field: str

    @property
    def num_special(self) -> int:
        """Tokens of every cell that stand for no gene."""
        return int(self.cls_id is not None)

    def measured_tokens(self) -> Array:
        """Return int64, sorted: the token ids of genes that the store measures at all."""
        return np.unique(self.table[self.table >= 0]).astype(np.int64)

    def encode(self, batch: CellBatch) -> TokenBatch:
        """Return the flat tokens of a batch.

        Args:
            batch: with the expression field that a transform made, and the label columns.

        Returns:
            fields `genes` int32 and `expression` float32; targets likewise, without `[CLS]`.

        Raises:
            UnknownNameError: the batch lacks the expression field or a label column.
        """
        tokens = self._tokens(batch, self.cls_id)
        if batch.targets is not None:
            tokens.targets = self._tokens(batch.targets, None)
        for label in self.labels:
            if label.name not in batch.obs:
                known = sorted(batch.obs)
                raise UnknownNameError(
                    f"The cells carry no column {label.name!r}.{nearest(label.name, known)}"
                )
            tokens.labels[label.name] = label.encode(batch.obs[label.name])
        return tokens

    def _tokens(self, batch: CellBatch, cls_id: int | None) -> TokenBatch:
        if self.field not in batch.fields:
            raise UnknownNameError(
                f"The cells carry no field {self.field!r}: add the transform that makes it "
                f"(log_normalize) to data_module.transforms. Present: {sorted(batch.fields)}."
            )
        ids = self.table[batch.genes]
        known = ids >= 0
        if not known.all():
            batch, ids = batch.keep_entries(known), ids[known]
        values = np.asarray(batch.fields[self.field], np.float32)
        if cls_id is None:
            fields = {GENES: ids, EXPRESSION: values}
            return TokenBatch(fields=fields, offsets=batch.indptr, rows=batch.rows)
        offsets = batch.indptr + np.arange(len(batch) + 1, dtype=np.int64)
        is_entry = np.ones(int(offsets[-1]), bool)
        is_entry[offsets[:-1]] = False
        genes = np.full(len(is_entry), cls_id, np.int32)
        expression = np.full(len(is_entry), special_value(cls_id), np.float32)
        genes[is_entry] = ids
        expression[is_entry] = values
        return TokenBatch(
            fields={GENES: genes, EXPRESSION: expression}, offsets=offsets, rows=batch.rows
        )
