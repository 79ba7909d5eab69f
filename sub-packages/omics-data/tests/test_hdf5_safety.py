"""Hostile, broken and foreign files are refused with the reason, before a value is read."""

from __future__ import annotations

import gzip
import os
import zipfile
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest

from omics.data.errors import InputDataError, MissingPathError, UsageError
from omics.data.sources import hdf5_safety
from omics.data.sources.hdf5_safety import describe_bytes, open_safely

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def refusal(path: Path) -> str:
    with pytest.raises(InputDataError) as raised, open_safely(path):
        pass
    assert str(path) in str(raised.value)
    return str(raised.value)


def external_storage(handle: h5py.File, folder: Path) -> None:
    secret = folder / "secret.txt"
    secret.write_bytes(b"password" * 8)
    handle.create_dataset("data", (64,), "u1", external=[(str(secret), 0, 64)])


def external_link(handle: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["data"] = np.arange(3)
    handle["data"] = h5py.ExternalLink(str(folder / "other.h5"), "/data")


def soft_loop(handle: h5py.File, _folder: Path) -> None:
    handle["a"] = h5py.SoftLink("/b")
    handle["b"] = h5py.SoftLink("/a")


def virtual(handle: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((3,), "i8")
    layout[:] = h5py.VirtualSource(folder / "other.h5", "data", shape=(3,))
    handle.create_virtual_dataset("data", layout)


def deep(handle: h5py.File, _folder: Path) -> None:
    handle.create_group("/".join(["g"] * 70))


def huge_shape(handle: h5py.File, _folder: Path) -> None:
    handle.create_dataset("data", (2**40,), "f4", chunks=(2**20,))


def gzip_bomb(handle: h5py.File, _folder: Path) -> None:
    data = handle.create_dataset("data", (2**29,), "u1", chunks=(2**27,), compression=9)
    data[:1] = 0


def huge_attribute(handle: h5py.File, _folder: Path) -> None:
    # Attributes above 64 KB live in dense storage, which needs a recent file format.
    handle.attrs["notes"] = np.zeros(17 * 2**20, "u1")


HOSTILE: list[tuple[Callable[[h5py.File, Path], None], str]] = [
    (external_storage, "values stored in another file"),
    (external_link, "/data holds a link to another file"),
    (soft_loop, "a soft link"),
    (virtual, "a virtual dataset"),
    (deep, "groups nested deeper than 64"),
    (huge_shape, "4,398,046,511,104 bytes declared where 0 are stored"),
    (gzip_bomb, "536,870,912 bytes declared where"),
    (huge_attribute, "an attribute of 17,825,792 bytes"),
]


@pytest.mark.parametrize(("build", "words"), HOSTILE, ids=[each[0].__name__ for each in HOSTILE])
def test_a_hostile_file_is_refused(
    build: Callable[[h5py.File, Path], None], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "hostile.h5ad"
    with h5py.File(path, "w", libver="latest") as handle:
        build(handle.create_group("uns"), tmp_path) if build is not soft_loop else build(
            handle, tmp_path
        )
    message = refusal(path)
    assert words.replace("/data", "/uns/data") in message
    assert "write_h5ad(new_path)" in message


def test_a_cycle_of_hard_links_ends(tmp_path: Path) -> None:
    path = tmp_path / "cycle.h5ad"
    with h5py.File(path, "w") as handle:
        inner = handle.create_group("a/b")
        inner["back"] = handle["a"]
        inner["root"] = handle["/"]
    with open_safely(path) as handle:
        assert "a/b/back/b" in handle


def test_a_filter_that_needs_a_plug_in_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "filter.h5ad"
    with h5py.File(path, "w") as handle:
        space = h5py.h5s.create_simple((100,))
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk((10,))
        # Optional, so that HDF5 creates the dataset without having the filter (here blosc).
        creation.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (0,))
        h5py.h5d.create(handle.id, b"data", h5py.h5t.NATIVE_INT32, space, creation)
    assert "/data is compressed with HDF5 filter 32001, which needs a plug-in" in refusal(path)


def test_too_many_objects_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_safety, "MAX_OBJECTS", 20)
    path = tmp_path / "many.h5ad"
    with h5py.File(path, "w") as handle:
        for number in range(30):
            handle.create_group(f"g{number}")
    assert "more than 20 objects" in refusal(path)


def test_ordinary_compression_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "fine.h5ad"
    with h5py.File(path, "w", userblock_size=512) as handle:
        for name, options in {
            "gzip": {"compression": "gzip", "shuffle": True, "fletcher32": True},
            "lzf": {"compression": "lzf"},
            "plain": {},
        }.items():
            handle.create_dataset(name, data=np.zeros(100_000), **options)
        handle["text"] = ["one", "two"]
        handle["empty"] = h5py.Empty("f4")
        handle["scalar"] = 3
    with open_safely(path) as handle:
        assert handle["lzf"][:].sum() == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (bytes(600), "a run of zero bytes"),
        (gzip.compress(b"x" * 100, mtime=0), "a gzip file; unpack it first"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page (HTML)"),
        (b"  \n<html>", "a web page (HTML)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a git-lfs pointer"),
        (b"%%MatrixMarket matrix coordinate integer general\n", "a Matrix Market (.mtx)"),
        ("zellen,gène\n1,2\n".encode(), "a text file that begins 'zellen,gène 1,2'"),
        (b"\x00\x01\x02\xff", "binary data of an unknown kind"),
        (b"\x89HDF\r\n\x1a", "binary data of an unknown kind"),
    ],
)
def test_a_file_of_another_kind_is_described(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "data.h5ad"
    path.write_bytes(content)
    message = refusal(path)
    assert "is not an HDF5 file" in message
    assert words in message


def test_archives_are_described(tmp_path: Path) -> None:
    path = tmp_path / "data.h5ad"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", "x")
    assert "a zip archive" in refusal(path)
    assert describe_bytes(bytes(257) + b"ustar" + bytes(200)) == "a tar archive; unpack it first"


def test_a_cut_multi_byte_character_is_still_text() -> None:
    assert describe_bytes("aé".encode()[:-1]).startswith("a text file")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.h5ad"
    with h5py.File(path, "w") as handle:
        handle["X"] = np.arange(10_000)
    data = path.read_bytes()
    for share in (0.01, 0.3, 0.9):
        path.write_bytes(data[: max(16, int(len(data) * share))])
        assert "cut short" in refusal(path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with (
        pytest.raises(MissingPathError, match=r"There is no file .*nowhere\.h5ad"),
        open_safely(tmp_path / "nowhere.h5ad"),
    ):
        pass
    with pytest.raises(UsageError, match="is a folder, not an"), open_safely(tmp_path):
        pass
    pipe = tmp_path / "pipe.h5ad"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="a pipe or a device"), open_safely(pipe):
        pass
