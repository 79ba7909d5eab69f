"""Hiding values of fields: which tokens, what stands in their place, and what they held.

- A pure function of (seed, epoch, cell, gene): a cell is masked alike in whatever batch. Weights of
  genes are therefore compared with the others of the same cell, not of the batch.
- Special tokens are never hidden.
- One number is drawn per token; from 0 upwards its range is divided into masked, switched, asked
  about but left as it is, and not asked about.
- With `nonzero_ratio` the tokens asked about are an exact number instead: those with the smallest
  numbers among the values that are not 0, and among those that are (Bioformers). A second number
  then says what is shown in their place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import ConfigError
from omics.data.keyed_random import keyed_uniform
from omics.train.training_batch import Questions
from omics.train.whole_cell_targets import refuse_not_finite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omics.tokenizers import FieldSpec, TokenBatch
    from omics.train.adaptive_masking import AdaptiveMasking

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldMask:
    """How one field is hidden.

    Attributes:
        field: that is hidden.
        change_ratio: share of its tokens that the model is asked about.
        mask_ratio: share of those that show the mask token.
        switch_ratio: share of those that show something else of the same field: of a discrete field
            any ordinary token, each with the same probability; of a continuous one the value of a
            token of the same cell. The rest is shown as it is.
        nonzero_ratio: None asks about any tokens. A share asks about exactly floor(change_ratio * n)
            of the n tokens of a cell; so many of them have a value that is not 0, and the others the
            value 0. Where a cell has too few of either kind, the other kind makes up for it.
    """

    field: FieldSpec
    change_ratio: float = 0.15
    mask_ratio: float = 1.0
    switch_ratio: float = 0.0
    nonzero_ratio: float | None = None

    def __post_init__(self) -> None:
        """Check the shares."""
        where = f"The field {self.field.name!r} has"
        for name in ("change_ratio", "mask_ratio", "switch_ratio", "nonzero_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{where} {name} {value}; it must be in [0, 1].")
        if self.mask_ratio + self.switch_ratio > 1 + 1e-9:
            raise ConfigError(
                f"{where} mask_ratio {self.mask_ratio} and switch_ratio {self.switch_ratio}; "
                "together they must not exceed 1."
            )
        has_values = self.field.kind == "continuous" or self.field.token_values
        if self.nonzero_ratio is not None and not has_values:
            raise ConfigError(
                f"{where} nonzero_ratio {self.nonzero_ratio}, and its ids stand for no numbers: none "
                "of them is 0. Set it in the entry of the field with the values instead of in "
                "data_module."
            )
        self.field.mask_value()  # A field without a mask token is refused here.

    def is_zero(self, values: Array) -> Array:
        """Return bool [T], which values are 0.

        Args:
            values: [T] of the field, which holds values or bins of values.
        """
        return np.asarray(self.field.numbers(values) == 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskPlan:
    """How the fields of a run are hidden.

    Attributes:
        genes: the field of the genes, which says what tokens are special.
        fields: in the order in which they are hidden.
        comask: hide the same tokens in all fields (with the same ratios). Otherwise a token that
            is hidden in one field is left alone in the next.
        gene_weights: float64 [ids], how likely a gene is hidden beside others; None for all alike.
        adaptive: weights that follow the validation error; for training alone.
        seed: of the run.

    Raises:
        ConfigError: `nonzero_ratio` beside what else decides which tokens are hidden.
    """

    genes: FieldSpec
    fields: tuple[FieldMask, ...] = ()
    comask: bool = False
    gene_weights: Array | None = None
    adaptive: AdaptiveMasking | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse two ways at once to choose the tokens."""
        exact = [mask.field.name for mask in self.fields if mask.nonzero_ratio is not None]
        if exact and (self.gene_weights is not None or self.adaptive is not None):
            raise ConfigError(
                f"nonzero_ratio says which tokens of {exact[0]!r} are hidden, and so do "
                "data_module.pattern_weights and adaptive_masking. Leave one of them out."
            )
        if exact and self.comask and len(self.fields) > 1:
            raise ConfigError(
                f"nonzero_ratio chooses tokens by their value in {exact[0]!r}, and "
                "data_module.comask_across_fields the same tokens in all fields. Leave one of them "
                "out."
            )

    def hide(
        self, tokens: TokenBatch, *, epoch: int, training: bool = True
    ) -> tuple[TokenBatch, dict[str, Questions]]:
        """Hide random tokens.

        Args:
            tokens: numpy tokens, left as they are.
            epoch: of the pass.
            training: whether adaptive weights are used.

        Returns:
            The tokens with other values in the chosen places, and for each field where these are
            and what they held.

        Raises:
            InputDataError: a value that is not finite.
        """
        ids = tokens.fields[self.genes.name]
        cell = tokens.cell_of_token()
        rows = np.asarray(tokens.rows)[cell]
        free = ~self.genes.is_special(ids)
        shown, questions = {}, {}
        for mask in self.fields:
            name = mask.field.name
            values = tokens.fields[name]
            if mask.field.kind == "continuous":
                refuse_not_finite(values, tokens, name)
            places = (rows, ids, cell, free)
            positions, part, at = self._choose(mask, places, values, epoch, training=training)
            hidden = values.copy()
            masked = positions[part < at * mask.mask_ratio]
            if mask.switch_ratio:
                switched = positions[
                    (part >= at * mask.mask_ratio)
                    & (part < at * (mask.mask_ratio + mask.switch_ratio))
                ]
                drawn = keyed_uniform(
                    rows[switched],
                    ids[switched],
                    seed=self.seed,
                    epoch=epoch,
                    stream=f"switch {name}",
                )
                hidden[switched] = _others(tokens, mask.field, free, cell[switched], drawn)
            hidden[masked] = mask.field.mask_value()
            shown[name] = hidden
            questions[name] = Questions(
                positions=positions, genes=ids[positions].astype(np.int64), values=values[positions]
            )
            if not self.comask:
                free[positions] = False
        return tokens.with_fields(**shown), questions

    def _choose(
        self,
        mask: FieldMask,
        places: tuple[Array, Array, Array, Array],
        values: Array,
        epoch: int,
        *,
        training: bool,
    ) -> tuple[Array, Array, Array]:
        """Return int64 [K], the tokens to ask about, and what decides what they show.

        Args:
            mask: of the field.
            places: row of the cell, id of the gene, cell and freedom of each token, [T].
            values: [T] of the field.
            epoch: of the pass.
            training: whether adaptive weights are used.

        Returns:
            Positions, ascending; a number of each, and the end of the range that it is drawn from.
        """
        rows, ids, cell, free = places
        num_cells = int(cell[-1]) + 1 if len(cell) else 0
        stream = "mask" if self.comask else f"mask {mask.field.name}"
        draw = keyed_uniform(rows, ids, seed=self.seed, epoch=epoch, stream=stream)
        if mask.nonzero_ratio is not None:
            chosen = _exact_choice(mask, values, free, draw, cell)
            stream = f"show {mask.field.name}"
            part = keyed_uniform(
                rows[chosen], ids[chosen], seed=self.seed, epoch=epoch, stream=stream
            )
            return chosen, part, np.ones(len(chosen))
        weights = self._weights(mask.field.name, ids, training=training)
        chance = _chances(mask.change_ratio, weights, cell, free, num_cells)
        chosen = np.flatnonzero((draw < chance) & free)
        return chosen, draw[chosen], np.broadcast_to(chance, draw.shape)[chosen]

    def _weights(self, name: str, ids: Array, *, training: bool) -> Array | None:
        """Return float64 [T], the weight of each token; None where all weigh the same."""
        adaptive = self.adaptive.weights.get(name) if training and self.adaptive else None
        weights = [each[ids] for each in (self.gene_weights, adaptive) if each is not None]
        if not weights:
            return None
        return weights[0] if len(weights) == 1 else weights[0] * weights[1]


def _chances(
    ratio: float, weights: Array | None, cell: Array, free: Array, num_cells: int
) -> float | Array:
    """Return the chance of each token: the ratio times its weight over the cell's mean weight."""
    if weights is None:
        return ratio
    number = np.bincount(cell[free], minlength=num_cells)
    total = np.bincount(cell[free], weights=weights[free], minlength=num_cells)
    # A cell whose genes all weigh nothing has none hidden.
    scale = np.divide(ratio * number, total, out=np.zeros(num_cells), where=total > 0)
    return np.minimum(weights * scale[cell], 1.0)


def _exact_choice(mask: FieldMask, values: Array, free: Array, draw: Array, cell: Array) -> Array:
    """Return int64 [K], ascending: as many tokens of each cell, and of each kind, as are wanted.

    Args:
        mask: with a `nonzero_ratio`.
        values: [T] of its field.
        free: bool [T], tokens that may be chosen.
        draw: float64 [T]; the smallest of a cell and kind are chosen.
        cell: int64 [T], ascending.
    """
    assert mask.nonzero_ratio is not None
    candidates = np.flatnonzero(free)
    # Tokens other than 0 of cell i are the group 2 i, its zeros the group 2 i + 1.
    group = 2 * cell[candidates] + mask.is_zero(values[candidates])
    num_cells = int(cell[-1]) + 1 if len(cell) else 0
    number = np.bincount(group, minlength=2 * num_cells).reshape(num_cells, 2)
    nonzeros, zeros = number[:, 0], number[:, 1]
    wanted = _floor(number.sum(1) * mask.change_ratio)
    chosen = np.minimum(_floor(wanted * mask.nonzero_ratio), nonzeros)
    chosen = np.maximum(chosen, wanted - zeros)
    quota = np.stack([chosen, wanted - chosen], axis=1).reshape(-1)
    order = np.lexsort((draw[candidates], group))
    begin = np.concatenate([[0], np.cumsum(number.reshape(-1))])[group[order]]
    rank = np.arange(len(order)) - begin
    return np.asarray(np.sort(candidates[order[rank < quota[group[order]]]]))


def _floor(numbers: Array) -> Array:
    """Return int64, the whole numbers below; 0.29 * 100 is 29 although floats say a little less."""
    return np.floor(numbers + 1e-9).astype(np.int64)


def _others(tokens: TokenBatch, field: FieldSpec, free: Array, cell: Array, drawn: Array) -> Array:
    """Return [K] values for switched tokens.

    Args:
        tokens: before anything is hidden.
        field: that is switched.
        free: bool [T], tokens whose values may be taken.
        cell: int64 [K], the cells of the switched tokens.
        drawn: float64 [K] in [0, 1).
    """
    if field.kind == "discrete":
        ordinary = np.setdiff1d(np.arange(field.vocabulary_size), field.special_ids)
        return ordinary[(drawn * len(ordinary)).astype(np.int64)]
    before = np.zeros(len(free) + 1, np.int64)
    np.cumsum(free, out=before[1:])
    begin = before[tokens.offsets[cell]]
    number = before[tokens.offsets[cell + 1]] - begin
    chosen = np.flatnonzero(free)[begin + (drawn * number).astype(np.int64)]
    return tokens.fields[field.name][chosen]


def pattern_weights(
    patterns: Sequence[Sequence[Any]], *names: Sequence[str], ids: Array, num_ids: int
) -> Array:
    """Return float64 [num_ids], the weight of each gene: that of the first pattern it matches.

    Args:
        patterns: pairs of a regular expression, searched for in the names, and a weight.
        *names: the ids and symbols of the genes.
        ids: int [genes], their token ids.
        num_ids: size of the vocabulary.

    Raises:
        ConfigError: an entry that is no pair, a pattern that is none or matches no gene, a negative
            weight.
    """
    weights = np.ones(num_ids)
    settled = np.zeros(len(ids), np.bool_)
    for entry in patterns:
        if not (
            len(entry) == 2 and isinstance(entry[0], str) and isinstance(entry[1], int | float)
        ):
            raise ConfigError(
                f"data_module.pattern_weights holds {list(entry)}; write [pattern, weight]."
            )
        text, weight = entry
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise ConfigError(
                f"data_module.pattern_weights: {text!r} is no regular expression ({error})."
            ) from error
        if not 0 <= weight < np.inf:
            raise ConfigError(f"data_module.pattern_weights gives {text!r} the weight {weight}.")
        found = np.zeros(len(ids), np.bool_)
        for each in names:
            found |= np.fromiter((bool(pattern.search(n)) for n in each), np.bool_, len(ids))
        if not found.any():
            raise ConfigError(
                f"data_module.pattern_weights: no gene matches {text!r}; genes are named like "
                f"{', '.join(str(each[0]) for each in names if len(each))}."
            )
        weights[ids[found & ~settled]] = weight
        settled |= found
    return weights
