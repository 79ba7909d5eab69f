from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from attribution_parts import Planted, planted
from scipy import sparse
from sklearn.model_selection import train_test_split

from omics.data.splits import SplitTable
from omics.eval.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from omics.models import Bundle

LABEL = "bulk_labels"


def split_of(adata: ad.AnnData, codes: Any) -> SplitTable:
    return SplitTable(
        cells=np.asarray(adata.obs_names.astype(str), dtype=object),
        codes=np.asarray(codes, np.int8),
        method={"kind": "random", "column": None},
        seed=0,
        store_digest="",
        gene_digest="",
    )


@pytest.fixture
def split_by() -> Callable[[ad.AnnData, Any], SplitTable]:
    """A split of cells by codes: 0 train, 1 validation, 2 test."""
    return split_of


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str, str]]:
    """Run `omics-eval` with arguments; gives exit code, output and errors."""

    def call(*arguments: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["omics-eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return call


@pytest.fixture(scope="session")
def real_cells() -> ad.AnnData:
    """700 PBMC with their counts, recovered from what scanpy ships."""
    source = sc.datasets.pbmc68k_reduced()
    rates = sparse.csr_matrix(source.raw.X).astype(np.float64)
    rates.data = np.expm1(rates.data)
    per_cell = np.asarray(source.obs["n_counts"], np.float64) / 1e4
    counts = sparse.csr_matrix(sparse.diags(per_cell) @ rates)
    assert np.abs(counts.data - np.rint(counts.data)).max() < 0.1
    counts.data = np.rint(counts.data)
    counts.eliminate_zeros()
    adata = ad.AnnData(
        counts.astype(np.float32),
        obs=source.obs[[LABEL]].copy(),
        var=pd.DataFrame(index=source.raw.var_names.astype(str)),
    )
    adata.obsm["X_omics"] = np.asarray(source.obsm["X_pca"], np.float32)
    adata.uns["omics"] = {"X_omics": {"bundle_digest": "ab" * 32}}
    return adata


@pytest.fixture
def pbmc(real_cells: ad.AnnData) -> ad.AnnData:
    return real_cells.copy()


@pytest.fixture(scope="session")
def pbmc_split(real_cells: ad.AnnData) -> SplitTable:
    labels = np.asarray(real_cells.obs[LABEL].astype(str))
    train, test = train_test_split(np.arange(700), test_size=0.2, stratify=labels, random_state=0)
    _, validation = train_test_split(train, test_size=0.125, stratify=labels[train], random_state=0)
    codes = np.zeros(700, np.int8)
    codes[validation], codes[test] = 1, 2
    return split_of(real_cells, codes)


@pytest.fixture
def clouds() -> Callable[..., tuple[Any, Any]]:
    """Points [n, d] around distinct corners, with their labels."""

    def make(num_cells: int = 90, num_classes: int = 3, spread: float = 0.3) -> tuple[Any, Any]:
        generator = np.random.default_rng(1)
        codes = np.arange(num_cells) % num_classes
        corners = 4 * np.eye(num_classes, 6)
        points = corners[codes] + spread * generator.normal(size=(num_cells, 6))
        return points.astype(np.float32), np.array([f"type {c}" for c in codes], dtype=object)

    return make


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained bundle that knows the genes G0 to G10."""
    from omics.data.transforms import LogNormalize, TopGenes
    from omics.models import Bundle, ModelConfig, OmicsModel
    from omics.models.model_config import FieldInput
    from omics.tokenizers import GeneTokenizer

    genes = [f"G{i}" for i in range(11)]
    config = ModelConfig(
        fields=(
            FieldInput(name="genes", encoder="embedding", vocabulary_size=len(genes) + 5),
            FieldInput(name="expression", encoder="mlp", vocabulary_size=5),
        ),
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=16,
        embedding_std=0.5,
    )
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    Bundle(
        model=OmicsModel.build(config, seed=0).eval(),
        tokenizer=GeneTokenizer.from_list(genes),
        transforms=[LogNormalize(), TopGenes(max_genes=8)],
    ).save(folder)
    return folder


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    from omics.models import Bundle

    return Bundle.load(bundle_folder)


@pytest.fixture(scope="session")
def planted_cells(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Cells whose types have marker genes, and a model that learned them."""
    return planted(tmp_path_factory.mktemp("planted"))
