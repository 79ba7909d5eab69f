"""Archives of torch.save: every tensor as torch reads it, and nothing that is not in the file."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from omics.data.errors import InputDataError
from omics.models.published.pickle_values import DamagedCheckpointError, UnsafeCheckpointError
from omics.models.published.torch_archive import StoredTensor, TorchArchive
from omics.models.published.weight_files import read_weight_file

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def save(path, value):
    torch.save(value, path)
    return path


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_type_are_read_as_they_were(dtype, tmp_path):
    whole = torch.arange(24).reshape(4, 6).to(dtype)
    value = {
        "whole": whole,
        "turned": whole.T,
        "part": whole[1:3, ::2],
        "one": whole[2, 3],
        "none": whole[:0],
    }
    archive = TorchArchive(save(tmp_path / "a.pt", value))
    for name, expected in value.items():
        found = archive.tensor(archive.value[name])
        assert found.dtype == dtype
        assert torch.equal(found, expected)
        assert found.is_contiguous()


def test_parameters_buffers_and_what_a_trainer_saves_beside_them(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    value = {
        "state_dict": OrderedDict((f"model.{k}", v) for k, v in model.state_dict().items()),
        "parameter": nn.Parameter(torch.ones(2)),
        "optimizer_states": [optimizer.state_dict()],
        "callbacks": {
            "ModelCheckpoint{'monitor': 'loss'}": {"best": torch.tensor(0.5), "path": "/a"}
        },
        "dtype": torch.bfloat16,
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "epoch": 3,
    }
    name = "epoch=3-step=10-val_loss=0.5.ckpt"
    file = read_weight_file(save(tmp_path / name, value))
    assert file.weights.prefix == "model."
    for key, expected in model.state_dict().items():
        assert torch.equal(file.weights.load(key), expected)
        assert file.weights.shape(key) == tuple(expected.shape)
    assert file.beside["epoch"] == 3
    assert file.beside["size"] == (2, 3)
    assert isinstance(file.beside["parameter"], StoredTensor)


def test_a_bare_state_dict_and_safetensors_are_weights_too(tmp_path):
    state = nn.Linear(3, 4).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    for path in (save(tmp_path / "pytorch_model.bin", state), tmp_path / "model.safetensors"):
        weights = read_weight_file(path).weights
        assert (weights.prefix, sorted(weights.names)) == ("", ["bias", "weight"])
        assert torch.equal(weights.load("weight"), state["weight"])


def rewrite(path, change):
    """Rebuild an archive with members changed by name; None leaves one out."""
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in change(members):
            archive.writestr(name, raw)
    return path


def small(path):
    return save(path, {"w": torch.arange(6, dtype=torch.float32)})


NAMES = [
    "../evil",
    "/etc/passwd",
    "a/../../evil",
    "C:\\evil",
    "a\\b",
    "a/b/c/d/e/f",
    "evil\n",
    "a//b",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_out_of_an_archive_are_refused(name, tmp_path):
    path = rewrite(small(tmp_path / "a.pt"), lambda members: [*members, (name, b"x")])
    with pytest.raises(UnsafeCheckpointError, match="a member named") as caught:
        TorchArchive(path)
    assert caught.value.exit_code == 3


def test_a_name_used_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = rewrite(small(tmp_path / "a.pt"), lambda members: [*members, members[-1]])
    with pytest.raises(UnsafeCheckpointError, match="a member named"):
        TorchArchive(path)


def test_compressed_members_and_bombs_are_refused_before_they_are_read(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", pickle.dumps({}))
        archive.writestr("bomb/data/0", bytes(50_000_000))
    with pytest.raises(UnsafeCheckpointError, match="never compressed"):
        TorchArchive(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", pickle.dumps({}))
    with pytest.raises(UnsafeCheckpointError, match=r"never compressed|compressed or encrypted"):
        TorchArchive(path)


def rebuilt(path, shape=(6,), stride=(1,), offset=0, length=6, kind=b"FloatStorage", key="0"):
    """Replace the tensor of a small archive by one that is described at will."""
    described = (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(("
        + pickle.dumps("storage", 2)[2:-1]
        + b"ctorch\n"
        + kind
        + b"\n"
        + pickle.dumps(key, 2)[2:-1]
        + pickle.dumps("cpu", 2)[2:-1]
        + pickle.dumps(length, 2)[2:-1]
        + b"tQ"
        + pickle.dumps(offset, 2)[2:-1]
        + pickle.dumps(shape, 2)[2:-1]
        + pickle.dumps(stride, 2)[2:-1]
        + b"\x89ccollections\nOrderedDict\n)RtRs."
    )

    def change(members):
        return [(n, described if n.endswith("data.pkl") else raw) for n, raw in members]

    return rewrite(small(path), change)


def test_a_tensor_described_by_hand_is_read(tmp_path):
    archive = TorchArchive(rebuilt(tmp_path / "a.pt", (2, 2), (3, 1), 1))
    assert archive.tensor(archive.value["w"]).tolist() == [[1, 2], [4, 5]]


OUT_OF_BOUNDS = {
    "too long": {"shape": (7,)},
    "too far": {"offset": 1},
    "too wide a stride": {"shape": (3,), "stride": (3,)},
    "repeated by a stride of 0": {"shape": (10**9,), "stride": (0,)},
    "repeated in two directions": {"shape": (3, 3), "stride": (1, 1)},
    "an enormous shape": {"shape": (2**40, 2**40), "stride": (1, 1)},
    "a longer storage": {"length": 7},
    "a shorter storage": {"length": 5},
    "an enormous storage": {"length": 2**60},
    "a negative storage": {"length": -1},
    "numbers of another size": {"kind": b"DoubleStorage"},
}


@pytest.mark.parametrize("name", OUT_OF_BOUNDS)
def test_tensors_must_lie_inside_their_storage_and_storages_inside_the_file(name, tmp_path):
    path = rebuilt(tmp_path / "a.pt", **OUT_OF_BOUNDS[name])
    with pytest.raises(
        UnsafeCheckpointError, match=r"does not lie in its storage|says that its storage"
    ):
        TorchArchive(path)


IMPOSSIBLE = {
    "a negative offset": {"offset": -1},
    "a negative size": {"shape": (-6,)},
    "a negative stride": {"stride": (-1,)},
    "a size that is no number": {"shape": ("6",)},
    "a size that is a truth": {"shape": (True,)},
    "more strides than sizes": {"stride": (1, 1)},
    "too many dimensions": {"shape": (1,) * 9, "stride": (1,) * 9},
    "a storage that is not there": {"key": "1"},
    "a storage elsewhere": {"key": "../data.pkl"},
    "a storage without a name": {"key": 0},
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_tensors_that_torch_does_not_write_are_damage(name, tmp_path):
    with pytest.raises(DamagedCheckpointError):
        TorchArchive(rebuilt(tmp_path / "a.pt", **IMPOSSIBLE[name]))


def test_a_storage_of_an_unknown_type_is_named(tmp_path):
    with pytest.raises(UnsafeCheckpointError, match=r"torch\.EvilStorage"):
        TorchArchive(rebuilt(tmp_path / "a.pt", kind=b"EvilStorage"))


class Call:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_call_among_the_weights_is_named_and_not_made(tmp_path, capsys):
    path = save(tmp_path / "a.ckpt", {"state_dict": {"w": torch.ones(2)}, "x": Call()})
    with pytest.raises(UnsafeCheckpointError, match=r"__builtin__\.print"):
        read_weight_file(path)
    assert "executed" not in capsys.readouterr().out


def test_old_formats_are_refused_with_advice(tmp_path):
    old = tmp_path / "old.pt"
    torch.save({"w": torch.ones(2)}, old, _use_new_zipfile_serialization=False)
    with pytest.raises(DamagedCheckpointError, match=r"before 1\.6.*weights_only=True"):
        TorchArchive(old)
    plain = tmp_path / "plain.bin"
    plain.write_bytes(pickle.dumps({"w": [1.0]}))
    with pytest.raises(DamagedCheckpointError, match="a bare pickle, which is not read"):
        TorchArchive(plain)
    import tarfile

    with tarfile.open(tmp_path / "old.tar.pt", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    with pytest.raises(DamagedCheckpointError, match=r"before 1\.6"):
        TorchArchive(tmp_path / "old.tar.pt")


def test_files_of_another_kind_are_said_to_be_that(tmp_path):
    for name, raw in {"empty.pt": b"", "text.pt": b"hello" * 100, "zip.pt": None}.items():
        path = tmp_path / name
        if raw is None:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("readme.txt", "hello")
        else:
            path.write_bytes(raw)
        with pytest.raises(
            InputDataError, match=r"is no zip file|not one that torch\.save|a member named"
        ):
            TorchArchive(path)

    def add(members):
        return [*members, ("a/constants.pkl", b"\x80\x02).")]

    with pytest.raises(UnsafeCheckpointError, match="TorchScript archive"):
        TorchArchive(rewrite(small(tmp_path / "a.pt"), add))

    def other_order(members):
        return [(n, b"big" if n.endswith("byteorder") else raw) for n, raw in members]

    with pytest.raises(DamagedCheckpointError, match="another byte order"):
        TorchArchive(rewrite(small(tmp_path / "b.pt"), other_order))


def test_a_file_that_is_cut_off_anywhere_is_an_error(tmp_path):
    raw = small(tmp_path / "a.pt").read_bytes()
    path = tmp_path / "cut.pt"
    for length in range(0, len(raw), 7):
        path.write_bytes(raw[:length])
        with pytest.raises(InputDataError):
            read_weight_file(path)


def test_a_flipped_bit_of_a_weight_is_found_when_it_is_read(tmp_path):
    path = save(tmp_path / "a.pt", {"w": torch.full((1000,), 1.5)})
    raw = bytearray(path.read_bytes())
    place = raw.find(torch.full((4,), 1.5).numpy().tobytes())
    raw[place + 100] ^= 1
    path.write_bytes(raw)
    weights = read_weight_file(path).weights
    with pytest.raises(DamagedCheckpointError, match="is damaged") as caught:
        weights.load("w")
    assert "Take the file from its source again" in str(caught.value)


def test_what_is_not_a_tensor_among_the_weights_is_named(tmp_path):
    with pytest.raises(UnsafeCheckpointError, match="'extra' of type dict among its weights"):
        read_weight_file(save(tmp_path / "a.pt", {"w": torch.ones(2), "extra": {}}))
    for name in ("\x1b[31mred", "w" * 600):
        with pytest.raises(UnsafeCheckpointError, match="as no model names one"):
            read_weight_file(save(tmp_path / "d.pt", {name: torch.ones(2)}))
    with pytest.raises(DamagedCheckpointError, match="holds one list"):
        read_weight_file(save(tmp_path / "b.pt", [torch.ones(2)]))
    with pytest.raises(DamagedCheckpointError, match="holds no weights"):
        read_weight_file(save(tmp_path / "c.pt", {"state_dict": {}}))


def test_safetensors_without_a_tensor_hold_no_weights(tmp_path):
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(DamagedCheckpointError, match="holds no weights"):
        read_weight_file(tmp_path / "model.safetensors")


def test_safetensors_that_are_none_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    rows = [b"", b"\xff" * 20, pickle.dumps({"w": 1}), (2**62).to_bytes(8, "little") + b"{}"]
    for raw in rows:
        path.write_bytes(raw)
        with pytest.raises(DamagedCheckpointError, match="no safetensors file that can be read"):
            read_weight_file(path)
