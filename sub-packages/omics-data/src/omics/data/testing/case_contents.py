"""`store_cases`: the contents of small stores that together use everything the format has.

- A case is data, not a file: what any reader must find, whoever wrote the store.
- The same cases every time: numbers come from a fixed seed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]

_BLOCK_CELLS = 7


@dataclass(frozen=True, kw_only=True, eq=False)
class StoreCase:
    """What is in a store.

    Attributes:
        name: of the case.
        about: what is special about it, half a sentence.
        indptr: int64 [n + 1], where each cell begins.
        genes: int64 [nnz], positions of genes, ascending within a cell.
        values: [nnz], int64 counts from 1 to 2**32 - 1, or float32 values other than zero.
        obs: the cell table, n rows; its index holds the names.
        var: the gene table; its index holds the ids.
        value_kind: `counts` or `float`.
        layout: `plain` or `packed`.
        rank_medians: medians by gene id if the store has a rank view, else None.
        provenance: plain JSON.
    """

    name: str
    about: str
    indptr: Array
    genes: Array
    values: Array
    obs: pd.DataFrame
    var: pd.DataFrame
    value_kind: str = "counts"
    layout: str = "plain"
    rank_medians: Mapping[str, float] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """Cells, genes."""
        return len(self.obs), len(self.var)

    def dense(self) -> Array:
        """Return the values as a dense array [cells, genes]; int64 or float32."""
        dense = np.zeros(self.shape, self.values.dtype)
        cells = np.repeat(np.arange(self.shape[0]), np.diff(self.indptr))
        dense[cells, self.genes] = self.values
        return dense


def store_cases() -> Iterator[StoreCase]:
    """Make the contents of all test stores, one after the other.

    Yields:
        Some twenty cases, each with a name of its own; all are small (at most some MB).
    """
    for name, (about, make) in _CASES.items():
        yield make(name=name, about=about)


def write_case(case: StoreCase, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a case as a store, with the writer of this package.

    Args:
        case: what to write.
        path: the folder to create.
        overwrite: write a new generation of the store that is there.
    """
    from omics.data.storage.store_writer import StoreWriter

    with StoreWriter(
        path,
        genes_frame=case.var,
        value_kind=case.value_kind,
        layout=case.layout,
        rank_medians=case.rank_medians,
        overwrite=overwrite,
        provenance=dict(case.provenance),
    ) as writer:
        for first in range(0, case.shape[0], _BLOCK_CELLS):
            indptr = case.indptr[first : first + _BLOCK_CELLS + 1]
            part = slice(int(indptr[0]), int(indptr[-1]))
            writer.append(indptr - indptr[0], case.genes[part], case.values[part])
        writer.finish(case.obs)


# --- the contents --------------------------------------------------------------------------------


def _plain_obs(num_cells: int) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(index=pd.Index([f"cell{row}" for row in range(num_cells)], dtype=object))


def _of_dense(dense: Array, *, name: str, about: str, **others: Any) -> StoreCase:
    import pandas as pd

    cells, genes = np.nonzero(dense)
    lengths = np.bincount(cells, minlength=len(dense))
    var = pd.DataFrame(index=pd.Index([f"gene{n}" for n in range(dense.shape[1])], dtype=object))
    return StoreCase(
        name=name,
        about=about,
        indptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        genes=genes.astype(np.int64),
        values=dense[cells, genes],
        **{"obs": _plain_obs(len(dense)), "var": var, **others},
    )


def _counts(
    num_cells: int, num_genes: int, *, largest: int = 40, density: float = 0.3, seed: int = 0
) -> Array:
    random = np.random.default_rng(seed)
    counts = random.integers(1, largest + 1, (num_cells, num_genes))
    return np.where(random.random((num_cells, num_genes)) < density, counts, 0)


def _ordinary(*, name: str, about: str) -> StoreCase:
    provenance = {"source": {"name": "Zellen é.h5ad"}, "note": ['"', "\\", "\n", 1.5, None, True]}
    return _of_dense(_counts(30, 20), name=name, about=about, provenance=provenance)


def _shape(shape: tuple[int, int], *, name: str, about: str) -> StoreCase:
    return _of_dense(np.zeros(shape, np.int64), name=name, about=about)


def _one(*, name: str, about: str) -> StoreCase:
    return _of_dense(np.ones((1, 1), np.int64), name=name, about=about)


def _empty_cells(*, name: str, about: str) -> StoreCase:
    dense = _counts(20, 12)
    dense[[0, 1, 7, 18, 19]] = 0
    dense[:, [0, 5, 11]] = 0
    return _of_dense(dense, name=name, about=about)


def _escapes(*, layout: str, name: str, about: str) -> StoreCase:
    dense = _counts(40, 60, largest=20)
    for place, count in zip(
        [(0, 0), (3, 59), (20, 30), (20, 31), (39, 59), (5, 5), (6, 6), (7, 7)],
        [254, 255, 256, 65_534, 65_535, 65_536, 2**31, 2**32 - 1],
        strict=True,
    ):
        dense[place] = count
    return _of_dense(dense, name=name, about=about, layout=layout)


def _wide_counts(lowest: int, *, layout: str = "plain", name: str, about: str) -> StoreCase:
    dense = _counts(20, 30, largest=400)
    return _of_dense(np.where(dense > 0, dense + lowest, 0), name=name, about=about, layout=layout)


def _gaps(*, layout: str, name: str, about: str) -> StoreCase:
    """Entries far apart, at the borders of one byte, and at both ends of 70,000 genes."""
    dense = np.zeros((6, 70_000), np.int64)
    dense[0, [0, 255, 511, 768, 69_999]] = [1, 14, 15, 16, 255]
    dense[1, 254:258] = [15, 14, 1, 65_535]
    dense[2, 69_999] = 3
    dense[4, [0, 65_535, 65_536]] = 2
    dense[5, ::1000] = 15
    medians = {"gene0": 3.0, "gene69999": 0.5}
    return _of_dense(dense, name=name, about=about, layout=layout, rank_medians=medians)


def _many_chunks(*, layout: str, name: str, about: str) -> StoreCase:
    return _of_dense(_counts(700, 1000, density=0.45), name=name, about=about, layout=layout)


def _floats(*, name: str, about: str) -> StoreCase:
    random = np.random.default_rng(5)
    dense = np.where(random.random((20, 15)) < 0.5, random.normal(size=(20, 15)), 0)
    dense = dense.astype(np.float32)
    dense[0, :4] = [np.finfo("f4").max, np.finfo("f4").tiny, -1e-30, -3.5]
    return _of_dense(dense, name=name, about=about, value_kind="float")


def _ranked(*, layout: str, name: str, about: str) -> StoreCase:
    dense = _counts(25, 40, largest=6, density=0.5)
    dense[4] = 0
    # Equal quotients, and genes without a median at all.
    medians = {f"gene{number}": float(1 + number % 3) for number in range(0, 40, 2)}
    return _of_dense(dense, name=name, about=about, layout=layout, rank_medians=medians)


def _tables(*, name: str, about: str) -> StoreCase:
    import pandas as pd

    rows = 12
    missing = [None, "b", "a"] * 4
    obs = pd.DataFrame(
        {
            "text": [
                "",
                " a ",
                "é",
                "數據",
                "\U0001f9ec",
                "x,y;\t",
                "'\"",
                "nan",
                "None",
                "0",
                "=1",
                "z",
            ],
            "maybe text": pd.Series(missing, dtype=object).to_numpy(),
            "category": pd.Categorical(missing, categories=["b", "unused", "a"]),
            "ordered": pd.Categorical(
                ["low", "high"] * 6, categories=["low", "high"], ordered=True
            ),
            "number category": pd.Categorical([30, 10, 20] * 4, categories=[10, 20, 30]),
            "flag": [True, False] * 6,
            "maybe flag": pd.array([True, None, False] * 4, dtype="boolean"),
            "byte": np.arange(rows, dtype=np.int8),
            "large": np.arange(rows, dtype=np.uint64) + 2**63,
            "maybe number": pd.array([None, 2**60, -1] * 4, dtype="Int64"),
            "share": np.array([0.5, np.nan, -np.inf] * 4, dtype=np.float32),
            "when": pd.date_range("1999-12-31 23:59:59.123456", periods=rows, freq="D"),
            "a/b": np.arange(rows),
            "index": np.arange(rows),
            " ": np.arange(rows),
        },
        # Names of cells may repeat and may be anything.
        index=pd.Index(["é", "", "a b", "數", *["same"] * 8], dtype=object, name="barcode"),
    )
    var = pd.DataFrame(
        {"symbol": ["A", None, "Ä", "A"], "length": [1, 2, 3, 4]},
        index=pd.Index(["ENSG00000000003.15", "gene b", "Gen ß", "4"], dtype=object),
    )
    return _of_dense(_counts(rows, 4), name=name, about=about, obs=obs, var=var)


_CASES: dict[str, tuple[str, Callable[..., StoreCase]]] = {
    "ordinary": ("counts that fit into a byte, and provenance", _ordinary),
    "nothing": ("no cells and no genes", partial(_shape, (0, 0))),
    "no cells": ("genes only", partial(_shape, (0, 5))),
    "no genes": ("cells only", partial(_shape, (5, 0))),
    "no entries": ("cells and genes without a count", partial(_shape, (5, 5))),
    "one": ("a single count", _one),
    "empty cells": ("the first, the last and others without a count; genes too", _empty_cells),
    "escapes": ("a few counts above a byte", partial(_escapes, layout="plain")),
    "two-byte counts": ("many counts above a byte", partial(_wide_counts, 300)),
    "four-byte counts": ("many counts above two bytes", partial(_wide_counts, 70_000)),
    "wide genes": (
        "more than 65,536 genes, and a rank view of them",
        partial(_gaps, layout="plain"),
    ),
    "float": ("values that are no counts", _floats),
    "tables": ("every kind of column, any script, repeated names", _tables),
    "many chunks": ("files of several checksummed chunks", partial(_many_chunks, layout="plain")),
    "ranked": ("a rank view with ties", partial(_ranked, layout="plain")),
    "packed": ("the packed layout, with escapes", partial(_escapes, layout="packed")),
    "packed gaps": ("genes far apart", partial(_gaps, layout="packed")),
    "packed large": ("all counts large", partial(_wide_counts, 70_000, layout="packed")),
    "packed chunks": ("packed files of several chunks", partial(_many_chunks, layout="packed")),
    "packed ranked": ("a rank view beside packed counts", partial(_ranked, layout="packed")),
}
