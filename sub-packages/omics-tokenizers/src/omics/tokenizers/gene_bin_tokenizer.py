"""`GeneBinTokenizer`: every gene of a panel in a fixed order, a token naming the gene and its bin.

- The token of gene `g` in bin `b` is `g * num_bins + b`; the one special token, the mask, follows
  all of them. This is the vocabulary of Bioformers (Amara-Belgadi et al. 2023).
- All cells have the same length: a gene without counts, or that a store does not measure, is in
  bin 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.tokenizers.fields import FieldSpec, encode_labels
from omics.tokenizers.gene_lookup import GeneCoverage, GeneLookup
from omics.tokenizers.token_batch import TokenBatch
from omics.tokenizers.value_field import BIN, ValueField
from omics.tokenizers.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omics.data import CellBatch, GeneTable
    from omics.data.matching.gene_tables import PairTable
    from omics.tokenizers.fields import LabelSpec

Array = np.ndarray[Any, np.dtype[Any]]

GENE_BINS = "gene_bins"


class GeneBinTokenizer:
    """Turns a `CellBatch` into a `TokenBatch` with the one field `gene_bins`.

    Attributes:
        lookup: the panel, and how stores are matched to it.
        values: the bins, and the field of the CellBatch that holds them.

    Args:
        genes: the panel, in its order.
        num_bins: bins, that of zeros (0) included.
        symbols: of the genes; None takes the genes.
        aliases: see `GeneLookup`.
        min_coverage: the share of genes (of the smaller side) that must match; below it `bind`
            refuses.
        source: the field of the CellBatch with the bins.

    Raises:
        ConfigError: a gene is repeated, or there is no bin.
    """

    kind = "gene_bin"

    def __init__(
        self,
        genes: Sequence[str],
        num_bins: int,
        symbols: Sequence[str] | None = None,
        *,
        aliases: PairTable | None = None,
        min_coverage: float = 0.1,
        source: str = BIN,
    ) -> None:
        panel = Vocabulary(genes, specials={})
        self.lookup = GeneLookup(panel, symbols, aliases=aliases, min_coverage=min_coverage)
        self.values = ValueField.binned(num_bins, name=GENE_BINS, source=source)

    @property
    def vocabulary(self) -> Vocabulary:
        """The panel; its ids are places, from 0."""
        return self.lookup.vocabulary

    @property
    def num_bins(self) -> int:
        """Bins, that of zeros included."""
        assert self.values.bins is not None
        return len(self.values.bins.names)

    @property
    def fields(self) -> list[FieldSpec]:
        """The one field that `encode` makes."""
        mask = len(self.vocabulary) * self.num_bins
        bins = tuple(float(number) for number in range(self.num_bins))
        return [
            FieldSpec(
                name=GENE_BINS,
                kind="discrete",
                vocabulary_size=mask + 1,
                special_ids=(mask,),
                mask_id=mask,
                token_values=(*bins * len(self.vocabulary), math.nan),
            )
        ]

    def bind(
        self,
        genes: GeneTable,
        *,
        labels: Sequence[LabelSpec] = (),
        gene_sums: Array | None = None,
    ) -> BoundGeneBinTokenizer:
        """Return an encoder for the batches of one store.

        Args:
            genes: the store's gene table.
            labels: label columns to encode from `CellBatch.obs`.
            gene_sums: [genes of the store], for the share of known counts in the coverage.

        Raises:
            InputDataError: too few genes in common.
        """
        table, coverage = self.lookup.match(genes, gene_sums)
        _, first = np.unique(table, return_index=True)
        once = np.full(len(table), -1, np.int32)
        once[first] = table[first]
        return BoundGeneBinTokenizer(
            table=once,
            coverage=coverage,
            num_genes=len(self.vocabulary),
            num_bins=self.num_bins,
            values=self.values,
            labels=tuple(labels),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        looked_up = self.lookup.to_dict()
        del looked_up["vocabulary"]
        return {
            "kind": self.kind,
            "genes": list(self.vocabulary.tokens),
            "num_bins": self.num_bins,
            "source": self.values.source,
            **looked_up,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> GeneBinTokenizer:
        """Return the tokenizer of a JSON form.

        Args:
            value: as made by `to_dict`.
        """
        return cls(
            value["genes"],
            int(value["num_bins"]),
            value["symbols"],
            aliases=value["aliases"],
            min_coverage=float(value["min_coverage"]),
            source=value["source"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundGeneBinTokenizer:
    """A gene-bin tokenizer fitted to one store: integers in, integers out.

    Attributes:
        table: int32 [genes of the store], places in the panel, each at most once, -1 where unknown.
        coverage: how well the store's genes are known.
        num_genes: of the panel.
        num_bins: that of zeros included.
        values: where the bins of a batch are.
        labels: the columns encoded from obs.
    """

    table: Array
    coverage: GeneCoverage
    num_genes: int
    num_bins: int
    values: ValueField
    labels: tuple[LabelSpec, ...]

    @property
    def num_special(self) -> int:
        """Tokens of every cell that stand for no gene: none."""
        return 0

    def measured_tokens(self) -> Array:
        """Return int64, sorted: the tokens of genes that the store measures at all."""
        places = np.unique(self.table[self.table >= 0]).astype(np.int64)
        tokens: Array = (places[:, None] * self.num_bins + np.arange(self.num_bins)).reshape(-1)
        return tokens

    def encode(self, batch: CellBatch) -> TokenBatch:
        """Return the flat tokens of a batch.

        Args:
            batch: with the field of bins that a transform made, and the label columns.

        Returns:
            The field `gene_bins` int32, all genes of the panel for every cell; targets likewise.

        Raises:
            UnknownNameError: the batch lacks the field of bins or a label column.
            InputDataError: a bin that the tokenizer does not have.
        """
        tokens = self._tokens(batch)
        if batch.targets is not None:
            tokens.targets = self._tokens(batch.targets)
        tokens.labels = encode_labels(self.labels, batch.obs)
        return tokens

    def _tokens(self, batch: CellBatch) -> TokenBatch:
        bins = self.values.read(batch)
        tokens = np.tile(np.arange(self.num_genes, dtype=np.int32) * self.num_bins, len(batch))
        places = self.table[batch.genes]
        cell = np.repeat(np.arange(len(batch), dtype=np.int64), batch.lengths)
        known = places >= 0
        tokens[cell[known] * self.num_genes + places[known]] += bins[known].astype(np.int32)
        offsets = np.arange(len(batch) + 1, dtype=np.int64) * self.num_genes
        return TokenBatch(fields={GENE_BINS: tokens}, offsets=offsets, rows=batch.rows)
