"""`prepare`: from a source of cells to a folder that a training reads, in one call.

- The steps are those of `convert`, `qc`, `split` and highly variable genes, in the one order that lets
  nothing of the test cells into the choice of genes: genes, then cells are left out by fixed limits, the
  cells are split, and variable genes are those of the training cells.
- The folder appears whole or not at all. Steps that were done are kept beside it, in `.NAME.preparing`,
  when the process is stopped: the same call goes on from there; another call begins anew.
- Memory is that of the steps: blocks of cells and the tables. On disk the cells are there up to three
  times while it runs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.command_line import no_progress
from omics.data.errors import (
    ExistingPathError,
    InputDataError,
    MissingPathError,
    UnknownNameError,
    UsageError,
)
from omics.data.published_datasets import locate_dataset
from omics.data.quality.thresholds import Thresholds
from omics.data.splits import DEFAULT_FRACTIONS, leakage, make_split

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omics.data.command_line import Show
    from omics.data.converting.conversion_plan import ConversionPlan
    from omics.data.quality.quality_table import QualityTable
    from omics.data.splits import SplitTable
    from omics.data.storage.store import CellStore

Array = np.ndarray[Any, np.dtype[Any]]

STORE, SPLIT, QC, GENES, SUMMARY = (
    "cells.store", "split.parquet", "qc", "genes.parquet", "prepare.json",
)  # fmt: skip
DATASET = "dataset:"
RAW = "raw.store"
GENES_KIND = "omics_prepared_genes"
_MEASURED = ("n_cells_by_counts", "total_counts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What `prepare` does.

    Attributes:
        counts: where the counts of the source are: `X`, `raw.X`, `layers/NAME` or `auto`.
        allow_non_counts: keep the values of that place as they are, though they are no counts.
        min_gene_counts: counts that a gene has at least, over all cells; None for no limit.
        min_gene_cells: cells that a gene is found in at least.
        thresholds: of the cells, measured on the genes that are left.
        batch: obs column within which relative thresholds are taken.
        fractions: shares of training, validation and test cells.
        stratify: see `make_split`.
        group: see `make_split`.
        column: see `make_split`.
        hvg: highly variable genes to keep, found in the training cells; 0 keeps all genes.
        hvg_flavor: `seurat_v3` or `seurat`.
        seed: of the split.
    """

    counts: str = "auto"
    allow_non_counts: bool = False
    min_gene_counts: float | None = None
    min_gene_cells: int | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    batch: str | None = None
    fractions: tuple[float, ...] = DEFAULT_FRACTIONS
    stratify: str | None = None
    group: str | None = None
    column: str | None = None
    hvg: int = 0
    hvg_flavor: str = "seurat_v3"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no later step would notice."""
        for name in ("min_gene_counts", "min_gene_cells", "hvg", "seed"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value >= 0):
                raise UsageError(f"{name} is {value}; it must be a number from 0.")
        if self.thresholds.min_cells is not None:
            raise UsageError("Thresholds.min_cells is about genes: give min_gene_cells instead.")
        if self.hvg and self.allow_non_counts:
            raise UsageError(
                "Highly variable genes are found on counts, and allow_non_counts keeps other values: "
                "leave one of them out."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON."""
        plain = asdict(self)
        return {**plain, "thresholds": self.thresholds.to_dict(), "fractions": [*self.fractions]}


def prepare(
    source: str | Path,
    folder: str | Path,
    settings: Preparation | None = None,
    *,
    overwrite: bool = False,
    show: Show | None = None,
) -> dict[str, Any]:
    """Make the folder that a training reads: cells, split, and the tables of what was left out.

    The folder holds `cells.store` (the cells and genes that are kept), `split.parquet` (of these
    cells), `qc` (the table of all cells, see `QualityTable`), `genes.parquet` (all genes: why each is
    kept or not) and `prepare.json` (settings, numbers and digests).

    Args:
        source: what `convert` reads, a store, or `dataset:NAME` for the user's copy of a published
            dataset.
        folder: to create.
        settings: what is done; None leaves nothing out and splits.
        overwrite: replace what is at `folder`.
        show: shows how far a step is; None shows nothing.

    Returns:
        What `prepare.json` holds.

    Raises:
        ExistingPathError: `folder` exists and may not be replaced.
        MissingPathError: there is no source, or no folder to create the folder in.
        InputDataError: the source holds no counts, or no gene or cell is left.
        UsageError: settings that do not go together.
        UnknownNameError: an obs column that does not exist.
        StoreLockedError: another process prepares the same folder.
        MissingExtraError: the extra `qc` is not installed.
    """
    from omics.data.atomic_files import (
        fsync_tree,
        put_folder,
        remove_path,
        write_bytes,
        writer_lock,
    )

    target, chosen = Path(folder), settings or Preparation()
    if target.exists() and not overwrite:
        raise ExistingPathError(f"{target} exists; choose another path or add --overwrite.")
    if not target.absolute().parent.is_dir():
        raise MissingPathError(f"There is no folder {target.absolute().parent} to write to.")
    work = target.with_name(f".{target.name}.preparing")
    start = _Start.of(source, work, chosen)
    work.mkdir(exist_ok=True)
    with writer_lock(work):
        steps = _Steps(start, work, chosen, show or no_progress)
        try:
            summary = steps.run()
        except (InputDataError, UnknownNameError, UsageError):
            remove_path(work)  # The same call would fail again.
            raise
        text = json.dumps(summary, indent=1, sort_keys=True, allow_nan=False)
        write_bytes(steps.done / SUMMARY, text.encode() + b"\n")
        fsync_tree(steps.done)
        put_folder(steps.done, target, overwrite=overwrite)
        remove_path(work)
    return summary


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """Where the cells come from: a store as it is, or a plan of how a source becomes one."""

    name: str
    digest: str
    store: CellStore | None = None
    plan: ConversionPlan | None = None

    @classmethod
    def of(cls, source: str | Path, work: Path, settings: Preparation) -> _Start:
        """Look at a source; nothing is written."""
        from omics.data.converting.conversion import plan_conversion
        from omics.data.storage.store import open_store
        from omics.data.storage.store_format import CURRENT_NAME

        text = str(source)
        if text.startswith(DATASET):
            source = locate_dataset(text.removeprefix(DATASET))
        name = str(source).rstrip("/").rsplit("/", maxsplit=1)[-1]
        if (Path(source) / CURRENT_NAME).exists():
            if settings.counts != "auto" or settings.allow_non_counts:
                raise UsageError(
                    f"{source} is a store, which holds one matrix: leave --counts and "
                    "--allow-non-counts out."
                )
            store = open_store(source)
            return cls(name=name, digest=store.digest, store=store)
        plan = plan_conversion(
            source,
            work / RAW,
            location=settings.counts,
            allow_non_counts=settings.allow_non_counts,
            overwrite=True,
        )
        return cls(name=name, digest=plan.digest, plan=plan)


class _Steps:
    """The steps and their results: in `work` what is needed meanwhile, in `done` what stays."""

    def __init__(self, start: _Start, work: Path, settings: Preparation, show: Show) -> None:
        self.start = start
        self.work = work
        self.done = work / "done"
        self.settings = settings
        self.show = show

    def run(self) -> dict[str, Any]:
        """Do what is not done yet, and return the summary."""
        self._begin()
        source = self._source_store()
        genes, kept = self._genes(source)
        measured = source
        if len(kept) < source.shape[1]:
            every = np.arange(len(source), dtype=np.int64)
            measured = self._written(self.work / "genes.store", source, every, kept)
        table = self._quality(measured)
        cells = measured
        if len(table.rows) < len(measured):
            cells = self._written(self.work / "kept.store", measured, table.rows, None)
        split = self._split(cells)
        found = self._variable_genes(cells, split)
        found["keep"] = found.get("highly_variable", np.ones(len(kept), np.bool_))
        every = np.arange(len(cells), dtype=np.int64)
        store = self._written(self.done / STORE, cells, every, np.flatnonzero(found["keep"]))
        # The same cells in the same order: the split is one of this store, too.
        split = replace(split, store_digest=store.digest, gene_digest=store.genes.digest)
        split.save(self.done / SPLIT, overwrite=True)
        self._save_genes(source, genes, kept, found)
        return self._summary(source, table, split, store)

    def _begin(self) -> None:
        """Go on with what an earlier call of the same kind has left; remove what another one left."""
        from omics.data.atomic_files import LOCK_NAME, remove_path, write_bytes

        text = json.dumps([self.start.digest, self.settings.to_dict()], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest().encode()
        note = self.work / "key"
        if not note.exists() or note.read_bytes() != key:
            for path in self.work.iterdir():
                if path.name != LOCK_NAME:
                    remove_path(path)
            write_bytes(note, key)
        self.done.mkdir(exist_ok=True)

    def _source_store(self) -> CellStore:
        from omics.data.converting.conversion import run_plan
        from omics.data.storage.store import open_store

        if self.start.store is not None:
            return self.start.store
        assert self.start.plan is not None
        if _is_store(self.work / RAW):
            return open_store(self.work / RAW)
        with self.show("converting", self.start.plan.num_cells) as advance:
            return run_plan(self.start.plan, self.work / RAW, on_progress=advance)

    def _written(self, path: Path, store: CellStore, rows: Array, genes: Array | None) -> CellStore:
        """Return some cells and genes of a store as a store, written unless it is there."""
        from omics.data.quality.filtered_store import write_filtered_store
        from omics.data.storage.store import open_store

        if _is_store(path):
            return open_store(path)
        reason = {"prepared_from": self.start.name, **self.settings.to_dict()}
        with self.show(f"writing {path.name}", len(rows)) as advance:
            return write_filtered_store(
                store, rows, path, genes=genes, reason=reason, on_progress=advance
            )

    def _genes(self, store: CellStore) -> tuple[dict[str, Array], Array]:
        """Return the measures of all genes, and int64, the places of those that meet the limits."""
        from omics.data.quality.cell_metrics import measure_cells

        with self.show("measuring genes", len(store)) as advance:
            measured = measure_cells(store, on_progress=advance).genes
        keep = np.ones(store.shape[1], np.bool_)
        limits = (self.settings.min_gene_cells, self.settings.min_gene_counts)
        for name, limit in zip(_MEASURED, limits, strict=True):
            if limit is not None:
                keep &= measured[name] >= limit
        if not keep.any():
            raise InputDataError(
                f"None of the {len(keep):,} genes of {self.start.name} is left: the largest total of "
                f"a gene is {float(measured['total_counts'].max(initial=0)):g}, and the most cells "
                f"with one {int(measured['n_cells_by_counts'].max(initial=0))}. Lower the limits."
            )
        return measured, np.flatnonzero(keep)

    def _quality(self, store: CellStore) -> QualityTable:
        from omics.data.quality.quality_assessment import assess_quality
        from omics.data.quality.quality_table import load_quality

        if (self.done / QC).exists():
            return load_quality(self.done / QC, store)
        with self.show("measuring cells", len(store)) as advance:
            table = assess_quality(
                store,
                thresholds=self.settings.thresholds,
                batch=self.settings.batch,
                seed=self.settings.seed,
                on_progress=advance,
            )
        if not len(table.rows):
            raise InputDataError(
                f"None of the {len(table):,} cells of {self.start.name} is left: the limits "
                f"{self.settings.thresholds.to_dict()} leave all of them out. Loosen them."
            )
        table.save(self.done / QC, figures=False)
        return table

    def _split(self, store: CellStore) -> SplitTable:
        settings = self.settings
        return make_split(
            store,
            fractions=settings.fractions,
            stratify=settings.stratify,
            group=settings.group,
            column=settings.column,
            seed=settings.seed,
        )

    def _variable_genes(self, store: CellStore, split: SplitTable) -> dict[str, Array]:
        """Return what was found of each gene in the training cells; nothing if it is not asked for."""
        from omics.data.quality.variable_genes import highly_variable_genes

        if not self.settings.hvg:
            return {}
        return highly_variable_genes(
            store, self.settings.hvg, rows=split.rows("train"), flavor=self.settings.hvg_flavor
        )

    def _save_genes(
        self, store: CellStore, measured: Mapping[str, Array], kept: Array, found: dict[str, Array]
    ) -> None:
        """Write a row for every gene of the source: what was measured of it, and whether it is kept.

        Of genes that the limits leave out nothing else is known: NaN, and False.
        """
        from omics.data.checked_table import write_checked_table

        columns: dict[str, Array] = {
            "gene": store.genes.ids.astype(object),
            "symbol": store.genes.symbols.astype(object),
            **{name: measured[name] for name in _MEASURED},
        }
        columns["meets_limits"] = np.isin(np.arange(len(store.genes)), kept)
        for name, values in found.items():
            is_flag = values.dtype == bool
            column = (
                np.zeros(len(store.genes), bool) if is_flag else np.full(len(store.genes), np.nan)
            )
            column[kept] = values
            columns[name] = column
        record = {"source": self.start.name, "gene_digest": store.genes.digest}
        write_checked_table(self.done / GENES, columns, record, kind=GENES_KIND)

    def _summary(
        self, source: CellStore, table: QualityTable, split: SplitTable, store: CellStore
    ) -> dict[str, Any]:
        found = leakage(store, split, group=self.settings.group)
        return {
            "source": self.start.name,
            "source_digest": self.start.digest,
            "settings": self.settings.to_dict(),
            "source_cells": len(source),
            "source_genes": source.shape[1],
            "cells": len(store),
            "genes": store.shape[1],
            "genes_meeting_limits": len(table.genes["gene"]),
            "empty_cells": int((store.lengths == 0).sum()),
            "split": split.sizes,
            "leakage": found.to_dict(),
            "store_digest": store.digest,
            "gene_digest": store.genes.digest,
        }


def _is_store(path: Path) -> bool:
    from omics.data.storage.store_format import CURRENT_NAME

    return (path / CURRENT_NAME).exists()
