"""From a published checkpoint to a bundle, and back to the layout it came in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omics.data.atomic_files import new_folder, write_bytes
from omics.data.errors import InputDataError, UsageError
from omics.models.published.bioformers_checkpoint import (
    BODY,
    bioformers_keys_of,
    convert_bioformers,
)
from omics.models.published.bmfm_checkpoint import bmfm_keys_of, convert_bmfm
from omics.models.published.catalogue import CatalogueRow, catalogue_row
from omics.models.published.checkpoint_opening import (
    PUBLISHED,
    Checkpoint,
    ConversionOptions,
    open_checkpoint,
)
from omics.models.published.checkpoint_source import find_source
from omics.models.published.geneformer_checkpoint import convert_geneformer, geneformer_keys_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from omics.models.bundle import Bundle
    from omics.models.model_config import ModelConfig
    from omics.models.published.checkpoint_source import CheckpointSource
    from omics.models.published.weight_rows import KeyMap

# One more whenever the same files give another bundle: converted models that are kept go by it.
CONVERSION_VERSION = 1


@dataclass(frozen=True, slots=True)
class _Kind:
    """How the checkpoints of a kind are read, and how their keys are found again."""

    convert: Callable[[Checkpoint, ConversionOptions], Bundle]
    keys_of: Callable[[ModelConfig, Mapping[str, Any]], KeyMap]
    options: frozenset[str]


_KINDS = {
    "bmfm": _Kind(
        convert_bmfm, bmfm_keys_of, frozenset({"vocabulary", "genes", "label", "read_depth"})
    ),
    "geneformer": _Kind(convert_geneformer, geneformer_keys_of, frozenset({"table"})),
    "bioformers": _Kind(convert_bioformers, bioformers_keys_of, frozenset({"genes", "num_bins"})),
}


def convert_checkpoint(
    source: str | Path,
    *,
    known_as: str | None = None,
    options: ConversionOptions | None = None,
) -> Bundle:
    """Return the bundle of a published checkpoint. Nothing in the checkpoint is executed.

    Args:
        source: a file, a folder, `hf:owner/name` for the hub, or a name of the catalogue.
        known_as: a name of the catalogue or a kind (`bmfm`, `geneformer`, `bioformers`), which
            says how it is used where its place does not; None finds out.
        options: what the checkpoint may not say itself.

    Returns:
        A bundle that is not saved yet.

    Raises:
        InputDataError: the checkpoint is unsafe, damaged, not whole or of an unknown layout, or
            a vocabulary does not belong to it.
        MissingPathError: a file that is needed is not there.
        UsageError: an option is missing or has no use.
    """
    row = None if known_as is None else catalogue_row(known_as)
    return convert_source(find_source(source, row), options)


def convert_source(found: CheckpointSource, options: ConversionOptions | None = None) -> Bundle:
    """Return the bundle of a checkpoint whose files were found, as `convert_checkpoint` does.

    Args:
        found: its files, and what is known of it.
        options: what the checkpoint may not say itself.
    """
    weights, beside = open_checkpoint(found)
    row = found.row or CatalogueRow(name=(kind := _kind_of(weights.names)), kind=kind)
    if row.kind != _kind_of(weights.names):
        raise InputDataError(
            f"{weights.where} is not a checkpoint of the kind {row.kind!r}: its keys "
            f"({', '.join(weights.names[:2])}, ...) are those of {_kind_of(weights.names)!r}. "
            "Leave out --as, or name what it is."
        )
    options = options or ConversionOptions()
    for name in ("vocabulary", "table", "genes", "num_bins", "label", "read_depth"):
        if getattr(options, name) is not None and name not in _KINDS[row.kind].options:
            known = ", ".join(sorted(_flag(each) for each in _KINDS[row.kind].options))
            raise UsageError(
                f"{_flag(name)} has no use for {weights.where}, a checkpoint of the kind "
                f"{row.kind!r}, which takes {known}. Leave it out."
            )
    checkpoint = Checkpoint(source=found, row=row, weights=weights, beside=beside)
    return _KINDS[row.kind].convert(checkpoint, options)


def export_checkpoint(bundle: Bundle, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write the weights of a converted bundle in the layout they came in.

    The folder holds `model.safetensors`, `config.json` (what was read of it) and `keys.txt` (name
    and shape of each tensor). What a checkpoint held beside its own layout and is left out by
    conversion does not come back; token types of stock BERT come back as zeros, their one row in
    use being part of the positions.

    Args:
        bundle: made by `convert_checkpoint`; its weights may have been trained since.
        folder: to create.
        overwrite: replace a folder that is there.

    Returns:
        The folder.

    Raises:
        UsageError: the bundle was not converted from a published checkpoint.
        ExistingPathError: the folder exists and `overwrite` is not set.
    """
    from safetensors.torch import save_file

    record = bundle.provenance.get(PUBLISHED)
    if not isinstance(record, dict) or record.get("kind") not in _KINDS:
        raise UsageError(
            f"{bundle.path or 'The bundle'} was not converted from a published checkpoint, so there "
            "is no layout to go back to. Its own weights are in model.safetensors."
        )
    keys = _KINDS[record["kind"]].keys_of(bundle.model.model_config, record["layout"])
    written = keys.write(bundle.model.state_dict(), record["extras"])
    tensors = {f"{record['prefix']}{name}": each.contiguous() for name, each in written.items()}
    listed = "".join(f"{name}\t{tuple(each.shape)}\n" for name, each in tensors.items())
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder, overwrite=overwrite) as inside:
        save_file(tensors, inside / "model.safetensors", metadata={"format": "pt"})
        settings = json.dumps(record["settings"], indent=1)
        write_bytes(inside / "config.json", f"{settings}\n".encode())
        write_bytes(inside / "keys.txt", listed.encode())
    return folder


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _kind_of(names: list[str]) -> str:
    if any(name.startswith(BODY) for name in names):
        return "bioformers"
    return "geneformer" if any(name.startswith("bert.") for name in names) else "bmfm"
