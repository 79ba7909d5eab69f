"""Where a loader is in its epoch, as plain JSON, and what must be equal for that to mean the same.

- The position is a number of rows of the epoch's order, not of batches: batch size, budget, ranks
  and threads may all change between stop and start, and every row still comes exactly once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from omics.data.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

Array = np.ndarray[Any, np.dtype[Any]]

_SETTINGS = {
    "seed": "seed {theirs}, this one has {mine}",
    "order": "the order {theirs}, this one has {mine}",
    "rows": "the rows {theirs}, this one has {mine}",
    "store": "the store with digest {theirs}, this one reads {mine}",
}


def rows_name(rows: Array | None) -> str:
    """Return a short name of a selection of rows: equal only for equal rows in equal order.

    Args:
        rows: int64 [n], or None for all.
    """
    if rows is None:
        return "all"
    return f"{len(rows)}:{xxhash.xxh3_64_hexdigest(np.ascontiguousarray(rows).data)}"


def checked_position(
    state: Mapping[str, Any], settings: Mapping[str, Any], num_rows: int
) -> tuple[int, int]:
    """Return epoch and position of a state after comparing it with a loader's settings.

    Args:
        state: from `Loader.state_dict`.
        settings: `seed`, `order`, `rows` and `store` of the loader that is to go on.
        num_rows: of an epoch of that loader.

    Raises:
        ConfigError: a key is missing or unknown, a setting differs, or a number is none.
    """
    expected = {*settings, "epoch", "position"}
    for key in state:
        if key not in expected:
            hint = nearest(str(key), sorted(expected))
            raise ConfigError(f"The loader's state has an unknown key {key!r}.{hint}")
    for key in sorted(expected):
        if key not in state:
            raise ConfigError(f"The loader's state has no {key!r}.")
    for key, mine in settings.items():
        if state[key] != mine:
            differs = _SETTINGS[key].format(theirs=state[key], mine=mine)
            raise ConfigError(
                f"The state is of a loader with {differs}. Continue with the settings of the run "
                "that was stopped."
            )
    epoch, position = state["epoch"], state["position"]
    if type(epoch) is not int or type(position) is not int or epoch < 0:
        raise ConfigError(f"The state's epoch {epoch!r} or position {position!r} is not a count.")
    if not 0 <= position <= num_rows:
        raise ConfigError(f"The state's position is {position}; an epoch has {num_rows} rows.")
    return epoch, position
