"""`Vocabulary`: tokens to ids, with special tokens wherever a published vocabulary has them.

- Ids are places in a list: a vocabulary that others published keeps its ids unchanged.
- A special token has a role (`pad`, `unk`, `cls`, `sep`, `mask`), so that code asks for a role and
  never for a name or a number; further special tokens have a name only.
- Names that are not there have the id -1, not that of an unknown token: a vocabulary may have none.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Array = np.ndarray[Any, np.dtype[Any]]

ROLES = ("pad", "unk", "cls", "sep", "mask")
# The layout of vocabularies made here: these are the ids 0 to 4.
OWN_SPECIALS = {role: f"[{role.upper()}]" for role in ROLES}


def special_value(token_id: int) -> float:
    """Return what a special token is in a continuous field: -(id + 1).

    Args:
        token_id: one of the special ids.
    """
    return -(float(token_id) + 1.0)


class Vocabulary:
    """Tokens in the order of their ids, some of them special.

    Attributes:
        tokens: all of them; token `i` has the id `i`.
        specials: role to token, for the roles that this vocabulary has.
        other_specials: special tokens without a role, such as `[S]`.

    Args:
        tokens: in id order.
        specials: role to token; several roles may share one token.
        other_specials: further special tokens.

    Raises:
        ConfigError: a token is repeated, a role is unknown, a special token is not among the
            tokens.
    """

    def __init__(
        self,
        tokens: Iterable[str],
        *,
        specials: Mapping[str, str],
        other_specials: Sequence[str] = (),
    ) -> None:
        self.tokens = tuple(str(token) for token in tokens)
        self.specials = dict(specials)
        self.other_specials = tuple(other_specials)
        self._id_of = {token: index for index, token in enumerate(self.tokens)}
        if len(self._id_of) != len(self.tokens):
            repeated = [token for token, times in Counter(self.tokens).items() if times > 1]
            raise ConfigError(
                f"A vocabulary repeats {len(repeated)} tokens, first {repeated[0]!r}. Give each "
                "token once."
            )
        for role in self.specials:
            if role not in ROLES:
                raise ConfigError(
                    f"There is no special token with the role {role!r}.{nearest(role, ROLES)}"
                )
        for token in (*self.specials.values(), *self.other_specials):
            if token not in self._id_of:
                raise ConfigError(
                    f"The special token {token!r} is not among the {len(self.tokens)} tokens of "
                    "its vocabulary. Add it to them."
                )

    @classmethod
    def of_names(cls, names: Iterable[str], *, other_specials: Sequence[str] = ()) -> Vocabulary:
        """Return a vocabulary in our own layout: `[PAD] [UNK] [CLS] [SEP] [MASK]`, then the names.

        Args:
            names: the ordinary tokens, in order.
            other_specials: further special tokens; they follow the first five.
        """
        first = [*OWN_SPECIALS.values(), *other_specials]
        return cls([*first, *names], specials=OWN_SPECIALS, other_specials=other_specials)

    def __len__(self) -> int:
        """Return the number of ids, specials included."""
        return len(self.tokens)

    def __repr__(self) -> str:
        """Return a short description."""
        return f"Vocabulary({len(self)} tokens, special: {self.specials})"

    def __eq__(self, other: object) -> bool:
        """Return whether both have the same tokens in the same roles."""
        return isinstance(other, Vocabulary) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        """Return a hash of the tokens."""
        return hash(self.tokens)

    def ids(self, tokens: Iterable[str]) -> Array:
        """Return int32 [n] ids, -1 for tokens that are not here.

        Args:
            tokens: [n] strings.
        """
        id_of = self._id_of
        return np.array([id_of.get(str(token), -1) for token in tokens], np.int32)

    def name(self, token_id: int) -> str:
        """Return the token of an id.

        Args:
            token_id: 0 <= id < len(self).
        """
        return self.tokens[token_id]

    def id_of(self, role: str) -> int | None:
        """Return the id of the special token with a role, None if there is none.

        Args:
            role: one of `pad`, `unk`, `cls`, `sep`, `mask`.
        """
        token = self.specials.get(role)
        return None if token is None else self._id_of[token]

    def required(self, role: str, *, needed_for: str) -> str:
        """Return the special token with a role.

        Args:
            role: one of `pad`, `unk`, `cls`, `sep`, `mask`.
            needed_for: what asks for it, for the message.

        Raises:
            ConfigError: this vocabulary has none.
        """
        token = self.specials.get(role)
        if token is None:
            raise ConfigError(
                f"{needed_for} needs a special token with the role {role!r}, and this vocabulary "
                f"has none (it has {self.specials}). Leave that out, or use another vocabulary."
            )
        return token

    @cached_property
    def special_ids(self) -> tuple[int, ...]:
        """The ids of all special tokens, ascending."""
        return tuple(
            sorted({self._id_of[t] for t in (*self.specials.values(), *self.other_specials)})
        )

    @cached_property
    def is_special(self) -> Array:
        """Whether each id is special, bool [V]."""
        special = np.zeros(len(self), np.bool_)
        special[list(self.special_ids)] = True
        return special

    @cached_property
    def ordinary_ids(self) -> Array:
        """int32 [number of ordinary tokens], their ids, ascending."""
        return np.flatnonzero(~self.is_special).astype(np.int32)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The ordinary tokens, in id order."""
        return tuple(self.tokens[index] for index in self.ordinary_ids.tolist())

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the JSON form, which tells two vocabularies apart."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "tokens": list(self.tokens),
            "specials": dict(self.specials),
            "other_specials": list(self.other_specials),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Vocabulary:
        """Return the vocabulary of a JSON form.

        Args:
            value: as made by `to_dict`.
        """
        return cls(
            value["tokens"],
            specials=value["specials"],
            other_specials=value["other_specials"],
        )
