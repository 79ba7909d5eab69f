"""Failing disks, odd file systems, mixed-up files and rivals: the old store, the new one, or an error.

What a damaged byte does is in test_store_damage, what a killed writer leaves in test_store_writer.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xxhash
from scipy import sparse

from omics.data.errors import CorruptStoreError, OmicsError, ResourceError, StoreLockedError
from omics.data.storage.store import open_store
from omics.data.storage.store_writer import StoreWriter

PACKED = {"layout": "packed", "rank_medians": {"gene0": 2.0, "gene3": 1.0}}
SQUARE = np.array([[1, 0, 300, 2], [0, 0, 0, 0], [7, 255, 0, 1], [1, 1, 1, 1]])


def run_script(code, *arguments, **options):
    """Run Python code in a process of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(params=[{}, PACKED], ids=["plain", "packed"])
def options(request):
    return request.param


def contents(path):
    """Check every byte of a store, then return its matrix."""
    store = open_store(path)
    store.verify()
    return store.take(np.arange(len(store))).to_csr().toarray().tolist()


# --- an operation of the file system that fails --------------------------------------------------


OPERATIONS = ("fsync", "rename", "replace", "mkdir", "open", "ftruncate", "pwrite")


class FailingAt:
    """Make the k-th file operation that changes something fail."""

    def __init__(self, patch, number, *, step):
        self.done = 0
        for name in OPERATIONS:
            patch.setattr(os, name, self._counted(getattr(os, name), name, number, step))

    def _counted(self, operation, name, number, step):
        def run(*arguments, **options):
            if name == "open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return operation(*arguments, **options)
            self.done += 1
            if self.done == step:
                raise OSError(number, os.strerror(number), str(arguments[0]))
            if name == "fsync":
                return None  # Slow, and nothing here loses power.
            return operation(*arguments, **options)

        return run


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failure_at_any_operation_leaves_the_old_data_or_the_new(
    number, options, tmp_path, write_store, monkeypatch
):
    path = tmp_path / "s"
    write_store(path, SQUARE, **options)
    outcomes = []
    for step in itertools.count(1):
        before = contents(path)
        new = SQUARE + step
        with monkeypatch.context() as patch:
            shim = FailingAt(patch, number, step=step)
            try:
                write_store(path, new, overwrite=True, **options)
            except (OSError, OmicsError):
                failed = True
            else:
                failed = False
        after = contents(path)
        assert after in (before, new.tolist())
        if not failed:
            assert after == new.tolist()
        if shim.done < step:
            break
        # A success is only said when all was made durable.
        outcomes.append((failed, after == new.tolist()))
    assert len(outcomes) > 8
    assert (True, False) in outcomes
    write_store(path, SQUARE, overwrite=True, **options)
    names = sorted(each.name for each in path.iterdir())
    assert names[:2] == [".lock", "CURRENT"]
    assert len(names) == 3


def test_a_failed_flush_is_never_taken_for_success(tmp_path, write_store, monkeypatch):
    write_store(tmp_path / "s", SQUARE)

    def failing(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        write_store(tmp_path / "s", SQUARE + 1, overwrite=True)
    monkeypatch.undo()
    assert contents(tmp_path / "s") == SQUARE.tolist()


LIMITED = """
import os, resource, sys
import numpy as np, pandas as pd
from omics.data.storage.store import open_store
from omics.data.storage.store_writer import StoreWriter

path = sys.argv[1]
var = pd.DataFrame(index=[f"g{i}" for i in range(300)])

def write():
    with StoreWriter(path, genes_frame=var, overwrite=True) as writer:
        writer.append(np.arange(0, 30001, 300), np.tile(np.arange(300), 100), np.ones(30000, int))
        writer.finish(pd.DataFrame(index=[str(i) for i in range(100)]))

def read():
    stores = [open_store(path) for _ in range(5)]
    return sum(len(store.take([0]).counts) for store in stores)

def limited(work, kind, limit):
    child = os.fork()
    if child == 0:
        resource.setrlimit(kind, (limit, limit))
        try:
            work()
        except OSError as error:
            os._exit(error.errno or 99)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

read()
for limit in (0, 500, 40_000):
    print(limited(write, resource.RLIMIT_FSIZE, limit), open_store(path).verify().num_files > 5)
    print(len(open_store(path)))
print(limited(write, resource.RLIMIT_FSIZE, 10**8), len(open_store(path)))
print({limited(read, resource.RLIMIT_NOFILE, limit) for limit in range(3, 90, 3)})
"""


def test_limits_of_the_system_are_errors_and_keep_the_old_data(tmp_path, write_store):
    """The kernel cuts a write short in the middle of a file, as a full disk does."""
    write_store(tmp_path / "s", SQUARE)
    *small, large, files = run_script(LIMITED, tmp_path / "s").splitlines()
    assert small == [f"{errno.EFBIG} True", "4"] * 3
    assert large == "0 100"
    # Too few open files: an error of resources or of the system, never anything else.
    assert set(json.loads(files.replace("{", "[").replace("}", "]"))) <= {0, 99, errno.EMFILE}


# --- files in each other's place -----------------------------------------------------------------


def data_files(path):
    generation = next(each for each in path.iterdir() if each.name.startswith("gen-"))
    return sorted(generation.iterdir())


def test_any_two_files_of_equal_size_that_are_swapped_are_noticed(options, tmp_path, write_store):
    path = tmp_path / "s"
    write_store(path, SQUARE, **options)
    swapped = 0
    for first, second in itertools.combinations(data_files(path), 2):
        if first.stat().st_size != second.stat().st_size:
            continue
        one, two = first.read_bytes(), second.read_bytes()
        if one == two:
            continue
        first.write_bytes(two)
        second.write_bytes(one)
        with pytest.raises(CorruptStoreError):
            contents(path)
        first.write_bytes(one)
        second.write_bytes(two)
        swapped += 1
    assert swapped >= 3
    assert contents(path) == SQUARE.tolist()


def test_every_mix_of_two_generations_is_noticed(options, tmp_path, write_store):
    """An old manifest with newer files, the reverse, and each file alone."""
    path, other = tmp_path / "s", tmp_path / "copy"
    write_store(path, SQUARE, **options)
    shutil.copytree(path, other)
    write_store(path, SQUARE, overwrite=True, **options)
    old, new = other / "gen-1", path / "gen-2"
    for file in sorted(old.iterdir()):
        kept = (new / file.name).read_bytes()
        if kept == file.read_bytes():
            # The same content is data of both; only its checksums differ.
            continue
        (new / file.name).write_bytes(file.read_bytes())
        with pytest.raises(CorruptStoreError):
            contents(path)
        (new / file.name).write_bytes(kept)
    for name in ("CURRENT", "gen-1"):
        mixed = tmp_path / f"mixed {name}"
        shutil.copytree(path, mixed)
        if name == "CURRENT":
            shutil.copy(other / "CURRENT", mixed / "CURRENT")
        else:
            shutil.rmtree(mixed / "gen-2")
            shutil.copytree(old, mixed / "gen-2")
        with pytest.raises(CorruptStoreError):
            contents(mixed)
    assert contents(path) == SQUARE.tolist()


def test_a_renamed_file_or_one_of_another_case_is_missing(tmp_path, write_store):
    path = tmp_path / "s"
    write_store(path, SQUARE)
    for file in data_files(path):
        for name in (file.name.upper(), f"{file.name}.bak", f" {file.name}"):
            renamed = file.rename(file.with_name(name)) if name != file.name else file
            if renamed == file:
                continue
            with pytest.raises(CorruptStoreError, match=f"{file.name} is missing"):
                open_store(path)
            renamed.rename(file)
    contents(path)


def test_files_that_do_not_belong_are_reported_and_harmless(tmp_path, write_store):
    path = tmp_path / "s"
    store = write_store(path, SQUARE)
    (path / "gen-1" / "notes.txt").write_text("mine")
    (path / ".CURRENT.123.tmp").write_text("half")
    (path / "gen-7").mkdir()
    assert open_store(path).verify().extra_files == ("notes.txt",)
    assert contents(path) == store.take(range(4)).to_csr().toarray().tolist()


@pytest.mark.parametrize("target", ["nowhere", "/dev/zero", "."])
def test_links_that_lead_to_no_file_are_refused(target, tmp_path, write_store):
    path = tmp_path / "s"
    write_store(path, SQUARE)
    for file in data_files(path):
        kept = file.read_bytes()
        file.unlink()
        file.symlink_to(target)
        with pytest.raises((CorruptStoreError, ResourceError)) as raised:
            open_store(path)
        assert file.name in str(raised.value)
        file.unlink()
        file.write_bytes(kept)
    contents(path)


def burst(data, random):
    begin = int(random.integers(len(data)))
    size = min(int(random.integers(2, 64)), len(data) - begin)
    data[begin : begin + size] = random.bytes(size)


def zeroed_page(data, random):
    begin = int(random.integers(len(data))) // 4096 * 4096
    data[begin : begin + 4096] = bytes(len(data[begin : begin + 4096]))


def swapped_sectors(data, random):
    if len(data) >= 1024:
        first, second = data[:512], data[512:1024]
        data[:1024] = second + first


def garbage_behind(data, random):
    data += random.bytes(int(random.integers(1, 5000)))


def cut(data, random):
    del data[int(random.integers(len(data))) :]


@pytest.mark.parametrize("damage", [burst, zeroed_page, swapped_sectors, garbage_behind, cut])
def test_damage_of_many_bytes_is_never_read_silently(
    damage, options, tmp_path, write_store, random_counts
):
    path = tmp_path / "s"
    counts = random_counts(60, 90, seed=4)
    write_store(path, counts, **options)
    random = np.random.default_rng(0)
    tried = 0
    for file in [path / "CURRENT", *data_files(path)]:
        kept = file.read_bytes()
        for _ in range(4 if kept else 0):
            data = bytearray(kept)
            damage(data, random)
            if bytes(data) == kept:
                continue
            file.write_bytes(data)
            with pytest.raises(OmicsError):
                contents(path)
            tried += 1
        file.write_bytes(kept)
    assert tried >= 10
    assert contents(path) == counts.tolist()


def test_random_manifests_with_good_digests_are_refused_or_right(tmp_path, write_store):
    """Whoever can write the manifest can write its digest; that must not crash a reader."""
    path = tmp_path / "s"
    write_store(path, SQUARE)
    file = path / "gen-1" / "MANIFEST.json"
    whole = json.loads(file.read_bytes())
    random = np.random.default_rng(1)
    odd = [None, -1, 0, 1, 2**62, 2**70, 1.5, "", "x", "../../etc/passwd", [], {}, True, "uint8"]
    refused = 0
    for _ in range(200):
        manifest = json.loads(json.dumps(whole))
        node = manifest
        while True:
            key = str(random.choice(sorted(node)))
            if isinstance(node[key], dict) and node[key] and random.random() < 0.8:
                node = node[key]
                continue
            break
        match int(random.integers(3)):
            case 0:
                node[key] = odd[int(random.integers(len(odd)))]
            case 1:
                del node[key]
            case _:
                node[f"{key}2"] = node.pop(key)
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        file.write_bytes(text)
        (path / "CURRENT").write_text(f"gen-1 {hashlib.sha256(text).hexdigest()}\n")
        try:
            found = contents(path)
        except OmicsError:
            refused += 1
        else:
            assert found == SQUARE.tolist()
            assert (
                manifest["provenance"] != whole["provenance"]
                or manifest == whole
                or all(
                    manifest[name] == whole[name]
                    for name in whole
                    if name not in {"written_by", "needs", "rank_digest", "gene_digest"}
                )
            )
    assert refused > 120


# --- rivals --------------------------------------------------------------------------------------


RIVALS = """
import os, sys
import numpy as np, pandas as pd
from omics.data.errors import StoreLockedError
from omics.data.storage.store import open_store
from omics.data.storage.store_writer import StoreWriter

path, what = sys.argv[1:]
var = pd.DataFrame(index=[f"g{i}" for i in range(40)])

def write(number):
    cells = 50 + number
    with StoreWriter(path, genes_frame=var, overwrite=True) as writer:
        writer.append(
            np.arange(0, 40 * cells + 1, 40),
            np.tile(np.arange(40), cells),
            np.full(40 * cells, number),
        )
        writer.finish(pd.DataFrame(index=[str(i) for i in range(cells)]))

def in_child(work):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = work()
        finally:
            os._exit(code)
    return child

def write_many():
    for number in range(2, 14):
        write(number)
    return 0

def write_unless_locked():
    refused = 0
    for number in range(2, 8):
        try:
            write(number)
        except StoreLockedError:
            refused = 1
    return 10 + refused

write(1)
if what == "reader":
    kept = open_store(path)
    writer = in_child(write_many)
    seen, ended = set(), 0
    while not ended:
        ended, status = os.waitpid(writer, os.WNOHANG)
        store = open_store(path)
        (value,) = np.unique(store.take(np.arange(len(store))).counts).tolist()
        assert len(store) == 50 + value
        seen.add(value)
    assert status == 0
    assert np.unique(kept.take(np.arange(51)).counts).tolist() == [1]
    print(len(seen) > 1, max(seen))
else:
    writers = [in_child(write_unless_locked) for _ in range(3)]
    codes = {os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) for writer in writers}
    store = open_store(path)
    store.verify()
    (value,) = np.unique(store.take(np.arange(len(store))).counts).tolist()
    print(codes <= {10, 11}, value == len(store) - 50 == 7)
"""


@pytest.mark.parametrize(("what", "said"), [("reader", "True 13\n"), ("writers", "True True\n")])
def test_rivals_see_one_generation_at_a_time(what, said, tmp_path):
    assert run_script(RIVALS, tmp_path / "s", what) == said


def test_a_lock_is_held_for_the_whole_time_of_writing(tmp_path):
    var = pd.DataFrame(index=["g"])
    with StoreWriter(tmp_path / "s", genes_frame=var) as writer:
        refused = pytest.raises(StoreLockedError, match=f"process {os.getpid()} on host")
        with refused, StoreWriter(tmp_path / "s", genes_frame=var, overwrite=True):
            pass
        writer.finish(pd.DataFrame(index=[]))
    assert len(open_store(tmp_path / "s")) == 0


def test_a_store_removed_while_open_is_still_read(tmp_path, write_store):
    store = write_store(tmp_path / "s", SQUARE)
    shutil.rmtree(tmp_path / "s")
    assert store.take([0, 2]).to_csr().toarray().tolist() == SQUARE[[0, 2]].tolist()


# --- sizes ---------------------------------------------------------------------------------------


def test_entries_beyond_32_bits_are_found(tmp_path, write_store):
    """A store of 2.4 thousand million entries, nearly all of them holes in its files."""
    num_cells, num_genes = 40_000, 60_000
    path = tmp_path / "s"
    var = pd.DataFrame(index=[f"g{number}" for number in range(num_genes)])
    with StoreWriter(path, genes_frame=var) as writer:
        writer.append(np.zeros(num_cells + 1, np.int64), np.empty(0, int), np.empty(0, int))
        writer.finish(
            pd.DataFrame({"n": np.arange(num_cells)}).set_axis(
                [str(row) for row in range(num_cells)]
            )
        )
    folder = path / "gen-1"
    manifest = json.loads((folder / "MANIFEST.json").read_bytes())
    nnz = num_cells * num_genes
    assert nnz > 2**31
    (folder / "offsets.bin").write_bytes((np.arange(num_cells + 1) * num_genes).tobytes())
    rows = [0, num_cells // 2, 35_791, 35_792, num_cells - 1]
    for name, values in (
        ("genes.bin", np.arange(num_genes, dtype="<u2")),
        ("counts.bin", np.full(num_genes, 7, "u1")),
    ):
        with (folder / name).open("r+b") as file:
            file.truncate(nnz * values.itemsize)
            for row in rows:
                file.seek(row * num_genes * values.itemsize)
                file.write(values.tobytes())
        manifest["files"][name]["bytes"] = nnz * values.itemsize
    manifest["nnz"] = nnz
    seal(path, manifest, chunks_of_rows={"genes.bin": 2, "counts.bin": 1}, rows=rows)
    store = open_store(path)
    assert store.num_entries == nnz
    batch = store.take(rows[::-1])
    assert (batch.counts == 7).all()
    assert (batch.genes.reshape(len(rows), num_genes) == np.arange(num_genes)).all()
    with pytest.raises(CorruptStoreError, match="fails its checksum"):
        store.take([num_cells // 3])


def seal(path, manifest, *, chunks_of_rows, rows):
    """Give a changed store its checksums; of large files only those of the chunks that are read."""
    folder, step = path / "gen-1", manifest["chunk_bytes"]
    sums = []
    for name in sorted(set(manifest["files"]) - {"checksums.bin"}):
        text = f"{manifest['store_uuid']}\n1\n{name}".encode()
        base = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
        size = manifest["files"][name]["bytes"]
        found = np.zeros(-(-size // step), "<u8")
        wanted = range(len(found))
        if name in chunks_of_rows:
            width = 60_000 * chunks_of_rows[name]
            wanted = {
                chunk
                for row in rows
                for chunk in range(row * width // step, ((row + 1) * width - 1) // step + 1)
            }
        with (folder / name).open("rb") as file:
            for chunk in wanted:
                file.seek(chunk * step)
                data = file.read(step)
                found[chunk] = xxhash.xxh3_64_intdigest(data, seed=(base + chunk) % 2**64)
        sums.append(found)
    data = np.concatenate(sums).tobytes()
    (folder / "checksums.bin").write_bytes(data)
    manifest["files"]["checksums.bin"] |= {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    (folder / "MANIFEST.json").write_bytes(text)
    (path / "CURRENT").write_text(f"gen-1 {hashlib.sha256(text).hexdigest()}\n")


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((0, 0)),
        np.zeros((0, 5)),
        np.zeros((5, 0)),
        np.zeros((5, 5)),
        np.ones((1, 1)),
        np.vstack([np.zeros((3, 4)), [[0, 0, 0, 9]], np.zeros((3, 4))]),
        np.full((1, 70_000), 300),
    ],
    ids=["nothing", "no cells", "no genes", "no entries", "one", "one entry", "one wide cell"],
)
@pytest.mark.parametrize("layout", ["plain", "packed"])
def test_extreme_shapes_are_stores(matrix, layout, tmp_path, write_store):
    store = write_store(tmp_path / "s", matrix.astype(int), layout=layout)
    assert store.shape == matrix.shape
    assert contents(tmp_path / "s") == matrix.tolist()
    assert store.to_anndata().shape == matrix.shape
    assert store.lengths.tolist() == (matrix != 0).sum(axis=1).tolist()


# --- places --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a" * 255, "with space", "數據 é", "-dash", "a\nb", "%s{}", "☃" * 80]
)
def test_any_name_of_a_folder_will_do(name, tmp_path, write_store):
    write_store(tmp_path / name, SQUARE)
    assert contents(tmp_path / name) == SQUARE.tolist()


def test_a_relative_path_means_where_it_was_given(tmp_path, write_store, monkeypatch):
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    store = write_store(Path("../two/../s"), SQUARE)
    monkeypatch.chdir("/")
    assert store.take([3]).counts.tolist() == [1, 1, 1, 1]
    assert contents(tmp_path / "s") == SQUARE.tolist()


@pytest.mark.parametrize(("umask", "file_mode"), [(0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_rights_that_the_umask_gives(umask, file_mode, tmp_path, write_store):
    before = os.umask(umask)
    try:
        write_store(tmp_path / "s", SQUARE)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in data_files(tmp_path / "s")} == {file_mode}
    assert stat.S_IMODE((tmp_path / "s" / "CURRENT").stat().st_mode) == file_mode


READ_ONLY = """
import os, sys
from omics.data.storage.store import open_store
from omics.data.errors import OmicsError
from omics.data.storage.store_writer import StoreWriter
import numpy as np, pandas as pd
import pyarrow.parquet, numba
path = sys.argv[1]
for verified in (open_store(path),):
    # Whatever is imported late is imported now: the libraries may lie where only root reads.
    verified.verify()
    verified.take([0])
if os.getuid() == 0:
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
store = open_store(path)
store.verify()
print(store.take([0, 2]).counts.tolist(), store.obs.names.tolist())
try:
    StoreWriter(path, genes_frame=pd.DataFrame(index=["g"]), overwrite=True).__enter__()
except (OmicsError, OSError) as error:
    print(type(error).__name__)
"""


def test_a_folder_that_may_only_be_read_is_read(write_store):
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        path = Path(parent) / "s"
        write_store(path, SQUARE)
        for each in [path, *path.rglob("*")]:
            each.chmod(0o555 if each.is_dir() else 0o444)
        printed = run_script(READ_ONLY, path)
        for each in [path, *path.rglob("*")]:
            each.chmod(0o755 if each.is_dir() else 0o644)
    first, second = printed.splitlines()
    assert first == "[1, 300, 2, 7, 255, 1] ['cell0', 'cell1', 'cell2', 'cell3']"
    assert second == "PermissionError"


def test_a_bare_environment_is_enough(tmp_path):
    """No home and the C locale: names of cells and of files are still themselves."""
    script = (
        "import sys\n"
        "from omics.data import synthesize, convert, check_file\n"
        "source, target = sys.argv[1:]\n"
        "adata = synthesize(20, 30, seed=1)\n"
        "adata.obs['typ'] = ['Zell\\u00fc'] * 20\n"
        "adata.write_h5ad(source)\n"
        "store = convert(source, target)\n"
        "store.verify()\n"
        "assert store.obs['typ'][0] == 'Zell\\u00fc'\n"
        "print(len(check_file(source).problems), len(store))\n"
    )
    environment = {"LC_ALL": "C", "PATH": os.defpath}
    paths = [str(tmp_path / name) for name in ("zellen é.h5ad", "zellen é.store")]
    assert run_script(script, *paths, env=environment) == "0 20\n"
    assert contents(paths[1])


def test_a_sparse_matrix_of_any_index_type_is_written(tmp_path):
    matrix = sparse.csr_matrix(SQUARE)
    for name in ("i1", "u2", ">i4", "u4", "i8", "u8"):
        var = pd.DataFrame(index=[f"g{number}" for number in range(4)])
        with StoreWriter(tmp_path / name, genes_frame=var) as writer:
            writer.append(matrix.indptr.astype(name), matrix.indices.astype(name), matrix.data)
            writer.finish(pd.DataFrame(index=[str(row) for row in range(4)]))
        assert contents(tmp_path / name) == SQUARE.tolist()
