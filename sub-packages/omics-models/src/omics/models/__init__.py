"""Encoders, heads and verified bundles on flat tokens.

Names load on first use: torch is imported when a model is, not before.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omics.models.bundle import Bundle, CorruptBundleError
    from omics.models.bundle_card import model_card
    from omics.models.gene_embedding import GeneEmbedding, embed_genes
    from omics.models.hf_attention import register_attention
    from omics.models.inference import (
        GeneVectors,
        InferenceBatch,
        embed_cells,
        field_outputs,
        reasons_of_cells,
        run_cells,
        run_tokens,
        token_batches,
    )
    from omics.models.model import OmicsModel
    from omics.models.model_by_name import open_model
    from omics.models.model_config import ModelConfig, OmicsConfig
    from omics.models.outputs import ModelOutput, ScoreRows
    from omics.models.published.catalogue import CatalogueRow, catalogue
    from omics.models.published.checkpoint_conversion import (
        convert_checkpoint,
        export_checkpoint,
    )
    from omics.models.published.checkpoint_opening import ConversionOptions
    from omics.models.published.pickle_values import (
        DamagedCheckpointError,
        UnsafeCheckpointError,
    )
    from omics.models.ragged_layout import AskedTokens, RaggedLayout
    from omics.models.readout import Readout

__all__ = [
    "AskedTokens",
    "Bundle",
    "CatalogueRow",
    "ConversionOptions",
    "CorruptBundleError",
    "DamagedCheckpointError",
    "GeneEmbedding",
    "GeneVectors",
    "InferenceBatch",
    "ModelConfig",
    "ModelOutput",
    "OmicsConfig",
    "OmicsModel",
    "RaggedLayout",
    "Readout",
    "ScoreRows",
    "UnsafeCheckpointError",
    "catalogue",
    "convert_checkpoint",
    "embed_cells",
    "embed_genes",
    "export_checkpoint",
    "field_outputs",
    "model_card",
    "open_model",
    "reasons_of_cells",
    "register_attention",
    "run_cells",
    "run_tokens",
    "token_batches",
]

_MODULE_OF = {
    "AskedTokens": "ragged_layout",
    "Bundle": "bundle",
    "CatalogueRow": "published.catalogue",
    "ConversionOptions": "published.checkpoint_opening",
    "CorruptBundleError": "bundle",
    "DamagedCheckpointError": "published.pickle_values",
    "GeneEmbedding": "gene_embedding",
    "GeneVectors": "inference",
    "InferenceBatch": "inference",
    "ModelConfig": "model_config",
    "ModelOutput": "outputs",
    "OmicsConfig": "model_config",
    "OmicsModel": "model",
    "RaggedLayout": "ragged_layout",
    "Readout": "readout",
    "ScoreRows": "outputs",
    "UnsafeCheckpointError": "published.pickle_values",
    "catalogue": "published.catalogue",
    "convert_checkpoint": "published.checkpoint_conversion",
    "embed_cells": "inference",
    "embed_genes": "gene_embedding",
    "export_checkpoint": "published.checkpoint_conversion",
    "field_outputs": "inference",
    "model_card": "bundle_card",
    "open_model": "model_by_name",
    "reasons_of_cells": "inference",
    "register_attention": "hf_attention",
    "run_cells": "inference",
    "run_tokens": "inference",
    "token_batches": "inference",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
