"""`match_genes`: one gene table for many sources, and where every gene of each source goes in it.

- Genes are matched by id, in this order: the id column, versions, aliases, orthologs, the list.
- Nothing is guessed: ids that differ in the case of letters only are reported and kept apart, an
  alias of several genes is not renamed, other kinds of ids are matched through a column of var or
  a table, or refused.
- Several genes of a source that come to one gene are summed, never put side by side; ids that a
  source repeats word for word are an error unless a policy is chosen.
- Versions of Ensembl ids are taken off when asked, or when the sources hold one gene under ids
  that differ in the version only.
- Equal tables (the same object, as `ConversionPlan` makes sure) are worked out once.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from omics.data.errors import InputDataError, UnknownNameError, UsageError, nearest
from omics.data.genes import (
    SYMBOL_COLUMNS,
    GeneTable,
    gene_digest,
    gene_id_system,
    without_version,
)
from omics.data.matching.gene_columns import joined_column
from omics.data.matching.gene_coverage import GeneCoverage
from omics.data.matching.gene_tables import GeneList, PairTable, read_gene_list, read_pairs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]
Join = Literal["union", "intersection", "list"]
Repeated = Literal["error", "first", "sum"]

JOINS = ("union", "intersection", "list")
REPEATED = ("error", "first", "sum")
ENSEMBL_COLUMNS = (
    "ensembl_id", "ensembl", "gene_ids", "gene_id", "ensembl_ids", "ensembl_gene_id", "feature_id",
    "accession",
)  # fmt: skip
_NUM_EXAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneOptions:
    """How the genes of sources are brought together.

    Attributes:
        join: `union` keeps the genes of any source, `intersection` those of all, `list` exactly
            those of `keep`, found or not, in its order.
        id_column: the column of var that holds the ids; sources without it use their index.
        strip_versions: take the versions off Ensembl ids; None does so when sources differ only
            so.
        aliases: older or other names of genes: a table with the columns `alias` and `gene`.
        orthologs: a table with the columns `from` and `to`; sources with more genes of `from`
            than of `to` are mapped, and their genes without an ortholog left out.
        many_to_one: use orthologs where several genes go to one, too (they are summed); a gene
            with several orthologs is always left out, since a count cannot be divided.
        keep: the genes to keep; None keeps all.
        repeated: several genes of a source that come to one: `sum` adds their counts, `first`
            keeps the first and leaves the others out, `error` refuses. None is `error` for ids
            that the source itself repeats, and `sum` for those made equal here.
    """

    join: Join = "union"
    id_column: str | None = None
    strip_versions: bool | None = None
    aliases: PairTable | None = None
    orthologs: PairTable | None = None
    many_to_one: bool = False
    keep: GeneList | None = None
    repeated: Repeated | None = None

    def __post_init__(self) -> None:
        """Refuse values that are none of the choices."""
        if self.join not in JOINS:
            raise UsageError(f"join is {self.join!r}.{nearest(str(self.join), JOINS)}")
        if self.repeated is not None and self.repeated not in REPEATED:
            raise UsageError(
                f"repeated is {self.repeated!r}.{nearest(str(self.repeated), REPEATED)}"
            )
        if self.join == "list" and self.keep is None:
            raise UsageError("join='list' needs the list: give the genes with `keep`.")
        if self.many_to_one and self.orthologs is None:
            raise UsageError("many_to_one is about orthologs: give their table with `orthologs`.")

    @property
    def change_one_source(self) -> bool:
        """Whether the genes of a single source would be changed by these options."""
        return self != GeneOptions(join=self.join) or self.join == "list"

    def resolved(self) -> GeneOptions:
        """Return the same options with the tables themselves in the place of their files.

        Raises:
            MissingPathError: a file is not there.
            InputDataError: a file is no such table.
        """
        return replace(
            self,
            aliases=_held(self.aliases, ("alias", "gene")),
            orthologs=_held(self.orthologs, ("from", "to")),
            keep=None if self.keep is None else tuple(read_gene_list(self.keep)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain JSON, tables included."""
        return json.loads(json.dumps(asdict(self.resolved())))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> GeneOptions:
        """Return the options of `to_dict`.

        Args:
            record: from `to_dict`.

        Raises:
            InputDataError: it is something else.
        """
        try:
            return cls(**record).resolved()
        except (TypeError, ValueError, AttributeError) as error:
            raise InputDataError(f"These are no options for matching genes: {error}.") from None


def _held(table: PairTable | None, columns: tuple[str, str]) -> PairTable | None:
    return None if table is None else tuple(read_pairs(table, columns))


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneMatch:
    """One gene table, and the way of every source into it.

    Attributes:
        genes: the common table; its index holds the ids.
        maps: for each source int32 [its genes], the position of each gene in the common table,
            -1 for those left out.
        coverage: one row per source.
        notes: what a person should know, one sentence each.
    """

    genes: pd.DataFrame
    maps: tuple[Array, ...]
    coverage: tuple[GeneCoverage, ...]
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """The sha256 (hex) of the ids and of all maps."""
        found = hashlib.sha256(gene_digest(self.genes.index).encode())
        seen: dict[int, bytes] = {}
        for each in self.maps:
            if id(each) not in seen:
                seen[id(each)] = hashlib.sha256(each.astype("<i4").tobytes()).digest()
            found.update(seen[id(each)])
        return found.hexdigest()


def match_genes(
    tables: Mapping[str, pd.DataFrame], options: GeneOptions = GeneOptions()
) -> GeneMatch:
    """Bring the gene tables of sources together.

    The common table holds, in the order of first appearance (or of the list), the ids, and the
    columns of the sources. Text of a gene is that of the first source which has it; a column of
    numbers or flags, mostly statistics of one experiment, is kept only where all sources that have
    a gene agree about it. A source whose index held symbols and was matched by another id keeps
    them as the column `symbol`.

    Args:
        tables: var of each source by its name; the index holds the gene ids as text.
        options: how to match.

    Returns:
        The table, the maps and what became of the genes of each source.

    Raises:
        InputDataError: the sources use different kinds of ids, share no gene, or repeat ids.
        UnknownNameError: no source has the id column.
        MissingPathError: there is no such table of aliases, orthologs or genes.
    """
    distinct = {id(frame): frame for frame in tables.values()}
    label = {id(frame): name for name, frame in reversed(list(tables.items()))}
    first = {key: _Named(label[key], frame) for key, frame in distinct.items()}
    matcher = _Matcher(list(first.values()), options)
    matcher.choose_ids()
    matcher.rename()
    space = matcher.space()
    maps = matcher.maps(space)
    placed = dict(zip(first, maps, strict=True))
    _check_overlap(matcher.named, maps, options=options)
    genes = matcher.common_table(space, maps)
    users = np.zeros(len(space), np.int64)
    times = Counter(id(frame) for frame in tables.values())
    for key, places in placed.items():
        users[np.unique(_kept(places))] += times[key]
    rows = {key: _coverage(first[key], placed[key], users=users, space=space) for key in first}
    coverage = tuple(replace(rows[id(frame)], source=name) for name, frame in tables.items())
    return GeneMatch(
        genes=genes,
        maps=tuple(placed[id(frame)] for frame in tables.values()),
        coverage=coverage,
        notes=(*matcher.notes, *_case_notes(space)),
    )


@dataclass(slots=True)
class _Named:
    """A gene table with the ids it is matched by."""

    name: str
    frame: pd.DataFrame
    ids: list[str] = field(default_factory=list)
    column: str | None = None

    def __post_init__(self) -> None:
        self.ids = [str(each) for each in self.frame.index]

    def text_column(self, column: str) -> list[str]:
        """Return a column as ids; genes without a value keep the id of their row."""
        values = self.frame[column]
        missing = values.isna().to_numpy()
        texts = [str(each).strip() for each in values]
        return [
            own if gone or not text else text
            for own, text, gone in zip(self.ids, texts, missing, strict=True)
        ]


class _Matcher:
    """The steps from ids as they stand in the sources to positions in one table."""

    def __init__(self, named: list[_Named], options: GeneOptions) -> None:
        self.named = named
        self.options = options
        self.notes: list[str] = []

    # --- which ids -------------------------------------------------------------------------------

    def choose_ids(self) -> None:
        """Take the ids from the index or a column, the same kind for every source."""
        if self.options.id_column is not None:
            self._take_column(self.options.id_column)
        elif len({gene_id_system(each.ids) for each in self.named}) > 1:
            self._find_columns()
        for each in self.named:
            _refuse_unusable(each)
        if self.options.repeated in {None, "error"}:
            problems = [text for each in self.named for text in _repeats(each)]
            if problems:
                raise InputDataError(" ".join(problems))

    def _take_column(self, column: str) -> None:
        having = [each for each in self.named if column in each.frame.columns]
        if not having:
            known = sorted({str(name) for each in self.named for name in each.frame.columns})
            raise UnknownNameError(
                f"No source has the gene column {column!r}.{nearest(column, known)}"
            )
        for each in having:
            each.column, each.ids = column, each.text_column(column)
        wanted = gene_id_system(having[0].ids)
        for each in self.named:
            if gene_id_system(each.ids) != wanted and not self._has_tables:
                raise self._different(having[0], each)

    @property
    def _has_tables(self) -> bool:
        return self.options.aliases is not None or self.options.orthologs is not None

    def _find_columns(self) -> None:
        """Find one kind of ids that every source has, in its index or a column."""
        for system, columns in (
            ("Ensembl ids", ENSEMBL_COLUMNS),
            ("gene symbols", SYMBOL_COLUMNS),
        ):
            found = [_column_of(each, system, columns) for each in self.named]
            if all(column is not None for column in found):
                for each, column in zip(self.named, found, strict=True):
                    if column:
                        each.column, each.ids = column, each.text_column(column)
                        self.notes.append(
                            f"{each.name}: genes are matched by the column {column!r} ({system})."
                        )
                return
        if not self._has_tables:
            other = next(
                each
                for each in self.named
                if gene_id_system(each.ids) != gene_id_system(self.named[0].ids)
            )
            raise self._different(self.named[0], other)

    def _different(self, one: _Named, other: _Named) -> InputDataError:
        return InputDataError(
            f"{one.name} names its genes by {gene_id_system(one.ids)} ({_examples(one.ids)}), "
            f"{other.name} by {gene_id_system(other.ids)} ({_examples(other.ids)}). Name a column "
            "of var that both have (--gene-id-column), or give a table from one to the other "
            "(--gene-aliases)."
        )

    # --- renaming --------------------------------------------------------------------------------

    def rename(self) -> None:
        """Apply versions, aliases and orthologs."""
        if self._strips_versions():
            for each in self.named:
                each.ids = [without_version(name) for name in each.ids]
        if self.options.aliases is not None:
            self._apply_aliases(read_pairs(self.options.aliases, ("alias", "gene")))
        if self.options.orthologs is not None:
            self._apply_orthologs(read_pairs(self.options.orthologs, ("from", "to")))

    def _strips_versions(self) -> bool:
        if self.options.strip_versions is not None or len(self.named) == 1:
            return bool(self.options.strip_versions)
        known = {name for each in self.named for name in each.ids}
        if len({without_version(name) for name in known}) == len(known):
            return False
        self.notes.append(
            "The sources hold genes under Ensembl ids of different versions: versions are left off."
        )
        return True

    def _apply_aliases(self, pairs: list[tuple[str, str]]) -> None:
        current = {gene for _, gene in pairs}
        meant: dict[str, str] = {}
        several: set[str] = set()
        for alias, gene in pairs:
            if meant.setdefault(alias, gene) != gene:
                several.add(alias)
        rename = {a: b for a, b in meant.items() if a not in current and a not in several}
        unclear = sorted({name for each in self.named for name in each.ids if name in several})
        if unclear:
            self.notes.append(
                f"{len(unclear):,} names stand for several genes in the table of aliases "
                f"({_examples(unclear)}): they are not renamed."
            )
        for each in self.named:
            each.ids = [rename.get(name, name) for name in each.ids]

    def _apply_orthologs(self, pairs: list[tuple[str, str]]) -> None:
        pairs = list(dict.fromkeys(pairs))
        targets, sources = Counter(b for _, b in pairs), Counter(a for a, _ in pairs)
        used = {
            a: b
            for a, b in pairs
            if sources[a] == 1 and (targets[b] == 1 or self.options.many_to_one)
        }
        for each in self.named:
            before = sum(name in sources for name in each.ids)
            after = sum(name in targets for name in each.ids)
            if not before and not after:
                raise InputDataError(
                    f"No gene of {each.name} ({_examples(each.ids)}) is in the table of orthologs "
                    f"({_examples(list(sources))} to {_examples(list(targets))}). Give a table of "
                    "these ids, or name the column that holds them (--gene-id-column)."
                )
            if before > after:
                self.notes.append(f"{each.name}: genes are replaced by their orthologs.")
                each.ids = [used.get(name, "") for name in each.ids]

    # --- the common table ------------------------------------------------------------------------

    def space(self) -> list[str]:
        """Return the ids of the common table; an empty id is a gene left out."""
        keep = None if self.options.keep is None else read_gene_list(self.options.keep)
        if self.options.join == "list" and keep is not None:
            return keep
        found: dict[str, int] = {}
        for each in self.named:
            for name in dict.fromkeys(each.ids):
                found[name] = found.get(name, 0) + 1
        found.pop("", None)
        if self.options.join == "intersection":
            found = {name: users for name, users in found.items() if users == len(self.named)}
        if keep is not None:
            return [name for name in keep if name in found]
        return list(found)

    def maps(self, space: list[str]) -> list[Array]:
        """Return for each table the position of its genes in the space."""
        import pandas as pd

        index = pd.Index(space, dtype=object)
        found = []
        for each in self.named:
            places = index.get_indexer(pd.Index(each.ids, dtype=object)).astype(np.int32)
            again = pd.Series(places).duplicated().to_numpy() & (places >= 0)
            if again.any() and self.options.repeated == "first":
                places[again] = -1
            elif again.any() and self.options.repeated == "error":
                raise InputDataError(
                    f"{np.count_nonzero(again):,} genes of {each.name} come to the same id as "
                    f"another one of it ({_examples([each.ids[i] for i in np.flatnonzero(again)])})."
                    " Add their counts up (--repeated-genes sum) or keep the first."
                )
            found.append(places)
        return found

    def common_table(self, space: list[str], maps: list[Array]) -> pd.DataFrame:
        """Return var of the common table."""
        import pandas as pd

        GeneTable(space)
        names = dict.fromkeys(str(name) for each in self.named for name in each.frame.columns)
        parts: dict[str, list[tuple[Array, pd.Series[Any]]]] = {name: [] for name in names}
        for each, places in zip(self.named, maps, strict=True):
            rows = _first_rows(places)
            frame = each.frame
            if each.column and not set(SYMBOL_COLUMNS) & set(frame.columns):
                index_ids = [str(name) for name in frame.index]
                if gene_id_system(index_ids) == "gene symbols":
                    frame = frame.assign(symbol=index_ids)
                    parts.setdefault("symbol", [])
            for name in frame.columns:
                parts[str(name)].append((places[rows], frame[name].iloc[rows]))
        columns = {}
        for name, values in parts.items():
            column, note = joined_column(name, values, len(space))
            self.notes += [note] if note else []
            if column is not None:
                columns[name] = column.array
        index_names = {each.frame.index.name for each in self.named}
        index = pd.Index(
            space, dtype=object, name=index_names.pop() if len(index_names) == 1 else None
        )
        if index.name in columns:
            index.name = None
        return pd.DataFrame(columns, index=index)


def _column_of(named: _Named, system: str, known: Sequence[str]) -> str | None:
    """Return "" for the index, or the column of var that holds ids of this kind; None if none."""
    if gene_id_system(named.ids) == system:
        return ""
    columns = [name for name in known if name in named.frame.columns]
    if system == "Ensembl ids":  # Unlike symbols, these show in the values.
        columns += [name for name in named.frame.columns if name not in columns]
    for name in columns:
        values = named.frame[name]
        if values.dtype.kind in "biufMm" or not len(values):
            continue
        if gene_id_system([str(each) for each in values.dropna()]) == system:
            return str(name)
    return None


def _refuse_unusable(named: _Named) -> None:
    for row, name in enumerate(named.ids):
        if not name or any(ord(character) < 32 for character in name):
            raise InputDataError(
                f"Gene {row} of {named.name} has the id {name[:80]!r}: ids must not be empty or "
                "hold control characters. Mend var of that source."
            )


def _repeats(named: _Named) -> list[str]:
    if len(set(named.ids)) == len(named.ids):
        return []
    seen: set[str] = set()
    repeated = list(dict.fromkeys(each for each in named.ids if each in seen or seen.add(each)))  # type: ignore[func-returns-value]
    where = "index of var" if named.column is None else f"gene column {named.column!r}"
    return [
        (
            f"{len(repeated):,} gene ids in the {where} of {named.name} occur more than once "
            f"({_examples(repeated)}). Add their counts up with --repeated-genes sum, keep the first "
            "of each with --repeated-genes first, or match by another column (--gene-id-column)."
        )
    ]


def _examples(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:_NUM_EXAMPLES])
    return shown + (", ..." if len(names) > _NUM_EXAMPLES else "") if names else "none"


def _kept(places: Array) -> Array:
    return places[places >= 0]


def _first_rows(places: Array) -> Array:
    """Return the rows that are the first of their place in the common table."""
    rows = np.flatnonzero(places >= 0)
    _, first = np.unique(places[rows], return_index=True)
    return rows[first]


def _check_overlap(named: list[_Named], maps: list[Array], *, options: GeneOptions) -> None:
    """Refuse sources that share no gene with any other, or with the list."""
    if not maps:
        return
    size = max((int(each.max(initial=-1)) for each in maps), default=-1) + 1
    users = np.zeros(size, np.int64)
    for places in maps:
        users[np.unique(_kept(places))] += 1
    alone = 1 if len(maps) > 1 and options.join != "list" else 0
    for position, (each, places) in enumerate(zip(named, maps, strict=True)):
        if not len(each.ids) or (users[_kept(places)] > alone).any():
            continue
        if options.keep is not None and not len(_kept(places)):
            wanted = read_gene_list(options.keep)
            raise InputDataError(
                f"No gene of {each.name} ({_examples(each.ids)}) is in the list of genes to keep "
                f"({_examples(wanted)}), or none that the other sources have. Are they the same "
                "kind of ids?"
            )
        if len(maps) == 1:
            raise InputDataError(f"No gene of {each.name} is left: none has an ortholog.")
        other = named[0 if position else 1]
        raise InputDataError(
            f"{each.name} ({_examples(each.ids)}) shares no gene with {other.name} "
            f"({_examples(other.ids)})"
            + (" or any other source" if len(named) > 2 else "")
            + ". Match them by another column (--gene-id-column), or give a table of aliases "
            "(--gene-aliases) or orthologs (--orthologs); or convert them apart."
        )


def _coverage(named: _Named, places: Array, *, users: Array, space: list[str]) -> GeneCoverage:
    kept = _kept(places)
    before = np.array([str(each) for each in named.frame.index], dtype=object)[places >= 0]
    after = np.array(space, dtype=object)[kept]
    return GeneCoverage(
        source=named.name,
        genes=len(places),
        matched=len(kept),
        shared=int(np.count_nonzero(users[kept] > 1)),
        renamed=int(np.count_nonzero(before != after)),
        merged=len(kept) - len(np.unique(kept)),
        left_out=len(places) - len(kept),
    )


def _case_notes(space: list[str]) -> list[str]:
    first: dict[str, str] = {}
    variants = []
    for name in space:
        other = first.setdefault(name.casefold(), name)
        if other != name:
            variants.append(f"{other} / {name}")
    if not variants:
        return []
    return [
        (
            f"{len(variants):,} pairs of genes differ in the case of letters only "
            f"({', '.join(variants[:_NUM_EXAMPLES])}): they are kept apart. If they are the same, "
            "say so with a table of aliases."
        )
    ]
