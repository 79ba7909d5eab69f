"""Who is trained on, validated on and tested on: a table with one row per cell, kept as Parquet.

- A split is a file, not a seed: it names every cell, the store and the seed it was made from, and
  is refused for a store with other cells.
- Page checksums do not cover the Parquet footer, so the content has a digest of its own.
- Stratified: each class is apportioned by largest remainder (Hamilton's method), so every share is
  its exact quota rounded up or down; left-over cells go where all classes together are behind.
- Grouped: whole groups, largest first, each to the split that is furthest behind its quota.
- `leakage` looks for what a good split cannot have: the same cell twice, or one donor on two sides.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import (
    CorruptStoreError,
    InputDataError,
    MissingPathError,
    UnknownNameError,
    UsageError,
    nearest,
)
from omics.data.sources.matrix_blocks import BLOCK_ENTRIES, row_ends

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from scipy.sparse import csr_matrix

    from omics.data.storage.store import CellStore

Array = np.ndarray[Any, np.dtype[Any]]
_Hashes = tuple[Array, Array]

SPLIT_NAMES = ("train", "validation", "test")
DEFAULT_FRACTIONS = (0.7, 0.1, 0.2)
_KNOWN_NAMES = {
    "train": 0,
    "training": 0,
    "validation": 1,
    "valid": 1,
    "val": 1,
    "dev": 1,
    "test": 2,
    "testing": 2,
}
_METADATA_KEY = b"omics_split"
_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)


@dataclass(frozen=True, eq=False, kw_only=True)
class SplitTable:
    """Which split each cell of a store belongs to.

    Attributes:
        cells: [n] names of the cells (obs names), in the order of the store.
        codes: int8 [n], positions in `SPLIT_NAMES`.
        method: how it was made: `random`, `stratify`, `group`, `column` or `perturbation`, the obs column, the
            fractions.
        seed: of the random part.
        store_digest: of the store it was made from.
        gene_digest: of that store's gene table.
    """

    cells: Array
    codes: Array
    method: dict[str, Any]
    seed: int
    store_digest: str
    gene_digest: str

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.codes)

    def rows(self, name: str) -> Array:
        """Return int64 rows of the store that belong to a split, ascending.

        Args:
            name: `train`, `validation` or `test`.

        Raises:
            UnknownNameError: another name.
        """
        if name not in SPLIT_NAMES:
            raise UnknownNameError(f"There is no split {name!r}." + nearest(name, SPLIT_NAMES))
        return np.flatnonzero(self.codes == SPLIT_NAMES.index(name)).astype(np.int64)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of cells in each split."""
        counted = np.bincount(self.codes, minlength=len(SPLIT_NAMES))
        return dict(zip(SPLIT_NAMES, counted.tolist(), strict=True))

    def _record(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "method": self.method,
            "store_digest": self.store_digest,
            "gene_digest": self.gene_digest,
        }

    @property
    def digest(self) -> str:
        """The sha256 of everything the table says."""
        found = hashlib.sha256(json.dumps(self._record(), sort_keys=True).encode())
        found.update(self.codes.astype(np.int8).tobytes())
        for cell in self.cells.tolist():
            name = cell.encode("utf-8", "surrogatepass")
            found.update(len(name).to_bytes(8, "little") + name)
        return found.hexdigest()

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the table atomically, as Parquet with columns `row`, `cell` and `split`.

        Args:
            path: the file.
            overwrite: replace a file that is there.

        Raises:
            ExistingPathError: `path` exists and may not be replaced.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        from omics.data.atomic_files import replace_file, require_free

        path = require_free(path, overwrite=overwrite)
        record = {**self._record(), "digest": self.digest}
        splits = pa.DictionaryArray.from_arrays(pa.array(self.codes), pa.array(SPLIT_NAMES))
        table = pa.table(
            {
                "row": pa.array(np.arange(len(self), dtype=np.int64)),
                "cell": pa.array(self.cells, pa.string()),
                "split": splits.cast(pa.string()),
            },
            metadata={_METADATA_KEY: json.dumps(record, sort_keys=True).encode()},
        )
        with replace_file(path) as temporary:
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


@dataclass(frozen=True, kw_only=True)
class LeakageReport:
    """What crosses the borders of a split.

    Attributes:
        duplicate_cells: cells outside train whose genes and counts equal those of a cell in
            another split (empty cells are not compared).
        duplicate_examples: up to five pairs of rows.
        shared_groups: values of the group column that occur in more than one split.
        group: that column, if one was asked for.
    """

    duplicate_cells: int
    duplicate_examples: tuple[tuple[int, int], ...]
    shared_groups: tuple[str, ...]
    group: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON."""
        plain = asdict(self)
        plain["duplicate_examples"] = [list(pair) for pair in self.duplicate_examples]
        plain["shared_groups"] = list(self.shared_groups)
        return plain


def make_split(
    store: CellStore,
    *,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    stratify: str | None = None,
    group: str | None = None,
    column: str | None = None,
    seed: int = 0,
) -> SplitTable:
    """Divide the cells of a store into train, validation and test.

    Args:
        store: the store.
        fractions: shares of train, validation and test; they sum to 1.
        stratify: obs column whose classes keep their shares in every split. A class of one cell
            goes to train; cells without a value are a class of their own.
        group: obs column (donor, batch) whose values are never divided.
        column: obs column that already says train, validation (or val, valid, dev) or test.
        seed: same store, arguments and seed: same split.

    Returns:
        The split.

    Raises:
        UsageError: fractions that are none, or more than one of stratify, group and column.
        UnknownNameError: there is no such obs column; the message names the nearest.
        InputDataError: a group is missing, groups are fewer than splits, or the column holds
            other names.
    """
    quotas = checked_fractions(fractions)
    given = {"stratify": stratify, "group": group, "column": column}
    chosen = [(name, value) for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise UsageError(f"Give one of stratify, group and column, not {len(chosen)}.")
    random = np.random.Generator(np.random.PCG64(seed))
    kind, name = chosen[0] if chosen else ("random", None)
    values = None if name is None else obs_values(store, name)
    if kind == "column":
        if tuple(fractions) != DEFAULT_FRACTIONS:
            raise UsageError("Fractions have no effect when a column says the split; drop them.")
        codes = _named_codes(values, str(name))
    elif kind == "group":
        codes = _group_codes(values, str(name), quotas=quotas, random=random)
    else:
        classes = np.zeros(len(store), np.int64) if values is None else _class_codes(values)
        codes = _stratified_codes(classes, quotas, random)
    method: dict[str, Any] = {"kind": kind, "column": name}
    if kind != "column":
        method["fractions"] = [float(share) for share in quotas]
    return SplitTable(
        cells=np.asarray(store.obs.names, dtype=object),
        codes=codes.astype(np.int8),
        method=method,
        seed=seed,
        store_digest=store.digest,
        gene_digest=store.genes.digest,
    )


def load_split(path: str | Path, store: CellStore | None = None) -> SplitTable:
    """Read a split written by `SplitTable.save`.

    Args:
        path: the file.
        store: if given, the split must be one of this store's cells.

    Returns:
        The split.

    Raises:
        MissingPathError: there is no such file.
        InputDataError: the file is not a split table, or its cells are not those of the store.
        CorruptStoreError: its bytes are damaged.
    """
    path = Path(path)
    if not path.exists():
        raise MissingPathError(f"There is no split table {path}.")
    if not path.is_file() or not _begins_like_parquet(path):
        raise InputDataError(
            f"{path} is not a split table (Parquet); make one with omics-data split."
        )
    table, record = _read_table(path)
    split = SplitTable(
        cells=table.column("cell").to_numpy(zero_copy_only=False),
        codes=_checked_codes(path, table),
        method=record["method"],
        seed=record["seed"],
        store_digest=record["store_digest"],
        gene_digest=record["gene_digest"],
    )
    if split.digest != record["digest"]:
        raise _damaged(path, "its content does not match its digest")
    if store is not None and split.store_digest != store.digest:
        _require_same_cells(path, split, store)
    return split


def leakage(store: CellStore, split: SplitTable, *, group: str | None = None) -> LeakageReport:
    """Look for equal cells, and values of an obs column, on both sides of a split.

    Args:
        store: the store of the split.
        split: the split.
        group: an obs column whose values should not be shared, such as the donor.

    Returns:
        The findings; reading every cell once, in blocks.

    Raises:
        UnknownNameError: there is no such obs column.
        InputDataError: the split is of other cells.
    """
    if len(split) != len(store):
        raise InputDataError(f"The split has {len(split):,} cells, the store {len(store):,}.")
    number, examples = _crossing(_hashes_of_store(store), split)
    return LeakageReport(
        duplicate_cells=number,
        duplicate_examples=examples,
        shared_groups=() if group is None else shared_values(obs_values(store, group), split),
        group=group,
    )


def duplicate_cells(
    counts: csr_matrix, split: SplitTable
) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Count the cells that equal a cell of another split, as `leakage` does for a store.

    Args:
        counts: CSR [n_cells, g] of whole numbers, indices ascending or not.
        split: of these cells.

    Returns:
        The number of cells outside train whose genes and counts equal those of a cell in another
        split (empty cells are not compared), and up to five pairs of rows.

    Raises:
        InputDataError: the split is of other cells.
    """
    if len(split) != counts.shape[0]:
        raise InputDataError(f"The split has {len(split):,} cells, the matrix {counts.shape[0]:,}.")

    def blocks() -> Iterator[_Hashes]:
        begin = 0
        for end in row_ends(np.diff(counts.indptr), BLOCK_ENTRIES):
            part = counts[begin:end].copy()
            part.sum_duplicates()
            part.eliminate_zeros()
            yield _hashes(begin, part.indptr, part.indices, part.data.astype(np.uint64))
            begin = int(end)

    return _crossing(blocks(), split)


def shared_values(values: Array, split: SplitTable) -> tuple[str, ...]:
    """Return the values of a column that occur in more than one split.

    Args:
        values: object [n_cells]; missing ones are not compared.
        split: of these cells.
    """
    codes = _class_codes(values)
    present = codes >= 0
    sides = np.zeros((int(codes.max(initial=-1)) + 1, len(SPLIT_NAMES)), bool)
    sides[codes[present], split.codes[present]] = True
    crossing = np.flatnonzero(sides.sum(axis=1) > 1)
    return tuple(str(values[np.argmax(codes == code)]) for code in crossing)


# --- dividing --------------------------------------------------------------------------------


def checked_fractions(fractions: Sequence[float]) -> Array:
    """Return the shares of train, validation and test as float64 [3].

    Args:
        fractions: as given by a user.

    Raises:
        UsageError: not three shares that sum to 1, or nothing to train on.
    """
    shares = np.asarray(list(fractions), np.float64)
    if shares.shape != (3,) or not np.isfinite(shares).all() or (shares < 0).any():
        raise UsageError(
            f"Fractions are three numbers for train, validation and test, not {list(fractions)}."
        )
    if abs(float(shares.sum()) - 1) > 1e-6 or shares[0] == 0:
        raise UsageError(
            f"Fractions must sum to 1 with some cells to train on; {list(fractions)} sum to "
            f"{float(shares.sum()):g}."
        )
    return shares


def obs_values(store: CellStore, name: str) -> Array:
    """Return [n], a column of obs.

    Args:
        store: the cells.
        name: of the column.

    Raises:
        UnknownNameError: there is no such column; the message names the nearest.
    """
    if name not in store.obs.columns:
        raise UnknownNameError(
            f"{store.path} has no obs column {name!r}." + nearest(name, tuple(store.obs.columns))
        )
    return store.obs[name]


def _class_codes(values: Array) -> Array:
    """Return int64 codes of the distinct values in order of their text; missing ones are -1."""
    missing = _missing(values)
    texts = np.array([str(value) for value in values[~missing].tolist()], dtype=object)
    codes = np.full(len(values), -1, np.int64)
    if len(texts):
        codes[~missing] = np.unique(texts.astype(str), return_inverse=True)[1]
    return codes


def _missing(values: Array) -> Array:
    import pandas as pd

    return np.asarray(pd.isna(values), bool)


def _stratified_codes(classes: Array, quotas: Array, random: np.random.Generator) -> Array:
    codes = np.zeros(len(classes), np.int64)
    behind = np.zeros(len(quotas))
    for label in np.unique(classes):
        rows = random.permutation(np.flatnonzero(classes == label))
        sizes = apportion(len(rows), quotas, behind)
        behind += len(rows) * quotas - sizes
        codes[rows] = np.repeat(np.arange(len(quotas)), sizes)
    return codes


def apportion(total: int, quotas: Array, behind: Array) -> Array:
    """Return int64 sizes that sum to `total`, each its quota rounded up or down.

    Args:
        total: what is divided; 1 goes to the first.
        quotas: float64 [k], shares that sum to 1.
        behind: float64 [k], who is served first where two have equal claims to what is left over.
    """
    if total == 1:
        return np.array([1, *[0] * (len(quotas) - 1)], np.int64)
    # Whole quotas must not be lost to the last bit of a product such as 0.7 * 10.
    exact = np.round(total * quotas, 9)
    sizes = np.floor(exact).astype(np.int64)
    remainders = exact - sizes
    left = total - int(sizes.sum())
    claims = np.where(remainders > 0, remainders + behind, -np.inf)
    sizes[np.argsort(-claims, kind="stable")[:left]] += 1
    return sizes


def _group_codes(
    values: Array | None, name: str, *, quotas: Array, random: np.random.Generator
) -> Array:
    assert values is not None
    groups = _class_codes(values)
    if (groups < 0).any():
        raise InputDataError(
            f"{int((groups < 0).sum()):,} cells have no value in the obs column {name!r}, so it is "
            f"unknown which group they belong to. Drop them or split by another column."
        )
    sizes = np.bincount(groups)
    wanted = np.flatnonzero(quotas > 0)
    if len(sizes) < len(wanted):
        raise InputDataError(
            f"The obs column {name!r} has {len(sizes)} groups, too few for {len(wanted)} splits "
            f"that may not share one. Set a fraction to 0 or split by another column."
        )
    order = random.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    filled = np.zeros(len(quotas))
    split_of_group = np.zeros(len(sizes), np.int64)
    for position, number in enumerate(order):
        empty = wanted[filled[wanted] == 0]
        # The last groups go to splits that would otherwise stay empty.
        open_to = empty if len(order) - position <= len(empty) else wanted
        behind = quotas[open_to] * len(groups) - filled[open_to]
        split_of_group[number] = open_to[np.argmax(behind)]
        filled[split_of_group[number]] += sizes[number]
    return split_of_group[groups]


def _named_codes(values: Array | None, name: str) -> Array:
    assert values is not None
    missing = _missing(values)
    names = [str(value).strip().lower() for value in values.tolist()]
    unknown = sorted(
        {each for each, gone in zip(names, missing, strict=True) if not gone} - set(_KNOWN_NAMES)
    )
    if unknown or missing.any():
        found = f"{unknown[0]!r}" if unknown else f"no value for {int(missing.sum()):,} cells"
        raise InputDataError(
            f"The obs column {name!r} holds {found}; a split column says train, validation (or "
            f"val, valid, dev) or test for every cell."
        )
    return np.array([_KNOWN_NAMES[each] for each in names], np.int64)


# --- reading -------------------------------------------------------------------------------------


def _begins_like_parquet(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"PAR1"


def _read_table(path: Path) -> tuple[Any, dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        record = json.loads((table.schema.metadata or {}).get(_METADATA_KEY, b"null"))
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise _damaged(path, reason) from error
    names = {"seed": int, "method": dict, "store_digest": str, "gene_digest": str, "digest": str}
    columns = [(field.name, field.type) for field in table.schema]
    if (
        columns != [("row", pa.int64()), ("cell", pa.string()), ("split", pa.string())]
        or any(column.null_count for column in table.columns)
        or not isinstance(record, dict)
        or any(not isinstance(record.get(name), kind) for name, kind in names.items())
    ):
        raise InputDataError(
            f"{path} is a Parquet file but not a split table; make one with omics-data split."
        )
    return table, record


def _damaged(path: Path, found: str) -> CorruptStoreError:
    return CorruptStoreError(
        f"The split table {path} is damaged ({found}); make it again with omics-data split."
    )


def _checked_codes(path: Path, table: Any) -> Array:
    rows = table.column("row").to_numpy()
    names = table.column("split").to_pylist()
    if not np.array_equal(rows, np.arange(len(rows))):
        raise InputDataError(f"{path}: the rows of the split table are not 0, 1, 2, ... in order.")
    unknown = sorted({str(name) for name in names} - set(SPLIT_NAMES))
    if unknown:
        raise InputDataError(f"{path} holds the split {unknown[0]!r}, not one of {SPLIT_NAMES}.")
    return np.array([SPLIT_NAMES.index(name) for name in names], np.int8)


def _require_same_cells(path: Path, split: SplitTable, store: CellStore) -> None:
    names = store.obs.names
    if len(names) != len(split):
        raise InputDataError(
            f"The split {path} is of another store: it has {len(split):,} cells, {store.path} has "
            f"{len(names):,}. Make a split of this store with omics-data split."
        )
    differs = np.flatnonzero(names != split.cells)
    if len(differs):
        row = int(differs[0])
        raise InputDataError(
            f"The split {path} is of another store: its cell {row} is {split.cells[row]!r}, that "
            f"of {store.path} is {names[row]!r}. Make a split of this store with omics-data split."
        )


# --- equal cells ---------------------------------------------------------------------------------


def _crossing(
    blocks: Iterable[_Hashes], split: SplitTable
) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Return how many cells equal one of another split, and examples, from hashes of all cells."""
    parts = list(blocks)
    rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in parts)])
    hashes = np.concatenate([np.empty((0, 2), np.uint64), *(found for _, found in parts)])
    order = np.lexsort((split.codes[rows], hashes[:, 1], hashes[:, 0]))
    rows, hashes = rows[order], hashes[order]
    is_new = np.ones(len(rows), bool)
    is_new[1:] = (hashes[1:] != hashes[:-1]).any(axis=1)
    first = np.maximum.accumulate(np.where(is_new, np.arange(len(rows)), 0))
    crosses = split.codes[rows] != split.codes[rows[first]]
    pairs = zip(rows[first][crosses][:5].tolist(), rows[crosses][:5].tolist(), strict=True)
    return int(crosses.sum()), tuple(pairs)


def _hashes_of_store(store: CellStore) -> Iterator[_Hashes]:
    begin = 0
    for end in row_ends(store.lengths, BLOCK_ENTRIES):
        batch = store.take(np.arange(begin, end))
        counts = batch.counts
        if counts.dtype.kind == "f":
            counts = counts.astype(np.float32).view(np.uint32)
        yield _hashes(begin, batch.indptr, batch.genes, counts.astype(np.uint64))
        begin = int(end)


def _hashes(begin: int, indptr: Array, genes: Array, counts: Array) -> _Hashes:
    """Return rows [m] of the cells that are not empty and 128-bit hashes uint64 [m, 2] of them."""
    filled = np.flatnonzero(np.diff(indptr) > 0)
    words = (genes.astype(np.uint64) << np.uint64(32)) | counts
    starts = indptr[:-1][filled]
    sums = [np.empty(0, np.uint64)] * 2
    if len(starts):
        sums = [np.add.reduceat(_mixed(words * np.uint64(m)), starts) for m in _MULTIPLIERS]
    return begin + filled, np.stack(sums, axis=1)


def _mixed(words: Array) -> Array:
    """Return the splitmix64 finaliser, so that sums over a cell tell its entries apart."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(words ^ (words >> np.uint64(31)))
