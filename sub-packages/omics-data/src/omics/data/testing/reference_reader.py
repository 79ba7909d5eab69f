"""`reference_read`: a slow and plain reader, written from docs/store-format.md and nothing else.

- It uses none of the code that reads stores elsewhere in this package; where the two differ, one of
  them or the page is wrong.
- It checks everything the page demands: digests, checksums, sizes, types, orders and sums.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from omics.data.errors import CorruptStoreError

Array = np.ndarray[Any, np.dtype[Any]]

# Name, allowed types; the order and the conditions are those of the table "Files".
_TYPES = {
    "offsets.bin": ("int64",),
    "genes.bin": ("uint16", "uint32"),
    "counts.bin": ("uint8", "uint16", "uint32"),
    "values.bin": ("float32",),
    "packed.bin": ("uint8",),
    "packed_offsets.bin": ("int64",),
    "escape_positions.bin": ("int64",),
    "escape_counts.bin": ("uint32",),
    "rank_genes.bin": ("uint16", "uint32"),
    "cell_sums.bin": ("int64", "float64"),
    "gene_sums.bin": ("int64", "float64"),
    "gene_detection.bin": ("int64",),
    "gene_medians.bin": ("float64",),
    "obs.parquet": ("parquet",),
    "var.parquet": ("parquet",),
    "checksums.bin": ("uint64",),
}
_KEYS = {
    "format": str,
    "format_version": int,
    "needs": str,
    "written_by": str,
    "store_uuid": str,
    "generation": int,
    "n_cells": int,
    "n_genes": int,
    "nnz": int,
    "value_kind": str,
    "layout": str,
    "rank_digest": (str, type(None)),
    "gene_digest": str,
    "chunk_bytes": int,
    "files": dict,
    "provenance": dict,
}


def reference_read(path: str | Path) -> dict[str, Any]:
    """Read a whole store and check all of it.

    Args:
        path: the store folder.

    Returns:
        `manifest` (dict); `indptr` int64 [n + 1], `genes` int64 [nnz], `values` [nnz] (int64 counts
        or float32); `cell_sums`, `gene_sums`, `gene_detection`, `gene_medians`; `rank_genes` int64
        [nnz] or None; `cell_names` and `gene_ids`, lists of text; `obs` and `var`, the Parquet files
        as arrow tables.

    Raises:
        CorruptStoreError: something contradicts the page; the message says what.
    """
    store = Path(path)
    folder, manifest = _manifest(store)
    files = _files(folder, manifest)
    _check_checksums(manifest, files)
    arrays = {
        name: np.frombuffer(data, np.dtype(manifest["files"][name]["dtype"]).newbyteorder("<"))
        for name, data in files.items()
        if manifest["files"][name]["dtype"] != "parquet"
    }
    obs, var = (_table(folder / name) for name in ("obs.parquet", "var.parquet"))
    found: dict[str, Any] = {"manifest": manifest, "obs": obs, "var": var}
    found["cell_names"] = obs.column("_index").to_pylist()
    found["gene_ids"] = var.column("_index").to_pylist()
    found["indptr"] = _offsets(arrays["offsets.bin"], manifest["nnz"])
    if manifest["layout"] == "packed":
        found["genes"], found["values"] = _unpack(arrays, found["indptr"])
    else:
        found["genes"] = arrays["genes.bin"].astype(np.int64)
        found["values"] = _plain_values(arrays)
    found["rank_genes"] = None
    if manifest["rank_digest"] is not None:
        found["rank_genes"] = arrays["rank_genes.bin"].astype(np.int64)
    for name in ("cell_sums", "gene_sums", "gene_detection", "gene_medians"):
        found[name] = arrays[f"{name}.bin"]
    _check_content(manifest, found)
    return found


def _require(condition: object, what: str) -> None:
    if not condition:
        raise CorruptStoreError(f"The store is not as its format says: {what}.")


# --- CURRENT, manifest, files --------------------------------------------------------------------


def _manifest(store: Path) -> tuple[Path, dict[str, Any]]:
    current = _bytes(store / "CURRENT", 200).decode("latin-1")
    line = re.fullmatch(r"gen-([1-9][0-9]*) ([0-9a-f]{64})\n", current)
    _require(line, f"CURRENT is {current!r}")
    assert line is not None
    folder = store / f"gen-{line[1]}"
    data = _bytes(folder / "MANIFEST.json", 64 * 2**20)
    _require(hashlib.sha256(data).hexdigest() == line[2], "the manifest has another digest")
    try:
        manifest: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise CorruptStoreError(f"The manifest of the store is no JSON: {error}.") from error
    _require(isinstance(manifest, dict), "the manifest is no object")
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n"
    _require(text.encode("ascii") == data, "the manifest is not in canonical form")
    _require(manifest.get("format") == "omics-store", "it is of another format")
    _require(manifest.get("format_version") == 1, "it is of another version")
    _require(set(manifest) == set(_KEYS), "the manifest has other keys")
    for key, kind in _KEYS.items():
        _require(isinstance(manifest[key], kind), f"{key} is of another type")  # type: ignore[arg-type]
        if kind is int:
            _require(0 <= manifest[key] < 2**62, f"{key} is {manifest[key]}")
    _require(manifest["generation"] == int(line[1]), "it is of another generation")
    _require(re.fullmatch("[0-9a-f]{32}", manifest["store_uuid"]), "its uuid is none")
    _require(manifest["value_kind"] in {"counts", "float"}, "its value_kind is unknown")
    packed = manifest["layout"] == "packed" and manifest["value_kind"] == "counts"
    _require(packed or manifest["layout"] == "plain", "its layout is unknown")
    _require(
        manifest["chunk_bytes"] >= 8 and manifest["chunk_bytes"] % 8 == 0, "chunk_bytes is odd"
    )
    return folder, manifest


def _bytes(path: Path, limit: int | None = None) -> bytes:
    _require(path.is_file(), f"{path.name} is no file")
    _require(limit is None or path.stat().st_size <= limit, f"{path.name} is too large")
    return path.read_bytes()


def _files(folder: Path, manifest: dict[str, Any]) -> dict[str, bytes]:
    """Read all files after comparing names, types and sizes with the table "Files"."""
    entries = manifest["files"]
    items = _expected_items(manifest)
    _require(set(entries) == set(items), f"it lists other files: {set(entries) ^ set(items)}")
    found = {}
    for name, entry in entries.items():
        _require(entry["dtype"] in _TYPES[name], f"{name} is of type {entry['dtype']}")
        hashed = name.endswith(".parquet") or name == "checksums.bin"
        _require(
            set(entry) == {"dtype", "bytes", *(["sha256"] if hashed else [])}, f"{name} is odd"
        )
        found[name] = _bytes(folder / name)
        _require(len(found[name]) == entry["bytes"], f"{name} has another size")
        if items[name] is not None:
            size = np.dtype(entry["dtype"]).itemsize
            _require(entry["bytes"] == items[name] * size, f"{name} has another length")
        if hashed:
            digest = hashlib.sha256(found[name]).hexdigest()
            _require(digest == entry["sha256"], f"{name} has another digest")
    wide = "uint16" if manifest["n_genes"] <= 65_536 else "uint32"
    for name in ("genes.bin", "rank_genes.bin"):
        _require(name not in entries or entries[name]["dtype"] == wide, f"{name} is not {wide}")
    sums = "int64" if manifest["value_kind"] == "counts" else "float64"
    for name in ("cell_sums.bin", "gene_sums.bin"):
        _require(entries[name]["dtype"] == sums, f"{name} is not {sums}")
    return found


def _expected_items(manifest: dict[str, Any]) -> dict[str, int | None]:
    """Return the files there must be, and how many items each holds (None: see elsewhere)."""
    cells, genes, nnz = manifest["n_cells"], manifest["n_genes"], manifest["nnz"]
    entries = manifest["files"]
    items: dict[str, int | None] = {
        "offsets.bin": cells + 1,
        "cell_sums.bin": cells,
        "gene_sums.bin": genes,
        "gene_detection.bin": genes,
        "gene_medians.bin": genes,
        "obs.parquet": None,
        "var.parquet": None,
    }
    packed = manifest["layout"] == "packed"
    escaped = packed or entries.get("counts.bin", {}).get("dtype") == "uint8"
    if packed:
        items |= {"packed.bin": None, "packed_offsets.bin": cells + 1}
    else:
        items |= {"genes.bin": nnz}
        items |= {"counts.bin" if manifest["value_kind"] == "counts" else "values.bin": nnz}
    if escaped:
        escapes = entries.get("escape_counts.bin", {}).get("bytes", 0) // 4
        items |= {"escape_positions.bin": escapes, "escape_counts.bin": escapes}
    if manifest["rank_digest"] is not None:
        items |= {"rank_genes.bin": nnz}
    step = manifest["chunk_bytes"]
    sizes = [entries[name]["bytes"] for name in items if name in entries]
    items["checksums.bin"] = sum(-(-size // step) for size in sizes)
    return items


def _check_checksums(manifest: dict[str, Any], files: dict[str, bytes]) -> None:
    stored = np.frombuffer(files["checksums.bin"], "<u8").tolist()
    step, position = manifest["chunk_bytes"], 0
    for name in sorted(set(files) - {"checksums.bin"}, key=lambda each: each.encode()):
        text = f"{manifest['store_uuid']}\n{manifest['generation']}\n{name}"
        base = int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:8], "little")
        data = files[name]
        for chunk, begin in enumerate(range(0, len(data), step)):
            seed = (base + chunk) % 2**64
            number = xxhash.xxh3_64_intdigest(data[begin : begin + step], seed=seed)
            _require(number == stored[position], f"chunk {chunk} of {name} has another checksum")
            position += 1


def _table(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # One thread and no memory map: this reader is plain.
        table = pq.read_table(path, page_checksum_verification=True, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise CorruptStoreError(f"{path.name} of the store is no Parquet: {error}.") from error
    _require(table.column_names[:1] == ["_index"], f"{path.name} has no names")
    _require(table.column_names.count("_index") == 1, f"{path.name} has two columns of names")
    return table


# --- matrices ------------------------------------------------------------------------------------


def _offsets(offsets: Array, last: int | None) -> Array:
    found = offsets.astype(np.int64)
    _require(found[0] == 0 and (np.diff(found) >= 0).all(), "offsets do not ascend from 0")
    _require(last is None or found[-1] == last, "offsets do not end at the number of entries")
    return found


def _plain_values(arrays: dict[str, Array]) -> Array:
    if "values.bin" in arrays:
        values = arrays["values.bin"]
        _require(np.isfinite(values).all(), "a value is not finite")
        return values
    counts = arrays["counts.bin"].astype(np.int64)
    if arrays["counts.bin"].dtype.itemsize == 1:
        return _with_escapes(counts, 255, arrays)
    return counts


def _with_escapes(counts: Array, mark: int, arrays: dict[str, Array]) -> Array:
    positions, large = arrays["escape_positions.bin"], arrays["escape_counts.bin"]
    places = np.flatnonzero(counts == mark)
    _require(np.array_equal(positions, places), "escapes stand elsewhere")
    _require((large >= mark).all(), "an escaped count is too small")
    counts[positions] = large
    return counts


def _unpack(arrays: dict[str, Array], indptr: Array) -> tuple[Array, Array]:
    """Decode the packed layout cell by cell, part by part, as its table lists them."""
    packed = arrays["packed.bin"]
    places = _offsets(arrays["packed_offsets.bin"], len(packed))
    genes, counts = [], []
    for cell in range(len(indptr) - 1):
        entries = int(indptr[cell + 1] - indptr[cell])
        data = packed[places[cell] : places[cell + 1]]
        gaps = data[:entries].astype(np.int64)
        nibbles = data[entries : entries + (entries + 1) // 2]
        _require(len(gaps) == entries and len(nibbles) == (entries + 1) // 2, "a cell is too short")
        halves = np.stack([nibbles & 15, nibbles >> 4], axis=1).ravel()
        _require((halves[entries:] == 0).all(), "an unused half is not 0")
        small = halves[:entries].astype(np.int64)
        rest = data[entries + len(nibbles) :].tobytes()
        num_gaps, num_counts = int((gaps == 255).sum()), int((small == 15).sum())
        _require(len(rest) == 4 * num_gaps + 2 * num_counts, "a cell has another length")
        gaps[gaps == 255] = np.frombuffer(rest, "<u4", num_gaps)
        small[small == 15] = np.frombuffer(rest, "<u2", num_counts, 4 * num_gaps)
        genes.append(np.cumsum(gaps + 1) - 1)
        counts.append(small)
    none = np.zeros(0, np.int64)
    together = np.concatenate([none, *counts])
    return np.concatenate([none, *genes]), _with_escapes(together, 65_535, arrays)


# --- whether the parts agree ---------------------------------------------------------------------


def _check_content(manifest: dict[str, Any], found: dict[str, Any]) -> None:
    cells, num_genes = manifest["n_cells"], manifest["n_genes"]
    indptr, genes, values = found["indptr"], found["genes"], found["values"]
    _require(len(found["cell_names"]) == cells, "obs has another number of rows")
    ids = found["gene_ids"]
    _require(len(ids) == num_genes == len(set(ids)), "gene ids repeat, or are too many or few")
    _require(all(ids), "a gene id is empty")
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()
    _require(digest == manifest["gene_digest"], "the genes have another digest")
    _require(((genes >= 0) & (genes < num_genes)).all(), "a gene is out of range")
    owner = np.repeat(np.arange(cells), np.diff(indptr))
    same_cell = owner[1:] == owner[:-1]
    _require((genes[1:] > genes[:-1])[same_cell].all(), "genes of a cell do not ascend")
    _require(values.dtype.kind == "f" or (values > 0).all(), "a count is zero")
    wide = np.float64 if values.dtype.kind == "f" else np.int64
    sums = np.zeros(cells, wide), np.zeros(num_genes, wide)
    np.add.at(sums[0], owner, values)
    np.add.at(sums[1], genes, values)
    for name, expected in zip(("cell_sums", "gene_sums"), sums, strict=True):
        _require(np.allclose(found[name], expected, rtol=1e-9), f"{name} are wrong")
    detection = np.bincount(genes, minlength=num_genes)
    _require((found["gene_detection"] == detection).all(), "gene_detection is wrong")
    order = np.argsort(genes, kind="stable")
    parts = np.split(values[order].astype(np.float64), np.cumsum(detection)[:-1])
    medians = [float(np.median(part)) if len(part) else 0.0 for part in parts[:num_genes]]
    _require(np.allclose(found["gene_medians"], medians, rtol=1e-9), "gene_medians are wrong")
    if found["rank_genes"] is not None:
        ranked = found["rank_genes"]
        for cell in range(cells):
            part = slice(indptr[cell], indptr[cell + 1])
            _require((np.sort(ranked[part]) == genes[part]).all(), "a rank view has other genes")
