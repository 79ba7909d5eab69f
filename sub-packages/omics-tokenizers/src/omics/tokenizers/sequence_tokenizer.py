"""`SequenceTokenizer`: letters of DNA or RNA to character or k-mer tokens.

- A k-mer's id is its number in base 4, so there is no vocabulary to store and no string per token:
  k lookups in tables of 256 rows and a sum make the ids of a whole batch.
- A letter outside the alphabet makes the sum negative, whatever the other letters are: a k-mer is
  either known in full or `[UNK]`.
- Lower case (soft-masked repeats) means the same letter as upper case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import ConfigError, UsageError, nearest
from omics.tokenizers.fields import FieldSpec
from omics.tokenizers.token_batch import TokenBatch
from omics.tokenizers.vocabulary import OWN_SPECIALS, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Array = np.ndarray[Any, np.dtype[Any]]

SEQUENCE = "sequence"
ALPHABETS = {"dna": "ACGT", "rna": "ACGU"}

# k-mers are numbered, not listed: only the special tokens stand in a vocabulary.
SPECIALS = Vocabulary.of_names(())
CLS_ID, UNK_ID = SPECIALS.ids([OWN_SPECIALS["cls"], OWN_SPECIALS["unk"]]).tolist()

# Beyond a million ids (10 letters) the embedding table would outweigh the encoder.
MAX_K = 10


class SequenceTokenizer:
    """Turns sequences into a `TokenBatch` with the one field `sequence`.

    Token `i` of a sequence covers the letters `i * stride` to `i * stride + k`; letters at the end
    that do not fill a k-mer are left out, and a sequence shorter than `k` has no k-mer at all.

    Attributes:
        alphabet: `dna` or `rna`.
        letters: the letters of the alphabet, in the order of their ids.
        k: letters of a token.
        stride: letters from one token to the next; less than `k` makes tokens overlap.
        prepend_cls: whether a sequence begins with `[CLS]`.
    """

    kind = "sequence"

    def __init__(
        self,
        alphabet: str = "dna",
        k: int = 1,
        stride: int | None = None,
        *,
        prepend_cls: bool = True,
    ) -> None:
        if alphabet not in ALPHABETS:
            raise ConfigError(
                f"There is no alphabet {alphabet!r}.{nearest(alphabet, [*ALPHABETS])}"
            )
        self.alphabet = alphabet
        self.letters = ALPHABETS[alphabet]
        self.k = _whole_number(k, "k", MAX_K)
        self.stride = self.k if stride is None else _whole_number(stride, "stride", self.k)
        if not isinstance(prepend_cls, bool):
            raise ConfigError(f"prepend_cls is {prepend_cls!r}; use true or false.")
        self.prepend_cls = prepend_cls
        self._tables = self._build_tables()

    def _build_tables(self) -> Array:
        # Row j holds what the letter at place j of a k-mer adds to its id; int32 is wide enough,
        # for a k-mer of unknown letters only comes to -MAX_K * (4**MAX_K + 5).
        tables = np.full((self.k, 256), -self.vocabulary_size, np.int32)
        for place in range(self.k):
            weight = len(self.letters) ** (self.k - 1 - place)
            for digit, letter in enumerate(self.letters):
                tables[place, [ord(letter), ord(letter.lower())]] = digit * weight
        tables[0, tables[0] >= 0] += len(SPECIALS)
        return tables

    @property
    def vocabulary_size(self) -> int:
        """The number of ids, special tokens included."""
        return len(SPECIALS) + int(len(self.letters) ** self.k)

    @property
    def fields(self) -> list[FieldSpec]:
        """The fields that `encode` makes."""
        return [
            FieldSpec(
                name=SEQUENCE,
                kind="discrete",
                vocabulary_size=self.vocabulary_size,
                special_ids=SPECIALS.special_ids,
                mask_id=SPECIALS.id_of("mask"),
            )
        ]

    def name(self, token_id: int) -> str:
        """Return the letters (or the special name) of a token id.

        Args:
            token_id: 0 <= id < vocabulary_size.

        Raises:
            UsageError: no such id.
        """
        if not 0 <= token_id < self.vocabulary_size:
            raise UsageError(
                f"There is no token {token_id}; ids end at {self.vocabulary_size - 1}."
            )
        if token_id < len(SPECIALS):
            return SPECIALS.name(token_id)
        number, base, letters = token_id - len(SPECIALS), len(self.letters), ""
        for _ in range(self.k):
            number, digit = divmod(number, base)
            letters = self.letters[digit] + letters
        return letters

    def encode(self, sequences: Array | Sequence[bytes], rows: Array | None = None) -> TokenBatch:
        """Return the flat tokens of some sequences.

        Args:
            sequences: uint8 [n, L] letters of equal length, or a list of n byte strings.
            rows: int64 [n], numbers that the sequences keep; None counts from 0.

        Returns:
            The field `sequence`, int32 [T].

        Raises:
            UsageError: sequences of another type or shape.
        """
        if isinstance(sequences, np.ndarray):
            if sequences.dtype != np.uint8 or sequences.ndim != 2:
                raise UsageError(
                    f"Sequences are an array of {sequences.dtype} with {sequences.ndim} dimensions; "
                    "give uint8 [n, L] or a list of bytes."
                )
            num, length = sequences.shape
            offsets = np.arange(num + 1, dtype=np.int64) * length
            return self.encode_flat(sequences.reshape(-1), offsets, rows)
        kinds = [type(sequence).__name__ for sequence in sequences]
        if set(kinds) - {"bytes"}:
            position = next(index for index, kind in enumerate(kinds) if kind != "bytes")
            raise UsageError(f"Sequence {position} is of type {kinds[position]}; give bytes.")
        offsets = np.zeros(len(sequences) + 1, np.int64)
        np.cumsum([len(sequence) for sequence in sequences], out=offsets[1:])
        return self.encode_flat(np.frombuffer(b"".join(sequences), np.uint8), offsets, rows)

    def encode_flat(self, letters: Array, offsets: Array, rows: Array | None = None) -> TokenBatch:
        """Return the flat tokens of sequences that lie end to end.

        Args:
            letters: uint8 [sum of lengths].
            offsets: int64 [n + 1], where each sequence begins.
            rows: int64 [n], numbers that the sequences keep; None counts from 0.

        Returns:
            The field `sequence`, int32 [T].
        """
        num_kmers = np.maximum((np.diff(offsets) - self.k) // self.stride + 1, 0)
        kmers_before = np.zeros(len(offsets), np.int64)
        np.cumsum(num_kmers, out=kmers_before[1:])
        first = np.repeat(offsets[:-1] - kmers_before[:-1] * self.stride, num_kmers)
        first += np.arange(int(kmers_before[-1]), dtype=np.int64) * self.stride
        ids = self._tables[0][letters[first]]
        for place in range(1, self.k):
            ids += self._tables[place][letters[first + place]]
        ids[ids < 0] = UNK_ID
        rows = np.arange(len(offsets) - 1, dtype=np.int64) if rows is None else rows
        if not self.prepend_cls:
            return TokenBatch(fields={SEQUENCE: ids}, offsets=kmers_before, rows=rows)
        token_offsets = kmers_before + np.arange(len(offsets), dtype=np.int64)
        is_kmer = np.ones(int(token_offsets[-1]), bool)
        is_kmer[token_offsets[:-1]] = False
        tokens = np.full(len(is_kmer), CLS_ID, np.int32)
        tokens[is_kmer] = ids
        return TokenBatch(fields={SEQUENCE: tokens}, offsets=token_offsets, rows=rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "kind": self.kind,
            "alphabet": self.alphabet,
            "k": self.k,
            "stride": self.stride,
            "prepend_cls": self.prepend_cls,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> SequenceTokenizer:
        """Return the tokenizer of a JSON form.

        Args:
            value: as made by `to_dict`.

        Raises:
            ConfigError: a value that no sequence tokenizer has.
        """
        return cls(value["alphabet"], value["k"], value["stride"], prepend_cls=value["prepend_cls"])


def _whole_number(value: object, name: str, largest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise ConfigError(
            f"{name} of a sequence tokenizer is {value!r}; use a whole number from 1 to {largest}."
        )
    return value
