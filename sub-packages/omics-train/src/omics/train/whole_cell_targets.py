"""The genes that losses ask about: lookups between a cell's input tokens and its targets.

- Ragged throughout: zeros are never written down. A gene that the store measures and the target
  does not hold has the value 0.
- An input gene is one with a token in the cell, whether or not its value or id is hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError
from omics.train.training_batch import CellGenes, WholeCells

if TYPE_CHECKING:
    from omics.tokenizers import FieldSpec, TokenBatch

Array = np.ndarray[Any, np.dtype[Any]]


def match_genes(tokens: TokenBatch, keys: TokenBatch, genes: FieldSpec) -> Array:
    """Return int64 [T]: for each token the position in `keys` of the same gene of the same cell.

    Args:
        tokens: numpy tokens.
        keys: of the same cells; of a gene that is there twice, the first counts.
        genes: the field of the genes.

    Returns:
        Positions; -1 where the cell of `keys` lacks the gene.
    """
    from omics.train.gene_matching_loops import match_rows

    found = np.empty(tokens.num_tokens, np.int64)
    table = np.full(genes.vocabulary_size, -1, np.int64)
    rows = (tokens.offsets, tokens.fields[genes.name])
    match_rows(rows, (keys.offsets, keys.fields[genes.name]), table, found)
    return found


def answers(tokens: TokenBatch, targets: TokenBatch, genes: FieldSpec, field: FieldSpec) -> Array:
    """Return float32 [T], what the targets hold for the gene of each token; 0 where nothing.

    Args:
        tokens: numpy tokens.
        targets: of the same cells.
        genes: the field of the genes.
        field: of the targets.

    Raises:
        InputDataError: a value that is not finite.
    """
    found = match_genes(tokens, targets, genes)
    values = np.zeros(len(found), np.float32)
    there = found >= 0
    values[there] = numbers(targets, field)[found[there]]
    return values


def numbers(tokens: TokenBatch, field: FieldSpec) -> Array:
    """Return float32 [T], the values of a field; of a field of bins, their numbers.

    Args:
        tokens: numpy tokens without special ones.
        field: whose values they are.

    Raises:
        InputDataError: a value that is not finite.
    """
    values = tokens.fields[field.name]
    if field.kind == "continuous":
        refuse_not_finite(values, tokens, field.name)
    return field.numbers(values)


def own_targets(tokens: TokenBatch, genes: FieldSpec) -> TokenBatch:
    """Return the tokens as their own target, without the special ones.

    Args:
        tokens: numpy tokens.
        genes: the field of the genes.
    """
    from omics.tokenizers import TokenBatch

    is_gene = ~genes.is_special(tokens.fields[genes.name])
    before = np.zeros(len(is_gene) + 1, np.int64)
    np.cumsum(is_gene, out=before[1:])
    return TokenBatch(
        fields={name: values[is_gene] for name, values in tokens.fields.items()},
        offsets=before[tokens.offsets],
        rows=tokens.rows,
    )


def whole_cells(
    tokens: TokenBatch,
    targets: TokenBatch,
    genes: FieldSpec,
    field: FieldSpec,
    *,
    column_of: Array,
    split_by_input: bool,
) -> WholeCells:
    """Return what a whole-cell decoder is asked about a field.

    Args:
        tokens: numpy tokens, before anything was hidden.
        targets: of the same cells.
        genes: the field of the genes.
        field: that is decoded.
        column_of: int64 [ids], the decoder's column of each token id.
        split_by_input: whether a loss tells input genes from others.

    Raises:
        InputDataError: a target that is not finite.
    """
    ids, values = targets.fields[genes.name], numbers(targets, field)
    cell = targets.cell_of_token()
    everything = CellGenes(cell=cell, gene=column_of[ids], value=values)
    expressed = values > 0
    if not split_by_input:
        chosen = _chosen(everything, expressed)
        nothing = _chosen(everything, np.zeros(len(ids), np.bool_))
        return WholeCells(
            expressed=chosen, expressed_input=nothing, expressed_other=nothing, input=None
        )
    is_input = match_genes(targets, tokens, genes) >= 0
    own = match_genes(tokens, tokens, genes)
    once = (own == np.arange(len(own))) & ~genes.is_special(tokens.fields[genes.name])
    shown = CellGenes(
        cell=tokens.cell_of_token(),
        gene=column_of[tokens.fields[genes.name]],
        value=answers(tokens, targets, genes, field),
    )
    return WholeCells(
        expressed=_chosen(everything, expressed),
        expressed_input=_chosen(everything, expressed & is_input),
        expressed_other=_chosen(everything, expressed & ~is_input),
        input=_chosen(shown, once),
    )


def refuse_not_finite(values: Array, tokens: TokenBatch, name: str) -> None:
    """Refuse targets that are NaN or infinite.

    Args:
        values: [T] of a continuous field.
        tokens: whose they are.
        name: the field.

    Raises:
        InputDataError: naming the first cell.
    """
    wrong = ~np.isfinite(values)
    if wrong.any():
        row = int(np.asarray(tokens.rows)[tokens.cell_of_token()[int(np.argmax(wrong))]])
        raise InputDataError(
            f"The field {name!r} of the cell in row {row} holds {values[wrong][0]}. Look for NaN or "
            "infinite counts with `omics-data check`, and for a transform that divides by zero."
        )


def _chosen(genes: CellGenes, mask: Array) -> CellGenes:
    if mask.all():
        return genes
    which = np.flatnonzero(mask)  # Several times faster than a mask, three times over.
    return CellGenes(cell=genes.cell[which], gene=genes.gene[which], value=genes.value[which])
