"""The kit for testing readers and writers: it accepts what is right and finds what is wrong."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from omics.data import open_store
from omics.data.errors import CorruptStoreError, UnknownNameError
from omics.data.testing import (
    StoreCase,
    assert_reader_agrees,
    assert_store_equals,
    assert_writer_conforms,
    damaged_copies,
    reference_read,
    store_cases,
    write_case,
)

PAGE = Path(__file__).parents[3] / "docs" / "guides" / "testing-a-reader.md"
CASES = {case.name: case for case in store_cases()}
SMALL = [name for name in CASES if "chunks" not in name]


def our_reader(path: Path) -> dict[str, Any]:
    store = open_store(path)
    batch = store.take(np.arange(len(store)))
    return {
        "indptr": batch.indptr,
        "genes": batch.genes,
        "values": batch.counts,
        "cell_names": store.obs.names.tolist(),
        "gene_ids": store.genes.ids.tolist(),
    }


def test_our_reader_and_the_reference_agree_with_every_case() -> None:
    assert_reader_agrees(our_reader)
    assert_reader_agrees(reference_read)


def test_our_writer_conforms() -> None:
    assert_writer_conforms(write_case)


def test_the_cases_use_everything_the_format_has(tmp_path: Path) -> None:
    used: set[tuple[str, str]] = set()
    for name in SMALL:
        write_case(CASES[name], tmp_path / name)
        manifest = reference_read(tmp_path / name)["manifest"]
        used |= {(file, entry["dtype"]) for file, entry in manifest["files"].items()}
    page = (PAGE.parents[1] / "store-format.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+\.\w+)` \| ([\w, ]+) \|", page, flags=re.MULTILINE)
    assert len(rows) > 12
    assert used == {(file, dtype) for file, dtypes in rows for dtype in dtypes.split(", ")}


def test_cases_are_the_same_every_time() -> None:
    for case in store_cases():
        assert (case.dense() == CASES[case.name].dense()).all()
        assert case.shape == CASES[case.name].shape


def test_nothing_heavy_and_no_test_framework_is_imported() -> None:
    script = (
        "import sys, omics.data.testing\n"
        "print([name for name in ('pytest', 'hypothesis', 'pandas', 'pyarrow') if name in sys.modules])\n"
        "from omics.data.testing import store_cases, reference_read, damaged_copies\n"
        "next(store_cases())\n"
        "print('pytest' in sys.modules, sorted(vars(omics.data.testing))[0] != '')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\nFalse True\n"


# --- wrong readers -------------------------------------------------------------------------------


def without_escapes(path: Path) -> dict[str, Any]:
    return {**our_reader(path), "values": np.minimum(our_reader(path)["values"], 255)}


def one_cell_short(path: Path) -> dict[str, Any]:
    found = our_reader(path)
    return {**found, "indptr": found["indptr"][:-1]}


def other_names(path: Path) -> dict[str, Any]:
    found = our_reader(path)
    return {**found, "gene_ids": found["gene_ids"][::-1]}


def silent(path: Path) -> dict[str, Any]:
    store = open_store(path, verify="off")
    batch = store.take(np.arange(len(store)))
    return {"indptr": batch.indptr, "genes": batch.genes, "values": batch.counts}


@pytest.mark.parametrize(
    ("reader", "words"),
    [
        (
            without_escapes,
            r"^escapes \(a few counts above a byte\): values\[\d+\] is 255, not 65536",
        ),
        (one_cell_short, r"indptr has shape \(\d+,\), not"),
        (other_names, "gene_ids differ"),
        (lambda path: {"indptr": our_reader(path)["indptr"]}, "genes is missing"),
        (silent, r"escapes: with damage \(\w+ gen-1/.*\) it returns other data"),
    ],
)
def test_a_wrong_reader_is_found_out(reader: Any, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        assert_reader_agrees(reader, cases=["escapes"])


def test_an_unknown_case_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'packed gaps'"):
        assert_reader_agrees(our_reader, cases=["packd gaps"])


# --- wrong writers -------------------------------------------------------------------------------


def reseal(path: Path, *, name: str = "", change: Any = None, edit: Any = None) -> None:
    """Change a file or the manifest, and every checksum and digest above it."""
    folder = path / "gen-1"
    manifest = json.loads((folder / "MANIFEST.json").read_bytes())
    if change is not None:
        data = bytearray((folder / name).read_bytes())
        change(data)
        (folder / name).write_bytes(data)
        manifest["files"][name]["bytes"] = len(data)
    if edit is not None:
        edit(manifest)
    sums: list[int] = []
    for each in sorted(set(manifest["files"]) - {"checksums.bin"}):
        text = f"{manifest['store_uuid']}\n{manifest['generation']}\n{each}"
        base = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
        content = (folder / each).read_bytes()
        sums += [
            xxhash.xxh3_64_intdigest(content[begin : begin + 2**18], seed=(base + number) % 2**64)
            for number, begin in enumerate(range(0, len(content), 2**18))
        ]
    content = np.array(sums, "<u8").tobytes()
    (folder / "checksums.bin").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"]["checksums.bin"] |= {"bytes": len(content), "sha256": digest}
    line = (json.dumps(manifest, sort_keys=True, separators=(",", ":")) + "\n").encode()
    (folder / "MANIFEST.json").write_bytes(line)
    (path / "CURRENT").write_text(f"gen-1 {hashlib.sha256(line).hexdigest()}\n")


def poke(position: int, value: bytes) -> Any:
    def change(data: bytearray) -> None:
        data[position : position + len(value)] = value

    return change


@pytest.mark.parametrize(
    ("case", "file", "change", "words"),
    [
        ("ordinary", "cell_sums.bin", poke(0, b"\x01\x02"), "cell_sums are wrong"),
        ("ordinary", "gene_sums.bin", poke(0, b"\xff\x7f"), "gene_sums are wrong"),
        ("ordinary", "gene_detection.bin", poke(0, b"\xff"), "gene_detection is wrong"),
        ("ordinary", "gene_medians.bin", poke(6, b"\x01"), "gene_medians are wrong"),
        ("ordinary", "offsets.bin", poke(0, b"\x01"), "offsets do not ascend from 0"),
        ("ordinary", "offsets.bin", poke(8, b"\xff\xff"), "offsets do not ascend"),
        ("ordinary", "genes.bin", poke(0, b"\xff\x00"), "a gene is out of range"),
        ("ordinary", "genes.bin", poke(2, b"\x00\x00"), "genes of a cell do not ascend"),
        ("ordinary", "counts.bin", poke(0, b"\x00"), "a count is zero"),
        ("ordinary", "counts.bin", poke(0, b"\xff"), "escapes stand elsewhere"),
        (
            "escapes",
            "escape_counts.bin",
            poke(0, b"\x01\x00\x00\x00"),
            "escaped count is too small",
        ),
        ("packed", "packed_offsets.bin", poke(8, b"\x01\x00"), "a cell is too short"),
        ("packed", "packed.bin", poke(0, b"\xff"), "a cell has another length"),
        ("ranked", "rank_genes.bin", poke(0, b"\x27\x00\x27\x00"), "a rank view has other genes"),
        ("float", "values.bin", poke(0, b"\x00\x00\xc0\x7f"), "a value is not finite"),
    ],
)
def test_a_store_that_contradicts_itself_is_found_out(
    case: str, file: str, change: Any, words: str, tmp_path: Path
) -> None:
    def careless(wanted: StoreCase, path: Path) -> None:
        write_case(wanted, path)
        reseal(path, name=file, change=change)

    with pytest.raises(AssertionError, match=f"^{case}: The store is not as .*{words}"):
        assert_writer_conforms(careless, cases=[case])


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda manifest: manifest.update(extra=1), "the manifest has other keys"),
        (lambda manifest: manifest.update(format="other"), "another format"),
        (lambda manifest: manifest.update(format_version=2), "another version"),
        (lambda manifest: manifest.update(n_cells=-1), "n_cells is -1"),
        (lambda manifest: manifest.update(nnz="3"), "nnz is of another type"),
        (lambda manifest: manifest.update(layout="wide"), "its layout is unknown"),
        (lambda manifest: manifest.update(gene_digest="0" * 64), "genes have another digest"),
        (lambda manifest: manifest.update(store_uuid="x"), "its uuid is none"),
        (lambda manifest: manifest["files"]["genes.bin"].update(dtype="uint32"), "another length"),
        (lambda manifest: manifest["files"].pop("gene_medians.bin"), "it lists other files"),
        (
            lambda manifest: manifest["files"]["genes.bin"].update(sha256="0" * 64),
            "genes.bin is odd",
        ),
    ],
)
def test_a_manifest_that_is_not_as_the_page_says_is_found_out(
    edit: Any, words: str, tmp_path: Path
) -> None:
    write_case(CASES["ordinary"], tmp_path / "s")
    reseal(tmp_path / "s", edit=edit)
    with pytest.raises(CorruptStoreError, match=words):
        reference_read(tmp_path / "s")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"values": "values"}, r"values\[0\] is"),
        ({"provenance": {"a": 1}}, "provenance is"),
        ({"rank_medians": {"gene0": 1.0}}, "there is no rank view|there is a rank view"),
        ({"layout": "packed"}, "layout is 'packed', not 'plain'"),
    ],
)
def test_a_store_of_something_else_is_found_out(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    case = CASES["ordinary"]
    if "values" in changes:
        changes = {"values": case.values + 1}
    write_case(replace(case, **changes), tmp_path / "s")
    with pytest.raises(AssertionError, match=words):
        assert_store_equals(tmp_path / "s", case)


def test_other_tables_are_found_out(tmp_path: Path) -> None:
    case = CASES["tables"]
    for column, words in (("text", "has other values"), ("maybe text", "is missing elsewhere")):
        obs = case.obs.copy()
        obs[column] = obs[column].to_numpy()[::-1]
        write_case(replace(case, obs=obs), tmp_path / "s", overwrite=(tmp_path / "s").exists())
        with pytest.raises(AssertionError, match=f"obs.'{column}'. {words}"):
            assert_store_equals(tmp_path / "s", case)
    write_case(replace(case, obs=case.obs.drop(columns="flag")), tmp_path / "t")
    with pytest.raises(AssertionError, match="obs has other columns"):
        assert_store_equals(tmp_path / "t", case)


# --- damage --------------------------------------------------------------------------------------


def test_damage_is_of_every_kind_the_same_for_a_seed_and_never_in_the_source(
    tmp_path: Path,
) -> None:
    write_case(CASES["escapes"], tmp_path / "s")
    before = {path: path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()}

    def made(seed: int) -> list[tuple[str, str, str]]:
        return [
            (copy.kind, copy.file, copy.detail) for copy in damaged_copies(tmp_path / "s", seed)
        ]

    first = made(3)
    assert first == made(3) != made(4)
    kinds = {kind for kind, _, _ in first}
    assert kinds == {"flip", "truncate", "append", "zero", "missing", "swap"}
    assert {name for _, name, _ in first} >= {"CURRENT", "gen-1/MANIFEST.json", "gen-1/counts.bin"}
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize("case", ["escapes", "packed ranked", "float"])
def test_no_damaged_copy_passes_the_reference(case: str, tmp_path: Path) -> None:
    write_case(CASES[case], tmp_path / "s")
    tried = 0
    for copy in damaged_copies(tmp_path / "s"):
        tried += 1
        with pytest.raises((CorruptStoreError, ValueError)):
            reference_read(copy.path)
    assert tried > 40


# --- the page ------------------------------------------------------------------------------------


def test_the_examples_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert len(blocks) >= 6
    scope: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), scope)
    printed = capsys.readouterr().out
    assert "KeyError: 'offsets.bin'" not in printed
    assert "AssertionError: escapes: with damage (" in printed
    assert "['append', 'flip', 'missing', 'swap', 'truncate', 'zero']" in printed
