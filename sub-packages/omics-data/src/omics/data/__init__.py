"""Memory-mapped single-cell stores: check, convert, split and load raw counts.

- Names are loaded on first use (PEP 562): importing this package costs no heavy library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omics.data.cell_batch import CellBatch
    from omics.data.converting.check import check_file
    from omics.data.converting.conversion import convert
    from omics.data.converting.source_listing import SourceSpec
    from omics.data.errors import OmicsError
    from omics.data.genes import GeneTable
    from omics.data.loading.loader import Loader
    from omics.data.matching.gene_matching import GeneOptions, match_genes
    from omics.data.preparation import Preparation, prepare
    from omics.data.published_datasets import Dataset, locate_dataset, read_datasets
    from omics.data.sharding.shard_loader import ShardLoader
    from omics.data.sharding.shard_writer import write_shards
    from omics.data.sharding.shards import open_shards
    from omics.data.splits import load_split, make_split
    from omics.data.storage.store import CellStore, open_store
    from omics.data.storage.store_collection import StoreCollection, open_collection
    from omics.data.storage.store_writer import StoreWriter
    from omics.data.synthetic import synthesize

__all__ = ["CellBatch", "CellStore", "Dataset", "GeneOptions", "GeneTable", "Loader", "OmicsError", "Preparation", "ShardLoader", "SourceSpec", "StoreCollection", "StoreWriter", "check_file", "convert", "load_split", "locate_dataset", "make_split", "match_genes", "open_collection", "open_shards", "open_store", "prepare", "read_datasets", "synthesize", "write_shards"]  # fmt: skip

_MODULES = {"CellBatch": "cell_batch", "CellStore": "storage.store", "Dataset": "published_datasets", "GeneOptions": "matching.gene_matching", "GeneTable": "genes", "Loader": "loading.loader", "OmicsError": "errors", "Preparation": "preparation", "ShardLoader": "sharding.shard_loader", "SourceSpec": "converting.source_listing", "StoreCollection": "storage.store_collection", "StoreWriter": "storage.store_writer", "check_file": "converting.check", "convert": "converting.conversion", "load_split": "splits", "locate_dataset": "published_datasets", "make_split": "splits", "match_genes": "matching.gene_matching", "open_collection": "storage.store_collection", "open_shards": "sharding.shards", "open_store": "storage.store", "prepare": "preparation", "read_datasets": "published_datasets", "synthesize": "synthetic", "write_shards": "sharding.shard_writer"}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"omics.data.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'omics.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
