"""Which cells a run reads, and their label columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data import locate_dataset
from omics.data.errors import ConfigError, UnknownNameError, nearest
from omics.data.splits import load_split

if TYPE_CHECKING:
    from omics.data.storage.store import CellStore
    from omics.train.run_config import DataConfig, RunConfig

Array = np.ndarray[Any, np.dtype[Any]]


def data_path(config: RunConfig) -> str:
    """Return the path of the cells.

    Args:
        config: of the run.

    Raises:
        ConfigError: none is set.
        UnknownNameError: there is no such dataset.
        MissingPathError: there is no copy of the dataset; says what to get, and where.
        InputDataError: the copy is not what was published.
    """
    path = config.data_module.path or config.input_file
    if config.data_module.dataset is not None:
        return str(locate_dataset(config.data_module.dataset, path))
    if path is None:
        raise ConfigError("No cells are given: add input_file=STORE (or an .h5ad).")
    return path


def training_rows(data: DataConfig, store: CellStore) -> dict[str, Array]:
    """Return `{"train": rows, "validation": rows}`.

    Args:
        data: without a split, all cells train.
        store: the cells.

    Raises:
        ConfigError: no cell to train on.
    """
    if data.split is None:
        rows = {"train": np.arange(len(store), dtype=np.int64), "validation": np.zeros(0, np.int64)}
    else:
        table = load_split(data.split, store)
        rows = {
            "train": table.rows(data.train_split),
            "validation": table.rows(data.validation_split),
        }
    if not len(rows["train"]):
        raise ConfigError(f"There are no cells to train on in {data.split or store.path}.")
    return rows


def inference_rows(data: DataConfig, store: CellStore, *, default: str | None) -> Array:
    """Return the rows that `test` or `predict` reads.

    Args:
        data: with `predict_split`.
        store: the cells.
        default: the split taken where none is named; None means all cells.

    Raises:
        ConfigError: a split is named but there is no table of splits, or no cell is left.
    """
    name = data.predict_split or default
    if name is None:
        rows = np.arange(len(store), dtype=np.int64)
    elif data.split is None:
        raise ConfigError(
            f"data_module.split is not set: give the split table that says which cells are {name}."
        )
    else:
        rows = load_split(data.split, store).rows(name)
    if not len(rows):
        where = store.path if name is None else f"the split {name!r} of {data.split}"
        raise ConfigError(f"There are no cells in {where}: nothing can be predicted.")
    return rows


def label_values(store: CellStore, name: str) -> Array:
    """Return [n] values of an obs column.

    Args:
        store: the cells.
        name: the column.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in store.obs.columns:
        raise UnknownNameError(
            f"{store.path} has no obs column {name!r}.{nearest(name, list(store.obs.columns))}"
        )
    return np.asarray(store.obs[name])
