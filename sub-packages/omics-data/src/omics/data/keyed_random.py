"""Random numbers that are a pure function of (seed, epoch, cell, entry).

- Counter-based (splitmix64 finaliser, Steele et al. 2014): no state to carry, nothing per cell
  in Python, the same draw for a cell in whatever batch, thread or rank it appears.
- `stream` separates the draws of different steps (dropout, masking) of the same cell.
- Compiled loops draw inline with `keyed_loops` and a key from `stream_key`: the same numbers.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(values: Array) -> Array:
    """Return the splitmix64 finaliser of uint64 values (wrap-around is intended)."""
    with np.errstate(over="ignore"):
        z = values + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)


def stream_key(*, seed: int, epoch: int, stream: str) -> np.uint64:
    """Return the key of one step of one epoch, for the functions of `keyed_loops`.

    Args:
        seed: of the run.
        epoch: of the pass over the data.
        stream: names the step that draws, such as `sample_genes`.
    """
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64)
    key = _mix(key ^ _mix(np.array([epoch], np.int64).astype(np.uint64)))
    return np.uint64(_mix(key ^ np.uint64(zlib.crc32(stream.encode())))[0])


def keyed_uniform(
    cells: Array, entries: Array | None = None, *, seed: int, epoch: int, stream: str
) -> Array:
    """Return one uniform number in [0, 1) per cell, or per (cell, entry) pair.

    Args:
        cells: int64 [n], stable names of cells (their rows in the store).
        entries: None, or [n] integers that tell a cell's entries apart (gene positions).
        seed: of the run.
        epoch: of the pass over the data.
        stream: names the step that draws, such as `sample_genes`.

    Returns:
        float64 [n], with 53 random bits each.
    """
    key = stream_key(seed=seed, epoch=epoch, stream=stream)
    cells = np.asarray(cells)
    if entries is None:
        bits = _mix(cells.astype(np.uint64) ^ key)
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    from omics.data.keyed_loops import fill_units

    entries = np.asarray(entries)
    if cells.shape != entries.shape or cells.ndim != 1:
        raise ValueError(f"{cells.shape} cells do not go with {entries.shape} entries.")
    draws = np.empty(len(cells), np.float64)
    fill_units(cells.astype(np.int64, copy=False), entries, key, draws)
    return draws
