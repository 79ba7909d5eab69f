"""The page docs/store-format.md is enough to read a store: this reader knows nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import xxhash

from omics.data.errors import UsageError

PAGE = Path(__file__).parents[3] / "docs" / "store-format.md"
JSON_TYPES = {
    "string": (str,),
    "integer": (int,),
    "object": (dict,),
    "string or null": (str, type(None)),
}


def _tables(heading):
    """Return the Markdown tables of one section, as lists of rows of cells."""
    text = PAGE.read_text(encoding="utf-8")
    section = re.split(r"^## ", text.split(f"\n## {heading}\n", 1)[1], flags=re.MULTILINE)[0]
    tables = re.findall(r"^\|.*\n\|[-|]+\n((?:\|.*\n)+)", section, flags=re.MULTILINE)
    return [
        [
            [cell.strip().strip("`") for cell in line.strip("|").split("|")]
            for line in t.splitlines()
        ]
        for t in tables
    ]


def _read_by_the_page(path):
    generation, digest = (path / "CURRENT").read_text("ascii").removesuffix("\n").split(" ")
    data = (path / generation / "MANIFEST.json").read_bytes()
    assert hashlib.sha256(data).hexdigest() == digest
    manifest = json.loads(data)
    keys, entry_keys = _tables("MANIFEST.json")
    assert {key for key, _, _ in keys} == set(manifest)
    for key, kind, _ in keys:
        assert type(manifest[key]) in JSON_TYPES[kind], key
    for entry in manifest["files"].values():
        assert set(entry) <= {key for key, _, _ in entry_keys}
    (files,) = _tables("Files")
    arrays, numbers = {}, dict(manifest)
    entries = manifest["files"]
    numbers["escapes"] = entries.get("escape_counts.bin", {"bytes": 0})["bytes"] // 4
    numbers["packed"] = entries.get("packed.bin", {"bytes": 0})["bytes"]
    numbers["chunks"] = sum(
        -(-entry["bytes"] // manifest["chunk_bytes"])
        for name, entry in entries.items()
        if name != "checksums.bin"
    )
    for name, dtypes, items, when in files:
        assert (name in entries) == _is_there(when, manifest), name
        if name in entries:
            assert entries[name]["dtype"] in dtypes.split(", ")
            content = (path / generation / name).read_bytes()
            assert len(content) == entries[name]["bytes"]
            if dtypes != "parquet":
                array = np.frombuffer(content, np.dtype(entries[name]["dtype"]).newbyteorder("<"))
                expected = sum(
                    int(part) if part.isdecimal() else numbers[part] for part in items.split(" + ")
                )
                assert len(array) == expected, name
                arrays[name] = array
    assert set(entries) <= {name for name, *_ in files}
    return path / generation, manifest, arrays


def _is_there(when, manifest):
    if " or " in when:
        return any(_is_there(part.strip(), manifest) for part in when.split(", or "))
    if ", " in when:
        return all(_is_there(part, manifest) for part in when.split(", "))
    if when.startswith("counts.bin is "):
        dtype = when.removeprefix("counts.bin is ")
        return manifest["files"].get("counts.bin", {}).get("dtype") == dtype
    if when == "rank_digest not null":
        return manifest["rank_digest"] is not None
    if when == "always":
        return True
    key, value = when.split(" ")
    return manifest[key] == value


def _check_checksums(folder, manifest, arrays):
    expected = iter(arrays["checksums.bin"].tolist())
    for name in sorted(manifest["files"]):
        if name == "checksums.bin":
            continue
        text = f"{manifest['store_uuid']}\n{manifest['generation']}\n{name}".encode("ascii")
        base = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
        content = (folder / name).read_bytes()
        step = manifest["chunk_bytes"]
        for chunk, begin in enumerate(range(0, len(content), step)):
            seed = (base + chunk) % 2**64
            data = content[begin : begin + step]
            assert xxhash.xxh3_64_intdigest(data, seed=seed) == next(expected), (name, chunk)
    assert next(expected, None) is None
    for name, entry in manifest["files"].items():
        if "sha256" in entry:
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]


def _entries(manifest, arrays):
    """Return genes and values of all entries, in the order of cells."""
    if manifest["layout"] == "packed":
        genes, values = _unpacked(arrays)
        code = 65535
    else:
        genes = arrays["genes.bin"]
        values = arrays["counts.bin" if manifest["value_kind"] == "counts" else "values.bin"]
        code = 255
    if "escape_counts.bin" in arrays:
        values = values.astype(np.int64)
        positions = arrays["escape_positions.bin"]
        assert np.flatnonzero(values == code).tolist() == positions.tolist()
        values[positions] = arrays["escape_counts.bin"]
    return genes, values


def _unpacked(arrays):
    genes, values = [], []
    bounds = arrays["packed_offsets.bin"]
    for cell, size in enumerate(np.diff(arrays["offsets.bin"])):
        data = arrays["packed.bin"][bounds[cell] : bounds[cell + 1]].tobytes()
        gaps, rest = list(data[:size]), data[size:]
        nibbles = [half for byte in rest[: (size + 1) // 2] for half in (byte & 15, byte >> 4)]
        assert nibbles[size:] in ([], [0])
        wide = rest[(size + 1) // 2 :]
        for entry in range(size):
            if gaps[entry] == 255:
                gaps[entry], wide = int.from_bytes(wide[:4], "little"), wide[4:]
        for entry in range(size):
            if nibbles[entry] == 15:
                nibbles[entry], wide = int.from_bytes(wide[:2], "little"), wide[2:]
        assert wide == b""
        genes.extend(np.cumsum(np.array(gaps, np.int64) + 1) - 1)
        values.extend(nibbles[:size])
    return np.array(genes, np.int64), np.array(values, np.int64)


def _dense(manifest, arrays):
    genes, values = _entries(manifest, arrays)
    dense = np.zeros((manifest["n_cells"], manifest["n_genes"]), values.dtype)
    offsets = arrays["offsets.bin"]
    for cell in range(manifest["n_cells"]):
        owned = slice(offsets[cell], offsets[cell + 1])
        dense[cell, genes[owned]] = values[owned]
    return dense


def _check_ranks(matrix, medians, manifest, arrays):
    assert manifest["rank_digest"] == hashlib.sha256(medians.tobytes()).hexdigest()
    ranked, offsets = arrays["rank_genes.bin"], arrays["offsets.bin"]
    for cell, counts in enumerate(matrix):
        genes = np.flatnonzero(counts)
        known = genes[medians[genes] > 0]
        order = np.argsort(-counts[known] / medians[known], kind="stable")
        expected = [*known[order], *genes[medians[genes] == 0]]
        assert ranked[offsets[cell] : offsets[cell + 1]].tolist() == expected


def _cases():
    escaped = np.ones((30, 5), np.int64)
    escaped[3] = 0
    escaped[7, 2], escaped[9, 4] = 255, 2**32 - 1
    return {
        "escapes": (escaped, "counts"),
        "sixteen_bits": (np.arange(200, 320).reshape(30, 4), "counts"),
        "thirty_two_bits": (np.arange(65500, 65620).reshape(30, 4), "counts"),
        "floats": (np.linspace(-1, 1, 90, dtype=np.float32).reshape(30, 3), "float"),
        "empty": (np.zeros((30, 0), np.int64), "counts"),
        "wide_gaps": (_wide_gaps(), "counts"),
    }


def _wide_gaps():
    matrix = np.zeros((30, 900), np.int64)
    matrix[:, [1, 200, 455, 456, 899]] = [[1, 14, 15, 65534, 65535]]
    matrix[4, [254, 255, 256]] = 70000, 2, 2**32 - 1
    matrix[5] = 0
    return matrix


@pytest.mark.parametrize("layout", ["plain", "packed", "plain, ranked"])
@pytest.mark.parametrize("case", _cases())
def test_the_page_is_enough_to_read_a_store(case, layout, tmp_path, write_store, monkeypatch):
    monkeypatch.setattr("omics.data.storage.store_writer.CHUNK_BYTES", 64)
    matrix, value_kind = _cases()[case]
    options = {"layout": layout.split(", ")[0]}
    medians = np.arange(matrix.shape[1]) % 4 / 2.0
    if layout.endswith("ranked") and matrix.shape[1]:
        options["rank_medians"] = {f"gene{i}": value for i, value in enumerate(medians) if value}
    if value_kind == "float" and layout != "plain":
        with pytest.raises(UsageError, match="for counts only"):
            write_store(tmp_path / "s", matrix, value_kind=value_kind, **options)
        return
    obs = pd.DataFrame(
        {
            "t": pd.Categorical(["b", "a", None] * 10, categories=["b", "z", "a"], ordered=True),
            "n": np.arange(30),
        },
        index=pd.Index([f"c{row}" for row in range(30)], name="barcode"),
    )
    store = write_store(tmp_path / "s", matrix, obs=obs, value_kind=value_kind, **options)
    folder, manifest, arrays = _read_by_the_page(tmp_path / "s")
    _check_checksums(folder, manifest, arrays)
    dense = _dense(manifest, arrays)
    assert (dense == matrix).all()
    assert (dense == store.take(range(30)).to_csr().toarray()).all()
    assert arrays["cell_sums.bin"].tolist() == store.row_sums().tolist()
    assert arrays["gene_sums.bin"].tolist() == store.gene_sums().tolist()
    assert arrays["gene_detection.bin"].tolist() == (matrix != 0).sum(axis=0).tolist()

    seen = [column[column != 0] for column in matrix.T]
    expected = [float(np.median(values.astype(float))) if len(values) else 0.0 for values in seen]
    assert arrays["gene_medians.bin"].tolist() == store.gene_medians().tolist() == expected
    if "rank_medians" in options:
        _check_ranks(matrix, medians, manifest, arrays)

    table = pq.read_table(folder / "obs.parquet", page_checksum_verification=True)
    (record_keys,) = _tables("obs.parquet and var.parquet")
    record = json.loads(table.schema.metadata[b"omics"])
    assert set(record) == {key for key, _, _ in record_keys}
    assert record["index_name"] == "barcode"
    described = record["categories"]["t"]
    assert described.pop("dtype") in {"object", "str"}  # of pandas 2, of pandas 3
    assert record["categories"] == {"t": {"values": ["b", "z", "a"], "ordered": True}}
    assert table.column_names == ["_index", "t", "n"]
    assert table.column("_index").to_pylist() == store.obs.names.tolist()
    assert table.column("t").to_pylist() == store.obs["t"].tolist() == ["b", "a", None] * 10
    genes = pq.read_table(folder / "var.parquet").column("_index").to_pylist()
    assert genes == store.genes.ids.tolist()
    digest = hashlib.sha256("\n".join(genes).encode()).hexdigest()
    assert manifest["gene_digest"] == digest
