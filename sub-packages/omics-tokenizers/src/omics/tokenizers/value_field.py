"""`ValueField`: a field of tokens that holds a value of each gene, continuous or in bins.

- A continuous field holds the value itself, and `-(id + 1)` for the special token with that id.
- A field of bins has a small vocabulary of its own: special tokens, then the bins by their number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import ConfigError, InputDataError, UnknownNameError
from omics.tokenizers.fields import FieldSpec
from omics.tokenizers.vocabulary import Vocabulary, special_value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omics.data import CellBatch

Array = np.ndarray[Any, np.dtype[Any]]

EXPRESSION = "expression"
BIN = "bin"


@dataclass(frozen=True, kw_only=True)
class ValueField:
    """One value per gene, taken from a field of the CellBatch.

    Attributes:
        name: of the field of the tokens.
        source: the field of the CellBatch that is read.
        bins: None for continuous values (at least 0); for whole numbers the vocabulary of their
            tokens, whose ordinary tokens are `0`, `1`, ...
    """

    name: str = EXPRESSION
    source: str = EXPRESSION
    bins: Vocabulary | None = None

    def __post_init__(self) -> None:
        """Check the names of the bins."""
        if self.bins is None:
            return
        names = self.bins.names
        if not names or set(names) != {str(number) for number in range(len(names))}:
            raise ConfigError(
                f"The bins of the field {self.name!r} are {', '.join(names[:5]) or 'none'}, ...; "
                f"they must be named 0 to {max(len(names) - 1, 0)}, in any order."
            )

    @classmethod
    def binned(cls, num_bins: int, *, name: str = EXPRESSION, source: str = BIN) -> ValueField:
        """Return a field of bins in our own layout: special tokens 0 to 4, then the bins.

        Args:
            num_bins: bins, that of zeros (0) included.
            name: of the field of the tokens.
            source: the field of the CellBatch that is read.

        Raises:
            ConfigError: there is no bin.
        """
        bins = Vocabulary.of_names(str(number) for number in range(num_bins))
        return cls(name=name, source=source, bins=bins)

    def spec(self, genes: Vocabulary, used: Sequence[str]) -> FieldSpec:
        """Return the specification of the field.

        Args:
            genes: the vocabulary of the genes, whose special ids continuous values take over.
            used: special tokens that occur in cells; padding and masking come on top.

        Raises:
            ConfigError: the bins have no such special token.
        """
        vocabulary = genes if self.bins is None else self.bins
        mask = vocabulary.id_of("mask")
        if self.bins is not None:
            self.special(genes, used)
            number_of = {int(each): float(n) for n, each in enumerate(self._id_of_bin)}
            return FieldSpec(
                name=self.name,
                kind="discrete",
                vocabulary_size=len(self.bins),
                special_ids=self.bins.special_ids,
                mask_id=mask,
                token_values=tuple(number_of.get(n, math.nan) for n in range(len(self.bins))),
            )
        others = [genes.id_of("pad"), mask]
        ids = {*genes.ids(used).tolist(), *(each for each in others if each is not None)}
        return FieldSpec(
            name=self.name,
            kind="continuous",
            vocabulary_size=max(ids, default=0) + 1,
            special_ids=tuple(sorted(ids)),
            mask_id=mask,
        )

    def special(self, genes: Vocabulary, tokens: Sequence[str]) -> Array:
        """Return what special tokens are in this field, float32 or int32 [k].

        Args:
            genes: the vocabulary of the genes.
            tokens: [k] special tokens of it.

        Raises:
            ConfigError: the bins have no such special token.
        """
        if self.bins is None:
            return np.array([special_value(each) for each in genes.ids(tokens)], np.float32)
        ids = self.bins.ids(tokens)
        if (ids < 0).any():
            missing = tokens[int(np.argmin(ids))]
            raise ConfigError(
                f"The bins of the field {self.name!r} have no special token {missing!r}, which the "
                f"tokenizer puts in every cell; they have {', '.join(self._special_names())}."
            )
        return ids

    def _special_names(self) -> list[str]:
        assert self.bins is not None
        return [self.bins.name(each) for each in self.bins.special_ids]

    @cached_property
    def _id_of_bin(self) -> Array:
        assert self.bins is not None
        return self.bins.ids(str(number) for number in range(len(self.bins.names)))

    def read(self, batch: CellBatch) -> Array:
        """Return what the source field holds: float32 values or whole numbers [nnz].

        Args:
            batch: with the source field.

        Raises:
            UnknownNameError: the batch lacks the source field.
            InputDataError: a bin that the vocabulary does not have.
        """
        if self.source not in batch.fields:
            maker = "log_normalize" if self.bins is None else "bin_quantile or another binning"
            raise UnknownNameError(
                f"The cells carry no field {self.source!r}: add the transform that makes it "
                f"({maker}) to data_module.transforms. Present: {sorted(batch.fields)}."
            )
        values = np.asarray(batch.fields[self.source])
        if self.bins is None:
            return values.astype(np.float32, copy=False)
        if values.dtype.kind not in "iu":
            raise InputDataError(
                f"The field {self.source!r} holds {values.dtype} and not whole numbers; the "
                f"tokens of {self.name!r} are bins. Add a binning transform, such as bin_quantile."
            )
        num_bins = len(self._id_of_bin)
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < num_bins:
            worst = int(values.min()) if int(values.min()) < 0 else int(values.max())
            raise InputDataError(
                f"The field {self.source!r} holds the bin {worst}; the tokens of {self.name!r} are "
                f"the bins 0 to {num_bins - 1}. Use the number of bins that the tokenizer has."
            )
        return values

    def encode(self, batch: CellBatch) -> Array:
        """Return float32 values or int32 token ids [nnz] of the entries of a batch.

        Args:
            batch: as for `read`, which says what can be wrong with it.
        """
        values = self.read(batch)
        return values if self.bins is None else self._id_of_bin[values]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        bins = None if self.bins is None else self.bins.to_dict()
        return {"name": self.name, "source": self.source, "bins": bins}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ValueField:
        """Return the field of a JSON form.

        Args:
            value: as made by `to_dict`.
        """
        bins = value["bins"]
        return cls(
            name=value["name"],
            source=value["source"],
            bins=None if bins is None else Vocabulary.from_dict(bins),
        )
