"""A file made to do harm, or no data at all, is refused in time and in little memory by every verb.

One process goes through the whole corpus with `check` and `convert`, and tells time and memory.
What the reader of HDF5 says of each trick is in test_hdf5_safety.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from omics.data import synthesize

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 5.0
MAX_RSS_BYTES = 500e6
SECRET = b"the password is 12345678"


# --- tricks inside a sound .h5ad -----------------------------------------------------------------


def external_values(handle: h5py.File, folder: Path) -> None:
    del handle["X/data"]
    (folder / "secret").write_bytes(SECRET * 100)
    handle["X"].create_dataset("data", (600,), "f4", external=[(str(folder / "secret"), 0, 2400)])


def external_names(handle: h5py.File, folder: Path) -> None:
    (folder / "secret").write_bytes(SECRET * 100)
    handle["uns"].create_dataset("x", (10,), "S24", external=[(str(folder / "secret"), 0, 240)])


def external_link(handle: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["data"] = np.arange(3)
    handle["layers/stolen"] = h5py.ExternalLink(str(folder / "other.h5"), "/data")


def external_link_to_itself(handle: h5py.File, _folder: Path) -> None:
    handle["uns/again"] = h5py.ExternalLink(handle.filename, "/")


def soft_link(handle: h5py.File, _folder: Path) -> None:
    del handle["X"]
    handle["X"] = h5py.SoftLink("/layers/counts")


def soft_links_in_a_ring(handle: h5py.File, _folder: Path) -> None:
    handle["uns/a"], handle["uns/b"] = h5py.SoftLink("/uns/b"), h5py.SoftLink("/uns/a")


def virtual_values(handle: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((40, 30), "f4")
    layout[:] = h5py.VirtualSource(folder / "other.h5", "data", shape=(40, 30))
    handle.create_virtual_dataset("layers/virtual", layout)


def unknown_filter(handle: h5py.File, _folder: Path) -> None:
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_chunk((10,))
    creation.set_filter(32008, h5py.h5z.FLAG_OPTIONAL, (0,))
    space = h5py.h5s.create_simple((100,))
    h5py.h5d.create(handle["uns"].id, b"data", h5py.h5t.NATIVE_INT32, space, creation)


def huge_dense(handle: h5py.File, _folder: Path) -> None:
    handle["layers"].create_dataset("huge", (2**40, 30), "f4", chunks=(2**15, 30))


def huge_list(handle: h5py.File, _folder: Path) -> None:
    del handle["X/indptr"]
    handle["X"].create_dataset("indptr", (2**40,), "i8", chunks=(2**20,))


def huge_names(handle: h5py.File, _folder: Path) -> None:
    handle["obs"].create_dataset("x", (2**36,), h5py.string_dtype(), chunks=(2**16,))


def huge_chunk(handle: h5py.File, _folder: Path) -> None:
    handle["uns"].create_dataset("x", (2**31,), "f4", chunks=(2**29,))


def bomb(handle: h5py.File, _folder: Path) -> None:
    data = handle["uns"].create_dataset("x", (2**30,), "u1", chunks=(2**27,), compression=9)
    data[0] = 1


def text_of_fixed_length(handle: h5py.File, _folder: Path) -> None:
    handle["uns"].create_dataset("x", (2**10,), f"S{2**24}", chunks=(1,), compression=9)


def huge_attribute(handle: h5py.File, _folder: Path) -> None:
    # An old group cannot hold so large a one.
    handle.create_group("uns/new").attrs["notes"] = np.zeros(17 * 2**20, "u1")


def huge_type(handle: h5py.File, _folder: Path) -> None:
    handle["uns"].create_dataset("x", (4,), np.dtype([("text", f"S{2**29}"), ("number", "i4")]))


def deep(handle: h5py.File, _folder: Path) -> None:
    handle["uns"].create_group("/".join(["g"] * 200))


def text_bomb(handle: h5py.File, _folder: Path) -> None:
    del handle["obs/_index"]
    handle["obs/_index"] = ["x" * 2**21, *["y"] * 39]
    names = handle["obs/_index"]
    names.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    more = handle["uns"].create_dataset("x", data=["x" * 2**21] + ["z"] * 999)
    offset = more.id.get_offset()
    handle.flush()
    with Path(handle.filename).open("r+b") as file:
        file.seek(offset)
        reference = file.read(16)
        file.seek(offset)
        file.write(reference * 1000)


def ring_of_groups(handle: h5py.File, _folder: Path) -> None:
    inner = handle["uns"].create_group("a/b/c")
    inner["back"], inner["root"] = handle["uns/a"], handle["/"]


TRICKS: list[Callable[[h5py.File, Path], None]] = [
    external_values,
    external_names,
    external_link,
    external_link_to_itself,
    soft_link,
    soft_links_in_a_ring,
    virtual_values,
    unknown_filter,
    huge_dense,
    huge_list,
    huge_names,
    huge_chunk,
    bomb,
    text_of_fixed_length,
    huge_attribute,
    huge_type,
    deep,
    text_bomb,
]


# --- files that are something else ---------------------------------------------------------------


def strangers(whole: bytes) -> dict[str, bytes]:
    page = b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 33\n"
    return {
        "empty.h5ad": b"",
        "zeros.h5ad": bytes(5000),
        "page.h5ad": page,
        "page.h5": page,
        "pointer.h5ad": pointer,
        "gzipped.h5ad": gzip.compress(whole, mtime=0),
        "gzipped.h5ad.gz": gzip.compress(whole, mtime=0),
        "bzipped.h5ad": bz2.compress(whole),
        "xz.h5ad": lzma.compress(whole),
        "half.h5ad": whole[: len(whole) // 2],
        "nearly.h5ad": whole[:-1000],
        "signature.h5ad": whole[:8],
        "header.h5ad": whole[:96],
        "begun.h5ad": whole[:100] + bytes(len(whole) - 100),
        "twice cut.h5ad": whole[: len(whole) // 3] + whole[-len(whole) // 3 :],
        "json.h5ad": b'{"error": "rate limit"}',
        "random.h5ad": np.random.default_rng(0).bytes(3000),
        "pickle.h5ad": b"\x80\x04\x95" + b"cos\nsystem\n(S'touch owned'\ntR.",
        "binary.dat": bytes(range(256)) * 4,
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    extra = tmp_path_factory.mktemp("elsewhere")
    adata = synthesize(40, 30, seed=1, num_types=2)
    adata.layers["counts"] = adata.X.copy()
    adata.uns["note"] = "x"
    adata.write_h5ad(extra / "whole.h5ad")
    whole = (extra / "whole.h5ad").read_bytes()
    for trick in TRICKS:
        path = folder / f"{trick.__name__}.h5ad"
        path.write_bytes(whole)
        with h5py.File(path, "r+", libver="latest") as handle:
            trick(handle, extra)
    for name, content in strangers(whole).items():
        (folder / name).write_bytes(content)
    with zipfile.ZipFile(folder / "zip.h5ad", "w") as archive:
        archive.writestr("whole.h5ad", whole)
    with tarfile.open(folder / "tar.h5ad", "w") as archive:
        archive.add(extra / "whole.h5ad")
    os.mkfifo(folder / "pipe.h5ad")
    (folder / "link to nowhere.h5ad").symlink_to("nowhere")
    (folder / "device.h5ad").symlink_to("/dev/zero")
    return folder


GO_THROUGH = """
import json, resource, sys, time
from pathlib import Path
from omics.data import check_file, convert, synthesize
from omics.data.errors import OmicsError

folder, scratch = Path(sys.argv[1]), Path(sys.argv[2])
synthesize(20, 15, seed=1).write_h5ad(scratch / "sound.h5ad")
check_file(scratch / "sound.h5ad")
convert(scratch / "sound.h5ad", scratch / "sound.store")
found = {}
for path in sorted(folder.iterdir()):
    for verb in ("check", "convert"):
        started = time.perf_counter()
        try:
            if verb == "check":
                said = "FINE " + check_file(path).text()
            else:
                convert(path, scratch / "s.store")
                said = "FINE"
        except OmicsError as error:
            said = f"{type(error).__name__} {error}"
        left = (scratch / "s.store").exists() and said != "FINE"
        found[f"{path.name} {verb}"] = (said, time.perf_counter() - started, left)
# The peak of this process since it was started (ru_maxrss knows that of its parent as well), and
# that of the children that met the files first.
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
peak = 1024 * max(int(status["VmHWM"].split()[0]), children)
print(json.dumps({"found": found, "peak": peak}))
"""


@pytest.fixture(scope="module")
def outcome(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    scratch = tmp_path_factory.mktemp("scratch")
    done = subprocess.run(
        [sys.executable, "-c", GO_THROUGH, str(corpus), str(scratch)],
        check=False,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_every_file_is_refused_with_the_reason(outcome: dict[str, Any]) -> None:
    assert len(outcome["found"]) > 80
    for name, (said, _, left) in outcome["found"].items():
        if name == "text_bomb.h5ad check":
            # It lies in the notes, which a look leaves out.
            continue
        assert said.split()[0] in {"InputDataError", "UsageError", "MissingPathError"}, (name, said)
        assert not left, name
        assert len(said) < 2000, name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("external_values", "X/data holds values stored in another file"),
        ("external_link", "layers/stolen holds a link to another file"),
        ("soft_link", "a soft link (to '/layers/counts')"),
        ("virtual_values", "a virtual dataset"),
        ("unknown_filter", "HDF5 filter 32008, which needs a plug-in"),
        ("huge_list", "bytes declared where 0 are stored"),
        ("bomb", "bytes declared where"),
        ("deep", "nested deeper than 64"),
        ("empty", "an empty file"),
        ("zeros", "a run of zero bytes"),
        ("page", "a web page (HTML)"),
        ("gzipped", "a gzip file; unpack it first"),
        ("xz", "an xz file; unpack it first"),
        ("zip", "a zip archive; unpack it first"),
        ("tar", "a tar archive; unpack it first"),
        ("half", "cut short by an interrupted download"),
        ("pipe", "pipe.h5ad is "),
        ("link to nowhere", "There is no file"),
        ("device", "device.h5ad is "),
    ],
)
def test_the_reason_is_the_right_one(name: str, words: str, outcome: dict[str, Any]) -> None:
    for verb in ("check", "convert"):
        assert words in outcome["found"][f"{name}.h5ad {verb}"][0]


def test_no_secret_is_ever_repeated(outcome: dict[str, Any]) -> None:
    for said, _, _ in outcome["found"].values():
        assert SECRET.decode() not in said


def test_time_and_memory_are_bounded(outcome: dict[str, Any]) -> None:
    slow = {name: spent for name, (_, spent, _) in outcome["found"].items() if spent > SECONDS}
    assert slow == {}
    assert outcome["peak"] < MAX_RSS_BYTES


def test_a_ring_of_groups_is_no_harm(tmp_path: Path) -> None:
    from omics.data import convert

    path = tmp_path / "a.h5ad"
    synthesize(20, 15, seed=1).write_h5ad(path)
    with h5py.File(path, "r+") as handle:
        ring_of_groups(handle, tmp_path)
    assert convert(path, tmp_path / "s").shape == (20, 15)
