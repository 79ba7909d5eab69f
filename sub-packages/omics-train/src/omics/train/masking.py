"""Hiding values of a field: which tokens, and what they held.

- A pure function of (seed, epoch, cell, gene): a cell is masked alike in whatever batch.
- Special tokens are never hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import ConfigError
from omics.data.keyed_random import keyed_uniform

if TYPE_CHECKING:
    from omics.tokenizers import FieldSpec, TokenBatch

Array = np.ndarray[Any, np.dtype[Any]]


def mask_field(
    tokens: TokenBatch,
    field: FieldSpec,
    *,
    genes: FieldSpec,
    change_ratio: float,
    seed: int,
    epoch: int,
) -> tuple[TokenBatch, Array, Array]:
    """Hide a random share of a field's tokens.

    Args:
        tokens: numpy tokens.
        field: the field that is hidden.
        genes: the field of the genes, which says what tokens are special.
        change_ratio: probability of a token, in [0, 1].
        seed: of the run.
        epoch: of the pass.

    Returns:
        The tokens with the field's mask token in the chosen places, the flat positions int64 [K], and the
        hidden values [K].

    Raises:
        ConfigError: the ratio is no probability, or the field has no mask token.
    """
    if not 0 <= change_ratio <= 1:
        raise ConfigError(f"data_module.change_ratio is {change_ratio}; it must be in [0, 1].")
    gene_ids = tokens.fields[genes.name]
    cells = np.asarray(tokens.rows)[tokens.cell_of_token()]
    draw = keyed_uniform(cells, gene_ids, seed=seed, epoch=epoch, stream=f"mask {field.name}")
    positions = np.flatnonzero((draw < change_ratio) & ~genes.is_special(gene_ids))
    values = tokens.fields[field.name]
    hidden = values.copy()
    hidden[positions] = field.mask_value()
    return tokens.with_fields(**{field.name: hidden}), positions, values[positions]
