"""A conversion killed at any moment leaves the old store or none, and the next run the whole one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from omics.data import convert, open_store
from omics.data.converting import many_sources as many
from omics.data.errors import InputDataError
from omics.data.matching.gene_matching import GeneOptions
from omics.data.sources import matrix_blocks
from omics.data.storage.store_writer import StoreWriter

# A child that makes a checkpoint about every 1,500 entries and dies as it is told.
CHILD = """
import os, signal, sys, time
from omics.data import convert
from omics.data.converting import many_sources as many
from omics.data.matching.gene_matching import GeneOptions
from omics.data.sources import matrix_blocks
from omics.data.storage.store_writer import StoreWriter

folder, die_after, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
matrix_blocks.BLOCK_ENTRIES = 700
many.CHECKPOINT_ENTRIES = 1_500
done = 0
checkpoint = StoreWriter.checkpoint

def dying(self, progress):
    global done
    checkpoint(self, progress)
    done += 1
    print("checkpoint", flush=True)
    if done == die_after:
        os.kill(os.getpid(), signal.SIGKILL)

StoreWriter.checkpoint = dying
convert(
    [f"{folder}/a.h5ad", f"{folder}/b.h5ad"], f"{folder}/s",
    genes=GeneOptions(keep=f"{folder}/keep"), overwrite=True,
    on_progress=lambda count: time.sleep(pause),
)
print("finished", flush=True)
"""


def make(folder):
    genes = np.array([f"G{n}" for n in range(60)])
    for seed, name in enumerate(["a", "b"]):
        rng = np.random.default_rng(seed)
        counts = rng.integers(1, 400, (150, 60)) * (rng.random((150, 60)) < 0.5)
        obs = pd.DataFrame({"n": np.arange(150)}, index=[f"{name}{n}" for n in range(150)])
        order = rng.permutation(60)
        anndata.AnnData(
            sparse.csr_matrix(counts.astype(np.float32)), obs, pd.DataFrame(index=genes[order])
        ).write_h5ad(folder / f"{name}.h5ad")
    (folder / "keep").write_text("\n".join(genes[5:]))


def converted(folder, target, **options):
    options = {"genes": GeneOptions(keep=folder / "keep"), "overwrite": True} | options
    return convert([folder / "a.h5ad", folder / "b.h5ad"], target, **options)


def child(folder, die_after, pause=0.0):
    command = [sys.executable, "-c", CHILD, str(folder), str(die_after), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})


def assert_equal_stores(one, other):
    np.testing.assert_array_equal(one.lengths, other.lengths)
    rows = np.arange(len(other))
    a, b = one.take(rows), other.take(rows)
    np.testing.assert_array_equal(a.indptr, b.indptr)
    np.testing.assert_array_equal(a.genes, b.genes)
    np.testing.assert_array_equal(a.counts, b.counts)
    for statistic in ("row_sums", "gene_sums", "gene_detection", "gene_medians"):
        np.testing.assert_array_equal(getattr(one, statistic)(), getattr(other, statistic)())
    pd.testing.assert_frame_equal(one.obs.to_pandas(), other.obs.to_pandas())
    assert one.provenance == other.provenance
    one.verify()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Sources, and the store an uninterrupted conversion makes of them."""
    folder = tmp_path_factory.mktemp("resume")
    make(folder)
    return folder, converted(folder, folder / "whole", resume=False)


@pytest.fixture
def small_steps(monkeypatch):
    monkeypatch.setattr(matrix_blocks, "BLOCK_ENTRIES", 700)
    monkeypatch.setattr(many, "CHECKPOINT_ENTRIES", 1_500)


def test_killed_after_checkpoints_it_goes_on_to_the_same_store(world, tmp_path, small_steps):
    folder, whole = world
    for name in ("a.h5ad", "b.h5ad", "keep"):
        (tmp_path / name).symlink_to(folder / name)
    killed = child(tmp_path, die_after=2)
    out, _ = killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert out.count("checkpoint") == 2
    assert not (tmp_path / "s" / "CURRENT").exists()
    done = []
    store = converted(tmp_path, tmp_path / "s", on_progress=done.append)
    # What the killed runs wrote is not written again: it comes as one step.
    assert done[0] > 90
    assert sum(done) == 300
    assert_equal_stores(store, whole)
    assert [each.name for each in (tmp_path / "s").iterdir() if each.name.startswith(".gen")] == []


def test_killed_at_every_checkpoint_in_turn(world, tmp_path, small_steps, monkeypatch):
    """Within one process: an interruption (not an error) leaves what a kill leaves."""
    folder, whole = world

    class Killed(BaseException):
        pass

    checkpoint = StoreWriter.checkpoint
    made = []

    def dying(self, progress):
        checkpoint(self, progress)
        made.append(progress)
        raise Killed

    monkeypatch.setattr(StoreWriter, "checkpoint", dying)
    old = converted(folder, tmp_path / "s", resume=False)
    for _ in range(30):
        try:
            store = converted(folder, tmp_path / "s")
        except Killed:
            assert open_store(tmp_path / "s").digest == old.digest
            continue
        break
    assert len(made) >= 3
    assert {each["source"] for each in made} == {0, 1}
    assert_equal_stores(store, whole)


def test_killed_at_random_moments(world, tmp_path, small_steps):
    folder, whole = world
    for name in ("a.h5ad", "b.h5ad", "keep"):
        (tmp_path / name).symlink_to(folder / name)
    old = converted(folder, tmp_path / "s", genes=GeneOptions(), resume=False)
    moments = random.Random(5)
    for _ in range(2):
        running = child(tmp_path, 0, pause=0.05)
        assert running.stdout.readline() == "checkpoint\n"
        time.sleep(moments.random() * 0.4)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        found = open_store(tmp_path / "s")
        if found.digest != old.digest:
            assert_equal_stores(found, whole)
    assert_equal_stores(converted(tmp_path, tmp_path / "s"), whole)


def test_a_changed_source_begins_anew(tmp_path, small_steps, monkeypatch):
    make(tmp_path)
    interrupt_after_first_checkpoint(tmp_path, monkeypatch)
    adata = anndata.read_h5ad(tmp_path / "b.h5ad")
    adata.X.data[:] = 7
    adata.write_h5ad(tmp_path / "b.h5ad")
    done = []
    store = converted(tmp_path, tmp_path / "s", on_progress=done.append)
    assert done[0] < 30
    assert set(store.take(np.arange(150, 300)).counts.tolist()) == {7}
    assert len(store) == 300


def test_a_source_changed_without_a_trace_is_found_by_its_fingerprint(
    tmp_path, small_steps, monkeypatch
):
    make(tmp_path)
    interrupt_after_first_checkpoint(tmp_path, monkeypatch, digest="same")
    path = tmp_path / "a.h5ad"
    times = path.stat()
    data = path.read_bytes()
    path.write_bytes(data.replace(b"G59", b"G95"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    # The gene is renamed in the file only: what was planned stays as it was.
    monkeypatch.setattr("omics.data.converting.conversion_plan._digest", lambda plan, more: "same")
    with pytest.raises(InputDataError, match="is not the file any more that an interrupted"):
        converted(tmp_path, tmp_path / "s")


def interrupt_after_first_checkpoint(folder, monkeypatch, *, digest=None):
    checkpoint = StoreWriter.checkpoint

    def dying(self, progress):
        checkpoint(self, progress)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "checkpoint", dying)
        if digest is not None:
            patch.setattr(
                "omics.data.converting.conversion_plan._digest", lambda plan, more: digest
            )
        with pytest.raises(KeyboardInterrupt):
            converted(folder, folder / "s")
