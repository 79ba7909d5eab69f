"""`open_model`: a model by its folder or name; a published checkpoint is converted once and kept.

- A bundle is loaded as it is, from its folder or the hub. What `omics-models convert` reads (a file,
  a folder, a repository of the hub, a name of the catalogue) becomes a bundle in a cache.
- The cache is `$OMICS_CACHE`, or `omics` in the user's folder of caches. An entry goes by what the
  catalogue says of the checkpoint, the digest of every file that a conversion may read, and the
  version of the conversion: a new revision of a repository is a new entry.
- Entries appear whole or not at all. Of two processes that convert at once one wins, and the other
  takes what is there. A damaged entry is found by its digests, told of, and made again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from omics.data.errors import (
    ExistingPathError,
    InputDataError,
    MissingPathError,
    OmicsWarning,
    UsageError,
    nearest,
)
from omics.models.bundle import FORMAT_VERSION, MANIFEST, Bundle, CorruptBundleError
from omics.models.hub_snapshot import HUB_PREFIX, fetch_snapshot
from omics.models.published.bmfm_checkpoint import METADATA
from omics.models.published.catalogue import catalogue, row_of_hub
from omics.models.published.checkpoint_conversion import CONVERSION_VERSION, convert_source
from omics.models.published.checkpoint_opening import ConversionOptions
from omics.models.published.checkpoint_source import find_source, parts_of_hub_name
from omics.models.published.geneformer_checkpoint import DICTIONARY_NAMES, dictionary_places

if TYPE_CHECKING:
    from collections.abc import Callable

    from omics.models.published.checkpoint_source import CheckpointSource

CACHE_VARIABLE = "OMICS_CACHE"
# What a folder of a bundle holds and that of a published checkpoint does not.
_SIGNS_OF_A_BUNDLE = (MANIFEST, "preprocessing.json", "labels.json", "provenance.json")
_KEY_DIGITS = 16
_MAX_NAME = 64
# A folder that another process put there, or took away to put a better one there.
_ANOTHER_WAS_FIRST = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT})


def open_model(
    model: Bundle | str | Path, *, on_convert: Callable[[str], Callable[[int], None]] | None = None
) -> Bundle:
    """Return the bundle that is meant, made of a published checkpoint if need be.

    Args:
        model: a loaded bundle; the folder of a bundle; a file or folder of a published checkpoint;
            `hf:owner/name` of either (with a folder of the repository after another slash); or a
            name of the catalogue.
        on_convert: called with a name before a checkpoint is converted, which takes a while; gives
            a function that is called with 1 for each parameter that was read.

    Raises:
        MissingPathError: there is no such folder, file or name; the message has the nearest.
        UsageError: the checkpoint lies on no hub, or must be told more than its files say.
        InputDataError: the hub cannot be reached, or the checkpoint cannot be converted.
        CorruptBundleError: the folder is a bundle that is damaged.
    """
    if isinstance(model, Bundle):
        return model
    text, path = str(model), Path(model)
    if path.is_dir():
        if any((path / name).is_file() for name in _SIGNS_OF_A_BUNDLE):
            return Bundle.load(path)
        if (path / "bundle" / MANIFEST).is_file():
            raise MissingPathError(f"{path} is no bundle, but holds one: give {path / 'bundle'}.")
    elif text.startswith(HUB_PREFIX):
        if _is_bundle_of_hub(text):
            return Bundle.load(text)
    elif not path.is_file() and text not in catalogue():
        hint = "" if os.sep in text else nearest(text, list(catalogue()))
        raise MissingPathError(
            f"There is no model {text}: neither a folder or file, nor a name that `omics-models list` "
            f"shows.{hint} Give a bundle (a run folder of `omics-train` has one named `bundle`), a "
            f"published checkpoint, `{HUB_PREFIX}owner/name`, or a name of the list."
        )
    elif path.is_file() and (path.parent / MANIFEST).is_file():
        raise MissingPathError(f"{path} is a part of a bundle: give the whole, {path.parent}.")
    source = find_source(text)
    entry = _entry_of(source)
    damaged = False
    if entry.exists():
        try:
            return Bundle.load(entry)
        except CorruptBundleError:
            damaged = True
            warnings.warn(
                f"The model that was kept in {entry} is damaged: it is converted again.",
                OmicsWarning,
                stacklevel=2,
            )
    options = ConversionOptions(
        on_progress=None if on_convert is None else on_convert(_name_of(source))
    )
    bundle = _converted(source, options)
    try:
        return bundle.save(entry, overwrite=damaged)
    except OSError as error:
        if not isinstance(error, ExistingPathError) and error.errno not in _ANOTHER_WAS_FIRST:
            raise
        return Bundle.load(entry)


def cache_folder() -> Path:
    """Return the folder where converted models are kept: `$OMICS_CACHE`, or one of the user."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given)
    users = os.environ.get("XDG_CACHE_HOME")
    return (Path(users) if users else Path.home() / ".cache") / "omics"


def model_name(model: Bundle | str | Path) -> str:
    """Return what a model is called in records: its name, or the last part of its path.

    Args:
        model: as given to `open_model`.
    """
    if isinstance(model, Bundle):
        return "" if model.path is None else model.path.name
    return Path(model).name if Path(model).exists() else str(model)


def _is_bundle_of_hub(text: str) -> bool:
    repo_id, folder = parts_of_hub_name(text)
    if folder or row_of_hub(repo_id, folder) is not None:
        return False
    return (fetch_snapshot(repo_id, [MANIFEST]) / MANIFEST).is_file()


def _converted(source: CheckpointSource, options: ConversionOptions) -> Bundle:
    try:
        return convert_source(source, options)
    except (UsageError, MissingPathError, InputDataError) as error:
        if "--" not in str(error):
            raise
        raise type(error)(
            f"{error} These are options of `omics-models convert`: convert the checkpoint with it, "
            "and give the bundle."
        ) from error


def _name_of(source: CheckpointSource) -> str:
    """Return what a checkpoint is called, fit for the name of a folder."""
    named = source.row.name if source.row is not None else source.given.rstrip("/")
    own = named.removeprefix(HUB_PREFIX) if named.startswith(HUB_PREFIX) else Path(named).name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", own).strip(".-")[-_MAX_NAME:] or "model"


def _entry_of(source: CheckpointSource) -> Path:
    key = hashlib.sha256()
    said = None if source.row is None else source.row.to_dict()
    made_by = [CONVERSION_VERSION, FORMAT_VERSION, version("omics-models")]
    key.update(json.dumps([said, made_by], sort_keys=True).encode())
    for file in _files_read(source):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        key.update(f"\0{file.parent.name}/{file.name}\0{digest}".encode())
    folder = f"{_name_of(source)}-{key.hexdigest()[:_KEY_DIGITS]}"
    return cache_folder() / "models" / folder


def _files_read(source: CheckpointSource) -> list[Path]:
    """Return the weights and all files beside them that a conversion may read."""
    beside = [
        *([] if source.config is None else [source.config]),
        source.folder / METADATA,
        *sorted((source.folder / "tokenizers").rglob("*")),
    ]
    for place in dictionary_places(source.folder):
        for name in DICTIONARY_NAMES:
            beside += sorted(place.glob(f"{name}*.pkl"))
    return [source.weights, *(file for file in beside if file.is_file())]
