"""`Vocabulary`: names to token ids, with the special tokens first.

- The special tokens have the same ids in every vocabulary of the project.
- A vocabulary is a plain list on disk; its digest tells two of them apart.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, np.dtype[Any]]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID = range(5)


def special_value(token_id: int) -> float:
    """Return what a special token is in a continuous field: -(id + 1).

    Args:
        token_id: one of the special ids.
    """
    return -(float(token_id) + 1.0)


class Vocabulary:
    """An ordered set of names; name `i` has token id `len(SPECIAL_TOKENS) + i`.

    Attributes:
        names: the ordinary tokens, in id order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(str(name) for name in names)
        self._position = {name: index for index, name in enumerate(self.names)}
        if len(self._position) != len(self.names):
            repeated = [name for name, times in Counter(self.names).items() if times > 1]
            raise ConfigError(f"A vocabulary repeats {len(repeated)} names, first {repeated[0]!r}.")

    def __len__(self) -> int:
        """Return the number of ids, specials included."""
        return len(SPECIAL_TOKENS) + len(self.names)

    @property
    def digest(self) -> str:
        """sha256 of the names, one a line."""
        return hashlib.sha256("\n".join(self.names).encode()).hexdigest()

    def ids(self, names: Sequence[str] | Array) -> Array:
        """Return int32 [n] token ids; `UNK_ID` for names that are not here.

        Args:
            names: [n] strings.
        """
        first = len(SPECIAL_TOKENS)
        position = self._position
        found = (position.get(str(name), -1) for name in names)
        return np.array([UNK_ID if p < 0 else p + first for p in found], np.int32)

    def name(self, token_id: int) -> str:
        """Return the name of a token id.

        Args:
            token_id: 0 <= id < len(self).
        """
        first = len(SPECIAL_TOKENS)
        return SPECIAL_TOKENS[token_id] if token_id < first else self.names[token_id - first]
