"""The manifest is data: strict types, sizes derived again, versions told apart."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from omics.data.errors import CorruptStoreError, StoreVersionError
from omics.data.storage.store_format import (
    FileEntry,
    Manifest,
    canonical_json,
    current_line,
    file_seed,
    gene_dtype,
    parse_current,
)

PATH = Path("s/gen-1/MANIFEST.json")
SHA = "0" * 64


def _manifest(**changes):
    files = {
        "offsets.bin": FileEntry("int64", 32),
        "genes.bin": FileEntry("uint16", 10),
        "counts.bin": FileEntry("uint8", 5),
        "escape_positions.bin": FileEntry("int64", 8),
        "escape_counts.bin": FileEntry("uint32", 4),
        "cell_sums.bin": FileEntry("int64", 24),
        "gene_sums.bin": FileEntry("int64", 16),
        "gene_detection.bin": FileEntry("int64", 16),
        "gene_medians.bin": FileEntry("float64", 16),
        "obs.parquet": FileEntry("parquet", 100, SHA),
        "var.parquet": FileEntry("parquet", 100, SHA),
        "checksums.bin": FileEntry("uint64", 80, SHA),
    }
    record = {
        "store_uuid": "a" * 32,
        "generation": 1,
        "n_cells": 3,
        "n_genes": 2,
        "nnz": 5,
        "value_kind": "counts",
        "layout": "plain",
        "rank_digest": None,
        "gene_digest": SHA,
        "chunk_bytes": 64,
        "files": files,
        "provenance": {"sources": [{"sha256": SHA}]},
        "written_by": "omics-data 0.1.0",
    }
    return Manifest(**{**record, **changes})


def _edited(edit):
    record = json.loads(_good().to_bytes())
    edit(record)
    return canonical_json(record)


def _good():
    files = dict(_manifest().files)
    chunks = sum(-(-entry.size // 64) for name, entry in files.items() if name != "checksums.bin")
    files["checksums.bin"] = FileEntry("uint64", 8 * chunks, SHA)
    return _manifest(files=files)


def test_manifest_survives_its_json():
    manifest = _good()
    assert Manifest.from_bytes(manifest.to_bytes(), PATH) == manifest
    assert manifest.has_escapes


def test_manifest_json_is_canonical():
    text = _good().to_bytes()
    again = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) + "\n"
    assert text == again.encode()


def _set(key, value):
    return lambda record: record.__setitem__(key, value)


def _set_file(name, key, value):
    return lambda record: record["files"][name].__setitem__(key, value)


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (_set("format", "zarr"), "does not say format"),
        (_set("format_version", 0), "format version 0"),
        (_set("format_version", True), "format version True"),
        (_set("format_version", "1"), "format version '1'"),
        (_set("n_cells", 4), "32 bytes of int64 for offsets.bin"),
        (_set("n_cells", -1), "n_cells -1"),
        (_set("n_cells", True), "no n_cells of type int"),
        (_set("nnz", 3.0), "no nnz of type int"),
        (_set("n_cells", 2**70), "n_cells"),
        (_set("generation", 0), "impossible"),
        (_set("chunk_bytes", 0), "impossible chunk"),
        (_set("chunk_bytes", 12), "impossible chunk size"),
        (_set("store_uuid", "../../etc"), "store_uuid"),
        (_set("gene_digest", None), "no gene_digest"),
        (_set("value_kind", "strings"), "value_kind 'strings'"),
        (_set("value_kind", "float"), "does not list values.bin"),
        (_set("files", []), "no files of type dict"),
        (_set("provenance", "x"), "no provenance"),
        (_set("extra", 1), r"unknown keys \(extra\)"),
        (lambda record: record.pop("nnz"), "no nnz"),
        (lambda record: record["files"].pop("genes.bin"), r"too few files \(genes.bin\)"),
        (_set_file("genes.bin", "dtype", "int128"), "dtype 'int128'"),
        (_set_file("genes.bin", "dtype", "uint32"), "10 bytes of uint32 for genes.bin"),
        (_set_file("genes.bin", "bytes", 12), "12 bytes of uint16 for genes.bin"),
        (_set_file("counts.bin", "dtype", "float32"), "too many or too few files"),
        (_set_file("escape_counts.bin", "bytes", 8), "for escape_positions.bin"),
        (_set_file("checksums.bin", "bytes", 8), "wrong size for checksums.bin"),
        (_set_file("obs.parquet", "sha256", "x"), "sha256 'x'"),
        (lambda record: record["files"]["obs.parquet"].pop("sha256"), "no sha256 of obs.parquet"),
        (_set_file("genes.bin", "path", "/etc/passwd"), r"unknown keys \(path\)"),
        (
            lambda record: record["files"].update({"../x": {"bytes": 1, "dtype": "uint8"}}),
            r"too many or too few files \(../x\)",
        ),
        (lambda record: record["files"].update({"genes.bin": 3}), "by no object"),
    ],
)
def test_manifests_that_contradict_themselves_are_refused(edit, found):
    with pytest.raises(CorruptStoreError, match=found) as caught:
        Manifest.from_bytes(_edited(edit), PATH)
    assert str(caught.value).startswith(str(PATH))
    assert "convert it again" in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'{"a":1,"a":2}', b"\xff", b"[" * 100_000, b"NaN"]
)
def test_what_is_no_json_object_is_refused(data):
    with pytest.raises(CorruptStoreError):
        Manifest.from_bytes(data, PATH)


def test_newer_format_names_the_version_to_install():
    def edit(record):
        record.clear()
        record.update(format="omics-store", format_version=2, needs="omics-data>=3.1", whatever=[1])

    with pytest.raises(StoreVersionError) as caught:
        Manifest.from_bytes(_edited(edit), PATH)
    message = str(caught.value)
    assert "store format version 2; this omics-data reads version 1" in message
    assert "pip install --upgrade 'omics-data>=3.1'" in message
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("needs", [None, 3, "evil; rm -rf ~", "omics-data>=1' && x"])
def test_newer_format_never_repeats_an_odd_requirement(needs):
    data = _edited(lambda record: record.update(format_version=2, needs=needs))
    with pytest.raises(StoreVersionError, match=r"pip install --upgrade 'omics-data'\.$"):
        Manifest.from_bytes(data, PATH)


def test_current_names_generation_and_digest():
    assert current_line(12, SHA) == f"gen-12 {SHA}\n".encode()
    assert parse_current(current_line(12, SHA), Path("CURRENT")) == (12, SHA)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"gen-1\n",
        f"gen-1 {SHA}".encode(),
        f"gen-0 {SHA}\n".encode(),
        f"gen-01 {SHA}\n".encode(),
        f"../1 {SHA}\n".encode(),
        f"gen-1 {SHA[:-1]}G\n".encode(),
        f"gen-1 {SHA}\n\n".encode(),
        b"\xff\xfe",
    ],
)
def test_any_other_current_is_refused(data):
    with pytest.raises(CorruptStoreError, match="CURRENT is not a line"):
        parse_current(data, Path("s/CURRENT"))


def test_seeds_differ_by_store_generation_and_file():
    expected = hashlib.sha256(b"a\n2\ncounts.bin").digest()[:8]
    assert file_seed("a", 2, "counts.bin") == int.from_bytes(expected, "little")
    seeds = {
        file_seed(uuid, generation, name)
        for uuid in ("a", "b")
        for generation in (1, 12)
        for name in ("genes.bin", "counts.bin")
    }
    assert len(seeds) == 8


def test_gene_positions_take_16_bits_up_to_65536_genes():
    assert [gene_dtype(number) for number in (0, 2**16, 2**16 + 1)] == [
        "uint16",
        "uint16",
        "uint32",
    ]


def test_canonical_json_refuses_what_json_has_not():
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json({"a": float("nan")})
    with pytest.raises(TypeError):
        canonical_json({"a": {1, 2}})
