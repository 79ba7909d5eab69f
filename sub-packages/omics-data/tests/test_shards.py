"""Shards: what goes in comes out, litdata reads the same, damage is found at once."""

from __future__ import annotations

import json
import shutil
import time
import uuid

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omics.data.cell_batch import CellBatch
from omics.data.errors import (
    ConfigError,
    CorruptStoreError,
    ExistingPathError,
    InputDataError,
    MissingExtraError,
    MissingPathError,
    StoreVersionError,
    UnknownNameError,
    UsageError,
)
from omics.data.sharding.shard_blocks import (
    BlockLayout,
    DamagedBlockError,
    ObsColumn,
    decode_block,
    encode_block,
)
from omics.data.sharding.shard_loader import ShardLoader
from omics.data.sharding.shard_storage import shard_folder, split_address
from omics.data.sharding.shard_writer import write_shards
from omics.data.sharding.shards import ShardManifest, open_shards

CELLS, GENES = 310, 20


@pytest.fixture(scope="module")
def matrix(random_counts):
    counts = random_counts(CELLS, GENES, largest=9)
    counts[5] = 0
    counts[7, 3], counts[300, 1] = 255, 70_000
    return counts


@pytest.fixture(scope="module")
def store(tmp_path_factory, write_store, matrix):
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(np.where(np.arange(CELLS) % 7 == 0, None, "B cell")),
            "score": np.arange(CELLS) * 0.5,
            "passed": np.arange(CELLS) % 2 == 0,
            "number": pd.array([None if row == 3 else row for row in range(CELLS)], dtype="Int64"),
            "day": pd.date_range("2024-01-01", periods=CELLS),
        },
        index=[f"cell{row}" for row in range(CELLS)],
    )
    var = pd.DataFrame(
        {"symbol": [f"S{gene}" for gene in range(GENES)]},
        index=[f"ENSG{gene:011d}" for gene in range(GENES)],
    )
    path = tmp_path_factory.mktemp("stores") / "store"
    return write_store(path, matrix, obs=obs, var=var, block=100)


COLUMNS = ["cell_type", "score", "passed", "number", "day"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory, store):
    target = tmp_path_factory.mktemp("sets") / "shards"
    return write_shards(store, target, obs=COLUMNS, block_cells=16, cells_per_shard=100)


@pytest.fixture
def copy(shards, tmp_path):
    return shutil.copytree(shards.folder.path, tmp_path / "copy")


def every_row(loader):
    return np.concatenate([batch.rows for batch in loader])


def test_shards_hold_every_cell_with_its_counts_genes_and_obs(shards, store, matrix):
    rows = []
    for batch in ShardLoader(shards, batch_size=64, obs=COLUMNS):
        rows += batch.rows.tolist()
        assert (batch.to_csr().toarray() == matrix[batch.rows]).all()
        assert batch.counts.dtype == store.count_dtype
        expected = store.take(batch.rows, obs=COLUMNS)
        for name in COLUMNS:
            assert batch.obs[name].dtype == expected.obs[name].dtype
            assert batch.obs[name].tolist() == expected.obs[name].tolist()
    assert rows == list(range(CELLS))
    assert [shard.cells for shard in shards.manifest.shards] == [100, 100, 100, 10]
    assert shards.genes.ids.tolist() == store.genes.ids.tolist()
    assert shards.genes.symbols.tolist() == store.genes.symbols.tolist()
    assert shards.verify() > shards.manifest.num_bytes


def test_a_float_store_keeps_its_values(tmp_path, write_store):
    values = np.array([[0.5, 0, 2.25], [0, 0, 1e-3]], dtype=np.float32)
    store = write_store(tmp_path / "s", values, value_kind="float")
    (batch,) = ShardLoader(write_shards(store, tmp_path / "t"))
    assert (batch.to_csr().toarray() == values).all()
    assert batch.counts.dtype == np.float32


def test_litdata_reads_the_same_cells_without_pickle(shards, matrix):
    import litdata

    dataset = litdata.StreamingDataset(str(shards.folder.path), shuffle=False)
    batches = [shards.decode(item, number) for number, item in enumerate(dataset)]
    assert np.concatenate([batch.rows for batch in batches]).tolist() == list(range(CELLS))
    assert all((batch.to_csr().toarray() == matrix[batch.rows]).all() for batch in batches)
    config = json.loads((shards.folder.path / "index.json").read_text())["config"]
    assert config["data_format"] == ["bytes"]


def test_chunks_are_those_litdata_itself_would_write(shards, tmp_path):
    writer = pytest.importorskip("litdata.streaming.writer").BinaryWriter(
        str(tmp_path), chunk_size=7
    )
    shard = shards.manifest.shards[0]
    for number in range(7):
        begin, size = int(shards._begin[number]), int(shards._size[number])
        writer[number] = shards.folder.read(shard.file, begin, size)
    writer.done()
    writer.merge()
    ours = (shards.folder.path / shard.file).read_bytes()
    assert (tmp_path / "chunk-0-0.bin").read_bytes() == ours
    theirs = json.loads((tmp_path / "index.json").read_text())["config"]
    mine = json.loads((shards.folder.path / "index.json").read_text())["config"]
    for key in ("data_format", "data_spec", "compression", "encryption", "item_loader"):
        assert mine[key] == theirs[key]


def test_shuffled_shards_hold_every_cell_in_an_order_that_the_seed_decides(store, tmp_path):
    first = write_shards(store, tmp_path / "a", shuffle=True, seed=3)
    again = write_shards(store, tmp_path / "b", shuffle=True, seed=3)
    other = write_shards(store, tmp_path / "c", shuffle=True, seed=4)
    rows = every_row(ShardLoader(first))
    assert rows.tolist() == every_row(ShardLoader(again)).tolist()
    assert rows.tolist() != every_row(ShardLoader(other)).tolist()
    assert sorted(rows.tolist()) == list(range(CELLS))


def test_only_the_rows_asked_for_are_written(store, tmp_path):
    chosen = np.array([200, 3, 77])
    assert every_row(ShardLoader(write_shards(store, tmp_path / "t", rows=chosen))).tolist() == [
        200,
        3,
        77,
    ]
    with pytest.raises(UsageError, match="from 0 to 309"):
        write_shards(store, tmp_path / "u", rows=np.array([310]))
    with pytest.raises(InputDataError, match="no cells to write"):
        write_shards(store, tmp_path / "u", rows=np.array([], dtype=np.int64))


@pytest.mark.parametrize("world_size", [1, 3, 4])
@pytest.mark.parametrize("shuffle_cells", [1, 40, 10_000])
def test_every_cell_comes_once_an_epoch_over_all_ranks(shards, world_size, shuffle_cells):
    seen, lengths = [], set()
    for rank in range(world_size):
        loader = ShardLoader(
            shards,
            batch_size=8,
            order="block",
            shuffle_cells=shuffle_cells,
            rank=rank,
            world_size=world_size,
        )
        batches = list(loader)
        lengths.add(len(batches))
        assert len(batches) == len(loader)
        assert max(len(batch) for batch in batches) <= 8
        seen += [batch.rows for batch in batches]
    assert len(lengths) == 1
    assert sorted(np.concatenate(seen).tolist()) == list(range(CELLS))


def test_epochs_differ_and_repeat_and_batches_mix_far_cells(shards):
    loader = ShardLoader(shards, batch_size=32, order="block", shuffle_cells=128, seed=1)
    first = every_row(loader)
    loader.set_epoch(1)
    assert every_row(loader).tolist() != first.tolist()
    loader.set_epoch(0)
    assert every_row(loader).tolist() == first.tolist()
    # 32 cells in the order of the store would lie in two blocks of 16.
    assert len(np.unique(first[:32] // 16)) >= 6


@pytest.mark.parametrize("stop", [0, 1, 5, 9, 10])
def test_a_stopped_epoch_goes_on_where_it_was(shards, stop):
    settings = {"batch_size": 32, "order": "block", "shuffle_cells": 100, "seed": 2}
    whole = ShardLoader(shards, **settings)
    whole.set_epoch(4)
    expected = [batch.rows.tolist() for batch in whole]
    begun = ShardLoader(shards, **settings)
    begun.set_epoch(4)
    got = [batch.rows.tolist() for batch, _ in zip(begun, range(stop), strict=False)]
    begun_state = begun.state_dict()
    begun_state["batch"] = len(got)
    state = json.loads(json.dumps(begun_state))
    resumed = ShardLoader(shards, **settings)
    resumed.load_state_dict(state)
    resumed.set_epoch(4)
    got += [batch.rows.tolist() for batch in resumed]
    assert got == expected
    assert resumed.state_dict()["batch"] == len(resumed)


def test_a_run_of_four_ranks_goes_on_with_two_and_each_cell_comes_once(shards):
    settings = {"order": "block", "shuffle_cells": 20}
    seen, state = [], None
    for rank in range(4):
        loader = ShardLoader(shards, batch_size=8, rank=rank, world_size=4, **settings)
        batches = iter(loader)
        seen += [next(batches).rows for _ in range(4)]
        state = loader.state_dict()
        batches.close()
    for rank in range(2):
        loader = ShardLoader(shards, batch_size=16, rank=rank, world_size=2, **settings)
        loader.load_state_dict(state)
        seen += [batch.rows for batch in loader]
    assert sorted(np.concatenate(seen).tolist()) == list(range(CELLS))
    other = ShardLoader(shards, batch_size=32, world_size=1, **settings)
    other.load_state_dict(state)
    three = ShardLoader(shards, batch_size=8, world_size=3, **settings)
    with pytest.raises(ConfigError, match="global_batch_size 32, this one has 24"):
        three.load_state_dict(state)
    with pytest.raises(ConfigError, match="begun by 3 ranks and cannot go on with 4"):
        ShardLoader(shards, batch_size=8, world_size=4, **settings).load_state_dict(
            {**state, "lanes": 3}
        )
    with pytest.raises(ConfigError, match=r"unknown key 'epochs'. Did you mean 'epoch'"):
        other.load_state_dict({**state, "epochs": 1})


def test_the_state_of_another_set_is_refused(shards, store, tmp_path):
    other = write_shards(store, tmp_path / "t")
    with pytest.raises(ConfigError, match="loader with shards"):
        ShardLoader(other).load_state_dict(ShardLoader(shards).state_dict())


def test_bad_settings_are_refused(shards, store, tmp_path):
    with pytest.raises(ConfigError, match="batch_size is 0"):
        ShardLoader(shards, batch_size=0)
    with pytest.raises(ConfigError, match="rank is 2 of 2"):
        ShardLoader(shards, rank=2, world_size=2)
    with pytest.raises(
        UnknownNameError, match=r"no obs column 'celltype'. Did you mean 'cell_type'"
    ):
        ShardLoader(shards, obs=["celltype"])
    with pytest.raises(UsageError, match="not both"):
        write_shards(store, tmp_path / "t", cells_per_shard=5, shard_bytes=5)
    with pytest.raises(ConfigError, match="at least 1"):
        write_shards(store, tmp_path / "t", block_cells=0)
    with pytest.raises(UnknownNameError, match="cell_type"):
        write_shards(store, tmp_path / "t", obs=["cell_typ"])
    assert not (tmp_path / "t").exists()


def test_every_flipped_bit_of_a_shard_or_side_file_is_found(shards, tmp_path, store):
    small = write_shards(store, tmp_path / "t", rows=np.arange(6), block_cells=3)
    folder = small.folder.path
    random = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for _ in range(25):
            damaged = bytearray(whole)
            damaged[random.integers(len(whole))] ^= 1 << int(random.integers(8))
            path.write_bytes(damaged)
            with pytest.raises((CorruptStoreError, StoreVersionError), match=path.name):
                open_shards(folder).verify()
        path.write_bytes(whole)
    assert open_shards(folder).verify()


def test_a_damaged_block_is_an_error_of_the_loader_and_names_the_shard(copy):
    path = sorted(copy.glob("chunk-*.bin"))[1]
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes(data)
    with pytest.raises(CorruptStoreError, match=rf"{path.name} .* has block \d+, which does not"):
        list(ShardLoader(copy))


@pytest.mark.parametrize("damage", ["missing", "cut short", "longer"])
def test_a_missing_or_cut_shard_is_found_at_once(copy, damage):
    path = sorted(copy.glob("chunk-*.bin"))[2]
    if damage == "missing":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[:-20] if damage == "cut short" else data + b"x")
    started = time.monotonic()
    with pytest.raises(CorruptStoreError, match=path.name):
        open_shards(copy)
    assert time.monotonic() - started < 2


def test_a_shard_that_goes_away_while_it_is_read_is_an_error_not_a_wait(copy):
    loader = ShardLoader(copy, batch_size=16, shuffle_cells=16)
    batches = iter(loader)
    next(batches)
    for path in copy.glob("chunk-*.bin"):
        path.unlink()
    with pytest.raises(CorruptStoreError, match="is missing"):
        list(batches)


def test_a_shard_of_another_set_is_not_taken_for_ours(shards, store, tmp_path):
    other = write_shards(store, tmp_path / "t", obs=COLUMNS, block_cells=16, cells_per_shard=100)
    mine, theirs = shards.manifest.shards[1], other.manifest.shards[1]
    assert mine.size == theirs.size
    (other.folder.path / theirs.file).write_bytes((shards.folder.path / mine.file).read_bytes())
    with pytest.raises(CorruptStoreError, match="another set of shards"):
        list(ShardLoader(other.folder.path))


def test_what_is_no_set_of_shards_is_explained(tmp_path, copy):
    with pytest.raises(MissingPathError, match="does not exist"):
        open_shards(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputDataError, match="not a set of shards"):
        open_shards(tmp_path / "empty")
    (copy / "omics.json").unlink()
    with pytest.raises(InputDataError, match="not finished"):
        open_shards(copy)


def test_a_manifest_of_a_newer_version_or_with_a_path_in_it_is_refused(shards):
    data = shards.manifest.to_bytes()
    assert ShardManifest.from_bytes(data, "x") == shards.manifest
    import hashlib

    def changed(change):
        plain = json.loads(data)
        del plain["digest"]
        change(plain)
        text = json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
        plain["digest"] = hashlib.sha256(text).hexdigest()
        return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()

    with pytest.raises(StoreVersionError, match="version 2"):
        ShardManifest.from_bytes(changed(lambda plain: plain.update(version=2)), "x")

    def lead_out(plain):
        plain["shards"][0][0] = "../../etc/passwd"

    with pytest.raises(CorruptStoreError, match="damaged"):
        ShardManifest.from_bytes(changed(lead_out), "x")


def test_a_target_that_exists_is_replaced_only_on_request_and_only_if_it_is_shards(store, tmp_path):
    target = tmp_path / "t"
    old = write_shards(store, target, cells_per_shard=50)
    with pytest.raises(ExistingPathError, match="--overwrite"):
        write_shards(store, target)
    new = write_shards(store, target, overwrite=True)
    assert new.manifest.layout.uuid != old.manifest.layout.uuid
    assert len(list(target.glob("chunk-*"))) == len(new.manifest.shards)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("x")
    with pytest.raises(ExistingPathError, match="something else"):
        write_shards(store, precious, overwrite=True)
    assert (precious / "thesis.txt").exists()


def test_another_fsspec_file_system_holds_shards_too(store, matrix):
    address = f"memory://{uuid.uuid4().hex}/shards"
    written = write_shards(store, address, cells_per_shard=100)
    assert written.folder.name == address
    for batch in ShardLoader(address, batch_size=100):
        assert (batch.to_csr().toarray() == matrix[batch.rows]).all()
    again = write_shards(store, address, overwrite=True)
    assert again.folder.sizes().keys() == {
        *(shard.file for shard in again.manifest.shards),
        *again.manifest.side_files,
        "omics.json",
    }
    written.folder.remove(again.manifest.shards[0].file)
    with pytest.raises(CorruptStoreError, match="is missing"):
        open_shards(address)
    with pytest.raises(InputDataError, match="not a set"):
        open_shards("memory://nothing-here")


def test_addresses_are_told_from_paths():
    assert split_address("s3://bucket/a/b/") == ("s3", "bucket/a/b")
    assert split_address("s3:/bucket/a") == ("s3", "bucket/a")
    assert split_address("/data/shards") is None
    assert split_address("c:") is None
    with pytest.raises(UsageError, match="a bucket only"):
        shard_folder("s3://bucket")
    with pytest.raises(UsageError, match="no address of a known kind"):
        shard_folder("nosuchscheme://bucket/x")


def test_s3_without_boto3_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'omics-data\[streaming\]'"):
        shard_folder("s3://bucket/x")


LAYOUT = BlockLayout(
    uuid=bytes(range(16)),
    num_genes=50,
    genes_dtype=np.dtype("<u2"),
    count_dtype=np.dtype("<u4"),
    columns=(
        ObsColumn(name="label", dtype="<i4", categories=("a", "b")),
        ObsColumn(name="day", dtype="<f8"),
    ),
)


@given(
    st.lists(
        st.lists(
            st.tuples(
                st.integers(0, 49), st.sampled_from([1, 2, 254, 255, 65535, 65536, 2**32 - 1])
            ),
            max_size=6,
        ),
        min_size=1,
        max_size=8,
    )
)
def test_any_block_comes_back_as_it_was(cells):
    lengths = [len(cell) for cell in cells]
    entries = [entry for cell in cells for entry in cell]
    batch = CellBatch(
        indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        genes=np.array([gene for gene, _ in entries], np.uint16),
        counts=np.array([count for _, count in entries], np.uint32),
        rows=np.arange(len(cells)) * 10**12,
        num_genes=50,
        obs={"label": np.arange(len(cells)) % 3 - 1, "day": np.arange(len(cells)) / 3},
    )
    data = encode_block(batch, LAYOUT, number=9)
    back = decode_block(data, LAYOUT, number=9, cells=len(cells), obs=["day", "label"])
    for name in ("indptr", "genes", "counts", "rows"):
        assert getattr(back, name).tolist() == getattr(batch, name).tolist()
    assert back.obs["day"].tolist() == batch.obs["day"].tolist()
    assert back.obs["label"].tolist() == [[None, "a", "b"][row % 3] for row in range(len(cells))]
    with pytest.raises(DamagedBlockError, match="another place"):
        decode_block(data, LAYOUT, number=8, cells=len(cells), obs=[])
    with pytest.raises(DamagedBlockError):
        decode_block(data[:-1], LAYOUT, number=9, cells=len(cells), obs=[])
    with pytest.raises(DamagedBlockError):
        decode_block(data + bytes(1), LAYOUT, number=9, cells=len(cells), obs=[])
