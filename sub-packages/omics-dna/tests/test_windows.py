"""Windows against a plain Python tiling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omics.data.errors import UsageError
from omics.dna.fasta import Fasta
from omics.dna.windows import Windows


def open_records(folder, sequences: list[bytes]) -> Fasta:
    file = folder / "w.fa"
    parts = []
    for number, sequence in enumerate(sequences):
        lines = [sequence[at : at + 7] for at in range(0, len(sequence), 7)]
        parts.append(b">s%d\n" % number + b"".join(line + b"\n" for line in lines))
    file.write_bytes(b"".join(parts))
    return Fasta(file)


def plain_windows(sequences, window, stride, min_length):
    """The definition: stop at the first window that reaches the end."""
    for number, sequence in enumerate(sequences):
        start = 0
        while start < len(sequence):
            letters = sequence[start : start + window]
            if len(letters) >= min_length:
                yield number, start, start + len(letters), letters
            if start + window >= len(sequence):
                break
            start += stride


def rows_of(batches):
    for batch in batches:
        for i in range(len(batch)):
            letters = batch.letters[batch.offsets[i] : batch.offsets[i + 1]].tobytes()
            yield int(batch.records[i]), int(batch.starts[i]), int(batch.ends[i]), letters


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(b"ACgtNn"), max_size=40).map(bytes), min_size=1, max_size=5),
    st.tuples(st.integers(1, 12), st.integers(1, 15), st.integers(1, 5)),
    st.randoms(),
)
def test_windows_equal_the_plain_tiling(tmp_path_factory, sequences, sizes, random):
    window, stride, batch_size = sizes
    min_length = random.randint(1, window)
    fasta = open_records(tmp_path_factory.mktemp("windows"), sequences)
    windows = Windows(fasta, window=window, stride=stride, min_length=min_length)
    batches = list(windows.batches(batch_size))
    expected = list(plain_windows(sequences, window, stride, min_length))
    kept = [row for row in expected if set(row[3].upper()) != {ord("N")}]
    assert list(rows_of(batches)) == kept
    assert len(windows) == len(expected)
    assert sum(batch.num_all_n for batch in batches) == len(expected) - len(kept)
    every = list(plain_windows(sequences, window, stride, 1))
    assert windows.num_too_short == len(every) - len(expected)
    fractions = np.concatenate([np.zeros(0, np.float32), *(batch.n_fraction for batch in batches)])
    assert fractions.dtype == np.float32
    shares = [row[3].upper().count(b"N") / len(row[3]) for row in kept]
    np.testing.assert_array_equal(fractions, np.array(shares, np.float32))


def test_the_last_short_window_is_kept_unless_it_is_too_short(tmp_path):
    fasta = open_records(tmp_path, [b"ACGTACGTAC"])
    assert [row[1:3] for row in rows_of(Windows(fasta, window=4).batches(9))] == [
        (0, 4),
        (4, 8),
        (8, 10),
    ]
    short = Windows(fasta, window=4, min_length=3)
    assert [row[1:3] for row in rows_of(short.batches(9))] == [(0, 4), (4, 8)]
    assert short.num_too_short == 1


def test_overlapping_windows_stop_at_the_first_that_reaches_the_end(tmp_path):
    fasta = open_records(tmp_path, [b"ACGTACGTAC"])
    windows = Windows(fasta, window=6, stride=2)
    assert [row[1:3] for row in rows_of(windows.batches(9))] == [(0, 6), (2, 8), (4, 10)]


def test_windows_of_nothing_but_n_are_left_out_and_counted(tmp_path):
    fasta = open_records(tmp_path, [b"NNNNACNNnnnn", b"NNNN"])
    batches = list(Windows(fasta, window=4).batches(2))
    assert list(rows_of(batches)) == [(0, 4, 8, b"ACNN")]
    assert [batch.num_all_n for batch in batches] == [1, 2]
    assert batches[0].n_fraction.tolist() == [0.5]
    assert len(batches[1]) == 0
    assert batches[1].letters.size == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "The window is 0; it must be at least 1."),
        ({"window": 4, "stride": 0}, "The stride is 0"),
        ({"window": 4, "min_length": 0}, "The min_length is 0"),
        ({"window": 4, "min_length": 6}, "A window of 4 is shorter than the 6 letters"),
    ],
)
def test_sizes_that_make_no_windows_are_refused(tmp_path, options, message):
    fasta = open_records(tmp_path, [b"ACGT"])
    with pytest.raises(UsageError) as error:
        Windows(fasta, **options)
    assert message in str(error.value)


def test_a_batch_size_of_none_is_refused(tmp_path):
    windows = Windows(open_records(tmp_path, [b"ACGT"]))
    with pytest.raises(UsageError, match="The batch size is 0"):
        next(windows.batches(0))
