"""Fasta against plain Python slices, its index, and every file that it refuses."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omics.data.errors import InputDataError, MissingPathError, UnknownNameError, UsageError
from omics.dna import fasta_index
from omics.dna.fasta import Fasta, reverse_complement

LETTERS = b"ACGTNRYSWKMBDHVacgtnryswkmbdhv"
REAL = sorted(Path(os.environ.get("OMICS_REAL_DATA", os.devnull)).glob("**/*.fa"))


def write(path: Path, content: bytes) -> Path:
    file = path / "x.fa"
    file.write_bytes(content)
    return file


def fasta_text(records: dict[str, bytes], *, width: int, end: bytes = b"\n") -> bytes:
    lines = []
    for name, sequence in records.items():
        lines.append(b">" + name.encode() + b" some words")
        lines += [sequence[at : at + width] for at in range(0, len(sequence), width)]
    return end.join(lines) + end


@st.composite
def files(draw):
    """Records with the text of a file that holds them."""
    sequences = draw(
        st.lists(st.lists(st.sampled_from(LETTERS), max_size=50).map(bytes), min_size=1, max_size=5)
    )
    records = {f"r{number}": sequence for number, sequence in enumerate(sequences)}
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    text = fasta_text(records, width=draw(st.integers(1, 60)), end=end)
    blank = draw(st.sampled_from([b"", end, end + end]))
    text = blank + text.replace(b">", blank + b">") + blank
    return records, text.rstrip(end) if draw(st.booleans()) else text


@settings(max_examples=150, deadline=None)
@given(files(), st.randoms())
def test_every_region_equals_a_slice_of_the_sequence(tmp_path_factory, case, random):
    records, text = case
    block = random.choice([3, 17, 1 << 20])
    file = write(tmp_path_factory.mktemp("fasta"), text)
    with pytest.MonkeyPatch.context() as patch, patch.context() as inside:
        inside.setattr(fasta_index, "_BLOCK_BYTES", block)
        fasta = Fasta(file)
    assert fasta.names == tuple(records)
    assert fasta.lengths.tolist() == [len(s) for s in records.values()]
    regions = []
    for number, (name, sequence) in enumerate(records.items()):
        assert fasta.fetch(name) == sequence
        start = random.randint(0, len(sequence))
        end = random.randint(start, len(sequence))
        assert fasta.fetch(name, start, end) == sequence[start:end]
        regions.append((number, start, end, sequence[start:end]))
    random.shuffle(regions)
    numbers, starts, ends, expected = zip(*regions, strict=True)
    letters, offsets = fasta.gather(np.array(numbers), np.array(starts), np.array(ends))
    assert letters.tobytes() == b"".join(expected)
    assert np.diff(offsets).tolist() == [len(s) for s in expected]


@settings(max_examples=60, deadline=None)
@given(files())
def test_a_written_index_is_used_and_finds_the_same_letters(tmp_path_factory, case):
    records, text = case
    file = write(tmp_path_factory.mktemp("fasta"), text)
    first = Fasta(file)
    first.write_index()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("omics.dna.fasta.scan", lambda *_: pytest.fail("the .fai was not used"))
        again = Fasta(file)
    assert again.index_note is None
    assert again.index.to_fai() == first.index.to_fai()
    assert {name: again.fetch(name) for name in again.names} == records


def test_the_index_has_the_columns_of_samtools(tmp_path):
    file = write(tmp_path, b">one desc\nACGTA\nCGTAC\nGT\n>two\nAC\n")
    assert Fasta(file).index.to_fai() == b"one\t12\t10\t5\t6\ntwo\t2\t30\t2\t3\n"
    file.write_bytes(b">one\r\nACGTA\r\nCG\r\n")
    assert Fasta(file).write_index().read_bytes() == b"one\t7\t6\t5\t7\n"


def test_nothing_is_written_beside_the_file_unless_asked(tmp_path):
    file = write(tmp_path, b">a\nACGT\n")
    Fasta(file).fetch("a")
    assert [path.name for path in tmp_path.iterdir()] == ["x.fa"]


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (b"a\t4\t3\t4\t5\n", "the file holds more than it describes"),
        (b"a\t4\t3\t4\t5\nc\t8\t11\t4\t5\n", "record 'c' does not begin where it says"),
        (b"a\t4\t3\t4\t5\nb\t8\t12\t4\t5\n", "record 'b' does not begin where it says"),
        (b"a\t4\t3\t4\t5\nb\t8\t11\t5\t6\n", "the lines of record 'b' do not end"),
        (b"a\t4\t3\t4\t5\nb\t8\t11\t4\t9\n", "its numbers do not fit the size"),
        (b"a\t4\t3\t4\t5\nb\t9000\t11\t4\t5\n", "its numbers do not fit the size"),
        (b"a\t4\t3\t4\t5\nb\t999999999999999999\t11\t1\t2\n", "its numbers do not fit"),
        (b"a\t4\t3\t0\t5\nb\t8\t11\t4\t5\n", "its numbers do not fit the size"),
        (b"a\t4\t3\t4\n", "its line 1 is not a name and four numbers"),
        (b"a\t4\t3\t4\tx\n", "its line 1 is not a name and four numbers"),
        (b"a\t4\t-3\t4\t5\n", "its line 1 is not a name and four numbers"),
        (b"", "the file holds more than it describes"),
    ],
)
def test_an_index_of_another_file_is_not_used_and_said_so(tmp_path, index, reason):
    file = write(tmp_path, b">a\nACGT\n>b\nACGT\nTTGG\n")
    (tmp_path / "x.fa.fai").write_bytes(index)
    fasta = Fasta(file)
    assert reason in fasta.index_note
    assert "indexed anew in memory" in fasta.index_note
    assert fasta.fetch("b", 3, 6) == b"TTT"


def test_a_line_that_the_sample_passed_over_is_caught_on_reading(tmp_path, monkeypatch):
    text = bytearray(b">a\n" + b"ACGT\n" * 50)
    file = write(tmp_path, bytes(text))
    Fasta(file).write_index()
    text[3 + 20 * 5 + 1] = ord("\n")
    file.write_bytes(text)
    monkeypatch.setattr(fasta_index, "_LINES_CHECKED", 2)
    fasta = Fasta(file)
    assert fasta.index_note is None
    assert fasta.fetch("a", 0, 40) == b"ACGT" * 10
    with pytest.raises(InputDataError, match=r"not have its lines where x\.fa\.fai says"):
        fasta.fetch("a", 60, 100)


def test_letters_behind_an_index_are_checked_on_reading(tmp_path):
    file = write(tmp_path, b">a\nACGT\nACGT\nACET\n")
    (tmp_path / "x.fa.fai").write_bytes(b"a\t12\t3\t4\t5\n")
    fasta = Fasta(file)
    assert fasta.fetch("a", 0, 10) == b"ACGTACGTAC"
    with pytest.raises(InputDataError, match=r"x\.fa, line 4: 'E' is no nucleotide"):
        fasta.fetch("a", 9, 12)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.fa is empty; a FASTA file begins with a line such as '>chr1'"),
        (b"\n \n", "holds only blank lines"),
        (b"@read\nACGT\n+\nIIII\n", "it looks like a FASTQ or SAM file"),
        (b"##fileformat=VCFv4.2\n", "it looks like a VCF file"),
        (b"\x89HDF\r\n\x1a\n", "it looks like an HDF5 file"),
        (b"\xef\xbb\xbf>a\nACGT\n", "it looks like text with a byte order mark"),
        (b"ACGTACGT\n>a\nACGT\n", "its first line with text begins with b'ACGTACGT"),
        (gzip.compress(b">a\nACGT\n", mtime=0), "is compressed with gzip"),
        (b"\x1f\x8b\x08\x04" + b"\0" * 6 + b"\x06\0BC", "is compressed with bgzip"),
        (b">a\nMKVLAAGE\n", "line 2: 'L' is no nucleotide"),
        (b">a\nACGT\n>b\nACGT\nACXT\n", "line 5: 'X' is no nucleotide"),
        (b">a\nMKVE*\n", "It looks like a protein: give DNA sequences."),
        (b">a\nACGT\nACUU\n", "line 3: 'U' is no nucleotide"),
        (b">a\nACUU\n", "It looks like RNA: replace U by T."),
        (b">a\nAC--GT\n", "It looks like an alignment: remove the gaps."),
        (b">a\nAC GT\n", "line 2: ' ' is no nucleotide"),
        (b">a\n1 ACGT\n", "line 2: '1' is no nucleotide"),
        (b">a\nAC\x00GT\n", r"line 2: '\x00' is no nucleotide"),
        (b">a\nACGT>b\nACGT\n", "line 2: '>' is no nucleotide"),
        (b">a\nAC\rGT\n", "The lines end as on old Macs"),
        (b">a\nACGT\n>a\nACGT\n", "line 3: the name 'a' was already used in line 1"),
        (b">a\nACGT\n>\nACGT\n", "line 3: a header without a name"),
        (b"> a\nACGT\n", "line 1: a header without a name"),
        (b">\xff\xfe\nACGT\n", "line 1: the name is not UTF-8"),
        (b">a\nACGT\nAC\nACGT\n", "record 'a': line 3 holds 2 letters, while its lines hold 4"),
        (b">a\nACG\nACGT\n", "record 'a': line 3 holds 4 letters, while its lines hold 3"),
        (b">a\nACGT\n\nACGT\n", "record 'a': line 3 is blank, while its lines hold 4"),
        (b">a\nACGT\r\nACGT\nACGT\n", "line 3 ends in another way (CRLF and LF are mixed)"),
    ],
)
@pytest.mark.parametrize("block", [4, 1 << 20])
def test_a_file_that_cannot_be_used_is_refused(tmp_path, monkeypatch, content, message, block):
    monkeypatch.setattr(fasta_index, "_BLOCK_BYTES", block)
    with pytest.raises(InputDataError) as error:
        Fasta(write(tmp_path, content))
    assert message in str(error.value)
    assert error.value.exit_code == 3


def test_uneven_lines_come_with_the_remedy(tmp_path):
    with pytest.raises(InputDataError, match="seqkit seq -w 60"):
        Fasta(write(tmp_path, b">a\nACGT\nAC\nACGT\n"))


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(MissingPathError, match="does not exist; give the path of a FASTA file"):
        Fasta(tmp_path / "no.fa")
    with pytest.raises(InputDataError, match="is not a file"):
        Fasta(tmp_path)


def test_a_region_outside_its_record_is_refused_with_the_length(tmp_path):
    fasta = Fasta(write(tmp_path, b">chr1\nACGT\n>empty\n"))
    for start, end in [(0, 5), (-1, 2), (3, 2), (5, 6)]:
        with pytest.raises(UsageError, match=rf"{start}-{end} is not within 'chr1', which has 4"):
            fasta.fetch("chr1", start, end)
    with pytest.raises(UsageError, match="'empty', which has 0 letters"):
        fasta.fetch("empty", 0, 1)
    assert fasta.fetch("empty") == b""
    with pytest.raises(UnknownNameError, match=r"no record 'chr2'.* Did you mean 'chr1'\?"):
        fasta.fetch("chr2")


def test_a_file_that_shrinks_while_open_is_reported_and_not_read(tmp_path):
    file = write(tmp_path, b">a\n" + b"ACGT" * 5000 + b"\n")
    fasta = Fasta(file)
    with file.open("r+b") as stream:
        stream.truncate(10)
    with pytest.raises(InputDataError, match="changed while it was being read"):
        fasta.fetch("a", 15_000, 15_010)


def test_a_closed_file_says_so(tmp_path):
    with Fasta(write(tmp_path, b">a\nACGT\n")) as fasta:
        assert fasta.fetch("a", 1, 3) == b"CG"
    with pytest.raises(UsageError, match="was closed"):
        fasta.fetch("a")


@given(st.lists(st.sampled_from(LETTERS), max_size=30).map(bytes))
def test_the_reverse_complement_of_the_other_strand_is_the_strand(sequence):
    other = reverse_complement(sequence)
    assert reverse_complement(other) == sequence
    assert len(other) == len(sequence)
    assert other.isupper() == sequence.isupper()


def test_reverse_complements_of_bytes_and_arrays():
    assert reverse_complement(b"AACGTNryKm") == b"kMryNACGTT"
    two = np.frombuffer(b"AACGTT" + b"TTGCAC", np.uint8).reshape(2, 6)
    assert reverse_complement(two).tobytes() == b"AACGTT" + b"GTGCAA"
    with pytest.raises(InputDataError, match="'E' is no nucleotide"):
        reverse_complement(b"ACEU")


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_files_read_as_their_text(path):
    fasta = Fasta(path)
    records = [part.split(b"\n", 1) for part in path.read_bytes().split(b">")[1:]]
    assert [name.encode() for name in fasta.names] == [head.split()[0] for head, _ in records]
    for name, (_, text) in zip(fasta.names, records, strict=True):
        sequence = b"".join(text.split())
        assert fasta.fetch(name, 0, 1000) == sequence[:1000]
        assert fasta.fetch(name, len(sequence) - 1000) == sequence[-1000:]
        assert reverse_complement(reverse_complement(fasta.fetch(name))) == sequence
