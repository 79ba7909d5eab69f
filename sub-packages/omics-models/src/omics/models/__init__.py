"""Encoders, heads and verified bundles on flat tokens.

Names load on first use: torch is imported when a model is, not before.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omics.models.bundle import Bundle, CorruptBundleError
    from omics.models.gene_embedding import GeneEmbedding, embed_genes
    from omics.models.inference import (
        GeneVectors,
        InferenceBatch,
        embed_cells,
        run_cells,
        run_tokens,
    )
    from omics.models.model import OmicsModel
    from omics.models.model_config import ModelConfig, OmicsConfig
    from omics.models.outputs import ModelOutput
    from omics.models.ragged_layout import RaggedLayout
    from omics.models.readout import Readout

__all__ = [
    "Bundle",
    "CorruptBundleError",
    "GeneEmbedding",
    "GeneVectors",
    "InferenceBatch",
    "ModelConfig",
    "ModelOutput",
    "OmicsConfig",
    "OmicsModel",
    "RaggedLayout",
    "Readout",
    "embed_cells",
    "embed_genes",
    "run_cells",
    "run_tokens",
]

_MODULE_OF = {
    "Bundle": "bundle",
    "CorruptBundleError": "bundle",
    "GeneEmbedding": "gene_embedding",
    "GeneVectors": "inference",
    "InferenceBatch": "inference",
    "ModelConfig": "model_config",
    "ModelOutput": "outputs",
    "OmicsConfig": "model_config",
    "OmicsModel": "model",
    "RaggedLayout": "ragged_layout",
    "Readout": "readout",
    "embed_cells": "inference",
    "embed_genes": "gene_embedding",
    "run_cells": "inference",
    "run_tokens": "inference",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
