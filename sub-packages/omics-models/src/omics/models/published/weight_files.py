"""The weights of a checkpoint file, read tensor by tensor: archives of torch, and safetensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omics.models.published.pickle_values import DamagedCheckpointError, UnsafeCheckpointError
from omics.models.published.torch_archive import StoredTensor, TorchArchive

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from omics.models.published.weight_rows import Shape

ARCHIVE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
SAFETENSORS_SUFFIX = ".safetensors"
MAX_KEY_LENGTH = 500
# What wrappers of training put before every key.
WRAPPERS = ("model.", "_orig_mod.", "module.")


@dataclass(frozen=True)
class ArchiveWeights:
    """Tensors of an archive of torch.

    Attributes:
        archive: the open file.
        tensors: by key, not read yet.
    """

    archive: TorchArchive
    tensors: Mapping[str, StoredTensor]

    @property
    def where(self) -> str:
        """The file."""
        return str(self.archive.path)

    @property
    def names(self) -> list[str]:
        """The keys."""
        return list(self.tensors)

    def shape(self, name: str) -> Shape:
        """Return the sizes of a tensor.

        Args:
            name: its key.
        """
        return self.tensors[name].shape

    def load(self, name: str) -> Tensor:
        """Return a tensor.

        Args:
            name: its key.
        """
        return self.archive.tensor(self.tensors[name])


@dataclass(frozen=True)
class SafetensorsWeights:
    """Tensors of a safetensors file.

    Attributes:
        path: the file.
        shapes: sizes by key.
    """

    path: Path
    shapes: Mapping[str, Shape]

    @property
    def where(self) -> str:
        """The file."""
        return str(self.path)

    @property
    def names(self) -> list[str]:
        """The keys."""
        return list(self.shapes)

    def shape(self, name: str) -> Shape:
        """Return the sizes of a tensor.

        Args:
            name: its key.
        """
        return self.shapes[name]

    def load(self, name: str) -> Tensor:
        """Return a tensor.

        Args:
            name: its key.
        """
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor


@dataclass(frozen=True)
class UnwrappedWeights:
    """Tensors under their keys without what a wrapper put before all of them.

    Attributes:
        inner: the weights as they lie in the file.
        prefix: what all of their keys begin with.
    """

    inner: ArchiveWeights | SafetensorsWeights
    prefix: str

    @property
    def where(self) -> str:
        """The file."""
        return self.inner.where

    @property
    def names(self) -> list[str]:
        """The keys."""
        return [name.removeprefix(self.prefix) for name in self.inner.names]

    def shape(self, name: str) -> Shape:
        """Return the sizes of a tensor.

        Args:
            name: its key.
        """
        return self.inner.shape(self.prefix + name)

    def load(self, name: str) -> Tensor:
        """Return a tensor.

        Args:
            name: its key.
        """
        return self.inner.load(self.prefix + name)


@dataclass(frozen=True)
class WeightFile:
    """What a file with weights holds.

    Attributes:
        weights: the tensors.
        beside: what a trainer saved beside them; empty for bare weights.
    """

    weights: UnwrappedWeights
    beside: Mapping[str, Any] = field(default_factory=dict)


def read_weight_file(path: Path) -> WeightFile:
    """Open a file with weights.

    Args:
        path: `.safetensors`, or an archive of torch (`.ckpt`, `.pt`, `.pth`, `.bin`).

    Raises:
        UnsafeCheckpointError: it holds more than data.
        DamagedCheckpointError: it is damaged or of another kind.
    """
    if path.suffix == SAFETENSORS_SUFFIX:
        return WeightFile(_unwrapped(_safetensors(path)))
    archive = TorchArchive(path)
    value = archive.value
    if not isinstance(value, dict):
        raise DamagedCheckpointError(
            f"{path} holds one {type(value).__name__}, not the weights of a model by their keys."
        )
    state = value.get("state_dict")
    beside = (
        {} if state is None else {key: each for key, each in value.items() if key != "state_dict"}
    )
    tensors = value if state is None else state
    if not isinstance(tensors, dict) or not tensors:
        raise DamagedCheckpointError(f"{path} holds no weights.")
    for name, tensor in tensors.items():
        _check_key(name, path)
        if not isinstance(tensor, StoredTensor):
            raise UnsafeCheckpointError(
                f"{path} holds {str(name)[:80]!r} of type {type(tensor).__name__} among its "
                "weights. Only tensors are read; give the file that holds the model's state dict."
            )
    return WeightFile(_unwrapped(ArchiveWeights(archive, tensors)), beside)


def _safetensors(path: Path) -> SafetensorsWeights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise DamagedCheckpointError(
            f"{path} is no safetensors file that can be read ({error}). Take it from its source "
            "again."
        ) from error
    if not shapes:
        raise DamagedCheckpointError(f"{path} holds no weights.")
    for name in shapes:
        _check_key(name, path)
    return SafetensorsWeights(path, shapes)


def _check_key(name: object, path: Path) -> None:
    """Refuse keys that are no plain names: they are shown in messages, on a terminal."""
    if not isinstance(name, str) or not name.isprintable() or len(name) > MAX_KEY_LENGTH:
        raise UnsafeCheckpointError(
            f"{path} has a tensor named {str(name)[:80]!r}, as no model names one. Do not use this "
            "file."
        )


def _unwrapped(weights: ArchiveWeights | SafetensorsWeights) -> UnwrappedWeights:
    prefix = ""
    names = weights.names
    while True:
        added = next(
            (each for each in WRAPPERS if all(n.startswith(prefix + each) for n in names)), ""
        )
        if not added:
            return UnwrappedWeights(weights, prefix)
        prefix += added
