"""`RankValueTokenizer`: the genes of a cell in descending order of count / median of the gene.

- The encoding of Geneformer (Theodoris et al. 2023, doi:10.1038/s41586-023-06139-9). Scaling a cell
  to a total divides all its values by one number, so counts are ranked as they are.
- Ties go to the gene with the lower position in the store, so an encoding is a function of the cell
  alone. Genes of a store that come to one token (old ids, versions) are summed before they are
  ranked, and stand where the first of them stands.
- A store that was converted with the same medians has its genes in this order already (the rank
  view); `bind_store` then reads that and no counts, with the same result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.cell_batch import CellBatch
from omics.data.errors import ConfigError, InputDataError, nearest
from omics.data.matching.gene_remap import GeneMap
from omics.data.storage.store import integer_rows
from omics.data.storage.store_format import rank_digest
from omics.tokenizers.fields import FieldSpec, encode_labels
from omics.tokenizers.gene_lookup import GeneCoverage, GeneLookup
from omics.tokenizers.gene_token_file import read_gene_tokens
from omics.tokenizers.gene_tokenizer import GENES
from omics.tokenizers.token_batch import TokenBatch
from omics.tokenizers.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from omics.data import CellStore, GeneTable
    from omics.data.matching.gene_tables import PairTable
    from omics.data.storage.batch_buffers import BatchBuffers
    from omics.tokenizers.fields import LabelSpec

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Version:
    """What a published version of the encoding looks like."""

    max_length: int
    has_frame: bool


VERSIONS = {
    "V1": _Version(max_length=2048, has_frame=False),
    "V2": _Version(max_length=4096, has_frame=True),
}
# The names that commands and configurations take, and the version that each stands for.
PUBLISHED = {"geneformer": "V2", "geneformer-v1": "V1"}


class RankValueTokenizer:
    """Turns a `CellBatch` into a `TokenBatch` with the one field `genes`, in the order of ranks.

    Attributes:
        lookup: the vocabulary of genes and how stores are matched to it.
        medians: float64 [genes], the non-zero median of each gene over a corpus, in the order of
            `vocabulary.names`; NaN for genes without one, which are left out of cells.
        max_length: tokens that a cell may have, special ones included; the genes of lowest rank
            are left out.
        prepend_cls: whether a cell begins with the token of the role `cls`.
        append_sep: whether a cell ends with the token of the role `sep`.

    Args:
        vocabulary: whose ordinary tokens are genes.
        medians: see above.
        symbols: of the genes, in the order of `vocabulary.names`; None takes the tokens.
        aliases: old ids of genes, see `GeneLookup`.
        min_coverage: the share of genes (of the smaller side) that must match; below it `bind`
            refuses.
        max_length: see above.
        prepend_cls: see above.
        append_sep: see above.

    Raises:
        ConfigError: medians that do not fit the vocabulary, a special token it lacks, a limit that
            leaves no place for genes.
    """

    kind = "rank_value"

    def __init__(
        self,
        vocabulary: Vocabulary,
        medians: Sequence[float] | Array,
        symbols: Sequence[str] | None = None,
        *,
        aliases: PairTable | None = None,
        min_coverage: float = 0.1,
        max_length: int = VERSIONS["V2"].max_length,
        prepend_cls: bool = True,
        append_sep: bool = True,
    ) -> None:
        self.lookup = GeneLookup(vocabulary, symbols, aliases=aliases, min_coverage=min_coverage)
        self.medians: Array = np.array(medians, np.float64)
        self.max_length = max_length
        self.prepend_cls = prepend_cls
        self.append_sep = append_sep
        if self.medians.shape != (len(vocabulary.names),):
            raise ConfigError(
                f"{self.medians.size} medians for {len(vocabulary.names)} genes. Give one for each "
                "gene, NaN for none."
            )
        given = self.medians[~np.isnan(self.medians)]
        if not len(given) or not (np.isfinite(given) & (given > 0)).all():
            raise ConfigError(
                "A median of the rank-value encoding is not above 0, or no gene has one. Give "
                "positive medians."
            )
        for role, wanted in (("cls", prepend_cls), ("sep", append_sep)):
            if wanted:
                vocabulary.required(role, needed_for="The rank-value encoding with special tokens")
        if max_length <= self.num_special:
            raise ConfigError(
                f"max_length is {max_length} and {self.num_special} tokens of each cell are "
                "special: no place is left for genes. Raise it."
            )

    @classmethod
    def from_table(
        cls,
        path: str | Path,
        *,
        version: str = "V2",
        max_length: int | None = None,
        aliases: PairTable | None = None,
        min_coverage: float = 0.1,
    ) -> RankValueTokenizer:
        """Return the tokenizer of a published table of gene tokens.

        Args:
            path: see `read_gene_tokens`.
            version: `V1` (2,048 tokens, no special ones) or `V2` (4,096, `<cls>` first and `<eos>`
                last).
            max_length: None takes that of the version.
            aliases: old ids of genes, see `GeneLookup`.
            min_coverage: see the class.

        Raises:
            ConfigError: there is no such version, or the table is that of another one.
            InputDataError: it is no such table.
        """
        if version not in VERSIONS:
            raise ConfigError(f"There is no version {version!r}.{nearest(version, [*VERSIONS])}")
        chosen = VERSIONS[version]
        table = read_gene_tokens(path)
        specials = table.vocabulary.specials
        if chosen.has_frame != ("cls" in specials and "sep" in specials):
            has = ", ".join(specials.values()) or "no special tokens"
            needs = "<cls> and <eos>" if chosen.has_frame else "neither <cls> nor <eos>"
            raise ConfigError(
                f"{path} has {has}, and a vocabulary of version {version} has {needs}: it belongs "
                "to models of the other version. Give the table of your model, or the version of "
                "this table."
            )
        return cls(
            table.vocabulary,
            table.medians,
            table.symbols,
            aliases=aliases,
            min_coverage=min_coverage,
            max_length=chosen.max_length if max_length is None else max_length,
            prepend_cls=chosen.has_frame,
            append_sep=chosen.has_frame,
        )

    @property
    def vocabulary(self) -> Vocabulary:
        """Gene ids to token ids."""
        return self.lookup.vocabulary

    @property
    def num_special(self) -> int:
        """Tokens of every cell that stand for no gene."""
        return int(self.prepend_cls) + int(self.append_sep)

    @property
    def fields(self) -> list[FieldSpec]:
        """The one field that `encode` makes."""
        vocabulary = self.vocabulary
        return [
            FieldSpec(
                name=GENES,
                kind="discrete",
                vocabulary_size=len(vocabulary),
                special_ids=vocabulary.special_ids,
                mask_id=vocabulary.id_of("mask"),
            )
        ]

    def bind(
        self,
        genes: GeneTable,
        *,
        labels: Sequence[LabelSpec] = (),
        gene_sums: Array | None = None,
    ) -> BoundRankValueTokenizer:
        """Return an encoder for the batches of one store.

        Args:
            genes: the store's gene table.
            labels: label columns to encode from `CellBatch.obs`.
            gene_sums: [genes of the store], for the share of known counts in the coverage.

        Raises:
            InputDataError: too few genes in common, or none of them has a median.
        """
        table, coverage = self.lookup.match(genes, gene_sums)
        of_token = np.zeros(len(self.vocabulary) + 1)  # The last is that of -1: unknown.
        of_token[self.vocabulary.ordinary_ids] = np.nan_to_num(self.medians)
        medians = of_token[table]
        if not medians.any():
            raise InputDataError(
                f"None of the {coverage.num_known} known genes of the store has a median, so cells "
                "cannot be ranked. Use a table with medians of these genes."
            )
        front, back = (
            self.vocabulary.ids([self.vocabulary.specials[role]] if wanted else [])
            for role, wanted in (("cls", self.prepend_cls), ("sep", self.append_sep))
        )
        return BoundRankValueTokenizer(
            table=table,
            medians=medians,
            merged=_merged(table),
            coverage=coverage,
            front=front,
            back=back,
            max_genes=self.max_length - self.num_special,
            labels=tuple(labels),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        medians = [None if np.isnan(each) else each for each in self.medians.tolist()]
        return {
            "kind": self.kind,
            **self.lookup.to_dict(),
            "medians": medians,
            "max_length": self.max_length,
            "prepend_cls": self.prepend_cls,
            "append_sep": self.append_sep,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> RankValueTokenizer:
        """Return the tokenizer of a JSON form.

        Args:
            value: as made by `to_dict`.
        """
        return cls(
            Vocabulary.from_dict(value["vocabulary"]),
            [np.nan if each is None else float(each) for each in value["medians"]],
            value["symbols"],
            aliases=value["aliases"],
            min_coverage=float(value["min_coverage"]),
            max_length=int(value["max_length"]),
            prepend_cls=bool(value["prepend_cls"]),
            append_sep=bool(value["append_sep"]),
        )


def _merged(table: Array) -> GeneMap | None:
    """Return the way of genes that share a token to the first of them; None if there are none."""
    known = np.flatnonzero(table >= 0)
    _, first, inverse = np.unique(table[known], return_index=True, return_inverse=True)
    if len(first) == len(known):
        return None
    positions = np.full(len(table), -1, np.int32)
    positions[known] = known[first][inverse]
    return GeneMap(positions, len(table))


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundRankValueTokenizer:
    """A rank-value tokenizer fitted to one store: integers in, integers out.

    Attributes:
        table: int32 [genes of the store], token ids, -1 where unknown.
        medians: float64 [genes of the store], 0 for genes that are left out.
        merged: adds up the counts of genes that share a token; None if none do.
        coverage: how well the store's genes are known.
        front: int32, tokens that every cell begins with.
        back: int32, tokens that every cell ends with.
        max_genes: how many genes a cell may keep.
        labels: the columns encoded from obs.
        from_view: the genes of batches stand in the order of ranks already (`RankedCells`).
    """

    table: Array
    medians: Array
    merged: GeneMap | None
    coverage: GeneCoverage
    front: Array
    back: Array
    max_genes: int
    labels: tuple[LabelSpec, ...]
    from_view: bool = False

    @property
    def num_special(self) -> int:
        """Tokens of every cell that stand for no gene."""
        return len(self.front) + len(self.back)

    def measured_tokens(self) -> Array:
        """Return int64, sorted: the token ids of genes that the store measures at all."""
        return np.unique(self.table[self.medians > 0]).astype(np.int64)

    def fits_view(self, store: object) -> bool:
        """Say whether the rank view of a store holds the order of this encoding.

        Args:
            store: whose genes this was bound to; only a `CellStore` can have a view.
        """
        made_with = getattr(store, "rank_digest", None)
        return self.merged is None and made_with == rank_digest(self.medians)

    def for_view(self) -> BoundRankValueTokenizer:
        """Return the encoder of batches from `RankedCells`."""
        return replace(self, from_view=True)

    def encode(self, batch: CellBatch) -> TokenBatch:
        """Return the flat tokens of a batch.

        Args:
            batch: with counts; entries without one are left out.

        Returns:
            The field `genes` int32, highest rank first; targets likewise, all of their genes and
            without special tokens.

        Raises:
            UnknownNameError: the batch lacks a label column.
        """
        tokens = self._tokens(batch, self.front, self.back, self.max_genes)
        if batch.targets is not None:
            nothing = self.front[:0]
            tokens.targets = self._tokens(batch.targets, nothing, nothing, len(batch.targets.genes))
        tokens.labels = encode_labels(self.labels, batch.obs)
        return tokens

    def _tokens(self, batch: CellBatch, front: Array, back: Array, max_genes: int) -> TokenBatch:
        from omics.tokenizers.rank_value_loops import rank_tokens, view_tokens

        indptr, genes, counts = batch.indptr, batch.genes, _ranked_type(batch.counts)
        if self.merged is not None:
            indptr, genes, counts = self.merged.apply(indptr, genes, counts)
        room = int(np.minimum(np.diff(indptr), max_genes).sum())
        tokens = np.empty(room + len(batch) * (len(front) + len(back)), np.int32)
        offsets = np.empty(len(batch) + 1, np.int64)
        tables, frame, out = (self.medians, self.table), (front, back, max_genes), (tokens, offsets)
        if self.from_view:
            view_tokens((indptr, genes), tables, frame, out)
        else:
            rank_tokens((indptr, genes, counts), tables, frame, out)
        return TokenBatch(
            fields={GENES: tokens[: int(offsets[-1])]}, offsets=offsets, rows=batch.rows
        )


def _ranked_type(counts: Array) -> Array:
    """Return counts in one of the three types that the loop is compiled for; none loses a bit."""
    if counts.dtype.kind == "u" and counts.dtype.itemsize <= 4:
        return counts.astype(np.uint16, copy=False) if counts.dtype.itemsize < 4 else counts
    return counts.astype(np.float64)


class RankedCells:
    """A store read through its rank view: the genes of each cell, highest rank first.

    It reads as the store does, and a batch has the same cells and genes; but no counts are read,
    and those of a batch are all 1.

    Args:
        store: with a rank view.
    """

    def __init__(self, store: CellStore) -> None:
        self._store = store
        self.path = store.path
        self.digest = store.digest
        self.obs = store.obs

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self._store)

    @property
    def genes(self) -> GeneTable:
        """The gene table."""
        return self._store.genes

    @property
    def lengths(self) -> Array:
        """int64 [n], the number of entries of each cell."""
        return self._store.lengths

    @property
    def num_bytes(self) -> int:
        """Size of all files of the store."""
        return self._store.num_bytes

    def take(
        self,
        rows: Sequence[int] | Array,
        *,
        obs: Sequence[str] = (),
        buffers: BatchBuffers | None = None,
    ) -> CellBatch:
        """Return some cells; see `CellStore.take`.

        Args:
            rows: integers [n] from 0 to len - 1, in any order; may repeat.
            obs: columns of obs to bring along.
            buffers: memory for the result.
        """
        cells = integer_rows(rows)
        indptr, genes = self._store.take_ranked(cells, buffers=buffers)
        return CellBatch(
            indptr=indptr,
            genes=genes,
            counts=np.broadcast_to(np.uint8(1), genes.shape),
            rows=cells,
            num_genes=self._store.shape[1],
            obs={name: self.obs.take(name, cells) for name in obs},
        )
