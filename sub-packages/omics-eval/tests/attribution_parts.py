"""Planted cells and small models for the tests of attribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omics.data import convert, synthesize
from omics.data.transforms import LogNormalize
from omics.models import Bundle, ModelConfig, OmicsModel
from omics.models.inference import token_batches
from omics.models.model_config import FieldInput, LabelHeadConfig
from omics.tokenizers import GeneTokenizer, LabelSpec

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad

    from omics.data import CellStore

NUM_GENES = 120


@dataclass(frozen=True, slots=True)
class Planted:
    """Cells whose types have marker genes, and a model that tells the types apart."""

    adata: ad.AnnData
    store: CellStore
    bundle: Bundle

    def markers(self, type_name: str) -> set[str]:
        return set(self.adata.var_names[self.adata.var["marker_of"] == type_name])


def gene_config(num_genes: int, **changes: Any) -> ModelConfig:
    """A model of genes and their values, small and quick to train."""
    settings: dict[str, Any] = {
        "fields": (
            FieldInput(name="genes", encoder="embedding", vocabulary_size=num_genes + 5),
            FieldInput(name="expression", encoder="mlp", vocabulary_size=5, scaled_by="genes"),
        ),
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "intermediate_size": 16,
        "embedding_std": 0.05,
        "dropout": 0.0,
        "pooling": "mean",
    }
    return ModelConfig(**{**settings, **changes})


def bundle_of(
    genes: list[str], labels: list[LabelSpec], *, seed: int = 0, **changes: Any
) -> Bundle:
    """An untrained bundle with label heads, and no field that training hid."""
    heads = tuple(LabelHeadConfig(name=spec.name, num_classes=spec.num_outputs) for spec in labels)
    config = gene_config(len(genes), labels=heads, **changes)
    return Bundle(
        model=OmicsModel.build(config, seed=seed, backend="padded").eval(),
        tokenizer=GeneTokenizer.from_list(genes),
        transforms=[LogNormalize()],
        label_specs=labels,
    )


def fit(bundle: Bundle, store: CellStore, column: str, *, steps: int) -> None:
    """Train a bundle to classify all cells of a store."""
    (spec,) = bundle.label_specs
    codes = torch.from_numpy(spec.encode(np.asarray(store.obs[column])))
    _, batches = token_batches(bundle, store, batch_tokens=10**6)
    (batch,) = list(batches)
    tokens = batch.to_torch()
    model = bundle.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model(tokens).labels[column]
        torch.nn.functional.cross_entropy(logits, codes).backward()
        optimizer.step()
    model.eval()


def planted(folder: Path) -> Planted:
    """400 cells of three types, and a bundle that learned them."""
    adata = synthesize(400, NUM_GENES, num_types=3, mean_genes=40, seed=5)
    adata.write_h5ad(folder / "cells.h5ad")
    store = convert(folder / "cells.h5ad", folder / "cells.store")
    types = sorted(set(adata.obs["cell_type"]))
    spec = LabelSpec(name="cell_type", classes=tuple(types))
    bundle = bundle_of(list(adata.var_names), [spec])
    fit(bundle, store, "cell_type", steps=40)
    bundle.save(folder / "bundle")
    return Planted(adata=adata, store=store, bundle=Bundle.load(folder / "bundle"))
