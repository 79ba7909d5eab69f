"""`convert`: an `.h5ad` file becomes a store of raw counts, streamed, or nothing is written.

- The place of the counts is found by looking at values, never at names alone, and every value is
  checked again as it streams by: a store made with the defaults holds raw counts.
- What is refused is refused before the long part begins: tables, gene ids and the output path
  are looked at first.
- A digest of the source goes into the provenance; a source that changes meanwhile is an error.
- The module is not called `convert`: importing it would put it in the place of the function
  `omics.data.convert`.
- Memory is bounded by a block of the matrix and the cell table (see `matrix_blocks`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omics.data.counts_detection import Candidate, find_counts
from omics.data.errors import InputDataError, UsageError
from omics.data.sources.registry import open_source

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from omics.data.sources.protocol import Source, ValueStorage
    from omics.data.store import CellStore

AUTO = "auto"


def convert(
    source: str | Path,
    store_path: str | Path,
    *,
    location: str = AUTO,
    allow_non_counts: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> CellStore:
    """Write the raw counts of an `.h5ad` file, with its cell and gene tables, as a store.

    Args:
        source: the file.
        store_path: the folder to create.
        location: `X`, `raw.X`, `layers/NAME`, or `auto`, the best place that holds raw counts.
        allow_non_counts: keep the values of `location` as they are, as float32; needs a location.
        overwrite: replace a store at `store_path` (readers keep the one they opened).
        on_progress: called with the number of cells just written.

    Returns:
        The new store. Its `provenance` names the source (file name, size, sha256), the location
        and how many cell names occur more than once.

    Raises:
        MissingPathError: there is no such file.
        UsageError: the source is a folder, or `allow_non_counts` comes without a location.
        UnknownNameError: the file has no matrix at `location`.
        InputDataError: the file is damaged, holds no raw counts there, or its tables cannot be
            kept; the message says what was found instead.
        ExistingPathError: `store_path` exists and may not be replaced.
        StoreLockedError: another process is writing there.
    """
    from omics.data.store import open_store
    from omics.data.store_writer import StoreWriter

    if allow_non_counts and location == AUTO:
        raise UsageError(
            "Values that are not counts are kept only from a named place: give --counts X, "
            "--counts raw.X or --counts layers/NAME beside --allow-non-counts."
        )
    path = Path(source)
    with open_source(path) as file:
        location = _choose(file, location, allow_non_counts=allow_non_counts)
        matrix = file.matrix(location)
        storage: ValueStorage = "float" if allow_non_counts else "counts"
        genes, obs = file.var(location), file.obs()
        for problem in find_gene_problem(file, location, genes):
            raise InputDataError(problem)
        before = file.stamp()
        provenance: dict[str, Any] = {
            "source": {"format": file.format_name, "name": path.name, **file.fingerprint()},
            "location": location,
            "duplicate_cell_names": int(obs.index.duplicated().sum()),
        }
        with StoreWriter(
            store_path,
            genes_frame=genes,
            value_kind=storage,
            overwrite=overwrite,
            provenance=provenance,
        ) as writer:
            for block in matrix.blocks(storage, scratch=writer.path):
                writer.append(*block)
                if on_progress is not None:
                    on_progress(len(block[0]) - 1)
            if file.stamp() != before:
                raise InputDataError(f"{path} changed while it was read; convert it again.")
            writer.finish(obs)
    return open_store(store_path)


def _choose(file: Source, location: str, *, allow_non_counts: bool) -> str:
    """Return the location to convert, or raise saying what the file holds instead."""
    if location != AUTO:
        matrix = file.matrix(location)
        (candidate,) = find_counts([matrix])
        # What a sample could not show, the streaming checks will.
        if allow_non_counts or candidate.summary.kind in {"counts", "empty", "unknown"}:
            return matrix.location
        elsewhere = [each for each in find_counts(file.matrices.values()) if _is_counts(each)]
        raise InputDataError(
            f"{matrix.location} of {file.name} holds {candidate.summary.text}, not raw counts. "
            + _advice(matrix.location, elsewhere)
        )
    candidates = find_counts(file.matrices.values())
    if candidates and _is_counts(candidates[0]):
        return candidates[0].location
    raise InputDataError(no_counts_message(file, candidates))


def _is_counts(candidate: Candidate) -> bool:
    return candidate.summary.kind == "counts"


def _advice(location: str, elsewhere: list[Candidate]) -> str:
    if elsewhere:
        return f"Raw counts are in {elsewhere[0].location}: use --counts {elsewhere[0].location}."
    return (
        f"Give the file with raw counts, or keep these values as they are with --counts {location} "
        f"--allow-non-counts."
    )


def no_counts_message(file: Source, candidates: list[Candidate]) -> str:
    """Explain that no matrix of a file shows raw counts, and what each holds instead.

    Args:
        file: the open source.
        candidates: what `find_counts` found in it.

    Returns:
        One paragraph.
    """
    found = [f"{each.location} holds {each.summary.text}" for each in candidates]
    found += [f"{location} cannot be read ({why})" for location, why in file.unreadable.items()]
    missing = " and ".join(
        name
        for name, there in (
            ("raw.X", "raw.X" in file.matrices),
            ("layers", any(each.startswith("layers/") for each in file.matrices)),
        )
        if not there
    )
    absent = f" (the file has no {missing})" if missing else ""
    return (
        f"No raw counts in {file.name}: {'; '.join(found)}{absent}. {no_counts_advice(candidates)}"
    )


def no_counts_advice(candidates: list[Candidate]) -> str:
    """Say what to do about a file without raw counts.

    Args:
        candidates: what `find_counts` found in it.
    """
    unseen = [each.location for each in candidates if each.summary.kind == "unknown"]
    if unseen:
        return f"If {unseen[0]} does hold counts, say so with --counts {unseen[0]}."
    if not candidates:
        return "Give the file with raw counts."
    return _advice(candidates[0].location, [])


def find_gene_problem(file: Source, location: str, genes: pd.DataFrame) -> list[str]:
    """Say why the ids of a gene table cannot tell genes apart.

    Args:
        file: the open source.
        location: of the matrix.
        genes: its gene table.

    Returns:
        One paragraph if ids occur more than once, else nothing.
    """
    repeated = genes.index[genes.index.duplicated()].unique()
    if not len(repeated):
        return []
    table = "raw.var" if location == "raw.X" else "var"
    examples = ", ".join(repr(name) for name in repeated[:3])
    unique = [
        name for name in genes.columns if genes[name].is_unique and genes[name].dtype.kind == "O"
    ]
    advice = (
        f"The column {unique[0]!r} is unique: make it the index."
        if unique
        else "Make them unique, for instance with adata.var_names_make_unique()."
    )
    return [
        (
            f"{len(repeated):,} gene ids of {table} of {file.name} occur more than once ({examples}). "
            f"A model must know which gene a count belongs to. {advice}"
        )
    ]
