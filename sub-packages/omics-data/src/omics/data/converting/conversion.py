"""`convert`: sources of cells become one store of raw counts, streamed, or nothing is written.

- The place of the counts is found by looking at values, never at names alone, and every value is
  checked again as it streams by: a store made with the defaults holds raw counts.
- What is refused is refused before the long part begins: tables, gene ids and the output path of
  all sources are looked at first (`make_plan`).
- A fingerprint of every source goes into the provenance; a source that changes meanwhile is an
  error. What was interrupted goes on where it stopped, if nothing has changed.
- The module is not called `convert`: importing it would put it in the place of the function
  `omics.data.convert`.
- Memory is bounded by two blocks of a matrix and the cell tables (see `matrix_blocks`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omics.data.atomic_files import remove_path
from omics.data.converting.address_space import require_address_space
from omics.data.converting.cluster_conversion import parts_folder, write_with_cluster
from omics.data.converting.conversion_plan import ConversionPlan, make_plan
from omics.data.converting.counts_location import AUTO
from omics.data.converting.many_sources import write_sources
from omics.data.converting.source_listing import AnySource, list_sources
from omics.data.errors import UsageError
from omics.data.matching.gene_coverage import with_counts_kept
from omics.data.matching.gene_matching import GeneOptions
from omics.data.storage.generation_folder import refuse_foreign

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from omics.data.storage.store import CellStore


def convert(
    source: AnySource | Sequence[AnySource],
    store_path: str | Path,
    *,
    location: str = AUTO,
    genes: GeneOptions | None = None,
    allow_non_counts: bool = False,
    layout: str = "plain",
    rank_medians: Mapping[str, float] | None = None,
    overwrite: bool = False,
    resume: bool = True,
    prefix_names: bool = False,
    scheduler: str | None = None,
    source_options: Mapping[str, Any] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> CellStore:
    """Write the raw counts of sources, with their cell and gene tables, as one store.

    The cells of several sources follow one another in the order given (those of a folder in the
    order of their names). Their genes are matched (`GeneOptions`); their cell tables are put under
    one another by column names, with a further column `source` that names the source of a cell.

    Args:
        source: a file, a folder that is a source or holds sources, an address, a `SourceSpec`, or
            a sequence of these.
        store_path: the folder to create.
        location: `X`, `raw.X`, `layers/NAME`, or `auto`, the best place that holds raw counts, in
            every source.
        genes: how the genes of several sources come together, or those of one are changed.
        allow_non_counts: keep the values of `location` as they are, as float32; needs a location.
        layout: `plain` or `packed` (see `StoreWriter`).
        rank_medians: median by gene id; also store the genes of each cell by count / median.
        overwrite: replace a store at `store_path` (readers keep the one they opened).
        resume: go on with a conversion of the same sources and options that was killed, and make
            checkpoints for the next.
        prefix_names: make cell names `SOURCE:NAME`.
        scheduler: the address of a Dask scheduler whose workers convert the sources; they must see
            the sources and the folder of the store under the same paths.
        source_options: for the reader of every source.
        on_progress: called with the number of cells just written.

    Returns:
        The new store. Its `provenance` names each source (file name, size, fingerprint, location),
        how many cell names occur more than once, and what became of the genes.

    Raises:
        MissingPathError: there is nothing at a path.
        UsageError: options that do not go together.
        UnknownNameError: a source has no matrix at `location`.
        InputDataError: a source is damaged, holds no raw counts there, or its tables cannot be
            kept, or genes cannot be matched; the message says what was found instead.
        ExistingPathError: `store_path` exists and may not be replaced.
        StoreLockedError: another process is writing there.
        ResourceError: a limit of this process leaves less address space than a conversion takes.
        MissingExtraError: `scheduler` is given and Dask is not installed.
    """
    plan = plan_conversion(
        source,
        store_path,
        location=location,
        genes=genes,
        allow_non_counts=allow_non_counts,
        overwrite=overwrite,
        prefix_names=prefix_names,
        source_options=source_options,
    )
    return run_plan(
        plan,
        store_path,
        layout=layout,
        rank_medians=rank_medians,
        overwrite=overwrite,
        resume=resume,
        scheduler=scheduler,
        on_progress=on_progress,
    )


def plan_conversion(
    source: AnySource | Sequence[AnySource],
    store_path: str | Path,
    *,
    location: str = AUTO,
    genes: GeneOptions | None = None,
    allow_non_counts: bool = False,
    overwrite: bool = False,
    prefix_names: bool = False,
    source_options: Mapping[str, Any] | None = None,
) -> ConversionPlan:
    """Look at all sources and decide what `run_plan` will write; nothing is written here.

    Args:
        source: see `convert`, as all others.
        store_path: see `convert`.
        location: see `convert`.
        genes: see `convert`.
        allow_non_counts: see `convert`.
        overwrite: see `convert`.
        prefix_names: see `convert`.
        source_options: see `convert`.

    Raises:
        OmicsError: as `convert`.
    """
    require_address_space()
    refuse_foreign(Path(store_path), overwrite=overwrite)
    specs, skipped = list_sources(source, leave_out=Path(store_path))
    if allow_non_counts and location == AUTO and any(spec.location is None for spec in specs):
        raise UsageError(
            "Values that are not counts are kept only from a named place: give --counts X, "
            "--counts raw.X or --counts layers/NAME beside --allow-non-counts."
        )
    return make_plan(
        specs,
        location=location,
        storage="float" if allow_non_counts else "counts",
        genes=genes or GeneOptions(),
        source_options=source_options or {},
        prefix_names=prefix_names,
        skipped=skipped,
    )


def run_plan(
    plan: ConversionPlan,
    store_path: str | Path,
    *,
    layout: str = "plain",
    rank_medians: Mapping[str, float] | None = None,
    overwrite: bool = False,
    resume: bool = True,
    scheduler: str | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> CellStore:
    """Write what was planned.

    Args:
        plan: from `plan_conversion`.
        store_path: see `convert`, as all others.
        layout: see `convert`.
        rank_medians: see `convert`.
        overwrite: see `convert`.
        resume: see `convert`.
        scheduler: see `convert`.
        on_progress: see `convert`.

    Raises:
        OmicsError: as `convert`.
    """
    from omics.data.storage.store import open_store
    from omics.data.storage.store_writer import StoreWriter

    with StoreWriter(
        store_path,
        genes_frame=plan.genes,
        value_kind=plan.storage,
        layout=layout,
        rank_medians=rank_medians,
        overwrite=overwrite,
        resume_key=_resume_key(plan, layout, rank_medians) if resume else None,
    ) as writer:
        parts = parts_folder(writer.path)
        if scheduler is None:
            records = write_sources(
                plan.sources,
                writer,
                storage=plan.storage,
                resumable=resume,
                on_progress=on_progress,
            )
        else:
            records = write_with_cluster(
                plan, writer, scheduler=scheduler, resumable=resume, on_progress=on_progress
            )
        writer.finish(plan.obs, provenance=_provenance(plan, records))
        if parts.exists():  # Of this conversion, or of one on a cluster that was given up.
            remove_path(parts)
    return open_store(store_path)


def _resume_key(plan: ConversionPlan, layout: str, rank_medians: Mapping[str, float] | None) -> str:
    medians = None if rank_medians is None else sorted(rank_medians.items())
    text = json.dumps([plan.digest, layout, medians])
    return hashlib.sha256(text.encode()).hexdigest()


def _provenance(plan: ConversionPlan, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    described = [
        {"format": each.format_name, "name": each.file_name, **record["fingerprint"]}
        for each, record in zip(plan.sources, records, strict=True)
    ]
    provenance: dict[str, Any] = {"duplicate_cell_names": plan.duplicate_cell_names}
    if len(plan.sources) == 1:
        provenance |= {"source": described[0], "location": plan.sources[0].location}
    else:
        formats = {each.format_name for each in plan.sources}
        places = {each.location for each in plan.sources}
        provenance |= {
            "source": {
                "format": formats.pop() if len(formats) == 1 else "several formats",
                "name": f"{len(plan.sources)} sources",
            },
            "location": places.pop() if len(places) == 1 else "several places",
            "source_column": plan.source_column,
            "sources": [
                {"label": each.label, "location": each.location, "cells": each.num_cells, **known}
                for each, known in zip(plan.sources, described, strict=True)
            ],
        }
    if plan.match is not None:
        coverage = with_counts_kept(
            plan.match.coverage,
            [record["seen"] for record in records],
            [record["kept"] for record in records],
        )
        provenance["genes"] = {
            "coverage": [row.to_dict() for row in coverage],
            "notes": list(plan.notes),
        }
    return provenance
