"""A damaged store is reported, never returned as data."""

from __future__ import annotations

import contextlib
import os
import shutil

import numpy as np
import pandas as pd
import pytest

from omics.data.errors import CorruptStoreError, InputDataError, OmicsError, ResourceError
from omics.data.storage.store import open_store

COUNTS = np.array(
    [[1, 0, 300], [0, 0, 0], [7, 255, 0], [1, 1, 1], [2**32 - 1, 0, 2]] + [[1, 2, 3]] * 20
)
OBS = pd.DataFrame(
    {"t": pd.Categorical(list("ab" * 12 + "a"), categories=["b", "z", "a"], ordered=True)},
    index=[f"c{i}" for i in range(25)],
)


@pytest.fixture
def store_path(tmp_path, write_store):
    write_store(tmp_path / "s", COUNTS, obs=OBS)
    return tmp_path / "s"


MEDIANS = {"gene0": 2.0, "gene2": 0.5}
PACKED = {"layout": "packed", "rank_medians": MEDIANS}


def _read_everything(path, verify="first", *, first=""):
    """Return all that a store holds, read from one file before the others."""
    store = open_store(path, verify=verify)
    readers = {
        "counts": lambda held: held.take(range(len(held))).to_csr().toarray().tolist(),
        "lengths": lambda held: held.lengths.tolist(),
        "row_sums": lambda held: held.row_sums().tolist(),
        "gene_sums": lambda held: held.gene_sums().tolist(),
        "gene_detection": lambda held: held.gene_detection().tolist(),
        "gene_medians": lambda held: held.gene_medians().tolist(),
        "ranked": lambda held: held.take_ranked(range(len(held)))[1].tolist(),
        "var.parquet": lambda held: held.genes.ids.tolist(),
        "obs.parquet": lambda held: _table(held.obs.to_pandas()),
        "rest": lambda held: (held.provenance, held.shape, held.value_kind),
    }
    if not store.rank_digest:
        del readers["ranked"]
    return {name: readers[name](store) for name in sorted(readers, key=lambda each: each != first)}


def _table(frame):
    categories = frame["t"].cat.categories.tolist()
    return frame.to_dict("list"), categories, frame["t"].cat.ordered, frame.index.tolist()


def _files(path):
    return sorted(each for each in path.rglob("*") if each.is_file() and each.name != ".lock")


@pytest.mark.parametrize("options", [{}, PACKED], ids=["plain", "packed"])
def test_one_wrong_bit_in_any_byte_is_never_read_silently(options, tmp_path, write_store):
    store_path = tmp_path / "s"
    write_store(store_path, COUNTS, obs=OBS, **options)
    good = _read_everything(store_path)
    rng = np.random.default_rng(0)
    silent, tried = [], 0
    for file in _files(store_path):
        data = file.read_bytes()
        for position, bit in enumerate(rng.integers(0, 8, len(data)).tolist()):
            with file.open("r+b") as opened:
                opened.seek(position)
                opened.write(bytes([data[position] ^ (1 << bit)]))
            tried += 1
            try:
                if _read_everything(store_path, first=file.name) != good:
                    silent.append((file.name, position, bit))
            except OmicsError:
                pass
            with file.open("r+b") as opened:
                opened.seek(position)
                opened.write(data[position : position + 1])
    assert silent == []
    assert tried > 5000
    assert _read_everything(store_path) == good


@pytest.mark.parametrize("damage", ["delete", "empty", "short", "long", "folder", "fifo"])
def test_files_of_the_wrong_kind_or_size_are_refused_at_opening(damage, store_path):
    for file in _files(store_path):
        kept = file.read_bytes()
        changed = {"empty": b"", "short": kept[:-1], "long": kept + b"\0"}
        file.unlink()
        if damage == "folder":
            file.mkdir()
        elif damage == "fifo":
            os.mkfifo(file)
        elif damage != "delete":
            file.write_bytes(changed[damage])
        if kept or damage not in {"empty", "short"}:
            with pytest.raises(CorruptStoreError) as caught:
                open_store(store_path)
            assert file.name in str(caught.value)
            assert "convert it again from its source" in str(caught.value)
            assert caught.value.exit_code == 4
        if damage == "folder":
            file.rmdir()
        else:
            file.unlink(missing_ok=True)
        file.write_bytes(kept)
    open_store(store_path).verify()


def test_missing_generation_is_refused(store_path):
    shutil.rmtree(store_path / "gen-1")
    with pytest.raises(CorruptStoreError, match=r"gen-1/MANIFEST\.json is missing"):
        open_store(store_path)


def test_store_without_current_says_so(store_path):
    (store_path / "CURRENT").unlink()
    with pytest.raises(CorruptStoreError, match="CURRENT is missing"):
        open_store(store_path)
    shutil.rmtree(store_path / "gen-1")
    with pytest.raises(InputDataError, match="is not a store"):
        open_store(store_path)


@pytest.mark.parametrize("name", ["genes.bin", "counts.bin", "obs.parquet", "checksums.bin"])
def test_file_of_another_store_of_the_same_shape_is_noticed(
    name, tmp_path, store_path, write_store
):
    other = COUNTS.copy()
    other[3], other[4] = [2, 0, 2**32 - 1], [1, 1, 1]
    write_store(tmp_path / "other", other, obs=OBS.iloc[::-1])
    shutil.copy(tmp_path / "other" / "gen-1" / name, store_path / "gen-1" / name)
    with pytest.raises(CorruptStoreError, match=name):
        _read_everything(store_path)


def test_equal_file_with_the_checksums_of_another_store_is_noticed(
    tmp_path, store_path, write_store
):
    write_store(tmp_path / "other", COUNTS, obs=OBS)
    shutil.copytree(tmp_path / "other" / "gen-1", store_path / "gen-1", dirs_exist_ok=True)
    with pytest.raises(CorruptStoreError, match="does not match the digest in CURRENT"):
        open_store(store_path)


def test_file_of_an_older_generation_is_noticed(tmp_path, store_path, write_store):
    old = (store_path / "gen-1" / "counts.bin").read_bytes()
    write_store(store_path, COUNTS, obs=OBS, overwrite=True)
    new = store_path / "gen-2" / "counts.bin"
    assert new.read_bytes() == old
    assert _read_everything(store_path)["counts"] == COUNTS.tolist()
    codes = bytearray(old)
    codes[0], codes[1] = codes[1], codes[0]
    new.write_bytes(codes)
    with pytest.raises(CorruptStoreError, match=r"counts.bin fails its checksum in chunk 0"):
        _read_everything(store_path)


def test_chunks_in_each_others_place_are_noticed(tmp_path, write_store, monkeypatch):
    monkeypatch.setattr("omics.data.storage.store_writer.CHUNK_BYTES", 8)
    write_store(tmp_path / "s", np.arange(1, 41).reshape(10, 4))
    file = tmp_path / "s" / "gen-1" / "counts.bin"
    checksums = tmp_path / "s" / "gen-1" / "checksums.bin"
    data = file.read_bytes()
    file.write_bytes(data[8:16] + data[:8] + data[16:])
    store = open_store(tmp_path / "s")
    assert store.take([4]).counts.tolist() == [17, 18, 19, 20]
    with pytest.raises(CorruptStoreError, match=r"counts.bin fails its checksum in chunk 1 \(8-16"):
        store.take([2])
    with pytest.raises(CorruptStoreError, match=r"counts.bin fails its checksum in chunk 0"):
        store.verify()
    file.write_bytes(data)
    # Nor do chunks pass that are swapped together with their checksums.
    sums = checksums.read_bytes()
    begin = 8 * _first_chunk(store, "counts.bin")
    swapped = sums[:begin] + sums[begin + 8 : begin + 16] + sums[begin : begin + 8]
    checksums.write_bytes(swapped + sums[begin + 16 :])
    with pytest.raises(CorruptStoreError, match=r"checksums\.bin does not match its digest"):
        open_store(tmp_path / "s")


def _first_chunk(store, name):
    names = store._manifest.checksummed_files()
    return sum(store._manifest.num_chunks(each) for each in names[: names.index(name)])


def test_swapped_chunks_fail_even_with_their_checksums_swapped(tmp_path, write_store, monkeypatch):
    monkeypatch.setattr("omics.data.storage.store_writer.CHUNK_BYTES", 8)
    write_store(tmp_path / "s", np.arange(1, 41).reshape(10, 4))
    file = tmp_path / "s" / "gen-1" / "counts.bin"
    data = file.read_bytes()
    file.write_bytes(data[8:16] + data[:8] + data[16:])
    store = open_store(tmp_path / "s")
    mapped = store._files["counts.bin"]
    sums = np.array(mapped._checksums)
    assert len(sums) == 5
    sums[[0, 1]] = sums[[1, 0]]
    mapped._checksums = sums
    with pytest.raises(CorruptStoreError, match="chunk 0"):
        store.take([0])


def _poke(path, position, data):
    with path.open("r+b") as file:
        file.seek(position)
        file.write(data)


def test_first_mode_checks_a_chunk_once_and_always_mode_every_time(store_path):
    first, always = open_store(store_path), open_store(store_path, verify="always")
    expected = COUNTS[3].tolist()
    for store in (first, always):
        assert store.take([3]).counts.tolist() == expected
    _poke(store_path / "gen-1" / "counts.bin", 4, b"\x09")
    assert first.take([3]).counts.tolist() == [9, 1, 1]
    with pytest.raises(CorruptStoreError, match=r"counts.bin fails its checksum"):
        always.take([3])
    with pytest.raises(CorruptStoreError, match=r"counts.bin fails its checksum"):
        first.verify()


@pytest.mark.parametrize("verify", ["first", "off"])
def test_values_out_of_range_never_reach_the_loops(verify, store_path):
    cases = [
        ("genes.bin", 0, np.uint16(3).tobytes(), "gene position out of range"),
        ("offsets.bin", 8, np.int64(-1).tobytes(), "offsets that decrease"),
        ("offsets.bin", 8, np.int64(10**15).tobytes(), "offsets that decrease"),
        ("offsets.bin", 25 * 8, np.int64(10**6).tobytes(), "offsets that decrease or are out"),
        ("escape_positions.bin", 0, np.int64(10**6).tobytes(), "positions out of order"),
        ("escape_positions.bin", 8, np.int64(0).tobytes(), "positions out of order"),
    ]
    for name, position, data, found in cases:
        path = store_path / "gen-1" / name
        kept = path.read_bytes()
        _poke(path, position, data)
        expected = found if verify == "off" else "fails its checksum"
        with pytest.raises(CorruptStoreError, match=rf"{name}.*{expected}"):
            open_store(store_path, verify=verify).take(range(25))
        path.write_bytes(kept)
    _read_everything(store_path, verify=verify)


def test_damaged_table_is_noticed_without_checksums_too(store_path):
    path = store_path / "gen-1" / "obs.parquet"
    _poke(path, path.stat().st_size - 8, b"\xff\xff\xff\x7f")
    with pytest.raises(CorruptStoreError, match="cannot be read as Parquet"):
        _ = open_store(store_path, verify="off").obs.columns
    with pytest.raises(CorruptStoreError, match=r"fails its checksum|cannot be read as Parquet"):
        _ = open_store(store_path).obs.columns


def test_columns_are_checked_when_they_are_read(store_path):
    store = open_store(store_path)
    _poke(store_path / "gen-1" / "obs.parquet", 10, b"\xff\xff\xff")
    assert store.take([3]).counts.tolist() == [1, 1, 1]
    with pytest.raises(CorruptStoreError, match=r"obs.parquet"):
        store.obs["t"]


def _rewrite(path, name, change):
    """Change a file and every checksum and digest above it, as a careless writer would."""
    import hashlib
    import json

    import xxhash

    from omics.data.storage.store_format import canonical_json, file_seed

    folder = path / "gen-1"
    data = bytearray((folder / name).read_bytes())
    change(data)
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "MANIFEST.json").read_bytes())
    names = sorted(each for each in manifest["files"] if each != "checksums.bin")
    sums = np.frombuffer((folder / "checksums.bin").read_bytes(), "<u8").copy()
    seed = file_seed(manifest["store_uuid"], 1, name)
    filled = [each for each in names if manifest["files"][each]["bytes"]]
    sums[filled.index(name)] = xxhash.xxh3_64_intdigest(bytes(data), seed=seed)
    (folder / "checksums.bin").write_bytes(sums.tobytes())
    manifest["files"]["checksums.bin"]["sha256"] = hashlib.sha256(sums.tobytes()).hexdigest()
    text = canonical_json(manifest)
    (folder / "MANIFEST.json").write_bytes(text)
    (path / "CURRENT").write_text(f"gen-1 {hashlib.sha256(text).hexdigest()}\n")


def test_packed_bytes_that_do_not_decode_never_reach_the_loops(tmp_path, write_store):
    write_store(tmp_path / "s", COUNTS, obs=OBS, layout="packed")
    data = (tmp_path / "s" / "gen-1" / "packed.bin").read_bytes()
    for position in range(len(data)):
        _poke(tmp_path / "s" / "gen-1" / "packed.bin", position, b"\xff")
        store = open_store(tmp_path / "s", verify="off")
        with contextlib.suppress(CorruptStoreError):  # Else the byte stood for another count.
            assert store.take(range(25)).genes.max() < 3
        _poke(tmp_path / "s" / "gen-1" / "packed.bin", position, data[position : position + 1])


def test_verify_finds_a_rank_view_of_other_genes(tmp_path, write_store):
    write_store(tmp_path / "s", COUNTS, obs=OBS, rank_medians=MEDIANS)
    _rewrite(tmp_path / "s", "rank_genes.bin", lambda data: data.__setitem__(0, 1))
    with pytest.raises(CorruptStoreError, match=r"rank_genes.bin holds other genes"):
        open_store(tmp_path / "s").verify()


def _swap(begin, size):
    def change(data):
        first, second = data[begin : begin + size], data[begin + size : begin + 2 * size]
        data[begin : begin + 2 * size] = second + first

    return change


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("genes.bin", _swap(0, 2), "genes out of order in cell 0"),
        ("cell_sums.bin", _swap(0, 8), "cell_sums.bin does not fit the matrix"),
        ("gene_sums.bin", _swap(0, 8), "gene_sums.bin does not fit the matrix"),
        ("gene_detection.bin", _swap(0, 8), "gene_detection.bin does not fit the matrix"),
        ("gene_medians.bin", _swap(6, 14), "gene_medians.bin does not fit the matrix"),
        (
            "escape_counts.bin",
            lambda data: data.__setitem__(slice(0, 4), b"\1\0\0\0"),
            "has 3 escapes for 3",
        ),
        ("counts.bin", lambda data: data.__setitem__(4, 255), "has 4 escapes for 3 positions"),
        ("offsets.bin", lambda data: data.__setitem__(0, 1), "does not run from 0"),
    ],
)
def test_verify_finds_files_that_disagree_despite_good_checksums(name, change, found, store_path):
    _rewrite(store_path, name, change)
    with pytest.raises(CorruptStoreError, match=found):
        open_store(store_path).verify()


def test_unreadable_file_is_a_resource_error(store_path, monkeypatch):
    opened = os.open

    def denied(path, flags, *arguments, **options):
        if str(path).endswith("genes.bin"):
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(ResourceError, match=r"genes.bin cannot be opened: Permission denied"):
        open_store(store_path)


TABLE_MUTATIONS = 120


def _mutated(data, rng):
    """Return the bytes changed in one of six ways: turned, random, zero, copied, cut out, put in."""
    data = bytearray(data)
    length = int(rng.integers(1, 64))
    at = int(rng.integers(0, len(data) - length))
    other = int(rng.integers(0, len(data) - length))
    way = int(rng.integers(0, 6))
    if way == 0:
        data[at] ^= int(rng.integers(1, 256))
    elif way == 1:
        data[at : at + length] = rng.bytes(length)
    elif way == 2:
        data[at : at + length] = bytes(length)
    elif way == 3:
        data[at : at + length] = data[other : other + length]
    elif way == 4:
        del data[at : at + length]
    else:
        data[at:at] = rng.bytes(length)
    return bytes(data)


def _tables(path, verify):
    store = open_store(path, verify=verify)
    frames = store.obs.to_pandas(), store._var.to_pandas()
    codes = [table.codes(name) for table in (store.obs, store._var) for name in table.columns]
    return frames, [(list(numbers), list(values)) for numbers, values in codes]


def _same(one, other):
    frames = all(left.equals(right) for left, right in zip(one[0], other[0], strict=True))
    return frames and repr(one[1]) == repr(other[1])


@pytest.fixture
def table_store(tmp_path, write_store):
    rows = np.arange(25)
    obs = OBS.assign(number=rows, share=rows / 7, text=[f"t{n % 5}" for n in rows])
    var = pd.DataFrame({"symbol": list("xyz"), "length": [1, 2, 3]}, index=list("abc"))
    write_store(tmp_path / "s", COUNTS, obs=obs, var=var)
    return tmp_path / "s"


@pytest.mark.parametrize("name", ["obs", "var"])
def test_a_mutated_table_is_reported_or_the_same(name, table_store):
    file = table_store / "gen-1" / f"{name}.parquet"
    data, good = file.read_bytes(), _tables(table_store, "first")
    rng = np.random.default_rng(28)
    reported = []
    for number in range(TABLE_MUTATIONS):
        changed = _mutated(data, rng)
        file.write_bytes(changed)
        try:
            assert _same(_tables(table_store, "first"), good), number
        except OmicsError as error:
            reported.append(str(error))
        with contextlib.suppress(OmicsError):  # Without our checksums: no crash at least.
            _tables(table_store, "off")
    file.write_bytes(data)
    assert _same(_tables(table_store, "first"), good)
    assert len(reported) > TABLE_MUTATIONS * 0.9
    assert all(file.name in message for message in reported)
