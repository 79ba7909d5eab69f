"""`embed_genes`: one vector per gene, the mean of its hidden states over the cells that express it.

- Sums are kept in float64, one row for each gene of the vocabulary, and added in the order of the
  cells: memory does not grow with the number of cells, and batches change no bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.compiled import compiled
from omics.models.inference import run_cells

if TYPE_CHECKING:
    from omics.data import CellStore
    from omics.models.bundle import Bundle
    from omics.models.inference import GeneVectors

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneEmbedding:
    """Vectors of the genes that occur, in the order of the vocabulary.

    Attributes:
        genes: string [G], as the vocabulary names them.
        symbols: string [G].
        num_cells: int64 [G], the cells in which the model saw the gene.
        vectors: float32 [G, d].
    """

    genes: Array
    symbols: Array
    num_cells: Array
    vectors: Array


class GeneMeans:
    """Adds up hidden states by gene.

    Args:
        num_tokens: ids of the vocabulary.
        width: d.
    """

    def __init__(self, num_tokens: int, width: int) -> None:
        self._sums = np.zeros((num_tokens, width))
        self._times = np.zeros(num_tokens, np.int64)
        self._cells = np.zeros(num_tokens, np.int64)
        self._last_cell = np.full(num_tokens, -1, np.int64)
        self._seen = 0

    def add(self, found: GeneVectors) -> None:
        """Add the vectors of a batch.

        Args:
            found: of the next cells.
        """
        num_cells = len(found.offsets) - 1
        cell = self._seen + np.repeat(np.arange(num_cells), np.diff(found.offsets))
        counters = (self._times, self._cells, self._last_cell)
        compiled(_add)(found.tokens.astype(np.int64), cell, found.vectors, self._sums, counters)
        self._seen += num_cells

    def result(self, names: GeneNames) -> GeneEmbedding:
        """Return the means of the genes that occurred.

        Args:
            names: of the tokens.
        """
        there = np.flatnonzero(self._times)
        means = self._sums[there] / self._times[there, None]
        return GeneEmbedding(
            genes=names.genes[there],
            symbols=names.symbols[there],
            num_cells=self._cells[there],
            vectors=means.astype(np.float32),
        )


@dataclass(frozen=True, slots=True)
class GeneNames:
    """Names of the tokens of a vocabulary of genes.

    Attributes:
        genes: string [V], by token id.
        symbols: string [V]; that of a special token is its name.
    """

    genes: Array
    symbols: Array

    @classmethod
    def of(cls, tokenizer: Any) -> GeneNames:
        """Return the names of the genes of a tokenizer.

        Args:
            tokenizer: of cells.
        """
        vocabulary = tokenizer.vocabulary
        genes = np.array(vocabulary.tokens, dtype=np.str_)
        symbols = genes.astype(object)
        symbols[vocabulary.ordinary_ids] = tokenizer.lookup.symbols
        return cls(genes, symbols.astype(np.str_))


def embed_genes(
    bundle: Bundle, store: CellStore, rows: Array | None = None, **options: Any
) -> GeneEmbedding:
    """Return the mean hidden state of every gene over cells.

    Args:
        bundle: with a tokenizer of cells.
        store: of raw counts.
        rows: which cells; None for all.
        **options: of `run_cells`, but for `pooling` and `level`.
    """
    config = bundle.model.model_config
    means = GeneMeans(config.gene_vocabulary_size, config.hidden_size)
    for result in run_cells(bundle, store, rows=rows, level="gene", **options):
        assert result.genes is not None
        means.add(result.genes)
    return means.result(GeneNames.of(bundle.tokenizer))


def _add(
    tokens: Array,
    cells: Array,
    vectors: Array,
    sums: Array,
    counters: tuple[Array, Array, Array],
) -> None:
    times, num_cells, last_cell = counters
    for place in range(tokens.size):
        token = tokens[place]
        times[token] += 1
        if last_cell[token] != cells[place]:
            last_cell[token] = cells[place]
            num_cells[token] += 1
        for column in range(vectors.shape[1]):
            sums[token, column] += vectors[place, column]
