"""`check_file`: one screen about a file or store: are there counts, which genes, what to type next.

- A file is never read whole: at most 64 MB of its matrices, decompressed, and its two tables.
- What stands in the way of a conversion is listed as a problem; only a file that cannot be opened
  at all is an error.
- Sizes and times are estimates from the number of entries and the rates in `_RATES`.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.conversion import find_gene_problem, no_counts_advice
from omics.data.counts_detection import Candidate, find_counts
from omics.data.errors import InputDataError
from omics.data.sources.matrix_sample import SAMPLE_BYTES
from omics.data.sources.registry import open_source

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd

    from omics.data.sources.protocol import Source
    from omics.data.store import CellStore

Array = np.ndarray[Any, np.dtype[Any]]

MAX_LABEL_CLASSES = 1000
MAX_COLUMNS_SHOWN = 20
# Places per second that conversion gets through on one core: stored entries of a sparse matrix,
# cells x genes of a dense one.
_RATES = {"csr": 2e7, "csc": 5e6, "dense": 5e7}
_OFFSETS_BYTES = SAMPLE_BYTES // 4

_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{11}(_PAR_Y)?")
_VERSIONED = re.compile(r"ENS[A-Z]*G\d{11}\.\d+(_PAR_Y)?")
_ENTREZ = re.compile(r"\d+")
_LABEL_NAMES = ("celltype", "annotation", "label", "cluster")
_COUNT_COLUMNS = ("n_counts", "total_counts", "nCount_RNA", "n_umi", "nUMI", "raw_sum")


@dataclass(frozen=True, kw_only=True)
class GeneIds:
    """What identifies the genes.

    Attributes:
        kind: `Ensembl ids`, `Ensembl ids with versions`, `Entrez ids`, `gene symbols`, `mixed`,
            or `row numbers` when the genes have no names.
        examples: the first ids.
        num_duplicates: ids that occur more than once.
        columns: the other columns of var.
    """

    kind: str
    examples: tuple[str, ...]
    num_duplicates: int
    columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ObsColumn:
    """A column of obs.

    Attributes:
        name: the column.
        type: of its values, as pandas calls it.
        num_distinct: different values, missing ones not counted.
        num_missing: cells without a value.
        may_be_label: few enough classes, more than one.
    """

    name: str
    type: str
    num_distinct: int
    num_missing: int
    may_be_label: bool


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """What `check_file` found in a file.

    Attributes:
        path: the file.
        file_bytes: its size.
        num_cells: rows of obs.
        num_genes: genes of the matrix that would be converted.
        matrices: every matrix with its verdict, the best place for counts first.
        counts_location: where the raw counts are; None when nowhere.
        genes: the gene ids; None when the table cannot be read.
        obs_columns: the columns of obs.
        duplicate_cell_names: cell names that occur more than once.
        empty_cells: cells without a stored value; None where that needs the whole matrix.
        store_bytes: estimated size of the store.
        seconds: estimated time to convert.
        problems: what stands in the way of a conversion, and remarks, one paragraph each.
        next_commands: what to type now; empty when the file cannot be converted as it is.
    """

    path: str
    file_bytes: int
    num_cells: int
    num_genes: int
    matrices: tuple[Candidate, ...]
    counts_location: str | None
    genes: GeneIds | None
    obs_columns: tuple[ObsColumn, ...]
    duplicate_cell_names: int
    empty_cells: int | None
    store_bytes: int
    seconds: float
    problems: tuple[str, ...]
    next_commands: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON."""
        plain = asdict(self)
        plain["matrices"] = [each.to_dict() for each in self.matrices]
        return {"kind": "file", **_lists(plain)}

    def text(self) -> str:
        """Return the report as one screen of aligned plain text."""
        chosen = _chosen(self.matrices)
        lines = [
            (
                f"{self.path}   {_bytes(self.file_bytes)}   "
                f"{self.num_cells:,} cells x {self.num_genes:,} genes"
            )
        ]
        if chosen is not None:
            about = "" if chosen.entries_are_exact else "about "
            lines[0] += f"   {about}{chosen.entries:,} non-zeros ({_filled(chosen)})"
        rows = [
            (
                each.location,
                f"{each.encoding} {each.dtype}",
                each.summary.text + ("   <- counts" if each is chosen_counts else ""),
            )
            for chosen_counts in [chosen if self.counts_location else None]
            for each in self.matrices
        ]
        lines += ["", "matrices", *_aligned(rows)]
        lines += _genes_text(self.genes, "genes (var)")
        empty = (
            "empty cells not known" if self.empty_cells is None else f"{self.empty_cells:,} empty"
        )
        lines += _obs_text(
            self.obs_columns, f"{self.duplicate_cell_names:,} duplicate names; {empty}"
        )
        for problem in self.problems:
            lines += ["", f"! {problem}"]
        if self.next_commands:
            lines += ["", f"store about {_bytes(self.store_bytes)}, {_duration(self.seconds)}"]
        return "\n".join(lines + _next_text(self.next_commands))


@dataclass(frozen=True, kw_only=True)
class StoreReport:
    """What `describe_store` found in a store.

    Attributes:
        path: the store.
        generation: the one described.
        num_cells: rows.
        num_genes: columns.
        num_entries: stored values.
        store_bytes: size of all files.
        value_kind: `counts` or `float`.
        count_type: of the counts as they are read.
        genes: the gene ids.
        obs_columns: the columns of obs.
        duplicate_cell_names: cell names that occur more than once.
        empty_cells: cells without a value.
        median_genes: per cell.
        median_sum: of the values of a cell.
        digest: of the manifest, which stands for every byte of the store.
        provenance: where the data came from.
        next_commands: what to type now.
    """

    path: str
    generation: int
    num_cells: int
    num_genes: int
    num_entries: int
    store_bytes: int
    value_kind: str
    count_type: str
    genes: GeneIds
    obs_columns: tuple[ObsColumn, ...]
    duplicate_cell_names: int
    empty_cells: int
    median_genes: float
    median_sum: float
    digest: str
    provenance: dict[str, Any]
    next_commands: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON."""
        return {"kind": "store", **_lists(asdict(self))}

    def text(self) -> str:
        """Return the report as one screen of aligned plain text."""
        filled = self.num_entries / max(self.num_cells * self.num_genes, 1)
        lines = [
            (
                f"{self.path}   store, generation {self.generation}   {_bytes(self.store_bytes)}   "
                f"{self.num_cells:,} cells x {self.num_genes:,} genes   {self.num_entries:,} "
                f"non-zeros ({filled:.2%})"
            ),
            "",
            (
                f"values  {self.value_kind} ({self.count_type}); median cell: {self.median_genes:,.0f} "
                f"genes, sum {self.median_sum:,.6g}"
            ),
            f"digest  {self.digest}",
            f"from    {_provenance_text(self.provenance)}",
        ]
        lines += _genes_text(self.genes, "genes (var)")
        names = f"{self.duplicate_cell_names:,} duplicate names; {self.empty_cells:,} empty"
        lines += _obs_text(self.obs_columns, names)
        return "\n".join(lines + _next_text(self.next_commands))


def check_file(path: str | Path) -> FileReport | StoreReport:
    """Explain a file: where its raw counts are, its genes and labels, and what to do next.

    Args:
        path: an `.h5ad` file, or a store folder.

    Returns:
        The report; `.text()` is one screen, `.to_dict()` plain JSON.

    Raises:
        MissingPathError: there is nothing at the path.
        InputDataError: it is neither a store nor a readable `.h5ad` file.
        CorruptStoreError: it is a damaged store.
    """
    from omics.data.store import open_store

    path = Path(path)
    if path.is_dir():
        return describe_store(open_store(path), shown_as=path)
    with open_source(path) as file:
        return _file_report(path, file)


def describe_store(store: CellStore, *, shown_as: Path | None = None) -> StoreReport:
    """Describe a store from its manifest, tables and stored statistics.

    Args:
        store: the store.
        shown_as: the path as the user gave it.
    """
    path = shown_as or store.path
    lengths, sums = store.lengths, store.row_sums()
    obs = store.obs.to_pandas()
    columns = tuple(_obs_columns(obs))
    genes = store.genes
    return StoreReport(
        path=str(path),
        generation=store.generation,
        num_cells=len(store),
        num_genes=store.shape[1],
        num_entries=store.num_entries,
        store_bytes=store.num_bytes,
        value_kind=store.value_kind,
        count_type=str(store.count_dtype),
        genes=_gene_ids(genes.ids.tolist(), tuple(genes.columns)),
        obs_columns=columns,
        duplicate_cell_names=int(obs.index.duplicated().sum()),
        empty_cells=int(np.count_nonzero(lengths == 0)),
        median_genes=float(np.median(lengths)) if len(lengths) else 0.0,
        median_sum=float(np.median(sums)) if len(sums) else 0.0,
        digest=store.digest,
        provenance=store.provenance,
        next_commands=(_split_command(str(path), columns),),
    )


# --- looking at a file -------------------------------------------------------------------------


def _file_report(path: Path, file: Source) -> FileReport:
    matrices = tuple(find_counts(file.matrices.values(), budget=SAMPLE_BYTES - _OFFSETS_BYTES))
    chosen = _chosen(matrices)
    has_counts = chosen is not None and chosen.summary.kind == "counts"
    problems = [f"{location}: {why}." for location, why in file.unreadable.items()]
    if not has_counts:
        problems.append(f"No raw counts. {no_counts_advice(list(matrices))}")
        problems += _lost_counts_hint(file)
    genes, obs = None, None
    try:
        obs = file.obs()
        if chosen is not None:
            var = file.var(chosen.location)
            genes = _gene_ids([str(name) for name in var.index], tuple(var.columns))
            problems += find_gene_problem(file, chosen.location, var)
    except InputDataError as error:
        problems.append(str(error))
    if genes is not None and genes.kind == "row numbers":
        problems.append("The genes have no names: the index of var is 0, 1, 2, ... Set their ids.")
    columns = () if obs is None else tuple(_obs_columns(obs))
    ready = has_counts and genes is not None and not genes.num_duplicates and obs is not None
    store_path = str(path.with_suffix(".store"))
    return FileReport(
        path=str(path),
        file_bytes=path.stat().st_size,
        num_cells=file.num_cells,
        num_genes=chosen.shape[1] if chosen is not None else file.num_genes,
        matrices=matrices,
        counts_location=chosen.location if chosen is not None and has_counts else None,
        genes=genes,
        obs_columns=columns,
        duplicate_cell_names=0 if obs is None else int(obs.index.duplicated().sum()),
        empty_cells=_empty_cells(file, chosen),
        store_bytes=_store_bytes(chosen, file),
        seconds=_seconds(chosen),
        problems=tuple(problems),
        next_commands=(
            f"omics-data convert {shlex.quote(str(path))} {shlex.quote(store_path)}",
            _split_command(store_path, columns),
        )
        if ready
        else (),
    )


def _chosen(matrices: tuple[Candidate, ...]) -> Candidate | None:
    return matrices[0] if matrices else None


def _lost_counts_hint(file: Source) -> list[str]:
    column = next((name for name in _COUNT_COLUMNS if name in file.obs_columns), None)
    if column is None:
        return []
    return [
        (
            f"The obs column {column!r} tells that there were counts before normalisation, but they "
            f"are not in this file: get them from the original one (before filtering and log1p)."
        )
    ]


def _empty_cells(file: Source, chosen: Candidate | None) -> int | None:
    if chosen is None or chosen.summary.kind == "unknown":
        return None
    return file.matrix(chosen.location).count_empty(_OFFSETS_BYTES)


def _store_bytes(chosen: Candidate | None, file: Source) -> int:
    if chosen is None:
        return 0
    gene_bytes = 2 if chosen.shape[1] <= 2**16 else 4
    # An offset and a sum per cell; a sum and a detection count per gene; the two tables.
    return chosen.entries * (gene_bytes + 1) + 16 * sum(chosen.shape) + file.table_bytes()


def _seconds(chosen: Candidate | None) -> float:
    if chosen is None:
        return 0.0
    dense = chosen.encoding == "dense"
    places = chosen.shape[0] * chosen.shape[1] if dense else chosen.entries
    return places / _RATES[chosen.encoding]


def _gene_ids(ids: list[str], columns: tuple[str, ...]) -> GeneIds:
    counted = {
        "Ensembl ids": sum(bool(_ENSEMBL.fullmatch(name)) for name in ids),
        "Ensembl ids with versions": sum(bool(_VERSIONED.fullmatch(name)) for name in ids),
        "Entrez ids": sum(bool(_ENTREZ.fullmatch(name)) for name in ids),
    }
    counted["gene symbols"] = len(ids) - sum(counted.values())
    kind = max(counted, key=lambda name: counted[name])
    # Spike-ins, antibodies and the like are a few per cent of many tables.
    kind = kind if counted[kind] >= 0.9 * len(ids) else "mixed"
    if len(ids) > 1 and ids == [str(number) for number in range(len(ids))]:
        kind = "row numbers"
    return GeneIds(
        kind=kind,
        examples=tuple(ids[:3]),
        num_duplicates=len(ids) - len(set(ids)),
        columns=tuple(str(name) for name in columns),
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


# --- words ---------------------------------------------------------------------------------------


def _lists(value: Any) -> Any:
    """Return plain JSON: tuples as lists."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "less than a second to convert"
    if seconds < 120:
        return f"about {seconds:.0f} s to convert"
    return f"about {seconds / 60:.0f} min to convert"


def _filled(matrix: Candidate) -> str:
    return f"{matrix.entries / max(matrix.shape[0] * matrix.shape[1], 1):.2%} filled"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return ["  none"]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return [f"  {line}".rstrip() for line in lines]


def _genes_text(genes: GeneIds | None, title: str) -> list[str]:
    if genes is None:
        return ["", title, "  cannot be read"]
    examples = ", ".join(genes.examples)
    columns = ", ".join(genes.columns) or "none"
    rows = [
        ("ids", f"{genes.kind} ({examples}), {genes.num_duplicates:,} duplicates"),
        ("columns", columns if len(columns) < 90 else columns[:87] + "..."),
    ]
    return ["", title, *_aligned(rows)]


def _obs_text(columns: tuple[ObsColumn, ...], names: str) -> list[str]:
    labels_first = sorted(columns, key=lambda each: not each.may_be_label)
    shown = [
        (
            each.name,
            each.type,
            f"{each.num_distinct:,} distinct",
            f"{each.num_missing:,} missing" if each.num_missing else "",
            "may be a label" if each.may_be_label else "",
        )
        for each in labels_first[:MAX_COLUMNS_SHOWN]
    ]
    rest = len(columns) - len(shown)
    more = [f"  and {rest} more columns"] if rest else []
    return ["", f"cells (obs): {names}", *_aligned(shown), *more]


def _provenance_text(provenance: dict[str, Any]) -> str:
    source, location = provenance.get("source"), provenance.get("location")
    if not isinstance(source, dict) or not location:
        return "not recorded"
    return f"{location} of {source.get('name')} ({source.get('format')})"


def _next_text(commands: tuple[str, ...]) -> list[str]:
    return ["", "next", *(f"  {command}" for command in commands)] if commands else []
