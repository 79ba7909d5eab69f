"""Hiding values of a field: which tokens, and what they held.

- A pure function of (seed, epoch, cell, gene): a cell is masked alike in whatever batch.
- Special tokens are never hidden.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from omics.data.errors import ConfigError
from omics.data.keyed_random import keyed_uniform
from omics.tokenizers import SPECIAL_TOKENS, FieldSpec, TokenBatch
from omics.tokenizers.vocabulary import MASK_ID, special_value

Array = np.ndarray[Any, np.dtype[Any]]


def mask_field(
    tokens: TokenBatch, field: FieldSpec, *, change_ratio: float, seed: int, epoch: int
) -> tuple[TokenBatch, Array, Array]:
    """Hide a random share of a field's tokens.

    Args:
        tokens: numpy tokens with a `genes` field.
        field: the field that is hidden.
        change_ratio: probability of a token, in [0, 1].
        seed: of the run.
        epoch: of the pass.

    Returns:
        The tokens with `[MASK]` in the chosen places, the flat positions int64 [K], and the
        hidden values [K].

    Raises:
        ConfigError: the ratio is no probability.
    """
    if not 0 <= change_ratio <= 1:
        raise ConfigError(f"data_module.change_ratio is {change_ratio}; it must be in [0, 1].")
    genes = tokens.fields["genes"]
    cells = np.asarray(tokens.rows)[tokens.cell_of_token()]
    draw = keyed_uniform(cells, genes, seed=seed, epoch=epoch, stream=f"mask {field.name}")
    positions = np.flatnonzero((draw < change_ratio) & (genes >= len(SPECIAL_TOKENS)))
    values = tokens.fields[field.name]
    hidden = values.copy()
    hidden[positions] = MASK_ID if field.kind == "discrete" else special_value(MASK_ID)
    return tokens.with_fields(**{field.name: hidden}), positions, values[positions]
