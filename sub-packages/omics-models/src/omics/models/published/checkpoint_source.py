"""Where a checkpoint lies: a file, a folder, or a repository of the Hugging Face hub.

- Only the files that are read are fetched, by pattern; code of a repository is never among them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from omics.data.errors import InputDataError, MissingPathError, UsageError, nearest
from omics.models.hub_snapshot import HUB_PREFIX, fetch_snapshot
from omics.models.published.catalogue import CatalogueRow, catalogue, catalogue_row, row_of_hub
from omics.models.published.weight_files import ARCHIVE_SUFFIXES, SAFETENSORS_SUFFIX

CONFIG = "config.json"
_HUB_NAME = re.compile(r"[A-Za-z0-9_.-]{1,96}/[A-Za-z0-9_.-]{1,96}(/[A-Za-z0-9_.-]{1,96}){0,3}")
_DEFAULT_FILES = (
    "*.ckpt", "model.safetensors", CONFIG, "checkpoint_metadata.json",
    "tokenizers/*",
)  # fmt: skip
_OLD_WEIGHTS = "pytorch_model.bin"
# The dictionaries of Geneformer lie beside the folders of its checkpoints.
_DICTIONARIES = ("geneformer/*.pkl", "geneformer/gene_dictionaries_30m/*.pkl")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSource:
    """The files of a checkpoint on this machine.

    Attributes:
        given: as the user named it.
        weights: the file with the weights.
        folder: where its other files lie.
        config: its `config.json`; None if there is none.
        row: what the catalogue says of it; None if nothing.
    """

    given: str
    weights: Path
    folder: Path
    config: Path | None
    row: CatalogueRow | None


def find_source(given: str | Path, row: CatalogueRow | None = None) -> CheckpointSource:
    """Return the files of a checkpoint, fetched from the hub if need be.

    Args:
        given: a file, a folder, `hf:owner/name` (with a folder of the repository after another
            slash), or a name of the catalogue.
        row: what the user says it is; None for what its place says.

    Raises:
        MissingPathError: there is no such file or folder, or it holds no weights.
        UsageError: it is a file of another kind, or not the name of a repository.
        InputDataError: the hub does not have it or cannot be reached.
    """
    text = str(given)
    if not Path(text).exists() and text in catalogue():
        row = catalogue_row(text) if row is None else row
        named = catalogue_row(text)
        if not named.hub:
            raise UsageError(
                f"{text} lies on no hub: convert the file with its weights by `omics-models convert "
                f"FILE OUT --as {text}`."
            )
        text = f"{HUB_PREFIX}{named.hub}/{named.folder}".rstrip("/")
    if text.startswith(HUB_PREFIX):
        return _from_hub(text, row)
    path = Path(text)
    if path.is_dir():
        return _in_folder(text, path, row)
    if not path.is_file():
        raise MissingPathError(
            f"There is no checkpoint {path}. Give a file, a folder, {HUB_PREFIX}owner/name for the "
            f"hub, or a name of the catalogue.{nearest(text, list(catalogue()))}"
        )
    if path.suffix not in (*ARCHIVE_SUFFIXES, SAFETENSORS_SUFFIX):
        raise UsageError(
            f"{path} ends with {path.suffix!r}; weights are read from "
            f"{', '.join((*ARCHIVE_SUFFIXES, SAFETENSORS_SUFFIX))}."
        )
    return _of_file(text, path, row)


def parts_of_hub_name(text: str) -> tuple[str, str]:
    """Return the repository `owner/name` of a name of the hub, and the folder inside it or nothing.

    Args:
        text: `hf:owner/name`, or with a folder after another slash.

    Raises:
        UsageError: it is not the name of a repository.
    """
    name = text.removeprefix(HUB_PREFIX)
    if not _HUB_NAME.fullmatch(name) or ".." in name:
        raise UsageError(f"{text} is not {HUB_PREFIX}owner/name, as the hub names repositories.")
    owner, repository, *inner = name.split("/")
    return f"{owner}/{repository}", "/".join(inner)


def _from_hub(text: str, row: CatalogueRow | None) -> CheckpointSource:
    repo_id, folder = parts_of_hub_name(text)
    row = row_of_hub(repo_id, folder) if row is None else row
    before = f"{folder}/" if folder else ""
    wanted = row.files if row is not None and row.files else _DEFAULT_FILES
    patterns = [f"{before}{each}" for each in dict.fromkeys((*wanted, *_DEFAULT_FILES))]
    if row is None or row.kind == "geneformer":
        patterns += _DICTIONARIES
    place = fetch_snapshot(repo_id, patterns) / folder
    if _weights_in(place) is None:
        place = fetch_snapshot(repo_id, [*patterns, f"{before}{_OLD_WEIGHTS}"]) / folder
    if not place.is_dir():
        raise InputDataError(f"{HUB_PREFIX}{repo_id} has no folder {folder!r} with a checkpoint.")
    return _in_folder(text, place, row)


def _in_folder(text: str, folder: Path, row: CatalogueRow | None) -> CheckpointSource:
    weights = _weights_in(folder)
    if weights is None:
        raise MissingPathError(
            f"{text} holds no weights: a *.ckpt, a model.safetensors or a {_OLD_WEIGHTS}. Give the "
            "folder of one checkpoint, or the file itself."
        )
    return _of_file(text, weights, row)


def _weights_in(folder: Path) -> Path | None:
    archives = sorted(folder.glob("*.ckpt"))
    named = [folder / "model.safetensors", folder / _OLD_WEIGHTS]
    return next((path for path in (*archives, *named) if path.is_file()), None)


def _of_file(text: str, weights: Path, row: CatalogueRow | None) -> CheckpointSource:
    beside = (weights.with_name(f"{weights.stem}.{CONFIG}"), weights.with_name(CONFIG))
    config = next((path for path in beside if path.is_file()), None)
    return CheckpointSource(
        given=text, weights=weights, folder=weights.parent, config=config, row=row
    )
