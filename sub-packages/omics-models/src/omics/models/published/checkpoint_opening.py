"""`Checkpoint`: an open checkpoint of any kind, and the bundle that its parts become."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from omics.data.errors import ConfigError, InputDataError
from omics.models.bundle import Bundle
from omics.models.model import OmicsModel
from omics.models.model_config import OmicsConfig
from omics.models.published.weight_files import read_weight_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from omics.data.transforms import Transform
    from omics.models.model_config import ModelConfig
    from omics.models.published.catalogue import CatalogueRow
    from omics.models.published.checkpoint_source import CheckpointSource
    from omics.models.published.weight_files import UnwrappedWeights
    from omics.models.published.weight_rows import KeyMap
    from omics.tokenizers import Tokenizer

# Under this key the provenance of a bundle says what it was converted from, and how to go back.
PUBLISHED = "published"
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionOptions:
    """What the user knows and a checkpoint may not say.

    Attributes:
        vocabulary: a folder with `tokenizers/genes/tokenizer.json`, `genes/tokenizer.json` or a
            `tokenizer.json` of genes, for a bmfm checkpoint that does not have it beside it.
        table: of gene tokens (`ensembl_id, symbol, token_id, median`), for Geneformer.
        genes: a list of genes: the panel, in its order, of Bioformers; what a bmfm model is shown.
        num_bins: of Bioformers, that of zeros included.
        label: what a single classifier predicts.
        read_depth: the total count that a read-depth-aware model is asked for; None for 10,000.
        on_progress: called with 1 for each parameter that was read.
    """

    vocabulary: Path | None = None
    table: Path | None = None
    genes: Path | None = None
    num_bins: int | None = None
    label: str | None = None
    read_depth: int | None = None
    on_progress: Callable[[int], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An open checkpoint.

    Attributes:
        source: its files.
        row: what is said of it.
        weights: its tensors.
        beside: what a trainer saved with them.
    """

    source: CheckpointSource
    row: CatalogueRow
    weights: UnwrappedWeights
    beside: Mapping[str, Any]

    def bundle(
        self,
        config: ModelConfig,
        keys: KeyMap,
        *,
        layout: Mapping[str, Any],
        tokenizer: Tokenizer,
        transforms: Sequence[Transform],
        labels: Mapping[str, Sequence[str]],
        settings: Mapping[str, Any],
        on_progress: Callable[[int], None] | None = None,
    ) -> Bundle:
        """Return the bundle of its parts.

        Args:
            config: of the model.
            keys: the map of its keys.
            layout: what is needed to make that map again.
            tokenizer: that the weights belong to.
            transforms: its preprocessing.
            labels: classes of each label.
            settings: its own configuration, which goes back with it.
            on_progress: called with 1 for each parameter that was read.

        Raises:
            InputDataError: weights and configuration do not fit each other.
        """
        return Bundle(
            model=fill_model(config, keys, self.weights, on_progress),
            tokenizer=tokenizer,
            transforms=transforms,
            labels=labels,
            provenance={
                PUBLISHED: {
                    "kind": self.row.kind,
                    "name": self.row.name,
                    "source": self.source.given,
                    "file": self.source.weights.name,
                    "sha256": _sha256(self.source.weights),
                    "licence": self.row.licence or "see the source",
                    "prefix": self.weights.prefix,
                    "layout": dict(layout),
                    "extras": keys.extras(self.weights.names),
                    "left_out": keys.left_out_of(self.weights.names),
                    "settings": dict(settings),
                }
            },
        )


def open_checkpoint(source: CheckpointSource) -> tuple[UnwrappedWeights, Mapping[str, Any]]:
    """Return the weights of a checkpoint and what was saved beside them.

    Args:
        source: its files.

    Raises:
        UnsafeCheckpointError: it holds more than data.
        DamagedCheckpointError: it is damaged or of another kind.
    """
    file = read_weight_file(source.weights)
    return file.weights, file.beside


def fill_model(
    config: ModelConfig,
    keys: KeyMap,
    weights: UnwrappedWeights,
    on_progress: Callable[[int], None] | None = None,
) -> OmicsModel:
    """Return a model with the weights of a checkpoint, float32, in evaluation mode.

    Its parameters are the tensors that were read: there is no second copy.

    Args:
        config: of the model.
        keys: the map of the checkpoint's keys.
        weights: its tensors.
        on_progress: called with 1 for each parameter that was read.

    Raises:
        InputDataError: weights and configuration do not fit each other.
    """
    model = empty_model(config)
    shapes = {name: tuple(each.shape) for name, each in model.state_dict().items()}
    model.load_state_dict(keys.read(weights, shapes, on_progress), assign=True)
    return model.eval()


def empty_model(config: ModelConfig) -> OmicsModel:
    """Return a model without memory for its weights (torch's device `meta`).

    Args:
        config: of the model.

    Raises:
        InputDataError: there is no model of these sizes.
    """
    try:
        with torch.device("meta"):
            return OmicsModel(OmicsConfig(model=config.to_dict()))
    except (RuntimeError, OverflowError) as error:
        raise InputDataError(f"There is no model of these sizes: {error}") from error


def checked_config(make: Callable[[], ModelConfig], where: str) -> ModelConfig:
    """Return the configuration that a checkpoint describes.

    Args:
        make: reads it.
        where: what it lies in, for messages.

    Raises:
        InputDataError: it contradicts itself.
    """
    try:
        return make()
    except ConfigError as error:
        raise InputDataError(f"{where} describes no model: {error}") from error


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
