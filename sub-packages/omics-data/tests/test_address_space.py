"""A conversion under a limit of memory ends with one line and code 5, and loses nothing."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from omics.data import convert, open_store
from omics.data.converting import many_sources as many
from omics.data.converting.address_space import require_address_space
from omics.data.errors import ResourceError
from omics.data.sources.matrix_blocks import MatrixSource

# The command, with a limit of so many bytes beyond what it has when it begins, or (`late`) when it
# has made its first checkpoint.
COMMAND = """
import resource, sys
from pathlib import Path
from omics.data.cli import main
from omics.data.converting import many_sources as many
from omics.data.storage.store_writer import StoreWriter

when, room = sys.argv.pop(1), int(sys.argv.pop(1))
many.CHECKPOINT_ENTRIES = 1_000_000
checkpoint = StoreWriter.checkpoint

def limit():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + room
    resource.setrlimit(resource.RLIMIT_AS, (size, size))

def limiting(self, progress):
    checkpoint(self, progress)
    limit()
    if self.num_entries >= 3_000_000:  # Should memory set aside earlier have lasted so long.
        bytearray(2**28)

if when == "late":
    StoreWriter.checkpoint = limiting
else:
    limit()
main()
"""
CELLS, GENES = 4_000, 1_000


def run_limited(folder, when, room):
    arguments = ["convert", str(folder / "a.h5ad"), str(folder / "s"), "--overwrite"]
    return subprocess.run(
        [sys.executable, "-c", COMMAND, when, str(room), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def folder(tmp_path):
    """A source of four blocks, and an older store where it is to be converted to."""
    counts = np.random.default_rng(0).integers(1, 200, (CELLS, GENES)).astype(np.float32)
    var = pd.DataFrame(index=[f"g{n}" for n in range(GENES)])
    obs = pd.DataFrame(index=[f"c{n}" for n in range(CELLS)])
    anndata.AnnData(sparse.csr_matrix(counts[:10]), obs[:10], var).write_h5ad(tmp_path / "old.h5ad")
    anndata.AnnData(sparse.csr_matrix(counts), obs, var).write_h5ad(tmp_path / "a.h5ad")
    convert(tmp_path / "old.h5ad", tmp_path / "s")
    return tmp_path


@pytest.mark.parametrize("room", [100 * 2**20, 400 * 2**20])
def test_too_little_memory_to_begin_is_refused_before_anything_is_done(folder, room):
    ended = run_limited(folder, "early", room)
    assert (ended.returncode, ended.stdout) == (5, "")
    assert "a conversion needs 512 MB. Raise the limit (ulimit -v)" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert open_store(folder / "s").verify().num_files > 5
    assert len(open_store(folder / "s")) == 10


def test_memory_that_ends_midway_keeps_the_old_store_and_the_way_already_gone(folder, monkeypatch):
    ended = run_limited(folder, "late", 0)
    assert ended.returncode == 5, ended.stderr
    *_progress, last = ended.stderr.splitlines()
    assert last.startswith("error: Out of memory.")
    assert "Traceback" not in ended.stderr
    assert len(open_store(folder / "s")) == 10
    begun = []
    read = MatrixSource.stored_blocks

    def noted(self, *, scratch=None, first_cell=0):
        begun.append(first_cell)
        return read(self, scratch=scratch, first_cell=first_cell)

    monkeypatch.setattr(MatrixSource, "stored_blocks", noted)
    monkeypatch.setattr(many, "CHECKPOINT_ENTRIES", 1_000_000)
    resumed = convert(str(folder / "a.h5ad"), folder / "s", overwrite=True)
    assert begun[0] in {1_000, 2_000, 3_000}
    again = convert(folder / "a.h5ad", folder / "whole")
    resumed.verify()
    rows = np.arange(CELLS)
    np.testing.assert_array_equal(resumed.take(rows).counts, again.take(rows).counts)


def test_without_a_limit_nothing_is_refused(monkeypatch):
    require_address_space()
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (2**40, resource.RLIM_INFINITY))
    require_address_space()
    with pytest.raises(
        ResourceError, match=r"a conversion needs 4,194,304 MB.*what an earlier run"
    ):
        require_address_space(2**42)


def test_memory_that_hdf5_lacks_is_no_damage_of_the_file():
    class Dataset:
        name = "data"

        def __getitem__(self, _where):
            raise OSError("Can't synchronously read data (memory allocation failed for chunk)")

    matrix = MatrixSource(
        path=Path("cells.h5ad"), location="X", encoding="dense", shape=(1, 1), values=Dataset()
    )
    with pytest.raises(MemoryError, match="memory allocation failed"):
        matrix.read_values(slice(0, 1))
