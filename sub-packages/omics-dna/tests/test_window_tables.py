"""Windows to Parquet: tokens, vectors, metadata, and what a failed run leaves behind."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from omics.data.errors import ExistingPathError, InputDataError, MissingPathError, UsageError
from omics.dna import window_tables
from omics.dna.fasta import Fasta
from omics.dna.window_tables import untrained_bundle, write_tokens, write_vectors
from omics.dna.windows import Windows
from omics.models import Bundle
from omics.tokenizers import SequenceTokenizer

REAL = sorted(Path(os.environ.get("OMICS_REAL_DATA", os.devnull)).glob("**/*.fa"))


@pytest.fixture
def genome(tmp_path):
    """Two records of several lines with a gap of N and a soft-masked end, and an empty one."""
    rng = np.random.default_rng(7)
    first = rng.choice(list(b"ACGT"), 301).astype(np.uint8)
    first[60:160] = ord("N")
    second = rng.choice(list(b"acgt"), 85).astype(np.uint8)
    text = b""
    for name, letters in ((b"chrA", first), (b"chrB", second)):
        lines = [letters[at : at + 40].tobytes() + b"\n" for at in range(0, len(letters), 40)]
        text += b">" + name + b" made\n" + b"".join(lines)
    path = tmp_path / "genome.fa"
    path.write_bytes(text + b">none\n")
    return Fasta(path)


def vectors_of(path) -> np.ndarray:
    table = pq.read_table(path, page_checksum_verification=True)
    column = table["vector"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), column.type.list_size)


@pytest.mark.parametrize(("window", "stride", "kmer"), [(50, None, 1), (40, 25, 3)])
def test_tokens_of_every_window_are_those_of_its_letters(tmp_path, genome, window, stride, kmer):
    out = tmp_path / "t.parquet"
    tokenizer = SequenceTokenizer(k=kmer)
    windows = Windows(genome, window=window, stride=stride, min_length=kmer)
    written = write_tokens(windows, tokenizer, out)
    table = pq.read_table(out)
    assert table.schema.names == ["sequence", "start", "end", "input_ids"]
    assert [str(t) for t in table.schema.types[:3]] == ["string", "int64", "int64"]
    assert str(table["input_ids"].type.value_type) == "int32"
    rows = table.to_pylist()
    assert rows
    for row in rows:
        letters = genome.fetch(row["sequence"], row["start"], row["end"])
        assert row["input_ids"] == tokenizer.encode([letters]).fields["sequence"].tolist()
    assert written.num_windows == len(rows)
    assert written.num_windows + written.num_all_n == len(windows)
    assert {row["sequence"] for row in rows} == {"chrA", "chrB"}


def test_a_large_file_is_read_and_written_in_parts(tmp_path, genome, monkeypatch):
    whole, parts = tmp_path / "whole.parquet", tmp_path / "parts.parquet"
    windows = Windows(genome, window=20)
    write_tokens(windows, SequenceTokenizer(), whole)
    monkeypatch.setattr(window_tables, "_LETTERS_AT_ONCE", 60)
    monkeypatch.setattr(window_tables, "_GROUP_BYTES", 500)
    seen = []
    write_tokens(windows, SequenceTokenizer(), parts, on_progress=seen.append)
    assert sum(seen) == len(windows)
    assert pq.read_table(parts).equals(pq.read_table(whole))
    assert pq.ParquetFile(whole).num_row_groups == 1
    assert pq.ParquetFile(parts).num_row_groups > 2


def test_a_vector_is_the_pooled_row_of_its_window(tmp_path, genome):
    out = tmp_path / "v.parquet"
    bundle = untrained_bundle(seed=3)
    written = write_vectors(Windows(genome, window=50), bundle, out, batch_size=4)
    table = pq.read_table(out)
    assert table.schema.names == ["sequence", "start", "end", "n_fraction", "vector"]
    assert str(table.schema.field("n_fraction").type) == "float"
    vectors = vectors_of(out)
    assert vectors.shape == (written.num_windows, 64)
    assert vectors.dtype == np.float32
    for row, vector in zip(table.to_pylist(), vectors, strict=True):
        letters = genome.fetch(row["sequence"], row["start"], row["end"])
        assert row["n_fraction"] == np.float32(letters.upper().count(b"N") / len(letters))
        tokens = bundle.tokenizer.encode([letters]).to_torch()
        with torch.inference_mode():
            expected = bundle.model(tokens).pooled[0].numpy()
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-5)
    assert len(np.unique(vectors, axis=0)) == len(vectors)


def test_the_order_of_letters_matters_to_the_vector(tmp_path):
    path = tmp_path / "two.fa"
    path.write_bytes(b">a\nAAAACCCC\n>b\nCCCCAAAA\n")
    write_vectors(Windows(Fasta(path), window=8), untrained_bundle(), tmp_path / "v.parquet")
    first, second = vectors_of(tmp_path / "v.parquet")
    assert np.abs(first - second).max() > 1e-3


def test_vectors_are_bit_equal_in_any_batch(tmp_path, genome):
    windows = Windows(genome, window=40, stride=15, min_length=2)
    bundle = untrained_bundle(kmer=2)
    results = []
    for batch_size in (1, 3, 64):
        out = tmp_path / f"{batch_size}.parquet"
        write_vectors(windows, bundle, out, batch_size=batch_size)
        results.append(vectors_of(out))
    for one, other in pairwise(results):
        np.testing.assert_array_equal(one, other)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path, genome):
    windows = Windows(genome, window=64)
    found = []
    for number, seed in enumerate((5, 5, 6)):
        out = tmp_path / f"{number}.parquet"
        write_vectors(windows, untrained_bundle(seed=seed), out)
        found.append(vectors_of(out))
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 1e-3


def test_metadata_says_untrained_or_names_the_bundle(tmp_path, genome):
    windows = Windows(genome, window=64, stride=32, min_length=3)
    bundle = untrained_bundle(kmer=3, seed=4)
    plain, saved = tmp_path / "plain.parquet", tmp_path / "saved.parquet"
    write_vectors(windows, bundle, plain)
    loaded = Bundle.load(bundle.save(tmp_path / "bundle").path)
    write_vectors(windows, loaded, saved)
    expected = {"pooling": "pooled", "layer": "final", "window": "64", "stride": "32", "kmer": "3"}

    def metadata(path):
        pairs = pq.read_schema(path).metadata.items()
        prefix = window_tables.METADATA_PREFIX
        found = {key.decode(): value.decode() for key, value in pairs}
        return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}

    assert metadata(plain) == {"encoder": "untrained seed=4", **expected}
    assert metadata(saved) == {"encoder": loaded.digest, **expected}
    np.testing.assert_array_equal(vectors_of(plain), vectors_of(saved))


def test_an_output_is_replaced_only_if_asked(tmp_path, genome):
    out = tmp_path / "t.parquet"
    out.write_bytes(b"mine")
    windows = Windows(genome)
    with pytest.raises(ExistingPathError, match="exists; choose"):
        write_tokens(windows, SequenceTokenizer(), out)
    assert out.read_bytes() == b"mine"
    write_tokens(windows, SequenceTokenizer(), out, overwrite=True)
    assert pq.read_metadata(out).num_rows == 2
    with pytest.raises(ExistingPathError, match="is a folder"):
        write_tokens(windows, SequenceTokenizer(), tmp_path, overwrite=True)
    with pytest.raises(MissingPathError, match=r"There is no folder .*nowhere to write to"):
        write_tokens(windows, SequenceTokenizer(), tmp_path / "nowhere" / "t.parquet")


def test_a_run_that_fails_halfway_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.fa"
    path.write_bytes(b">a\nACGT\nACET\n")
    (tmp_path / "x.fa.fai").write_bytes(b"a\t8\t3\t4\t5\n")
    out = tmp_path / "v.parquet"
    out.write_bytes(b"old")
    with pytest.raises(InputDataError, match="line 3: 'E' is no nucleotide"):
        write_vectors(
            Windows(Fasta(path), window=4), untrained_bundle(), out, batch_size=1, overwrite=True
        )
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v.parquet", "x.fa", "x.fa.fai"]


def test_a_file_without_any_window_to_write_is_refused(tmp_path):
    path = tmp_path / "x.fa"
    path.write_bytes(b">a\nNNNNNNNN\n>b\n>c\nAC\n")
    windows = Windows(Fasta(path), window=4, min_length=3)
    message = "2 hold nothing but N, 1 are shorter than a token, and 1 of 3 records are empty"
    with pytest.raises(InputDataError, match=message):
        write_tokens(windows, SequenceTokenizer(k=3), tmp_path / "t.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["x.fa"]


def test_windows_that_could_be_shorter_than_a_token_are_refused(tmp_path, genome):
    with pytest.raises(UsageError, match="plan them with min_length=6"):
        write_tokens(Windows(genome), SequenceTokenizer(k=6), tmp_path / "t.parquet")


def test_a_bundle_of_rna_is_refused(tmp_path, genome):
    bundle = untrained_bundle()
    bundle.tokenizer = SequenceTokenizer("rna")
    with pytest.raises(UsageError, match="reads 'rna' and not DNA"):
        write_vectors(Windows(genome), bundle, tmp_path / "v.parquet")


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_files_are_encoded_whole(path, tmp_path):
    with Fasta(path) as fasta:
        windows = Windows(fasta, min_length=6)
        written = write_tokens(windows, SequenceTokenizer(k=6), tmp_path / "t.parquet")
        letters = int(fasta.lengths.sum())
    table = pq.read_table(tmp_path / "t.parquet")
    assert written.num_windows + written.num_all_n == len(windows)
    if not written.num_all_n:
        covered = int(np.sum(table["end"].to_numpy() - table["start"].to_numpy()))
        assert letters - covered < 6 * len(fasta.names)
