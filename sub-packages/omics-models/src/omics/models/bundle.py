"""`Bundle`: a folder with everything needed to go from raw counts to the same numbers again.

- `config.json`, `model.safetensors`, `tokenizer/`, `preprocessing.json`, `labels.json`,
  `provenance.json` and a `MANIFEST.json` with the sha256 of each of them.
- Written beside its final name and renamed: there is a whole bundle or none. Write-once.
- Reading checks every digest first. No pickle, no class path, nothing executed.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omics.data.atomic_files import new_folder, write_bytes
from omics.data.errors import (
    EXIT_CORRUPT,
    ConfigError,
    MissingPathError,
    OmicsError,
    UsageError,
)
from omics.data.transforms import Transform, check_transforms, transform_from_dict
from omics.models.hub_snapshot import HUB_PREFIX, fetch_snapshot
from omics.models.model_config import ModelConfig, OmicsConfig
from omics.tokenizers import LabelSpec, Tokenizer, load_tokenizer, save_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omics.models.model import OmicsModel

FORMAT = "omics-bundle"
FORMAT_VERSION = 1
MANIFEST = "MANIFEST.json"
WEIGHTS = "model.safetensors"
_PARTS = {
    "config.json",
    WEIGHTS,
    "tokenizer/tokenizer.json",
    "preprocessing.json",
    "labels.json",
    "provenance.json",
}
_CHUNK_BYTES = 1 << 22


class CorruptBundleError(OmicsError, ValueError):
    """A bundle whose files are not the ones that were written."""

    code = "corrupt-bundle"
    exit_code = EXIT_CORRUPT


@dataclass(kw_only=True)
class Bundle:
    """A model with its tokenizer, preprocessing, labels and history.

    Attributes:
        model: on the CPU, float32, in evaluation mode when loaded.
        tokenizer: that the weights belong to.
        transforms: CellBatch to CellBatch, in order; those marked training-only are kept for
            the record and skipped at inference.
        labels: classes of each label head, in the order of its outputs.
        label_specs: the same with the kind of each label; plain classes where it is left out.
        provenance: how it came about (data digest, seed, versions, parent).
        path: where it was loaded from or saved to; None before that.
    """

    model: OmicsModel
    tokenizer: Tokenizer
    transforms: Sequence[Transform] = ()
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    label_specs: Sequence[LabelSpec] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def __post_init__(self) -> None:
        """Check that labels and heads agree."""
        check_transforms(list(self.transforms))
        if not self.label_specs:
            self.label_specs = [LabelSpec(name=n, classes=tuple(c)) for n, c in self.labels.items()]
        self.labels = {spec.name: list(spec.classes) for spec in self.label_specs}
        heads = {head.name: head.num_classes for head in self.model.model_config.labels}
        named = {spec.name: spec.num_outputs for spec in self.label_specs}
        if heads != named:
            raise ConfigError(f"The label heads {heads} and the labels {named} do not agree.")
        self._check_fields()

    def _check_fields(self) -> None:
        made = {spec.name: spec for spec in self.tokenizer.fields}
        for field_input in self.model.model_config.fields:
            spec = made.get(field_input.name)
            if spec is None:
                raise ConfigError(
                    f"The model reads the field {field_input.name!r} and the tokenizer makes "
                    f"{sorted(made)}: it does not belong to these weights. Give the tokenizer that "
                    "they were trained with."
                )
            ids, rows = spec.vocabulary_size, field_input.vocabulary_size
            is_discrete = field_input.encoder == "embedding"
            # A table of special values may have rows to spare, one of tokens is read to its end.
            fits = ids == rows if is_discrete else ids <= rows
            if not fits or is_discrete != (spec.kind == "discrete"):
                raise ConfigError(
                    f"The field {field_input.name!r} of the model has {rows} ids (encoder "
                    f"{field_input.encoder!r}), that of the tokenizer {ids} ({spec.kind}): the "
                    "vocabulary does not belong to these weights. Give the tokenizer that they were "
                    "trained with."
                )

    @cached_property
    def digest(self) -> str:
        """sha256 of the manifest, which names the bundle; empty before it is saved."""
        return "" if self.path is None else _sha256(self.path / MANIFEST)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Bundle:
        """Write the bundle as a new folder.

        Args:
            path: where; a bundle is written once and never changed.
            overwrite: replace a folder that is there by the new one as a whole.

        Returns:
            This bundle, with its `path`.

        Raises:
            ExistingPathError: the folder exists and `overwrite` is not set.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(path, overwrite=overwrite) as folder:
            _save_model(self.model, folder)
            (folder / "tokenizer").mkdir()
            save_tokenizer(self.tokenizer, folder / "tokenizer")
            steps = [transform.to_dict() for transform in self.transforms]
            _write_json(folder / "preprocessing.json", {"transforms": steps})
            labels = {spec.name: spec.to_json() for spec in self.label_specs}
            _write_json(folder / "labels.json", labels)
            _write_json(folder / "provenance.json", dict(self.provenance))
            write_bytes(folder / MANIFEST, _manifest(folder))
        self.path = path
        self.__dict__.pop("digest", None)
        return self

    @classmethod
    def load(cls, source: str | Path) -> Bundle:
        """Read a bundle after checking all of its digests.

        Args:
            source: a folder, or `hf:owner/name` for a repository of the Hugging Face hub.

        Raises:
            MissingPathError: there is no such folder.
            CorruptBundleError: a file is missing, added to the manifest or changed.
        """
        from safetensors.torch import load_file

        from omics.models.model import OmicsModel

        path = _local_folder(source)
        verify_bundle(path)
        config = ModelConfig.from_dict(_read_json(path / "config.json").get("model", {}))
        model = OmicsModel(OmicsConfig(model=config.to_dict()))
        weights = load_file(path / WEIGHTS)
        expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
        found = {name: tensor.shape for name, tensor in weights.items()}
        if expected != found:
            names = sorted(set(expected.items()) ^ set(found.items()))
            raise CorruptBundleError(
                f"{path / WEIGHTS} does not fit config.json: {names[0][0]} differs. "
                "Take the bundle from its source again."
            )
        model.load_state_dict(weights)
        model.eval()
        steps = _read_json(path / "preprocessing.json").get("transforms", [])
        return cls(
            model=model,
            tokenizer=load_tokenizer(path / "tokenizer"),
            transforms=[transform_from_dict(step) for step in steps],
            label_specs=[
                LabelSpec.from_json(name, value)
                for name, value in _read_json(path / "labels.json").items()
            ],
            provenance=_read_json(path / "provenance.json"),
            path=path,
        )

    def push_to_hub(self, repo_id: str, *, private: bool = True) -> str:
        """Upload the saved folder to the Hugging Face hub.

        Args:
            repo_id: `owner/name`; created if it is not there.
            private: whether a new repository is private.

        Returns:
            The address of the commit.

        Raises:
            UsageError: the bundle was not saved yet.
        """
        from huggingface_hub import HfApi

        if self.path is None:
            raise UsageError("Save the bundle first: what is uploaded is its verified folder.")
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=str(self.path)))


def verify_bundle(path: Path) -> dict[str, Any]:
    """Check every file of a bundle against its manifest.

    Args:
        path: the folder.

    Returns:
        The manifest.

    Raises:
        CorruptBundleError: naming the first file that is wrong.
    """
    again = "Take the bundle from its source again, or save it anew."
    if not (path / MANIFEST).is_file():
        raise CorruptBundleError(f"{path} has no {MANIFEST}: it is not a whole bundle. {again}")
    raw = (path / MANIFEST).read_bytes()
    try:
        manifest = json.loads(raw)
        files = {name: (e["bytes"], e["sha256"]) for name, e in manifest["files"].items()}
        version = manifest["format_version"]
        canonical = raw == _canonical(manifest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptBundleError(f"{path / MANIFEST} is damaged ({error!r}). {again}") from error
    if manifest.get("format") != FORMAT or not canonical or not files.keys() >= _PARTS:
        raise CorruptBundleError(f"{path / MANIFEST} is damaged. {again}")
    if version != FORMAT_VERSION:
        raise CorruptBundleError(
            f"{path} has bundle format {version}; this version reads {FORMAT_VERSION}. "
            "Install a newer omics-models."
        )
    for name, expected in files.items():  # (bytes, sha256)
        file = path / name
        if not re.fullmatch(r"(tokenizer/)?[A-Za-z0-9._-]{1,64}", name) or ".." in name:
            raise CorruptBundleError(f"{path / MANIFEST} names the file {name!r}. {again}")
        if not file.is_file():
            raise CorruptBundleError(f"{file} is missing from the bundle. {again}")
        if (file.stat().st_size, _sha256(file)) != expected:
            raise CorruptBundleError(f"{file} is not what the manifest says. {again}")
    return dict(manifest)


def _save_model(model: OmicsModel, folder: Path) -> None:
    """Write what `save_pretrained` writes, without its progress bar."""
    from safetensors.torch import save_file

    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    weights = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def _manifest(folder: Path) -> bytes:
    files = {
        file.relative_to(folder).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": _sha256(file),
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    return _canonical({"format": FORMAT, "format_version": FORMAT_VERSION, "files": files})


def _canonical(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    write_bytes(file, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise CorruptBundleError(f"{file} is not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise CorruptBundleError(f"{file} holds no JSON object.")
    return value


def _local_folder(source: str | Path) -> Path:
    if isinstance(source, str) and source.startswith(HUB_PREFIX):
        return fetch_snapshot(source.removeprefix(HUB_PREFIX))
    path = Path(source)
    if not path.is_dir():
        raise MissingPathError(
            f"There is no bundle folder {path}. Give a folder that `omics-train` wrote (its run "
            f"folder has one named `bundle`), or `{HUB_PREFIX}owner/name` for the hub."
        )
    return path
