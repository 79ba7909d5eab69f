"""Exact draws from the binomial and Poisson distributions, and counts thinned with them.

- Each (cell, gene) has a generator of its own (splitmix64 started at the bits of the entry), so
  that how many numbers one draw uses up does not matter to any other.
- Small cases are drawn by their definition or by inversion, large ones by transformed rejection
  (Hoermann 1993: BTRS for the binomial, PTRS for Poisson): exact up to float64, bounded time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from omics.data.compiled import compiled
from omics.data.keyed_loops import GOLDEN, cell_bits, entry_bits, mix, to_unit

Array = np.ndarray[Any, np.dtype[Any]]

_TRIALS = 16  # Up to here single trials are cheaper than an exponential.


@compiled
def draw_binomial(bits: np.uint64, trials: Any, chance: float) -> Any:
    """Return how many of `trials` succeed.

    Args:
        bits: where the generator starts.
        trials: not negative.
        chance: of one success, in [0, 1].
    """
    if trials <= _TRIALS:
        few: Any = np.int64(0)
        for _ in range(trials):
            few += np.int64(to_unit(mix(bits)) < chance)
            bits += GOLDEN
        return few
    rarer = min(chance, 1.0 - chance)
    if trials * rarer < 10.0:
        successes = _invert_binomial(to_unit(mix(bits)), trials, rarer)
    else:
        successes = _reject_binomial(bits, trials, rarer)
    return successes if chance <= 0.5 else trials - successes


@compiled
def _invert_binomial(draw: float, trials: Any, chance: float) -> Any:
    """Return the smallest number whose cumulative probability exceeds the draw."""
    odds = chance / (1.0 - chance)
    probability = math.exp(trials * math.log1p(-chance))
    successes = np.int64(0)
    while draw >= probability and successes < trials and probability > 0.0:
        draw -= probability
        successes += 1
        probability *= odds * (trials - successes + 1) / successes
    return successes


@compiled
def _reject_binomial(bits: np.uint64, trials: Any, chance: float) -> Any:
    """Draw by transformed rejection; for trials * chance from 10 and chance up to 0.5."""
    spread = math.sqrt(trials * chance * (1.0 - chance))
    b = 1.15 + 2.53 * spread
    a = -0.0873 + 0.0248 * b + 0.01 * chance
    centre = trials * chance + 0.5
    sure = 0.92 - 4.2 / b
    alpha = (2.83 + 5.1 / b) * spread
    log_odds = math.log(chance / (1.0 - chance))
    mode = math.floor((trials + 1) * chance)
    at_mode = math.lgamma(mode + 1.0) + math.lgamma(trials - mode + 1.0)
    while True:
        u = to_unit(mix(bits)) - 0.5
        v = to_unit(mix(bits + GOLDEN))
        bits += GOLDEN + GOLDEN
        edge = 0.5 - abs(u)
        if edge <= 0.0:
            continue
        found = math.floor((2.0 * a / edge + b) * u + centre)
        if found < 0 or found > trials:
            continue
        if edge >= 0.07 and v <= sure:
            return np.int64(found)
        if v <= 0.0:
            return np.int64(found)
        height = math.log(v * alpha / (a / (edge * edge) + b))
        relative = at_mode - math.lgamma(found + 1.0) - math.lgamma(trials - found + 1.0)
        if height <= relative + (found - mode) * log_odds:
            return np.int64(found)


@compiled
def draw_poisson(bits: np.uint64, mean: float) -> Any:
    """Return a draw from the Poisson distribution.

    Args:
        bits: where the generator starts.
        mean: not negative.
    """
    if mean < 10.0:
        draw = to_unit(mix(bits))
        probability = math.exp(-mean)
        events = np.int64(0)
        while draw >= probability > 0.0:
            draw -= probability
            events += 1
            probability *= mean / events
        return events
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    log_inverse_alpha = math.log(1.1239 + 1.1328 / (b - 3.4))
    sure = 0.9277 - 3.6224 / (b - 2.0)
    log_mean = math.log(mean)
    while True:
        u = to_unit(mix(bits)) - 0.5
        v = to_unit(mix(bits + GOLDEN))
        bits += GOLDEN + GOLDEN
        edge = 0.5 - abs(u)
        if edge <= 0.0:
            continue
        found = math.floor((2.0 * a / edge + b) * u + mean + 0.43)
        if found < 0:
            continue
        if edge >= 0.07 and v <= sure:
            return np.int64(found)
        if edge < 0.013 and v > edge:
            continue
        if v <= 0.0:
            return np.int64(found)
        height = math.log(v) + log_inverse_alpha - math.log(a / (edge * edge) + b)
        if height <= found * log_mean - mean - math.lgamma(found + 1.0):
            return np.int64(found)


@compiled
def beta_of_two(bits: np.uint64) -> float:
    """Return a draw from Beta(2, 2), which the median of three uniform draws follows."""
    first = to_unit(mix(bits))
    second = to_unit(mix(bits + GOLDEN))
    third = to_unit(mix(bits + GOLDEN + GOLDEN))
    return max(min(first, second), min(max(first, second), third))


@compiled
def thin_rows(
    indptr: Array,
    genes: Array,
    counts: Array,
    drawing: tuple[Array, np.uint64, np.uint64, int],
    out: Array,
) -> None:
    """Thin about half of the rows that are deep enough, each by one share for all its counts.

    Args:
        indptr: int64 [n + 1].
        genes: unsigned [nnz].
        counts: uint32 [nnz].
        drawing: int64 [n] names of the cells, keys of `stream_key` for cells and for entries, and
            the total from which a row is deep enough.
        out: uint32 [nnz], filled; a row that would lose all its counts keeps them.
    """
    cells, cell_key, entry_key, threshold = drawing
    for row in range(indptr.size - 1):
        row_genes = genes[indptr[row] : indptr[row + 1]]
        row_counts = counts[indptr[row] : indptr[row + 1]]
        row_out = out[indptr[row] : indptr[row + 1]]
        total = np.int64(0)
        for entry in range(row_counts.size):
            total += np.int64(row_counts[entry])
            row_out[entry] = row_counts[entry]
        bits = cell_bits(cell_key, cells[row])
        if total < threshold or to_unit(mix(bits)) >= 0.5:
            continue
        share = beta_of_two(bits + GOLDEN)
        entry_start = cell_bits(entry_key, cells[row])
        left = np.int64(0)
        for entry in range(row_counts.size):
            start = entry_bits(entry_start, row_genes[entry])
            kept = draw_binomial(start, np.int64(row_counts[entry]), share)
            row_out[entry] = kept
            left += kept
        if left == 0:
            for entry in range(row_counts.size):
                row_out[entry] = row_counts[entry]


@compiled
def thin_rows_by_poisson(
    indptr: Array,
    genes: Array,
    counts: Array,
    drawing: tuple[Array, np.uint64, float],
    out: Array,
) -> None:
    """Drop each count with a chance, and take a Poisson draw from those that stay.

    Args:
        indptr: int64 [n + 1].
        genes: unsigned [nnz].
        counts: uint32 [nnz].
        drawing: int64 [n] names of the cells, key of `stream_key`, and the chance, which is also
            the share of a count that is taken from it on average.
        out: uint32 [nnz], filled; a row that would lose all its counts keeps them.
    """
    cells, key, share = drawing
    for row in range(indptr.size - 1):
        row_genes = genes[indptr[row] : indptr[row + 1]]
        row_counts = counts[indptr[row] : indptr[row + 1]]
        row_out = out[indptr[row] : indptr[row + 1]]
        bits = cell_bits(key, cells[row])
        left = np.int64(0)
        for entry in range(row_counts.size):
            start = entry_bits(bits, row_genes[entry])
            kept = np.int64(0)
            if to_unit(mix(start)) >= share:
                count = np.int64(row_counts[entry])
                kept = max(count - draw_poisson(start + GOLDEN, count * share), np.int64(0))
            row_out[entry] = kept
            left += kept
        if left == 0:
            for entry in range(row_counts.size):
                row_out[entry] = row_counts[entry]
