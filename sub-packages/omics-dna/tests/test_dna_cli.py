"""The commands of omics-dna as a user runs them: output, messages and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from omics.dna.cli import main


@pytest.fixture
def genome(tmp_path):
    rng = np.random.default_rng(1)
    text = b""
    for name in (b"chr1", b"chr2"):
        lines = rng.choice(list(b"ACGTacgt"), (12, 50)).astype(np.uint8)
        text += b">" + name + b"\n" + b"".join(line.tobytes() + b"\n" for line in lines)
    path = tmp_path / "genome.fa"
    path.write_bytes(text + b">gap\n" + b"N" * 512 + b"\n")
    return path


@pytest.fixture
def omics_dna(monkeypatch, capsys):
    """Run the command; returns exit code, standard output and standard error."""

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["omics-dna", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def read_vectors(path):
    return np.stack(pq.read_table(path)["vector"].to_numpy(zero_copy_only=False))


def test_embed_says_that_the_encoder_is_untrained(omics_dna, genome, tmp_path):
    out = tmp_path / "v.parquet"
    code, said, _ = omics_dna("embed", genome, "--out", out, "--device", "cpu")
    assert code == 0
    assert "3 records, 1,712 letters, 5 windows of 512 every 512" in said
    assert "untrained (random weights, seed 0)" in said
    assert "only a random projection" in said
    assert "Wrote 4 windows of 64 values" in said
    assert "left out 1 of nothing but N" in said
    assert read_vectors(out).shape == (4, 64)


def test_a_saved_bundle_gives_bit_equal_vectors(omics_dna, genome, tmp_path):
    one, two, bundle = tmp_path / "1.parquet", tmp_path / "2.parquet", tmp_path / "bundle"
    options = ["--window", 100, "--stride", 60, "--device", "cpu", "--json"]
    new = ["--kmer", 3, "--seed", 9, "--save-bundle", bundle]
    code, said, _ = omics_dna("embed", genome, "--out", one, *new, *options)
    assert code == 0
    facts = json.loads(said)
    assert facts["trained"] is False
    assert "random projection" in facts["warning"]
    assert (facts["kmer"], facts["encoder"]) == ("3", "untrained seed=9")
    code, said, _ = omics_dna("embed", genome, "--out", two, "--bundle", bundle, *options)
    assert code == 0
    again = json.loads(said)
    assert len(again["encoder"]) == 64
    assert "warning" not in again
    np.testing.assert_array_equal(read_vectors(one), read_vectors(two))
    columns = ["sequence", "start", "end", "n_fraction"]
    assert pq.read_table(one, columns=columns).equals(pq.read_table(two, columns=columns))


def test_what_does_not_fit_a_bundle_is_refused(omics_dna, genome, tmp_path):
    bundle, out = tmp_path / "bundle", tmp_path / "v.parquet"
    assert omics_dna("embed", genome, "--out", out, "--save-bundle", bundle)[0] == 0
    base = ["embed", genome, "--out", tmp_path / "w.parquet"]
    with_bundle = [*base, "--bundle", bundle]
    cases = [
        ([*with_bundle, "--kmer", 6], "--kmer 6 does not fit the bundle"),
        ([*with_bundle, "--seed", 1], "--seed is for the weights of a new encoder"),
        ([*with_bundle, "--save-bundle", tmp_path / "n"], "--save-bundle keeps a new encoder"),
        ([*base, "--save-bundle", bundle], "a bundle is written once"),
        ([*base, "--bundle", tmp_path / "no"], "There is no bundle folder"),
        ([*base, "--device", "cuda:99"], "Device 'cuda:99' cannot be used here"),
    ]
    for arguments, message in cases:
        code, _, error = omics_dna(*arguments)
        assert (code, message in error) == (2, True), error
    assert not (tmp_path / "w.parquet").exists()
    assert omics_dna(*with_bundle, "--kmer", 1)[0] == 0


def test_a_damaged_bundle_is_exit_4(omics_dna, genome, tmp_path):
    bundle, out = tmp_path / "bundle", tmp_path / "v.parquet"
    assert omics_dna("embed", genome, "--out", out, "--save-bundle", bundle)[0] == 0
    weights = bundle / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, _, error = omics_dna("embed", genome, "--out", out, "--overwrite", "--bundle", bundle)
    assert code == 4
    assert "is not what the manifest says" in error


def test_encode_writes_tokens(omics_dna, genome, tmp_path):
    out = tmp_path / "t.parquet"
    code, said, _ = omics_dna("encode", genome, "--out", out, "--kmer", 6, "--json")
    assert code == 0
    facts = json.loads(said)
    assert (facts["windows"], facts["all_n_windows"]) == (4, 1)
    assert facts["vocabulary_size"] == 4**6 + 5
    table = pq.read_table(out)
    assert table.schema.names == ["sequence", "start", "end", "input_ids"]
    assert [len(ids) for ids in table["input_ids"].to_pylist()] == [86, 15, 86, 15]


def test_quiet_prints_nothing(omics_dna, genome, tmp_path):
    code, said, error = omics_dna("-q", "encode", genome, "--out", tmp_path / "t.parquet")
    assert (code, said, error) == (0, "", "")


def test_a_stale_index_is_mentioned(omics_dna, genome, tmp_path):
    genome.with_name("genome.fa.fai").write_text("chr9\t1\t2\t3\t4\n")
    code, said, _ = omics_dna("encode", genome, "--out", tmp_path / "t.parquet")
    assert code == 0
    assert "note:" in said
    assert "does not belong to this file" in said
    options = ["--out", tmp_path / "t.parquet", "--overwrite", "--json"]
    _, said, _ = omics_dna("encode", genome, *options)
    assert "does not belong" in json.loads(said)["index_note"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"@r\nACGT\n+\nIIII\n", "it looks like a FASTQ or SAM file"),
        (b">a\nMKLV\n", "line 2: 'L' is no nucleotide"),
        (b">a\nACGT\n>a\nACGT\n", "line 3: the name 'a' was already used in line 1"),
        (b">a\nNNNN\n", "has no window to write: 1 hold nothing but N"),
    ],
)
@pytest.mark.parametrize("verb", ["embed", "encode"])
def test_bad_input_is_exit_3_with_one_paragraph(omics_dna, tmp_path, verb, content, message):
    path, out = tmp_path / "x.fa", tmp_path / "o.parquet"
    path.write_bytes(content)
    code, _, error = omics_dna(verb, path, "--out", out)
    assert code == 3
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in error
    assert not out.exists()


def test_wrong_usage_is_exit_2(omics_dna, genome, tmp_path):
    out = tmp_path / "o.parquet"
    taken = tmp_path / "taken.parquet"
    taken.write_bytes(b"mine")
    cases = [
        (["encode", tmp_path / "no.fa", "--out", out], "does not exist; give the path of a FASTA"),
        (["encode", genome, "--out", taken], "add --overwrite"),
        (["encode", genome, "--out", genome, "--overwrite"], "is the FASTA file itself"),
        (["encode", genome, "--out", out, "--kmer", 11], "a whole number from 1 to 10"),
        (["encode", genome, "--out", out, "--window", 0], "--window"),
        (["encode", genome, "--out", out, "--kmer", 6, "--window", 4], "A window of 4 is shorter"),
        (["encode", genome], "--out"),
    ]
    for arguments, message in cases:
        code, _, error = omics_dna(*arguments)
        assert (code, message in error) == (2, True), error
    assert taken.read_bytes() == b"mine"
    assert genome.read_bytes().startswith(b">chr1")


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"torch", "transformers", "pyarrow", "pandas", "lightning", "hydra", "omics.train"}
    script = f"import sys, omics.dna; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
