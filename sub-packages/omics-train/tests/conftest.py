"""A small atlas with planted types, made once: store, split, pretrained and fine-tuned bundles."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from run_parts import SMALL, compose

from omics.data.converting.conversion import convert
from omics.data.splits import make_split
from omics.data.synthetic import synthesize
from omics.train.train_run import train

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Return the paths of an h5ad, its store and a split."""
    folder = tmp_path_factory.mktemp("atlas")
    adata = synthesize(200, 80, num_types=3, seed=3)
    adata.obs["donor3"] = [f"d{i % 3}" for i in range(adata.n_obs)]
    adata.write_h5ad(folder / "cells.h5ad")
    store = convert(folder / "cells.h5ad", folder / "cells.store")
    split = make_split(store, stratify="cell_type", seed=0)
    split.save(folder / "split.parquet")
    whole = make_split(store, fractions=(0.8, 0.0, 0.2), seed=0)
    whole.save(folder / "no_validation.parquet")
    return SimpleNamespace(
        folder=folder,
        h5ad=folder / "cells.h5ad",
        store=folder / "cells.store",
        split=folder / "split.parquet",
        no_validation=folder / "no_validation.parquet",
        cells=[f"input_file={folder}/cells.store", f"data_module.split={folder}/split.parquet"],
    )


@pytest.fixture(scope="session")
def pretrained(atlas: SimpleNamespace) -> Path:
    """Return a run folder with a pretrained bundle."""
    folder: Path = atlas.folder / "pretrain"
    train(compose("pretrain", [*atlas.cells, f"working_dir={folder}", *SMALL]), folder)
    return folder


@pytest.fixture(scope="session")
def finetuned(atlas: SimpleNamespace, pretrained: Path) -> Path:
    """Return a run folder with a bundle that classifies cell types."""
    folder: Path = atlas.folder / "finetune"
    overrides = [
        *atlas.cells,
        f"working_dir={folder}",
        f"checkpoint={pretrained}/bundle",
        "label_columns=[cell_type]",
        "trainer.max_epochs=6",
    ]
    train(compose("finetune", overrides), folder)
    return folder
