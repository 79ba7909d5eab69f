"""SequenceTokenizer against a plain Python implementation, and its refusals."""

from __future__ import annotations

import json
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omics.data.errors import ConfigError, UsageError
from omics.tokenizers.sequence_tokenizer import MAX_K, SequenceTokenizer
from omics.tokenizers.tokenizer_file import load_tokenizer, save_tokenizer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
UNK_ID, CLS_ID = 1, 2
FIRST = len(SPECIAL_TOKENS)


def plain_ids(sequence: bytes, k: int, stride: int, letters: str = "ACGT") -> list[int]:
    """The definition: number the k-mers in alphabetical order."""
    number = {"".join(p): FIRST + i for i, p in enumerate(product(letters, repeat=k))}
    text = sequence.decode("latin-1")
    # Only ASCII letters have a case here: "ß".upper() would be two letters.
    text = "".join(c.upper() if c.isascii() else c for c in text)
    starts = range(0, len(text) - k + 1, stride)
    return [number.get(text[s : s + k], UNK_ID) for s in starts]


def rows_of(batch) -> list[list[int]]:
    ids = batch.fields["sequence"].tolist()
    return [ids[a:b] for a, b in pairwise(batch.offsets.tolist())]


@st.composite
def tokenizer_and_sequences(draw):
    k = draw(st.integers(1, 4))
    stride = draw(st.integers(1, k))
    letters = st.lists(st.sampled_from(b"ACGTacgtNnRU-\x00\xff"), max_size=20).map(bytes)
    return k, stride, draw(st.lists(letters, max_size=6)), draw(st.booleans())


@settings(max_examples=150, deadline=None)
@given(tokenizer_and_sequences())
def test_ids_equal_the_plain_definition(case):
    k, stride, sequences, cls = case
    batch = SequenceTokenizer(k=k, stride=stride, prepend_cls=cls).encode(sequences)
    expected = [[CLS_ID] * cls + plain_ids(s, k, stride) for s in sequences]
    assert rows_of(batch) == expected
    assert batch.rows.tolist() == list(range(len(sequences)))
    assert batch.fields["sequence"].dtype == np.int32
    assert batch.offsets.dtype == np.int64


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(0, 5), st.integers(0, 9), st.randoms())
def test_a_rectangle_and_a_list_give_the_same_tokens(k, num, length, random):
    sequences = [bytes(random.choices(b"ACGTN", k=length)) for _ in range(num)]
    rectangle = np.frombuffer(b"".join(sequences), np.uint8).reshape(num, length)
    tokenizer = SequenceTokenizer(k=k, stride=1)
    a, b = tokenizer.encode(rectangle), tokenizer.encode(sequences)
    assert rows_of(a) == rows_of(b)
    assert a.offsets.tolist() == b.offsets.tolist()


def test_characters_have_fixed_ids():
    batch = SequenceTokenizer().encode([b"ACGTN"])
    assert batch.fields["sequence"].tolist() == [CLS_ID, 5, 6, 7, 8, UNK_ID]


def test_every_kmer_holding_an_unknown_letter_is_unk_and_no_other():
    batch = SequenceTokenizer(k=3, stride=1, prepend_cls=False).encode([b"TTTNTTT"])
    last = FIRST + 4**3 - 1
    assert batch.fields["sequence"].tolist() == [last, UNK_ID, UNK_ID, UNK_ID, last]


def test_the_longest_kmers_do_not_overflow():
    tokenizer = SequenceTokenizer(k=MAX_K, prepend_cls=False)
    ids = tokenizer.encode([b"T" * MAX_K, b"N" * MAX_K, b"T" * (MAX_K - 1) + b"N"])
    assert ids.fields["sequence"].tolist() == [tokenizer.vocabulary_size - 1, UNK_ID, UNK_ID]
    assert tokenizer.fields[0].vocabulary_size == 4**MAX_K + FIRST


def test_lower_case_means_the_same_letters():
    tokenizer = SequenceTokenizer(k=2)
    assert rows_of(tokenizer.encode([b"acgtAC"])) == rows_of(tokenizer.encode([b"ACGTAC"]))


def test_a_sequence_shorter_than_k_has_no_kmer():
    batch = SequenceTokenizer(k=4).encode([b"ACG", b"ACGT", b""], np.array([7, 8, 9]))
    assert batch.lengths.tolist() == [1, 2, 1]
    assert batch.rows.tolist() == [7, 8, 9]
    assert SequenceTokenizer(k=4, prepend_cls=False).encode([b"ACG"]).num_tokens == 0


def test_rna_reads_u_and_dna_does_not():
    assert SequenceTokenizer("rna").encode([b"uT"]).fields["sequence"].tolist() == [2, 8, UNK_ID]
    assert SequenceTokenizer("dna").encode([b"uT"]).fields["sequence"].tolist() == [2, UNK_ID, 8]


@pytest.mark.parametrize("k", [1, 3])
def test_names_invert_ids(k):
    tokenizer = SequenceTokenizer(k=k, prepend_cls=False)
    names = [tokenizer.name(i) for i in range(tokenizer.vocabulary_size)]
    assert names[:FIRST] == list(SPECIAL_TOKENS)
    ids = tokenizer.encode([name.encode() for name in names[FIRST:]]).fields["sequence"]
    assert ids.tolist() == list(range(FIRST, tokenizer.vocabulary_size))
    with pytest.raises(UsageError, match="There is no token"):
        tokenizer.name(tokenizer.vocabulary_size)


def test_a_saved_tokenizer_gives_the_same_tokens(tmp_path):
    tokenizer = SequenceTokenizer("rna", 3, 2, prepend_cls=False)
    save_tokenizer(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, SequenceTokenizer)
    assert loaded.to_dict() == tokenizer.to_dict()
    assert rows_of(loaded.encode([b"ACGUACGU"])) == rows_of(tokenizer.encode([b"ACGUACGU"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k of a sequence tokenizer is 0; use a whole number from 1 to 10"),
        ({"k": 11}, "from 1 to 10"),
        ({"k": "3"}, "k of a sequence tokenizer is '3'"),
        ({"k": True}, "k of a sequence tokenizer is True"),
        ({"stride": 4}, "stride of a sequence tokenizer is 4; use a whole number from 1 to 3"),
        ({"alphabet": "dan"}, "no alphabet 'dan'. Did you mean 'dna'?"),
        ({"prepend_cls": "no"}, "prepend_cls is 'no'"),
    ],
)
def test_a_file_with_a_wrong_value_is_refused(tmp_path, change, message):
    save_tokenizer(SequenceTokenizer(k=3), tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError) as error:
        load_tokenizer(tmp_path)
    assert message in str(error.value)


def test_a_file_without_a_key_is_refused(tmp_path):
    save_tokenizer(SequenceTokenizer(k=3), tmp_path)
    path = tmp_path / "tokenizer.json"
    value = json.loads(path.read_text())
    del value["stride"]
    path.write_text(json.dumps(value))
    with pytest.raises(ConfigError, match="stride"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        (["ACGT"], "Sequence 0 is of type str; give bytes."),
        ([b"A", None], "Sequence 1 is of type NoneType"),
        (np.zeros((2, 3), np.int64), "array of int64 with 2 dimensions"),
        (np.zeros(3, np.uint8), "array of uint8 with 1 dimensions"),
    ],
)
def test_other_kinds_of_sequences_are_refused(sequences, message):
    with pytest.raises(UsageError) as error:
        SequenceTokenizer().encode(sequences)
    assert message in str(error.value)
