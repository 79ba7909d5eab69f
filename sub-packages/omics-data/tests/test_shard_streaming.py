"""Shards in an S3 bucket, served on loopback, and the command that writes them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from omics.data.errors import (
    CorruptStoreError,
    ExistingPathError,
    InputDataError,
    MissingPathError,
    OmicsError,
    ResourceError,
)
from omics.data.sharding.shard_loader import ShardLoader
from omics.data.sharding.shard_storage import S3Folder
from omics.data.sharding.shard_writer import write_shards
from omics.data.sharding.shards import open_shards
from omics.data.splits import make_split

CELLS = 120


@pytest.fixture(scope="module")
def matrix(random_counts):
    return random_counts(CELLS, 15, seed=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory, write_store, matrix):
    return write_store(tmp_path_factory.mktemp("stores") / "store", matrix, block=60)


@pytest.fixture(scope="module")
def server():
    import moto.server as moto_server

    running = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server, monkeypatch):
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket="cells")
    yield client
    for each in client.list_objects_v2(Bucket="cells").get("Contents", []):
        client.delete_object(Bucket="cells", Key=each["Key"])
    client.delete_bucket(Bucket="cells")


def test_shards_in_a_bucket_are_read_back(bucket, store, matrix):
    written = write_shards(store, "s3://cells/set", cells_per_shard=40, block_cells=8)
    assert written.verify() > 0
    loader = ShardLoader("s3://cells/set", batch_size=16, order="block", shuffle_cells=50)
    batches = list(loader)
    assert all((batch.to_csr().toarray() == matrix[batch.rows]).all() for batch in batches)
    assert sorted(np.concatenate([batch.rows for batch in batches]).tolist()) == list(range(CELLS))


def test_litdata_reads_the_bucket(bucket, store, tmp_path):
    import litdata

    written = write_shards(store, "s3://cells/lit", cells_per_shard=40)
    dataset = litdata.StreamingDataset("s3://cells/lit", cache_dir=str(tmp_path), shuffle=False)
    rows = [written.decode(item, number).rows for number, item in enumerate(dataset)]
    assert np.concatenate(rows).tolist() == list(range(CELLS))


def test_replacing_shards_in_a_bucket_leaves_no_old_file(bucket, store):
    old = write_shards(store, "s3://cells/set", cells_per_shard=10)
    with pytest.raises(ExistingPathError, match="--overwrite"):
        write_shards(store, "s3://cells/set")
    new = write_shards(store, "s3://cells/set", overwrite=True)
    files = set(new.folder.sizes())
    assert not files & {shard.file for shard in old.manifest.shards}
    assert {shard.file for shard in new.manifest.shards} <= files
    with pytest.raises(CorruptStoreError, match="is missing"):
        list(ShardLoader(old))


def test_damage_in_a_bucket_is_found(bucket, store):
    written = write_shards(store, "s3://cells/set", cells_per_shard=40)
    name = written.manifest.shards[1].file
    whole = written.folder.read(name, 0, written.manifest.shards[1].size)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    written.folder.write(name, bytes(flipped))
    with pytest.raises(CorruptStoreError, match=name):
        list(ShardLoader("s3://cells/set"))
    written.folder.write(name, whole[:-5])
    with pytest.raises(CorruptStoreError, match=f"{name} in s3://cells/set is cut short"):
        open_shards("s3://cells/set")
    with pytest.raises(CorruptStoreError, match="cut short"):
        list(ShardLoader(written))
    bucket.delete_object(Bucket="cells", Key=f"set/{name}")
    with pytest.raises(CorruptStoreError, match="missing"):
        open_shards("s3://cells/set")


def test_an_unfinished_set_in_a_bucket_is_refused_and_written_again(bucket, store):
    written = write_shards(store, "s3://cells/set")
    written.folder.remove("omics.json")
    with pytest.raises(InputDataError, match="not finished"):
        open_shards("s3://cells/set")
    assert len(write_shards(store, "s3://cells/set", overwrite=True)) == CELLS


def test_what_is_wrong_with_a_bucket_is_said(bucket, store, monkeypatch):
    with pytest.raises(MissingPathError, match="no bucket nothing"):
        open_shards("s3://nothing/set")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    folder = S3Folder("cells", "set")
    with pytest.raises(ResourceError, match=r"cannot be reached .* AWS_ENDPOINT_URL"):
        folder.sizes()


def test_the_command_writes_a_split_to_a_bucket(bucket, store, tmp_path, capsys):
    from typer.testing import CliRunner

    from omics.data.command_line import make_app
    from omics.data.commands.shard_command import add_to

    app = make_app("omics-data", "Test.")
    add_to(app)
    add_other(app)
    make_split(store, seed=1).save(tmp_path / "split.parquet")
    arguments = ["shard", str(store.path), "s3://cells/set", "--cells-per-shard", "30", "--json"]
    split = ["--rows", f"{tmp_path / 'split.parquet'}:train", "--shuffle", "--seed", "3"]
    done = CliRunner().invoke(app, [*arguments, *split], catch_exceptions=False)
    report = json.loads(done.stdout)
    expected = make_split(store, seed=1).rows("train")
    assert (report["cells"], report["shards"]) == (len(expected), 3)
    rows = np.concatenate([batch.rows for batch in ShardLoader("s3://cells/set")])
    assert sorted(rows.tolist()) == expected.tolist()
    assert rows.tolist() != expected.tolist()
    wrong = CliRunner().invoke(app, [*arguments, "--rows", "split.parquet"])
    assert isinstance(wrong.exception, OmicsError)
    assert "FILE:NAME" in str(wrong.exception)


def add_other(app):
    """Give the application a second verb: with one alone typer takes no name of a verb."""

    @app.command()
    def other() -> None:
        """Do nothing."""
