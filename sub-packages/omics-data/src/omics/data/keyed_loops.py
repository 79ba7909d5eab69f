"""The draws of `keyed_random` as functions that compiled loops call entry by entry.

- Bit-equal to `keyed_uniform`, without arrays in between: a loop mixes the cell into the key once
  and then needs two rounds of mixing an entry.
- A step that needs several draws for one entry counts up from its bits: `mix(bits + k * GOLDEN)`
  is the k-th number of the splitmix64 generator that starts there.
- These functions do not change: the draws of old runs, and cached loops, depend on them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from omics.data.compiled import compiled

Array = np.ndarray[Any, np.dtype[Any]]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1 = np.uint64(30)
_SHIFT_2 = np.uint64(27)
_SHIFT_3 = np.uint64(31)
_UNIT_SHIFT = np.uint64(11)


@compiled
def mix(bits: np.uint64) -> np.uint64:
    """Return the splitmix64 finaliser of 64 bits."""
    z = bits + GOLDEN
    z = (z ^ (z >> _SHIFT_1)) * _MIX_1
    z = (z ^ (z >> _SHIFT_2)) * _MIX_2
    return z ^ (z >> _SHIFT_3)


@compiled
def cell_bits(key: np.uint64, cell: int) -> np.uint64:
    """Return the bits of a cell under a key of `stream_key`."""
    return mix(np.uint64(cell) ^ key)


@compiled
def entry_bits(bits: np.uint64, entry: int) -> np.uint64:
    """Return the bits of an entry of the cell that has `bits`."""
    return mix(bits ^ mix(np.uint64(entry)))


@compiled
def to_unit(bits: np.uint64) -> float:
    """Return bits as a number in [0, 1) with 53 random bits."""
    return np.float64(np.int64(bits >> _UNIT_SHIFT)) * 2.0**-53


@compiled
def fill_units(cells: Array, entries: Array, key: np.uint64, out: Array) -> None:
    """Write the draw of each (cell, entry) pair.

    Args:
        cells: int64 [n].
        entries: integers [n].
        key: of `stream_key`.
        out: float64 [n], filled.
    """
    for i in range(cells.size):
        out[i] = to_unit(entry_bits(cell_bits(key, cells[i]), entries[i]))
