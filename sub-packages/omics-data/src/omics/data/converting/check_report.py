"""What `check` found, and how it is said: one screen of plain text, or plain JSON.

- Names come from strangers' files: in text, control characters are shown as escapes (a terminal
  would obey them) and long names are cut. JSON keeps them whole.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omics.data.converting.counts_detection import Candidate
    from omics.data.matching.gene_ids import GeneIds

MAX_COLUMNS_SHOWN = 20
MAX_MATRICES_SHOWN = 12
MAX_SOURCES_SHOWN = 30
MAX_NAME = 48
MAX_PARAGRAPH = 1500


@dataclass(frozen=True, kw_only=True)
class ObsColumn:
    """A column of obs.

    Attributes:
        name: the column.
        type: of its values, as pandas calls it; empty where the table was not read.
        num_distinct: different values, missing ones not counted; None where it was not read.
        num_missing: cells without a value; None where it was not read.
        may_be_label: few enough classes, more than one.
    """

    name: str
    type: str
    num_distinct: int | None
    num_missing: int | None
    may_be_label: bool


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """What `check_file` found in a source.

    Attributes:
        path: the file, folder or address.
        format_name: what it is.
        file_bytes: its size; None for what is not on this machine.
        num_cells: rows of obs; None where telling needs the whole file.
        num_genes: genes of the matrix that would be converted; None likewise.
        matrices: every matrix with its verdict, the best place for counts first.
        counts_location: where the raw counts are; None when nowhere.
        evidence: what speaks for that, or what is where beside, a sentence each.
        genes: the gene ids; None when the table cannot be read.
        obs_columns: the columns of obs.
        tables_read: whether obs was read; a large one is described by its names only.
        duplicate_cell_names: cell names that occur more than once; None where obs was not read.
        empty_cells: cells without a stored value; None where that needs the whole matrix.
        store_bytes: estimated size of the store.
        seconds: estimated time to convert.
        problems: what stands in the way of a conversion, and remarks, one paragraph each.
        next_commands: what to type now; empty when the file cannot be converted as it is.
    """

    path: str
    format_name: str
    file_bytes: int | None
    num_cells: int | None
    num_genes: int | None
    matrices: tuple[Candidate, ...] = ()
    counts_location: str | None = None
    evidence: tuple[str, ...] = ()
    genes: GeneIds | None = None
    obs_columns: tuple[ObsColumn, ...] = ()
    tables_read: bool = False
    duplicate_cell_names: int | None = None
    empty_cells: int | None = None
    store_bytes: int = 0
    seconds: float = 0.0
    problems: tuple[str, ...] = ()
    next_commands: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON."""
        plain = asdict(self)
        plain["matrices"] = [each.to_dict() for each in self.matrices]
        return {"kind": "file", **_lists(plain)}

    def text(self) -> str:
        """Return the report as one screen of aligned plain text."""
        lines = [self._head()]
        if self.num_cells is not None:
            lines += ["", "matrices", *_aligned(self._matrix_rows())]
            more = len(self.matrices) - MAX_MATRICES_SHOWN
            lines += [f"  and {more} more"] if more > 0 else []
        lines += [f"  {printable(sentence)}" for sentence in self.evidence]
        if self.num_cells is not None:
            lines += _genes_text(self.genes, "genes (var)")
            lines += _obs_text(self.obs_columns, self._names_text())
        if self.obs_columns and not self.tables_read:
            lines.append("  (the table is too large for a look: names only)")
        for problem in self.problems:
            lines += ["", f"! {printable(problem, limit=MAX_PARAGRAPH)}"]
        if self.next_commands:
            lines += ["", f"store about {byte_text(self.store_bytes)}, {_duration(self.seconds)}"]
        return "\n".join(lines + _next_text(self.next_commands))

    def _head(self) -> str:
        size = "" if self.file_bytes is None else f"   {byte_text(self.file_bytes)}"
        head = f"{self.path}   {self.format_name}{size}"
        if self.num_cells is None:
            return f"{head}   size of the matrix not known"
        head += f"   {self.num_cells:,} cells x {self.num_genes:,} genes"
        if not self.matrices:
            return head
        chosen = self.matrices[0]
        about = "" if chosen.entries_are_exact else "about "
        filled = chosen.entries / max(chosen.shape[0] * chosen.shape[1], 1)
        return f"{head}   {about}{chosen.entries:,} non-zeros ({filled:.2%} filled)"

    def _matrix_rows(self) -> list[tuple[str, ...]]:
        return [
            (
                printable(each.location, limit=MAX_NAME),
                f"{each.encoding} {each.dtype}",
                printable(each.summary.text)
                + ("   <- counts" if each.location == self.counts_location else ""),
            )
            for each in self.matrices[:MAX_MATRICES_SHOWN]
        ]

    def _names_text(self) -> str:
        double, empty = self.duplicate_cell_names, self.empty_cells
        names = "names not read" if double is None else f"{double:,} duplicate names"
        return names + ("; empty cells not known" if empty is None else f"; {empty:,} empty")


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
        layout: `plain` or `packed`.
        has_rank_view: genes are also stored in the order of count / median.
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
    layout: str
    has_rank_view: bool
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
        ranked = ", with a rank view" if self.has_rank_view else ""
        lines = [
            (
                f"{self.path}   store, generation {self.generation}   "
                f"{byte_text(self.store_bytes)}   "
                f"{self.num_cells:,} cells x {self.num_genes:,} genes   {self.num_entries:,} "
                f"non-zeros ({filled:.2%})"
            ),
            "",
            (
                f"values  {self.value_kind} ({self.count_type}), {self.layout}{ranked}; median cell: {self.median_genes:,.0f} "
                f"genes, sum {self.median_sum:,.6g}"
            ),
            f"digest  {self.digest}",
            f"from    {printable(_provenance_text(self.provenance))}",
        ]
        lines += _genes_text(self.genes, "genes (var)")
        names = f"{self.duplicate_cell_names:,} duplicate names; {self.empty_cells:,} empty"
        lines += _obs_text(self.obs_columns, names)
        return "\n".join(lines + _next_text(self.next_commands))


@dataclass(frozen=True, kw_only=True)
class FolderReport:
    """What `check_file` found in a folder of sources.

    Attributes:
        path: the folder.
        sources: a report on each, in the order in which `convert` would take them.
        failures: sources that cannot be opened, `{path: why}`.
        skipped: files that are no sources.
        next_commands: what to type now; empty when one of them cannot be converted as it is.
    """

    path: str
    sources: tuple[FileReport, ...]
    failures: dict[str, str]
    skipped: tuple[str, ...]
    next_commands: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON."""
        return {
            "kind": "folder",
            "path": self.path,
            "sources": [each.to_dict() for each in self.sources],
            "failures": dict(self.failures),
            "skipped": list(self.skipped),
            "next_commands": list(self.next_commands),
        }

    def text(self) -> str:
        """Return the report as one screen of aligned plain text."""
        cells = sum(each.num_cells or 0 for each in self.sources)
        size = sum(each.file_bytes or 0 for each in self.sources)
        number = len(self.sources) + len(self.failures)
        rows = [
            (
                printable(each.path.removeprefix(self.path).lstrip("/"), limit=MAX_NAME),
                each.format_name,
                "" if each.num_cells is None else f"{each.num_cells:,} x {each.num_genes:,}",
                f"counts in {each.counts_location}" if each.counts_location else "no raw counts",
                each.genes.kind if each.genes is not None else "",
            )
            for each in self.sources[:MAX_SOURCES_SHOWN]
        ]
        lines = [
            f"{self.path}   folder of {number:,} sources   {byte_text(size)}   {cells:,} cells",
            "",
            *_aligned(rows),
        ]
        more = len(self.sources) - len(rows)
        lines += [f"  and {more:,} more"] if more > 0 else []
        for path, why in list(self.failures.items())[:5]:
            lines += ["", f"! {printable(path)}: {printable(why, limit=MAX_PARAGRAPH)}"]
        if len(self.failures) > 5:
            lines += ["", f"! {len(self.failures) - 5:,} more cannot be opened"]
        if self.skipped:
            lines += ["", f"{len(self.skipped):,} files are no sources"]
        return "\n".join(lines + _next_text(self.next_commands))


# --- words ---------------------------------------------------------------------------------------


def printable(text: str, *, limit: int | None = None) -> str:
    """Return text that is safe to show on a terminal.

    Args:
        text: from anywhere.
        limit: cut what is longer.
    """
    cut = text if limit is None or len(text) <= limit else f"{text[: limit - 3]}..."
    return "".join(each if each.isprintable() else _escaped(each) for each in cut)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "replace").decode("ascii")


def byte_text(size: float) -> str:
    """Return a number of bytes in the unit that fits it.

    Args:
        size: in bytes.
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _lists(value: Any) -> Any:
    """Return plain JSON: tuples as lists."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "less than a second to convert"
    if seconds < 120:
        return f"about {seconds:.0f} s to convert"
    return f"about {seconds / 60:.0f} min to convert"


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
        return ["", title, "  not read"]
    examples = ", ".join(printable(name, limit=MAX_NAME) for name in genes.examples)
    columns = printable(", ".join(genes.columns) or "none", limit=90)
    species = f"; {genes.species}" if genes.species else ""
    rows = [
        ("ids", f"{genes.kind} ({examples}), {genes.num_duplicates:,} duplicates{species}"),
        ("mito", f"{genes.num_mitochondrial:,} mitochondrial genes recognised"),
        ("columns", columns),
    ]
    if genes.num_versioned and genes.kind != "Ensembl ids with versions":
        rows.insert(1, ("versions", f"{genes.num_versioned:,} ids have one, the others not"))
    if genes.coverage is not None:
        found = genes.coverage
        share = found.found / max(found.listed, 1)
        missing = ", ".join(printable(name, limit=MAX_NAME) for name in found.missing)
        rows.append(
            (
                "list",
                f"{found.found:,} of {found.listed:,} listed genes ({share:.1%}, by {found.matched_by})"
                + (f"; missing: {missing}" if missing else ""),
            )
        )
    return ["", title, *_aligned(rows)]


def _obs_text(columns: tuple[ObsColumn, ...], names: str) -> list[str]:
    labels_first = sorted(columns, key=lambda each: not each.may_be_label)
    shown = [
        (
            printable(each.name, limit=MAX_NAME),
            each.type,
            "" if each.num_distinct is None else f"{each.num_distinct:,} distinct",
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
