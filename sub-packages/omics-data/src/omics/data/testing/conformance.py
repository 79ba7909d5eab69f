"""Assertions about readers and writers of the store format.

- A failure is an AssertionError that names the case and what differs; nothing else is printed.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import CorruptStoreError, UnknownNameError, nearest
from omics.data.testing.case_contents import StoreCase, store_cases, write_case
from omics.data.testing.reference_reader import reference_read
from omics.data.testing.store_damage import damaged_copies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Array = np.ndarray[Any, np.dtype[Any]]

_NEEDED = ("indptr", "genes", "values")
_OPTIONAL = ("cell_names", "gene_ids")
# Every kind of file is in one of these.
_DAMAGED_CASES = ("tables", "escapes", "packed ranked", "float")


def assert_store_equals(path: str | Path, case: StoreCase) -> None:
    """Assert that a store holds a case, and nothing that the format forbids.

    Args:
        path: the store folder.
        case: what belongs in it.

    Raises:
        AssertionError: it does not; the message says what differs.
    """
    try:
        found = reference_read(path)
    except CorruptStoreError as error:
        raise AssertionError(f"{case.name}: {error}") from error
    _compare(case, found, needed=(*_NEEDED, *_OPTIONAL))
    manifest = found["manifest"]
    for key, expected in (
        ("value_kind", case.value_kind),
        ("layout", case.layout),
        ("provenance", dict(case.provenance)),
    ):
        _require(manifest[key] == expected, case, f"{key} is {manifest[key]!r}, not {expected!r}")
    _compare_ranks(case, found)
    for name, table in (("obs", case.obs), ("var", case.var)):
        _compare_table(case, found[name], table, name)


def assert_reader_agrees(
    reader: Callable[[Path], Mapping[str, Any]],
    *,
    cases: Sequence[str] | None = None,
    damage: bool = True,
) -> None:
    """Assert that a reader finds in every case what is there, and never returns damaged data.

    Args:
        reader: takes the path of a store and returns `indptr` [n + 1] from 0, `genes` [nnz] and
            `values` [nnz]; and, if it likes, `cell_names` and `gene_ids`.
        cases: the names of those to try; None tries all.
        damage: also give it damaged copies, of which it must raise an error or return what was
            there before the damage.

    Raises:
        AssertionError: it does not agree; the message names the case and what differs.
        UnknownNameError: there is no such case.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for number, case in enumerate(_chosen(cases)):
            path = Path(scratch) / str(number)
            write_case(case, path)
            _compare(case, reader(path), needed=_NEEDED)
            if damage and case.name in _DAMAGED_CASES:
                _try_damage(reader, case, path)


def assert_writer_conforms(
    writer: Callable[[StoreCase, Path], object], *, cases: Sequence[str] | None = None
) -> None:
    """Assert that a writer makes stores that are true to the format, and that are read here.

    Args:
        writer: takes a case and the path of a folder to create, and writes the case as a store.
        cases: the names of those to try; None tries all.

    Raises:
        AssertionError: a store is not as it should be; the message names the case.
        UnknownNameError: there is no such case.
    """
    from omics.data.storage.store import open_store

    with tempfile.TemporaryDirectory() as scratch:
        for number, case in enumerate(_chosen(cases)):
            path = Path(scratch) / str(number)
            writer(case, path)
            assert_store_equals(path, case)
            store = open_store(path)
            store.verify()
            batch = store.take(np.arange(len(store)))
            _compare(
                case,
                {"indptr": batch.indptr, "genes": batch.genes, "values": batch.counts},
                needed=_NEEDED,
            )


def _chosen(names: Sequence[str] | None) -> Iterator[StoreCase]:
    known = {case.name: case for case in store_cases()}
    for name in known if names is None else names:
        if name not in known:
            raise UnknownNameError(f"There is no case {name!r}.{nearest(name, list(known))}")
        yield known[name]


def _require(condition: object, case: StoreCase, what: str) -> None:
    if not condition:
        raise AssertionError(f"{case.name} ({case.about}): {what}")


def _compare(case: StoreCase, found: Mapping[str, Any], *, needed: Sequence[str]) -> None:
    expected: dict[str, Any] = {
        "indptr": case.indptr,
        "genes": case.genes,
        "values": case.values,
        "cell_names": case.obs.index.tolist(),
        "gene_ids": case.var.index.tolist(),
    }
    for name in (*_NEEDED, *_OPTIONAL):
        if name not in found:
            _require(name not in needed, case, f"{name} is missing")
            continue
        if name in _OPTIONAL:
            _require(list(found[name]) == expected[name], case, f"{name} differ")
            continue
        ours, theirs = expected[name], np.asarray(found[name])
        _require(
            theirs.shape == ours.shape, case, f"{name} has shape {theirs.shape}, not {ours.shape}"
        )
        wrong = np.flatnonzero(theirs != ours)
        if len(wrong):
            place = int(wrong[0])
            text = f"{name}[{place}] is {theirs[place]}, not {ours[place]} ({len(wrong)} differ)"
            _require(False, case, text)


def _try_damage(reader: Callable[[Path], Mapping[str, Any]], case: StoreCase, path: Path) -> None:
    for copy in damaged_copies(path):
        try:
            found = reader(copy.path)
        except Exception:  # noqa: BLE001, S112 - which error a reader raises is its own affair.
            continue
        what = f"with damage ({copy.kind} {copy.file}: {copy.detail}) it returns other data"
        try:
            _compare(case, found, needed=_NEEDED)
        except AssertionError as error:
            raise AssertionError(f"{case.name}: {what}: {error}") from error


def _compare_ranks(case: StoreCase, found: Mapping[str, Any]) -> None:
    if case.rank_medians is None:
        _require(found["rank_genes"] is None, case, "there is a rank view")
        return
    medians = np.array([case.rank_medians.get(name, 0.0) for name in case.var.index], "<f8")
    digest = hashlib.sha256(medians.tobytes()).hexdigest()
    _require(found["manifest"]["rank_digest"] == digest, case, "rank_digest differs")
    _require(found["rank_genes"] is not None, case, "there is no rank view")
    for cell in range(case.shape[0]):
        part = slice(int(case.indptr[cell]), int(case.indptr[cell + 1]))
        genes, counts = case.genes[part], case.values[part]
        known = medians[genes] > 0
        quotients = np.where(known, counts / np.where(known, medians[genes], 1.0), 0.0)
        order = np.lexsort((genes, -quotients, ~known))
        _require(
            (found["rank_genes"][part] == genes[order]).all(), case, f"cell {cell} is ranked wrong"
        )


def _compare_table(case: StoreCase, table: Any, frame: Any, name: str) -> None:
    """Compare a table as Parquet holds it, and what pandas makes of it here."""
    _require(table.column_names == ["_index", *frame.columns], case, f"{name} has other columns")
    for column in frame.columns:
        ours = frame[column]
        missing = ours.isna().to_numpy()
        theirs = table.column(str(column)).to_pandas()
        _require(
            (theirs.isna().to_numpy() == missing).all(),
            case,
            f"{name}[{column!r}] is missing elsewhere",
        )
        same = theirs.to_numpy(object)[~missing] == ours.to_numpy(object)[~missing]
        _require(bool(np.all(same)), case, f"{name}[{column!r}] has other values")
