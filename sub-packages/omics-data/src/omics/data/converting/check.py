"""`check_file`: one screen about any source or store: are there counts, which genes, what to type next.

- Of a file at most 64 MB are read, its tables included: a sample of its matrices, and the tables if
  they are small; of a large table only the names of its columns are told. What has no index (text
  and R data) is read whole, so above that size it is named and left alone.
- What stands in the way of a conversion is listed as a problem; only a source that cannot be opened
  at all is an error.
- Sizes and times are estimates from the number of entries and the rates in `_RATES`.
"""

from __future__ import annotations

import contextlib
import shlex
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.converting.check_report import FileReport, FolderReport, ObsColumn, StoreReport
from omics.data.converting.counts_detection import Candidate, find_counts
from omics.data.converting.counts_location import find_gene_problem, no_counts_advice
from omics.data.errors import InputDataError
from omics.data.matching.gene_ids import GeneIds, describe_genes
from omics.data.sources.hdf5_safety import is_hdf5, limited_text, text_read
from omics.data.sources.registry import SOURCE_KINDS, open_source
from omics.data.storage.store_format import CURRENT_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pandas as pd

    from omics.data.matching.gene_tables import GeneList
    from omics.data.sources.protocol import Source
    from omics.data.storage.store import CellStore

__all__ = ["FileReport", "FolderReport", "GeneIds", "ObsColumn", "StoreReport", "check_file", "describe_store"]  # fmt: skip

Array = np.ndarray[Any, np.dtype[Any]]

# What is read of a file: together below 64 MiB. Text is read twice, by the guarding child as well.
MATRIX_BYTES = 20 * 2**20
OFFSETS_BYTES = 4 * 2**20
TEXT_BYTES = 10 * 2**20
TABLE_BYTES = 10 * 2**20
TOTALS_BYTES = 4 * 2**20
MAX_READ_BYTES = 64 * 2**20
MIN_MATRIX_BYTES = 2**20
MAX_GENES = 100_000
MAX_LABEL_CLASSES = 1000
# Readers that take a file in one piece: it has no index.
_READ_WHOLE = frozenset({"source_bulk", "source_rdata"})
# Places per second that conversion gets through on one core: stored entries of a sparse matrix,
# cells x genes of a dense one.
_RATES = {"csr": 2e7, "csc": 5e6, "dense": 5e7}
_OTHER_RATE = 5e6

_LABEL_NAMES = ("celltype", "annotation", "label", "cluster")
_COUNT_COLUMNS = ("n_counts", "total_counts", "nCount_RNA", "n_umi", "nUMI", "raw_sum")
_NOT_COUNTS = ("log1p", "normalized", "scaled", "fractional", "ranked", "other")


def check_file(
    path: str | Path,
    *,
    gene_list: GeneList | None = None,
    source_options: Mapping[str, Any] | None = None,
) -> FileReport | StoreReport | FolderReport:
    """Explain a source: where its raw counts are, its genes and labels, and what to do next.

    Args:
        path: whatever `convert` takes: a file, a folder that is a source or holds sources, an
            address; or a store.
        gene_list: genes to look for, as a file with one gene a line, or a sequence.
        source_options: for the reader.

    Returns:
        The report; `.text()` is one screen, `.to_dict()` plain JSON.

    Raises:
        MissingPathError: there is nothing at the path.
        InputDataError: no reader knows it, or its reader refuses it.
        UsageError: the reader has no such option.
        CorruptStoreError: it is a damaged store.
    """
    from omics.data.matching.gene_tables import read_gene_list
    from omics.data.storage.store import open_store

    genes = None if gene_list is None else read_gene_list(gene_list)
    options = dict(source_options or {})
    if _is_store(Path(path)):
        return describe_store(open_store(path), shown_as=Path(path), gene_list=genes)
    # Readers of HDF5 look into a file to recognise it: the limit holds from here on.
    with limited_text(TEXT_BYTES):
        if Path(path).is_dir() and _reader_module(path) is None:
            return _folder_report(Path(path), genes, options)
        return _one_report(path, genes, options, budget=MATRIX_BYTES)


def _is_store(path: Path) -> bool:
    """Tell whether a folder is a store, a damaged one included."""
    if not path.is_dir():
        return False
    return (path / CURRENT_NAME).exists() or any(
        each.name.startswith("gen-") and (each / "MANIFEST.json").exists()
        for each in path.iterdir()
    )


def _reader_module(path: str | Path) -> str | None:
    for kind in SOURCE_KINDS:
        if import_module(f"omics.data.sources.{kind.module}").recognises(path):
            return kind.module
    return None


def describe_store(
    store: CellStore, *, shown_as: Path | None = None, gene_list: Sequence[str] | None = None
) -> StoreReport:
    """Describe a store from its manifest, tables and stored statistics.

    Args:
        store: the store.
        shown_as: the path as the user gave it.
        gene_list: genes to look for.
    """
    path = shown_as or store.path
    lengths, sums = store.lengths, store.row_sums()
    obs = store.obs.to_pandas()
    columns = tuple(_obs_columns(obs))
    var = store.to_anndata(np.empty(0, np.int64)).var
    return StoreReport(
        path=str(path),
        generation=store.generation,
        num_cells=len(store),
        num_genes=store.shape[1],
        num_entries=store.num_entries,
        store_bytes=store.num_bytes,
        value_kind=store.value_kind,
        layout=store.layout,
        has_rank_view=store.rank_digest is not None,
        count_type=str(store.count_dtype),
        genes=describe_genes(var, gene_list=gene_list),
        obs_columns=columns,
        duplicate_cell_names=int(obs.index.duplicated().sum()),
        empty_cells=int(np.count_nonzero(lengths == 0)),
        median_genes=float(np.median(lengths)) if len(lengths) else 0.0,
        median_sum=float(np.median(sums)) if len(sums) else 0.0,
        digest=store.digest,
        provenance=store.provenance,
        next_commands=(_split_command(str(path), columns),),
    )


# --- looking at a source -------------------------------------------------------------------------


def _one_report(
    path: str | Path, genes: list[str] | None, options: dict[str, Any], *, budget: int
) -> FileReport:
    size = _size_on_disk(path)
    module = _reader_module(path)
    if module in _READ_WHOLE and size is not None and size > MAX_READ_BYTES:
        return FileReport(
            path=str(path),
            format_name=next(kind.name for kind in SOURCE_KINDS if kind.module == module),
            file_bytes=size,
            num_cells=None,
            num_genes=None,
            problems=(
                (
                    "This format has no index: to tell what is in it the whole file must be read. "
                    "Convert it, and look at the store; nothing is written if it holds no counts."
                ),
            ),
            next_commands=(_convert_command(path),),
        )
    with open_source(path, **options) as file:
        return _Look(path, file, genes, budget=budget).report(size)


def _folder_report(path: Path, genes: list[str] | None, options: dict[str, Any]) -> FolderReport:
    """Look at each source below a folder, with a share of the bytes for each."""
    from omics.data.converting.source_listing import list_sources

    specs, skipped = list_sources(path)
    if [str(spec.path) for spec in specs] == [str(path)]:
        with open_source(path, **options):  # Which says what belongs there.
            pass
    budget = max(MATRIX_BYTES // len(specs), MIN_MATRIX_BYTES)
    reports: list[FileReport] = []
    failures: dict[str, str] = {}
    for spec in specs:
        try:
            reports.append(_one_report(spec.path, genes, options, budget=budget))
        except InputDataError as error:
            failures[str(spec.path)] = str(error)
    ready = not failures and all(each.next_commands for each in reports)
    return FolderReport(
        path=str(path),
        sources=tuple(reports),
        failures=failures,
        skipped=tuple(skipped),
        next_commands=(_convert_command(path),) if ready else (),
    )


def _size_on_disk(path: str | Path) -> int | None:
    place = Path(path)
    if place.is_dir():
        return sum(each.stat().st_size for each in place.rglob("*") if each.is_file())
    return place.stat().st_size if place.is_file() else None


class _Look:
    """One look at an open source."""

    def __init__(
        self, path: str | Path, file: Source, genes: list[str] | None, *, budget: int
    ) -> None:
        self.path = path
        self.file = file
        self.gene_list = genes
        self.budget = budget
        self.problems: list[str] = [
            f"{location}: {why}." for location, why in file.unreadable.items()
        ]

    def report(self, size: int | None) -> FileReport:
        """Return what is to be said."""
        file = self.file
        matrices = tuple(find_counts(file.matrices.values(), budget=self.budget))
        chosen = matrices[0] if matrices else None
        location = chosen.location if chosen and chosen.summary.kind == "counts" else None
        if location is None:
            self.problems.append(f"No raw counts. {no_counts_advice(list(matrices))}")
            self.problems += _lost_counts_hint(file, matrices)
        var_fits, obs_fits = self._tables_that_fit()
        genes = self._genes(chosen) if chosen is not None and var_fits else None
        obs = self._obs() if obs_fits else None
        columns = _described(obs, file.obs_columns)
        self.problems += [f"note: {each}" for each in getattr(file, "notes", ())]
        ready = (
            location is not None
            and (genes is None or not genes.num_duplicates)
            and (genes is not None or not var_fits)
            and (obs is not None or not obs_fits)
        )
        commands = (_convert_command(self.path), _split_command(_store_path(self.path), columns))
        return FileReport(
            path=str(self.path),
            format_name=file.format_name,
            file_bytes=size,
            num_cells=file.num_cells,
            num_genes=chosen.shape[1] if chosen is not None else file.num_genes,
            matrices=matrices,
            counts_location=location,
            evidence=tuple(self._evidence(matrices, location, obs)),
            genes=genes,
            obs_columns=columns,
            tables_read=obs is not None,
            duplicate_cell_names=None if obs is None else int(obs.index.duplicated().sum()),
            empty_cells=self._empty_cells(chosen),
            store_bytes=_store_bytes(chosen, file),
            seconds=_seconds(chosen),
            problems=tuple(self.problems),
            next_commands=commands if ready else (),
        )

    def _tables_that_fit(self) -> tuple[bool, bool]:
        """Tell whether the gene table and the cell table are small enough to be read."""
        var_fits, obs_fits = self.file.num_genes <= MAX_GENES, True
        if is_hdf5(self.path):
            # What the guarding child left out is text that nobody may read.
            unread = text_read(self.path).unread
            genes = ("/var", "/raw", "/row_attrs", "/matrix/features", "/matrix/genes")
            var_fits = var_fits and not any(name.startswith(genes) for name in unread)
            obs_fits = not unread
        return var_fits, obs_fits and self.file.table_bytes() <= TABLE_BYTES

    def _genes(self, chosen: Candidate) -> GeneIds | None:
        try:
            var = self.file.var(chosen.location)
        except InputDataError as error:
            self.problems.append(str(error))
            return None
        genes = describe_genes(var, gene_list=self.gene_list)
        self.problems += find_gene_problem(self.file, chosen.location, var)
        if genes.kind == "row numbers":
            self.problems.append(
                "The genes have no names: the index of var is 0, 1, 2, ... Set their ids."
            )
        return genes

    def _obs(self) -> pd.DataFrame | None:
        try:
            return self.file.obs()
        except InputDataError as error:
            self.problems.append(str(error))
            return None

    def _empty_cells(self, chosen: Candidate | None) -> int | None:
        if chosen is None or chosen.summary.kind == "unknown":
            return None
        with contextlib.suppress(InputDataError):  # A problem of the matrix; said already.
            return self.file.matrix(chosen.location).count_empty(OFFSETS_BYTES)
        return None

    # --- what speaks for the place of the counts -------------------------------------------------

    def _evidence(
        self, matrices: tuple[Candidate, ...], location: str | None, obs: pd.DataFrame | None
    ) -> Iterator[str]:
        if location is None:
            return
        others = {each.location: each for each in matrices if each.location != location}
        main = others.get("X")
        if main is not None and main.summary.kind in _NOT_COUNTS:
            yield f"X holds {main.summary.text.split(' (')[0]}; the raw counts are in {location}."
        if main is not None and main.shape[1] != matrices[0].shape[1]:
            yield (
                f"{location} has {matrices[0].shape[1]:,} genes of its own, X {main.shape[1]:,}: the "
                f"store will have those of {location}."
            )
        also = [each.location for each in others.values() if each.summary.kind == "counts"]
        if also:
            yield f"Whole numbers are in {', '.join(also)} too; {location} is taken."
        if obs is not None:
            yield from self._totals(location, obs)

    def _totals(self, location: str, obs: pd.DataFrame) -> Iterator[str]:
        """Compare the sums of cells with a column of obs that says them."""
        column = next((name for name in _COUNT_COLUMNS if name in obs.columns), None)
        if column is None or obs[column].dtype.kind not in "iuf":
            return
        matrix = self.file.matrix(location)
        entries = matrix.stored_entries
        if entries is None or 8 * entries > TOTALS_BYTES:
            return
        sample = matrix.sample(TOTALS_BYTES)
        if sample is None or not sample.complete or sample.indptr is None:
            return
        running = np.concatenate([[0.0], np.cumsum(sample.values, dtype=np.float64)])
        sums, told = np.diff(running[sample.indptr]), obs[column].to_numpy(np.float64)
        if len(sums) != len(told):
            return
        if np.allclose(sums, told):
            yield f"The sums of its cells are those of the obs column {column!r}."
        elif (sums <= told + 0.5).all():
            share = float(sums.sum() / max(told.sum(), 1e-300))
            yield (
                f"Its cells hold {share:.1%} of the counts that the obs column {column!r} tells: genes "
                f"were left out since."
            )


def _lost_counts_hint(file: Source, matrices: tuple[Candidate, ...]) -> list[str]:
    column = next((name for name in _COUNT_COLUMNS if name in file.obs_columns), None)
    if column is None:
        return []
    hint = (
        f"The obs column {column!r} tells that there were counts before normalisation, but they "
        f"are not in this file: get them from the original one (before filtering and log1p)."
    )
    scaled = [each for each in matrices if each.summary.kind == "log1p" and each.summary.scaled_to]
    if scaled:
        hint += (
            f" They may be computed as well: {scaled[0].location} undone, times {column} / "
            f"{scaled[0].summary.scaled_to:,.0f}, gives whole numbers if no gene was left out."
        )
    return [hint]


def _store_bytes(chosen: Candidate | None, file: Source) -> int:
    if chosen is None:
        return 0
    gene_bytes = 2 if chosen.shape[1] <= 2**16 else 4
    # An offset and a sum per cell; sum, detection and median per gene; the two tables.
    fixed = 16 * chosen.shape[0] + 24 * chosen.shape[1]
    return chosen.entries * (gene_bytes + 1) + fixed + file.table_bytes()


def _seconds(chosen: Candidate | None) -> float:
    if chosen is None:
        return 0.0
    dense = chosen.encoding == "dense"
    places = chosen.shape[0] * chosen.shape[1] if dense else chosen.entries
    return places / _RATES.get(chosen.encoding, _OTHER_RATE)


def _described(obs: pd.DataFrame | None, names: Sequence[str]) -> tuple[ObsColumn, ...]:
    if obs is not None:
        return tuple(_obs_columns(obs))
    return tuple(
        ObsColumn(name=str(name), type="", num_distinct=None, num_missing=None, may_be_label=False)
        for name in names
    )


def _obs_columns(obs: pd.DataFrame) -> Iterable[ObsColumn]:
    for name in obs.columns:
        column = obs[name]
        distinct = int(column.nunique())
        kind = str(column.dtype)
        discrete = not kind.lower().startswith(("float", "datetime", "timedelta"))
        yield ObsColumn(
            name=str(name),
            type={"object": "text"}.get(kind, kind),
            num_distinct=distinct,
            num_missing=int(column.isna().sum()),
            may_be_label=discrete and 1 < distinct <= min(MAX_LABEL_CLASSES, max(len(obs) // 2, 2)),
        )


# --- what to type next ---------------------------------------------------------------------------


def _store_path(path: str | Path) -> str:
    text = str(path).rstrip("/")
    if "://" in text or not Path(text).exists():
        return f"{text.replace(':', '/').rsplit('/', 1)[-1]}.store"
    place = Path(text)
    return str(
        place.with_suffix(".store") if place.is_file() else place.with_name(f"{place.name}.store")
    )


def _convert_command(path: str | Path) -> str:
    return f"omics-data convert {shlex.quote(str(path))} {shlex.quote(_store_path(path))}"


def _split_command(store: str, columns: tuple[ObsColumn, ...]) -> str:
    labels = [each.name for each in columns if each.may_be_label]
    ranked = [name for known in _LABEL_NAMES for name in labels if known in _letters(name)]
    # `cell_type` before `cell_type_ontology_term_id`, which says the same in codes.
    ranked.sort(key=lambda name: "ontology" in name)
    option = f" --stratify {shlex.quote(ranked[0])}" if ranked else ""
    out = Path(store).with_suffix(".split.parquet")
    return f"omics-data split {shlex.quote(store)} {shlex.quote(str(out))}{option}"


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalpha())
